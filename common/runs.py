"""The run folder and what surrounds the compiled training loop: arguments, logs, progress, summary.

runs/{env_id}__{exp_name}__{seed}__{time}/
  args.json       every argument; `script` names the algorithm's file
  versions.json   git commit, versions of the libraries, device
  scalars.csv     global_step,wall_time,seed,tag,value: everything that TensorBoard shows, flushed at every log
  events.*        TensorBoard (one file per seed, in seed_*/ where there are several)
  summary.json    at the end: evaluations, speed, memory
  agent.msgpack   at the end: the agents, for --evaluate and `common.evaluation.load_agent`
"""

import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import struct
from tensorboardX import SummaryWriter
from tqdm import tqdm

from common import UserError, envs, evaluation

ZERO_IS_FINE = {"seed", "learning_starts", "tau", "alpha", "gamma", "target_entropy_scale"}
ZERO_IS_FINE |= {"kl_multiplier"}


# ---------------------------------------------------------------------------------------------------------- arguments


def check(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def check_arguments(args: Any) -> None:
    """Refuses numbers that make no sense in any algorithm. Raises UserError."""
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), "--" + field.name.replace("_", "-")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        check(np.isfinite(value), f"{flag} must be finite, not {value}")
        if field.name in ZERO_IS_FINE:
            check(value >= 0, f"{flag} must not be negative, not {value}")
        else:
            check(value > 0, f"{flag} must be positive, not {value}")
    for name in ("gamma", "tau"):
        check(getattr(args, name, 0.0) <= 1.0, f"--{name} must not be above 1")
    check(args.seed + args.num_seeds < 2**31, "--seed must be below 2^31")
    check(
        args.log_frequency % args.num_envs == 0,
        f"--log-frequency {args.log_frequency} must be a multiple of --num-envs {args.num_envs}",
    )
    for name in ("total_timesteps", "eval_frequency"):
        value = getattr(args, name)
        check(
            value % args.log_frequency == 0,
            f"--{name.replace('_', '-')} {value} must be a multiple of --log-frequency {args.log_frequency} "
            f"(the training loop runs in compiled chunks of that length)",
        )


def start(Args: type, main: Callable, evaluate: Callable) -> None:
    """Runs a script: parses the command line, then trains or evaluates. Bad input is one line and exit status 2."""
    envs.prefer_headless_rendering()
    sys.modules.setdefault(Path(sys.argv[0]).stem, sys.modules["__main__"])  # one copy of the script, not two
    try:
        args = tyro.cli(Args, description=sys.modules["__main__"].__doc__)
        if args.evaluate is not None:
            stored, module = evaluation.read_run(args.evaluate)
            check(
                Path(module.__file__).samefile(sys.modules["__main__"].__file__),
                f"{args.evaluate!r} was made by {module.__name__}.py: evaluate it with that script",
            )
            stored = dataclasses.replace(stored, eval_episodes=args.eval_episodes)
            evaluate(args.evaluate, stored, args)
        else:
            main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ---------------------------------------------------------------------------------------------------------------- run


@struct.dataclass
class StepLog:
    """What one training step of one agent reports: its N environments' episodes and its metrics by tag."""

    done: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    metrics: dict[str, jax.Array]

    @classmethod
    def of(cls, time_step: envs.TimeStep, metrics: dict[str, jax.Array]) -> "StepLog":
        return cls(time_step.done, time_step.episode_return, time_step.episode_length, metrics)


def scan_agents(train_step: Callable, states: Any, steps: jax.Array) -> tuple[Any, Any]:
    """`lax.scan` over `steps` `[T]` of train_step(state, step) for all agents; leaves of `states` are `[S, ..]`.

    Several agents are vmapped. A single one is not: on a CPU a batch axis of one costs 15 % of an update.
    Returns the new states `[S, ..]` and the logs `[T, S, ..]`.
    """
    if jax.tree.leaves(states)[0].shape[0] > 1:
        return jax.lax.scan(jax.vmap(train_step, in_axes=(0, None)), states, steps)
    state, logs = jax.lax.scan(train_step, jax.tree.map(lambda x: x.squeeze(0), states), steps)
    return jax.tree.map(lambda x: x[None], state), jax.tree.map(lambda x: x[:, None], logs)


class Run:
    """One training run and its folder. Use as a context manager; the comments of `main` in a script show the order.

    Args:
      args: the script's arguments (frozen dataclass).
      env: the training environments.
      learning_starts: metrics and steps/s count from this environment step on.

    Attributes:
      folder: the run's folder.
      seeds: `[S]`; keys: typed PRNG keys `[S]`, one per seed.

    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(self, args: Any, env: envs.GymnasiumEnv, learning_starts: int = 0):
        self.args, self.env, self.learning_starts = args, env, learning_starts
        self.seeds = args.seed + np.arange(args.num_seeds)
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds))
        seeds = f"{args.seed}" if args.num_seeds == 1 else f"{args.seed}-{self.seeds[-1]}"
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{args.env_id}__{args.exp_name}__{seeds}__{stamp}".replace("/", "-").replace(":", "-")
        self.folder = _new_folder(Path(args.runs_folder), name)
        script = Path(sys.modules[type(args).__module__].__file__).stem
        _write_json(self.folder / "args.json", {"script": script, **dataclasses.asdict(args)})
        self.versions = versions()
        _write_json(self.folder / "versions.json", self.versions)
        if args.track:
            _start_wandb(args, name)
        self.csv = (self.folder / "scalars.csv").open("a", buffering=1)
        self.csv.write("global_step,wall_time,seed,tag,value\n")
        self.writers = [
            SummaryWriter(str(self.folder if args.num_seeds == 1 else self.folder / f"seed_{seed}"))
            for seed in self.seeds
        ]
        self.begin = time.time()
        self.evaluations: list[dict[str, np.ndarray]] = []
        self.last_return = float("nan")
        self.compile_seconds = 0.0
        self.learning_seconds, self.learning_steps = 0.0, 0
        self.progress: Progress | None = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception) -> None:
        if self.progress:
            self.progress.close()
        self.csv.close()
        for writer in self.writers:
            writer.close()
        self.env.close()

    def header(self, parameters: Any, buffer: int = 0) -> None:
        """Says what is about to run. `parameters`: the policy's; `buffer`: bytes of replay per seed."""
        count = sum(x.size for x in jax.tree.leaves(parameters)) // self.args.num_seeds
        facts = [
            f"{self.args.env_id} (obs {self.env.observation_size}, actions {self.env.action_size})",
            f"{self.args.exp_name} seeds {self.seeds[0]}..{self.seeds[-1]}"
            if self.args.num_seeds > 1
            else f"{self.args.exp_name} seed {self.seeds[0]}",
            f"policy {count:,} parameters",
        ]
        if steps := getattr(self.args, "num_denoising_steps", None):
            facts.append(f"K = {steps} denoising steps")
        if buffer:
            facts.append(f"replay {buffer / 1e9:.2f} GB per seed")
        facts.append(f"{self.versions['device']}")
        facts.append(f"jax {self.versions['jax']}, mujoco {self.versions['mujoco']}")
        self.say(" | ".join(facts))
        self.say(f"folder {self.folder}")

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def compile(self, function: Callable, args: Any, env: Any, *arguments: Any) -> Callable:
        """Compiles a chunk ahead of time, so that compilation is measured and no chunk contains it."""
        begin = time.time()
        compiled = function.lower(args, env, *arguments).compile()
        self.compile_seconds += time.time() - begin
        return compiled

    def chunks(self) -> Iterator[int]:
        """The environment step at which each chunk begins."""
        self.progress = Progress(self.args.total_timesteps)
        for step in range(0, self.args.total_timesteps, self.args.log_frequency):
            self.chunk_begin = time.time()
            yield step

    def log(self, step: int, log: StepLog) -> int:
        """Writes what a chunk that began at `step` reports, leaves `[T, S, ..]`; returns the step at its end.

        Waits for the chunk, so that the time measured is the chunk's.
        """
        log = jax.device_get(log)
        if self.env.error:
            raise self.env.error
        seconds = time.time() - self.chunk_begin
        end = step + self.args.log_frequency
        if step >= self.learning_starts:
            self.learning_seconds += seconds
            self.learning_steps += self.args.log_frequency
        for t, s, n in np.argwhere(log.done):
            at = step + (t + 1) * self.args.num_envs
            self.last_return = float(log.episode_return[t, s, n])
            self.scalar(at, s, "charts/episodic_return", self.last_return)
            self.scalar(at, s, "charts/episodic_length", float(log.episode_length[t, s, n]))
        steps = step + self.args.num_envs * np.arange(log.done.shape[0])
        learned = steps >= self.learning_starts
        for s in range(len(self.seeds)):
            if learned.any():
                for tag, values in log.metrics.items():
                    self.scalar(end, s, tag, float(values[learned, s].mean(dtype=np.float64)))
            self.scalar(end, s, "charts/SPS", self.args.log_frequency / seconds)
        self.progress.update(end, self.last_return)
        return end

    def log_evaluation(self, step: int, results: dict[str, dict[str, np.ndarray]]) -> None:
        """Writes an evaluation (see `evaluation.Evaluator`)."""
        self.evaluations.append({policy: result["return"].mean(axis=1) for policy, result in results.items()})
        for policy, result in results.items():
            for s in range(len(self.seeds)):
                self.scalar(step, s, f"eval/episodic_return_{policy}", float(result["return"][s].mean()))
                self.scalar(step, s, f"eval/episodic_length_{policy}", float(result["length"][s].mean()))
                for tag, values in result["metrics"].items():
                    self.scalar(step, s, tag, float(values[s]))

    def scalar(self, step: int, agent: int, tag: str, value: float) -> None:
        """Writes one value of agent number `agent`."""
        self.csv.write(f"{step},{time.time():.3f},{self.seeds[agent]},{tag},{value!r}\n")
        self.writers[agent].add_scalar(tag, value, step)

    def finish(self, agents: Any, evaluator: evaluation.Evaluator) -> None:
        """Saves the agents and the summary; records the video if asked to."""
        evaluation.write_agents(self.folder / "agent.msgpack", agents)
        if not self.evaluations:
            self.log_evaluation(self.args.total_timesteps, evaluator(agents, self.args.total_timesteps))
        per_seed = {}
        for s, seed in enumerate(self.seeds):
            rows = per_seed[str(seed)] = {}
            for policy in evaluation.POLICIES:
                values = [float(e[policy][s]) for e in self.evaluations]
                rows[f"{policy}_last"] = values[-1]
                rows[f"{policy}_mean_of_last_10"] = float(np.mean(values[-10:]))
        rate = self.learning_steps / self.learning_seconds if self.learning_seconds else None
        _write_json(
            self.folder / "summary.json",
            {
                "env_id": self.args.env_id,
                "script": self.args.exp_name,
                "total_timesteps": self.args.total_timesteps,
                "evaluations": len(self.evaluations),
                "episodic_return": per_seed,
                "steps_per_second": rate,
                "compile_seconds": self.compile_seconds,
                "wall_seconds": time.time() - self.begin,
                "updates": self._num_updates(),
                "peak_memory_bytes": peak_memory(),
            },
        )
        self.progress.close()
        for seed, rows in per_seed.items():
            values = ", ".join(f"{policy} {rows[f'{policy}_last']:.1f}" for policy in evaluation.POLICIES)
            self.say(f"seed {seed}: last evaluation {values}")
        speed = f"{rate:.0f} steps/s per seed, " if rate else ""
        self.say(f"{speed}compiled in {self.compile_seconds:.1f} s; all of it in {self.folder}")
        if self.args.capture_video:
            evaluation.record_video(self.folder)

    def _num_updates(self) -> int:
        per_step = getattr(self.args, "num_updates", None)
        if per_step is None:
            return 0
        learning = max(self.args.total_timesteps - self.learning_starts, 0)
        return int(-(-learning // self.args.num_envs) * per_step)


class Progress:
    """A live bar on a terminal, a plain line every five per cent elsewhere."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.first, self.begin = total, done, time.time()
        self.next_line = done + total / 20
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def update(self, step: int, last_return: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"return {last_return:.1f}", refresh=False)
            self.bar.update(step - self.bar.n)
        elif step >= self.next_line or step == self.total:
            self.next_line += self.total / 20
            rate = (step - self.first) / (time.time() - self.begin)
            left = datetime.timedelta(seconds=round((self.total - step) / rate))
            print(
                f"{step:>9,} / {self.total:,} steps, {rate:5.0f} steps/s, last return {last_return:9.2f}, {left} left",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def versions() -> dict[str, Any]:
    """Commit, versions, device and threads of this process."""
    root = Path(__file__).resolve().parent.parent

    def git(*command):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
            return done.stdout.strip() if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            return None

    status = git("status", "--porcelain", "--untracked-files=no")
    packages = ("jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": f"{jax.devices()[0].platform} {jax.devices()[0].device_kind}",
        "threads": int(os.environ.get("NPROC") or len(os.sched_getaffinity(0))),
    }


def peak_memory() -> int:
    """Peak bytes in use: the accelerator's where there is one, else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _new_folder(parent: Path, name: str) -> Path:
    try:
        for suffix in ("", *(f"-{i}" for i in range(2, 100))):
            folder = parent / (name + suffix)
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if not parent.is_dir():
                    raise
        raise OSError(errno.EEXIST, "too many runs with this name")
    except OSError as error:
        raise UserError(f"cannot make a folder in {str(parent)!r}: {error.strerror}") from None


def _write_json(path: Path, content: Any) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    beside.replace(path)


def _start_wandb(args: Any, name: str) -> None:
    try:
        import wandb
    except ImportError:
        raise UserError("--track needs Weights & Biases: pip install '.[track]'") from None
    wandb.init(
        project=args.wandb_project_name,
        entity=args.wandb_entity,
        name=name,
        config=dataclasses.asdict(args),
        sync_tensorboard=True,
    )
