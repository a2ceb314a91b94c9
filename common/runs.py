"""The run folder and what surrounds the compiled training loop: arguments, logs, progress, summary.

runs/{env_id}__{exp_name}__{seed}__{time}/
  args.json       every argument; `script` names the algorithm's file
  versions.json   git commit, versions of the libraries, device
  scalars.csv     global_step,wall_time,seed,tag,value: everything that TensorBoard shows, flushed at every log
  events.*        TensorBoard (one file per seed and start, in seed_*/ where there are several seeds)
  checkpoints/    the last two states of the whole run, for --resume (see `common.checkpoints`)
  agent.msgpack   with every checkpoint: the agents, for --evaluate and `common.evaluation.load_agent`
  summary.json    at the end: evaluations, speed, memory
  nan_*.npz       the state of a seed that was stopped because a number was not finite
  lock            held by the process that trains here
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import struct
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from common import UserError, checkpoints, envs, evaluation

ZERO_IS_FINE = {
    "seed",
    "checkpoint_frequency",
    "learning_starts",
    "tau",
    "alpha",
    "gamma",
    "target_entropy_scale",
    "kl_multiplier",
    "gae_lambda",
    "ent_coef",
    "vf_coef",
}

# What --resume may change: how long, and what is logged and kept. An algorithm may fix more of it by a property
# `fixed_on_resume`, a dictionary from field to reason.
MAY_CHANGE = {
    "total_timesteps",
    "log_frequency",
    "eval_frequency",
    "checkpoint_frequency",
    "capture_video",
    "track",
    "wandb_project_name",
    "wandb_entity",
}


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


class RunFolderError(Exception):
    """The run's folder can no longer be written. The scripts print it as one line and exit with status 1."""


def start(Args: type, main: Callable, evaluate: Callable) -> None:
    """Runs a script: parses the command line, then trains or evaluates.

    Exit status: 0 finished, 1 the run's folder can no longer be written, 2 bad input, 3 a seed was stopped because a
    number was not finite, 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    envs.prefer_headless_rendering()
    sys.modules.setdefault(Path(sys.argv[0]).stem, sys.modules["__main__"])  # one copy of the script, not two
    try:
        args = parse(Args, sys.argv[1:])
        if args.evaluate is not None:
            stored = dataclasses.replace(read_run(args.evaluate), eval_episodes=args.eval_episodes)
            evaluate(args.evaluate, stored, args)
        else:
            main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def parse(Args: type, words: list[str]) -> Any:
    """The arguments of a command line. With --resume those stored in the run's folder, changed as far as they may be.

    Raises UserError.
    """
    description = sys.modules["__main__"].__doc__
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--resume")
    try:
        run = finder.parse_known_args(words)[0].resume
    except argparse.ArgumentError:
        run = None  # --resume without a folder: the real parser says so
    if run is None or "--help" in words or "-h" in words:
        return tyro.cli(Args, description=description, args=words)
    stored = dataclasses.replace(read_run(run), resume=run)
    args = tyro.cli(Args, description=description, default=stored, args=words)
    check(args.evaluate is None, "--resume and --evaluate exclude each other")
    reasons = getattr(stored, "fixed_on_resume", {})
    for field in dataclasses.fields(args):
        flag, old, new = field.name.replace("_", "-"), getattr(stored, field.name), getattr(args, field.name)
        if old != new and (field.name not in MAY_CHANGE or field.name in reasons):
            because = f" ({reasons[field.name]})" if field.name in reasons else ""
            raise UserError(f"--{flag} {new} conflicts with {run!r}, which was begun with {old}{because}")
    return args


def read_run(run: str) -> Any:
    """The arguments stored in a run folder of this script. Raises UserError."""
    stored, module = evaluation.read_run(run)
    check(
        Path(module.__file__).samefile(sys.modules["__main__"].__file__),
        f"{run!r} was made by {module.__name__}.py: use that script",
    )
    return stored


# ---------------------------------------------------------------------------------------------------------------- run


@struct.dataclass
class StepLog:
    """What one training step of one agent reports: its N environments' episodes and its metrics by tag.

    `finite` is false where an environment returned an observation or a reward that is not a finite number.
    """

    done: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    finite: jax.Array
    metrics: dict[str, jax.Array]

    @classmethod
    def of(cls, time_step: envs.TimeStep, metrics: dict[str, jax.Array]) -> "StepLog":
        obs = jnp.isfinite(time_step.obs) & jnp.isfinite(time_step.final_obs)
        finite = obs.all(axis=-1) & jnp.isfinite(time_step.reward)
        return cls(time_step.done, time_step.episode_return, time_step.episode_length, finite, metrics)


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
    """One training run and its folder. Use as a context manager; `main` of a script shows the order.

    Args:
      args: the script's arguments (frozen dataclass). With `resume` the run goes on in that folder.
      env: the training environments.
      learning_starts: metrics and steps/s count from this environment step on.

    Attributes:
      folder: the run's folder.
      seeds: `[S]`; keys: typed PRNG keys `[S]`, one per seed.
      step: environment steps taken.
      stopped: by index of a seed that was stopped because a number was not finite, what happened.

    Raises:
      UserError: the folder cannot be made, or another process trains in it.
    """

    def __init__(self, args: Any, env: envs.GymnasiumEnv, learning_starts: int = 0):
        self.args, self.env, self.learning_starts = args, env, learning_starts
        self.seeds = args.seed + np.arange(args.num_seeds)
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds))
        self.versions = versions()
        if args.track and importlib.util.find_spec("wandb") is None:
            raise UserError("--track needs Weights & Biases: pip install '.[track]'")
        if args.resume is None:
            seeds = f"{args.seed}" if args.num_seeds == 1 else f"{args.seed}-{self.seeds[-1]}"
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            name = f"{args.env_id}__{args.exp_name}__{seeds}__{stamp}".replace("/", "-").replace(":", "-")
            self.folder = _new_folder(Path(args.runs_folder), name)
        else:
            self.folder = Path(args.resume)
        self.script = Path(sys.modules[type(args).__module__].__file__).stem
        self.step = 0
        self.checkpoints = checkpoints.Checkpoints(
            self.folder, on_done=lambda state: evaluation.write_agents(self.folder / "agent.msgpack", state.agent)
        )
        self._lock = _lock(self.folder)
        if args.resume is None:
            with self._writing():
                self._write_args()
                _write_json(self.folder / "versions.json", self.versions)
        self.wandb = _start_wandb(args, self.folder) if args.track else None
        self.csv: Any = None
        self.events: list[EventsWriter] = []
        self.begin = time.time()
        # What a checkpoint keeps of these is in `_progress_so_far`.
        self.evaluations: list[dict[str, list[float]]] = []
        self.stopped: dict[int, dict[str, Any]] = {}
        self.last_return = float("nan")
        self.learning_seconds, self.learning_steps = 0.0, 0
        self.wall_seconds, self.checkpoint_seconds = 0.0, 0.0
        self.compile_seconds = 0.0
        self.progress: Progress | None = None
        self.signals = Signals(self.say)

    def __enter__(self) -> "Run":
        self.signals.install()
        return self

    def __exit__(self, *exception) -> None:
        if self.progress:
            self.progress.close()
        for file in (self.csv, *self.events):
            with contextlib.suppress(OSError):  # a full disk was reported before
                if file:
                    file.close()
        with contextlib.suppress(OSError):
            _cut_torn_line(self.folder / "scalars.csv")
        with contextlib.suppress(Exception):
            self.checkpoints.wait()
        self.env.close()
        self.signals.remove()
        os.close(self._lock)

    def restore(self, state: Any) -> Any:
        """Opens the logs. With --resume returns the state of the last intact checkpoint, without it `state` as it is.

        Raises:
          UserError: no checkpoint is intact, or the checkpoint does not fit the arguments.
        """
        restored = None
        jax.block_until_ready(state)  # its environments are reset on the host
        if self.args.resume is not None:
            self._compare_versions()
            restored = self.checkpoints.restore(state, self.say)
        log_bytes = None
        if restored is not None:
            state, host, arrays = restored
            self.step, log_bytes = host["step"], host["scalars_bytes"]
            for name, value in host["run"].items():
                setattr(self, name, value)
            self.stopped = {int(agent): what for agent, what in host["run"]["stopped"].items()}
            check(
                self.step % self.args.log_frequency == 0,
                f"--log-frequency {self.args.log_frequency} must divide the checkpoint's step {self.step}",
            )
            check(
                self.step <= self.args.total_timesteps,
                f"--total-timesteps {self.args.total_timesteps} is below the checkpoint's step {self.step}",
            )
            why = self.env.restore_host(host["env"], arrays)
            if why is not None:
                keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, self.step)
                env_state, obs = jax.jit(jax.vmap(self.env.reset))(keys)
                state = state.replace(env_state=env_state, obs=obs)
                if hasattr(state, "discounted_return"):
                    state = state.replace(discounted_return=jnp.zeros_like(state.discounted_return))
                self.say(f"the state of {self.args.env_id} cannot be saved ({why}): it begins a new episode")
        if self.args.resume is not None:
            self.say(f"resumed at step {self.step:,}" if restored else "no checkpoint yet: starts from the beginning")
        with self._writing():
            if self.args.resume is not None:
                self._write_args()  # with what was changed
                self._add_versions()
            if restored is not None:  # it may have been killed after this checkpoint, before its agents
                self.checkpoints.on_done(state)
            self._open_logs(log_bytes)
        return state

    def _write_args(self) -> None:
        stored = {"script": self.script, **dataclasses.asdict(self.args), "resume": None}
        _write_json(self.folder / "args.json", stored)

    def _open_logs(self, log_bytes: int | None) -> None:
        path = self.folder / "scalars.csv"
        if self.args.resume is not None and path.exists():
            _cut_scalars(path, log_bytes, self.step if self.checkpoints.step is not None else -1)
        self.csv = path.open("a", buffering=1)
        if self.csv.tell() == 0:
            self.csv.write(SCALARS_HEADER)
        for seed in self.seeds:
            folder = self.folder if self.args.num_seeds == 1 else self.folder / f"seed_{seed}"
            folder.mkdir(exist_ok=True)
            self.events.append(EventsWriter(str(folder / "events")))
            if self.args.resume is not None:
                # TensorBoard drops what an earlier file has from this step on.
                purge = self.step + 1 if self.checkpoints.step is not None else 0
                self.events[-1].write_event(Event(step=purge, file_version="brain.Event:2"))
                self.events[-1].write_event(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def _stored_versions(self) -> dict:
        try:
            return json.loads((self.folder / "versions.json").read_text())
        except (OSError, ValueError):
            return {}

    def _compare_versions(self) -> None:
        changed = _changes(self._stored_versions(), self.versions)
        if changed:
            self.say(f"not the versions that this run began with, so its numbers may differ: {', '.join(changed)}")

    def _add_versions(self) -> None:
        """Notes the step from which these versions run, unless they are those that ran before it."""
        stored = self._stored_versions()
        last = stored.get("resumed", [stored])[-1]
        if _changes(last, self.versions) or last.get("step", 0) > self.step:  # from a checkpoint before the last start
            stored.setdefault("resumed", []).append({"step": self.step, **self.versions})
            _write_json(self.folder / "versions.json", stored)

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
        """The environment step at which each chunk begins. Ends early after a signal or once every seed was stopped."""
        self.progress = Progress(self.args.total_timesteps, self.step)
        for step in range(self.step, self.args.total_timesteps, self.args.log_frequency):
            if self.signals.stop or len(self.stopped) == len(self.seeds):
                return
            self.chunk_begin = time.time()
            yield step

    def log(self, step: int, log: StepLog, state: Any) -> int:
        """Writes what a chunk that began at `step` reports, leaves `[T, S, ..]`; returns the step at its end.

        Waits for the chunk, so that the time measured is the chunk's. Stops the seeds whose numbers are not finite.

        Args:
          state: the training state after the chunk.
        """
        log = jax.device_get(log)
        if self.env.error:
            raise self.env.error
        seconds = time.time() - self.chunk_begin
        self.step = end = step + self.args.log_frequency
        if step >= self.learning_starts:
            self.learning_seconds += seconds
            self.learning_steps += self.args.log_frequency
        steps = step + self.args.num_envs * np.arange(log.done.shape[0])
        learned = steps >= self.learning_starts
        with self._writing():
            self._check_folder()
            self.checkpoints.check()
            self._check_finite(step, log, learned, state)
            for t, s, n in np.argwhere(log.done):
                if s not in self.stopped:
                    at = step + (t + 1) * self.args.num_envs
                    self.last_return = float(log.episode_return[t, s, n])
                    self.scalar(at, s, "charts/episodic_return", self.last_return)
                    self.scalar(at, s, "charts/episodic_length", float(log.episode_length[t, s, n]))
            for s in self._running():
                if learned.any():
                    for tag, values in log.metrics.items():
                        self.scalar(end, s, tag, float(values[learned, s].mean(dtype=np.float64)))
                self.scalar(end, s, "charts/SPS", self.args.log_frequency / seconds)
            self._flush()
        self.progress.update(end, self.last_return)
        return end

    def log_evaluation(self, step: int, results: dict[str, dict[str, np.ndarray]]) -> None:
        """Writes an evaluation (see `evaluation.Evaluator`)."""
        self.evaluations.append(
            {
                policy: [None if s in self.stopped else float(x.mean()) for s, x in enumerate(result["return"])]
                for policy, result in results.items()
            }
        )
        with self._writing():
            for policy, result in results.items():
                for s in self._running():
                    self.scalar(step, s, f"eval/episodic_return_{policy}", self.evaluations[-1][policy][s])
                    self.scalar(step, s, f"eval/episodic_length_{policy}", float(result["length"][s].mean()))
                    for tag, values in result["metrics"].items():
                        self.scalar(step, s, tag, float(values[s]))
            self._flush()

    def scalar(self, step: int, agent: int, tag: str, value: float) -> None:
        """Writes one value of agent number `agent`."""
        now = time.time()
        self.csv.write(f"{step},{now:.3f},{self.seeds[agent]},{tag},{value!r}\n")
        self.events[agent].write_event(Event(wall_time=now, step=int(step), summary=summary.scalar(tag, value)))
        if self.wandb:
            prefix = "" if len(self.seeds) == 1 else f"seed_{self.seeds[agent]}/"
            self.wandb.log({prefix + tag: value, "global_step": int(step)})

    def checkpoint(self, step: int, state: Any) -> None:
        """Begins a checkpoint where one is due: `--checkpoint-frequency` steps after the last, or after SIGUSR1."""
        frequency = self.args.checkpoint_frequency
        due = frequency and step // frequency > (step - self.args.log_frequency) // frequency
        if due or self.signals.checkpoint:
            self.signals.checkpoint = False
            self._checkpoint(state)

    def _checkpoint(self, state: Any) -> None:
        if self.checkpoints.begun == self.step or len(self.stopped) == len(self.seeds):
            return
        begin = time.time()
        with self._writing():
            self._check_folder()
            env, arrays = self.env.save_host()
            self.csv.flush()
            host = {
                "step": self.step,
                "scalars_bytes": self.csv.tell(),
                "env": env,
                "run": {**self._progress_so_far(), "wall_seconds": self.wall_seconds + begin - self.begin},
            }
            self.checkpoints.save(self.step, state, host, arrays)
        self.checkpoint_seconds += time.time() - begin

    def _progress_so_far(self) -> dict[str, Any]:
        names = ("evaluations", "stopped", "last_return", "learning_seconds", "learning_steps", "checkpoint_seconds")
        return copy.deepcopy({name: getattr(self, name) for name in names})  # the run goes on while it is written

    def finish(self, state: Any, evaluator: evaluation.Evaluator) -> None:
        """Saves the last checkpoint, the agents and the summary; records the video if asked to.

        Leaves the process with the exit status of `start` where the run was interrupted or a seed was stopped.
        """
        self._checkpoint(state)
        with self._writing():
            self.checkpoints.wait()
        lost = len(self.stopped) == len(self.seeds)
        interrupted = self.signals.stop if self.step < self.args.total_timesteps and not lost else None
        if not self.evaluations and not interrupted and not lost:
            self.log_evaluation(self.step, evaluator(state.agent, self.step))
        per_seed = {}
        for s, seed in enumerate(self.seeds):
            rows = per_seed[str(seed)] = {}
            for policy in evaluation.POLICIES:
                values = [e[policy][s] for e in self.evaluations if e[policy][s] is not None]
                rows[f"{policy}_last"] = values[-1] if values else None
                rows[f"{policy}_mean_of_last_10"] = float(np.mean(values[-10:])) if values else None
        rate = self.learning_steps / self.learning_seconds if self.learning_seconds else None
        with self._writing():
            _write_json(
                self.folder / "summary.json",
                {
                    "env_id": self.args.env_id,
                    "script": self.script,
                    "exp_name": self.args.exp_name,
                    "total_timesteps": self.args.total_timesteps,
                    "step": self.step,
                    "interrupted_by": interrupted and interrupted.name,
                    "stopped": {str(self.seeds[s]): what for s, what in self.stopped.items()},
                    "evaluations": len(self.evaluations),
                    "episodic_return": per_seed,
                    "steps_per_second": rate,
                    "compile_seconds": self.compile_seconds,
                    "checkpoint_seconds": self.checkpoint_seconds,
                    "wall_seconds": self.wall_seconds + time.time() - self.begin,
                    "updates": self._num_updates(),
                    "peak_memory_bytes": peak_memory(),
                },
            )
        self.progress.close()
        for seed, rows in per_seed.items():
            values = [f"{p} {rows[f'{p}_last']:.1f}" for p in evaluation.POLICIES if rows[f"{p}_last"] is not None]
            if values:
                self.say(f"seed {seed}: last evaluation {', '.join(values)}")
        speed = f"{rate:.0f} steps/s per seed, " if rate else ""
        self.say(f"{speed}compiled in {self.compile_seconds:.1f} s; all of it in {self.folder}")
        if interrupted:
            self.say(f"{interrupted.name} at step {self.step:,}; continue with: {self._resume_command()}")
            sys.exit(128 + interrupted)
        if self.args.capture_video and not lost:
            evaluation.record_video(self.folder)
        if self.stopped:
            sys.exit(3)

    def _resume_command(self) -> str:
        return f"python {self.script}.py --resume {shlex.quote(str(self.folder))}"

    def _running(self) -> list[int]:
        return [s for s in range(len(self.seeds)) if s not in self.stopped]

    def _check_finite(self, step: int, log: StepLog, learned: np.ndarray, state: Any) -> None:
        """Stops the seeds whose observations, rewards, losses or parameters are no longer finite."""
        finite_agents = np.asarray(_finite_agents(state.agent))
        for s in self._running():
            losses = [
                tag
                for tag, values in log.metrics.items()
                if tag.startswith("losses/") and not np.isfinite(values[learned, s]).all()
            ]
            if not log.finite[:, s].all():
                t, n = np.argwhere(~log.finite[:, s])[0]
                at = step + (int(t) + 1) * self.args.num_envs
                cause, what = "environment", f"an observation or reward of environment {n} is not finite"
            elif losses or not finite_agents[s]:
                at = self.step
                cause, what = "learning", f"{', '.join(losses) or 'a parameter'} is not finite"
            else:
                continue
            dump = self.folder / f"nan_seed{self.seeds[s]}_step{self.step}.npz"
            self.stopped[s] = {"step": at, "cause": cause, "what": what, "dump": dump.name}
            self.say(f"seed {self.seeds[s]} stopped at step {at:,} ({cause}): {what}; its state is in {dump}")
            _dump(dump, s, log, state, step, self.step)

    def _check_folder(self) -> None:
        """Raises FileNotFoundError where the folder, or what is open in it, was deleted."""
        if os.stat(self.folder / "scalars.csv").st_ino != os.fstat(self.csv.fileno()).st_ino:
            raise FileNotFoundError(errno.ENOENT, "it was replaced")

    def _flush(self) -> None:
        self.csv.flush()
        for events in self.events:
            events.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever goes wrong with the folder becomes a RunFolderError that says how to go on."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                self.checkpoints.wait()  # the one in progress may still succeed
            deleted = not any((self.folder / name).exists() for name in ("lock", "args.json", "scalars.csv"))
            if deleted:
                shutil.rmtree(self.folder, ignore_errors=True)  # what a checkpoint in progress made again
            if deleted and not isinstance(error, OSError):
                error = FileNotFoundError()  # other libraries have their own exceptions
            if isinstance(error, FileNotFoundError) and deleted:
                why, then = f"the folder {self.folder} was deleted", "nothing is left of this run"
            else:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else envs.one_line(error)
                what = "cannot write to" if isinstance(error, OSError) else "something went wrong while writing to"
                why = f"{what} {self.folder} ({reason})"
                if self.checkpoints.step is None:
                    then = "there is no checkpoint yet"
                else:
                    then = f"from step {self.checkpoints.step:,} continue with: {self._resume_command()}"
            raise RunFolderError(f"{why}: stopped at step {self.step:,}; {then}") from error

    def _num_updates(self) -> int:
        per_step = getattr(self.args, "num_updates", None)
        if per_step is None:
            return 0
        learning = max(self.step - self.learning_starts, 0)
        return round(learning // self.args.num_envs * per_step)


@jax.jit
def _finite_agents(agents):
    """Whether all numbers of an agent are finite, `[S]`; leaves `[S, ..]`. A scalar may be -inf: the log of a 0."""
    leaves = [x for x in jax.tree.leaves(agents) if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = [jnp.isfinite(x) | ((x.ndim == 1) & (x == -jnp.inf)) for x in leaves]
    return jnp.stack([x.reshape(x.shape[0], -1).all(axis=1) for x in finite]).all(axis=0)


def _dump(path: Path, agent: int, log: StepLog, state: Any, first: int, end: int) -> None:
    """What is needed to look into a number that is not finite: see docs/runs.md for the names."""
    buffer = getattr(state, "buffer", None)
    rows = {}
    if buffer is not None:
        state = state.replace(buffer=None)
        first = max(first, end - checkpoints.num_rows(buffer))
        rows = {f"buffer.{name}": x[agent] for name, x in checkpoints.read_rows(buffer, first, end).items()}
    arrays = {name: x[agent] for name, x in checkpoints.host_tree(state).items()}
    logged = {f"log.{name}": x[:, agent] for name, x in checkpoints.host_tree(log).items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, **logged, **rows)


class Signals:
    """SIGINT and SIGTERM end the run after the chunk, a SIGINT after it leaves at once, SIGUSR1 asks for a checkpoint.

    While a compiled chunk runs, the main thread reaches no signal handler. A thread reads the signals instead.

    Attributes:
      stop: the signal that ends the run, or None.
      checkpoint: whether a checkpoint was asked for.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.stop: signal.Signals | None = None
        self.checkpoint = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Explicitly, because a shell without job control starts background processes with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, lambda *_: None)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def remove(self) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _listen(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number == signal.SIGUSR1:
                self.checkpoint = True
                self.say("SIGUSR1: a checkpoint after this chunk")
            elif number in (signal.SIGINT, signal.SIGTERM):
                if number == signal.SIGINT and self.stop:
                    os._exit(130)
                self.stop = self.stop or signal.Signals(number)
                self.say(f"{self.stop.name}: ends after this chunk with a checkpoint (Ctrl-C again: at once)")


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


def _changes(before: dict, now: dict) -> list[str]:
    """What differs between two results of `versions`, in words; none if it is not known what was before."""
    if not before:
        return []
    return [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v and k != "platform"]


def versions() -> dict[str, Any]:
    """Commit, versions, device and threads of this process."""
    root = Path(__file__).resolve().parent.parent

    def git(*command):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
            return done.stdout.strip() if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            return None

    # What makes a run another one is the code: the tables that its results become do not.
    status = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", ":!tests")
    packages = ("jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": device(),
        "threads": int(os.environ.get("NPROC") or _num_cpus()),
    }


def device() -> str:
    """Platform and model of the first device: "gpu NVIDIA H100 80GB HBM3", "cpu AMD EPYC 7B13"."""
    first = jax.devices()[0]
    return f"{first.platform} {cpu_model() if first.platform == 'cpu' else first.device_kind}"


def cpu_model() -> str:
    """The CPU as the system names it."""
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):  # not Linux, or a CPU without a name
        return platform.processor() or platform.machine()


def _num_cpus() -> int:
    """The CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


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


def _lock(folder: Path) -> int:
    """An open file that locks the folder; the kernel releases it when the process ends. Raises UserError."""
    try:
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 200).decode(errors="replace").strip()
        raise UserError(f"{str(folder)!r} is in use by {owner or 'another process'}") from None
    except OSError as error:
        raise UserError(f"cannot lock {str(folder)!r}: {error.strerror}") from None
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


SCALARS_HEADER = "global_step,wall_time,seed,tag,value\n"


def _cut_torn_line(path: Path) -> None:
    """Drops what follows the last line break: a disk was full in the middle of a row."""
    with path.open("rb+") as file:
        start = max(file.seek(0, os.SEEK_END) - 4096, 0)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)


def _cut_scalars(path: Path, size: int | None, step: int) -> None:
    """Drops from scalars.csv what came after a checkpoint at `step`, when the file had `size` bytes.

    Where the file is no longer what it was then, complete rows up to `step` stay. Written beside and renamed.
    """
    text = path.read_bytes()
    if size is not None and len(text) >= size and text[:size].endswith(b"\n"):
        kept = text[:size]
    else:
        rows = text.splitlines(keepends=True)[1:]
        rows = [row for row in rows if row.endswith(b"\n") and row.count(b",") == 4 and row.split(b",")[0].isdigit()]
        kept = SCALARS_HEADER.encode() + b"".join(row for row in rows if int(row.split(b",")[0]) <= step)
    if kept != text:
        beside = path.with_suffix(".part")
        beside.write_bytes(kept)
        beside.replace(path)


def _write_json(path: Path, content: Any) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(_without_nan(content), indent=2) + "\n")
    beside.replace(path)


def _without_nan(content: Any) -> Any:
    """NaN and infinities become null: JSON has none."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


def _start_wandb(args: Any, folder: Path) -> Any:
    name = folder.resolve().name
    try:
        import wandb

        run = wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            name=name,
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            resume="allow",
            config=dataclasses.asdict(args),
            dir=folder,
        )
    except Exception as error:  # no login, no network, ..
        if args.resume is None:
            shutil.rmtree(folder, ignore_errors=True)  # nothing was trained in it
        raise UserError(f"--track: {envs.one_line(error)} (WANDB_MODE=offline needs no login)") from error
    run.define_metric("*", step_metric="global_step")
    return run
