"""Speed of the scripts, side by side: what is compared runs in turns, so that other load on the machine meets both.

    python benchmarks/speed.py                         all rows that can be measured here
    python benchmarks/speed.py --rows updates startup  some of them
    python benchmarks/speed.py --save                  also into benchmarks/speed.csv, which plot.py shows

Rows:
    updates   one update of DiffSAC, of its --backprop-through-chain and of DiffWPO, as a multiple of SAC's
    startup   seconds from the command to the first environment step
    seeds     --num-seeds 4 against four runs one after another
    sbx       SAC's steps/s against SBX's; needs --peers-python
    ppo       PPO's steps/s against CleanRL's; needs --peers-python and --cleanrl
    diffppo   DiffPPO's steps/s against PPO's

The peers are installed in an environment of their own, and measured only if named:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install sbx-rl "gymnasium[mujoco]" "mujoco<3.5" tyro tensorboard
    python benchmarks/speed.py --rows sbx ppo --peers-python /tmp/peers/bin/python --cleanrl ppo_continuous_action.py

Everything runs with one thread unless --threads says otherwise. Steps/s are those of a run while it learns, without
compilation and evaluation. A value is the median over the rounds, with the smallest and the largest.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import export, plot  # noqa: E402
from common import runs  # noqa: E402

COLUMNS = ("quantity", "value", "how", "commit", "device", "versions")
TIMEOUT = 1800  # seconds for one process
Row = tuple[str, str, str]  # quantity, value, how it was measured


class Skip(Exception):
    """A row that cannot be measured here, with the reason."""


def need(*scripts: str) -> None:
    for script in scripts:
        if not (ROOT / script).exists():
            raise Skip(f"there is no {script}")


def median(values: list[float], digits: int = 2, unit: str = "") -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def in_turns(options: argparse.Namespace, measures: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Calls every measure once per round, with the round's number."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(options.rounds):
        for name, measure in measures.items():
            values[name].append(measure(number))
            print(f"round {number + 1} of {options.rounds}: {name} {values[name][-1]:.4g}", file=sys.stderr, flush=True)
    return values


# ------------------------------------------------------------------------------------------------------------ updates


def updates(options: argparse.Namespace) -> list[Row]:
    """Seconds per update of each algorithm: a scan over updates on one random batch, in this process."""
    import importlib

    import jax
    import jax.numpy as jnp

    from common import envs, replay

    need("sac_jax.py", "diffsac_jax.py")
    env = envs.make_env(options.env_id, 1)
    count = options.updates

    def prepare(script: str, **arguments) -> Callable[[int], float]:
        module = importlib.import_module(script)
        args = module.Args(**arguments)
        keys = jax.random.split(jax.random.key(0), 6)
        shape = (args.batch_size, env.observation_size)
        batch = replay.Transition(
            obs=jax.random.normal(keys[0], shape),
            action=jax.random.uniform(keys[1], (args.batch_size, env.action_size), minval=-1.0, maxval=1.0),
            reward=jax.random.normal(keys[2], shape[:1]),
            next_obs=jax.random.normal(keys[3], shape),
            terminated=jax.random.bernoulli(keys[4], 0.01, shape[:1]),
        )

        @jax.jit
        def many(agent, key):
            def one(agent, key):
                agent, metrics = module.update(args, agent, key, batch)
                return agent, metrics["losses/qf_loss"]

            return jax.lax.scan(one, agent, jax.random.split(key, count))

        agent = jax.jit(lambda key: module.init_agent(args, env, key))(keys[5])
        compiled = many.lower(agent, jax.random.key(1)).compile()

        def measure(number: int) -> float:
            begin = time.perf_counter()
            _, losses = jax.block_until_ready(compiled(agent, jax.random.key(number)))
            seconds = time.perf_counter() - begin
            assert jnp.isfinite(losses).all()
            return seconds / count

        measure(0)  # the first call of a program is slower
        return measure

    measures = {"SAC": prepare("sac_jax")}
    levels = (4, 8, 16)
    for k in levels:
        measures[f"DiffSAC, K = {k}"] = prepare("diffsac_jax", num_denoising_steps=k)
    measures["DiffSAC --backprop-through-chain, K = 8"] = prepare("diffsac_jax", backprop_through_chain=True)
    if (ROOT / "diffwpo_jax.py").exists():
        measures["DiffWPO, K = 8"] = prepare("diffwpo_jax")
    seconds = in_turns(options, measures)
    env.close()
    how = f"{options.env_id}, batch 256, 2 x 256 units; {options.rounds} rounds of {count} updates in turns"
    rows = [("SAC update", median([1000 * s for s in seconds["SAC"]], 2, " ms"), how)]
    rows += [(f"{name} update / SAC update", median(ratios(seconds[name], seconds["SAC"])), how) for name in seconds][
        1:
    ]
    default = seconds["DiffSAC, K = 8"]
    for name in ("DiffSAC --backprop-through-chain, K = 8", "DiffWPO, K = 8"):
        if name in seconds:
            rows.append((f"{name} update / DiffSAC update", median(ratios(seconds[name], default)), how))
    return rows


# --------------------------------------------------------------------------------------------------------------- runs


def steps_per_second(options: argparse.Namespace, script: str, *flags: str) -> float:
    """Of a run of one of the scripts, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--env-id", options.env_id, "--runs-folder", folder, "--eval-episodes", "1"]
        run_process([*command, *flags], cwd=ROOT)
        (summary,) = Path(folder).glob("*/summary.json")
        return json.loads(summary.read_text())["steps_per_second"]


def run_process(command: list[str], cwd: Path, **more: str) -> str:
    """What the process printed; an error with its last lines if it failed."""
    env = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), **more}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise Skip(f"{' '.join(command[:3])} .. failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return done.stdout


def off_policy_flags(options: argparse.Namespace) -> list[str]:
    total = 1000 + options.steps
    return ["--learning-starts", "1000", "--total-timesteps", f"{total}", "--eval-frequency", f"{total}"]


def seeds(options: argparse.Namespace) -> list[Row]:
    rows = []
    for label, script in (("SAC", "sac_jax.py"), ("DiffSAC", "diffsac_jax.py")):
        need(script)
        flags = off_policy_flags(options)
        rate = in_turns(
            options,
            {
                f"{label} 4 seeds": lambda i: 4 * steps_per_second(options, script, *flags, "--num-seeds", "4"),
                f"{label} 1 seed": lambda i: steps_per_second(options, script, *flags, "--seed", f"{i + 1}"),
            },
        )
        rows.append(
            (
                f"{label} --num-seeds 4 / four runs one after another, environment steps/s",
                median(ratios(rate[f"{label} 4 seeds"], rate[f"{label} 1 seed"])),
                f"{options.env_id}, {options.steps} learning steps, {options.rounds} rounds in turns",
            )
        )
    return rows


PROBE = """
import os, time
import gymnasium as gym

class Probe(gym.Wrapper):
    def step(self, action):
        path = os.environ["PROBE_FILE"]
        if not os.path.exists(path):
            with open(path + ".part", "w") as file:
                file.write(repr(time.time()))
            os.rename(path + ".part", path)
        return self.env.step(action)

gym.register("Probe-v0", entry_point=lambda **kwargs: Probe(gym.make(os.environ["PROBE_ENV"], **kwargs)))
"""


def startup(options: argparse.Namespace) -> list[Row]:
    """An environment notes the time of its first step; the run is ended there."""

    def measure(script: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "speed_probe.py").write_text(PROBE)
            noted = Path(folder) / "first_step"
            env = os.environ | {"PYTHONPATH": folder, "PROBE_FILE": str(noted), "PROBE_ENV": options.env_id}
            command = [sys.executable, script, "--env-id", "speed_probe:Probe-v0", "--runs-folder", folder]
            begin = time.time()
            with (Path(folder) / "output").open("w+") as output:
                process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
                try:
                    while not noted.exists():
                        if process.poll() is not None or time.time() - begin > TIMEOUT:
                            output.seek(0)
                            raise Skip(f"{script} ended before its first step: {output.read().strip()[-200:]}")
                        time.sleep(0.02)
                finally:
                    process.kill()
                    process.wait()
            return float(noted.read_text()) - begin

    rows = []
    for script in ("sac_jax.py", "diffsac_jax.py"):
        need(script)
        values = in_turns(options, {script: lambda i: measure(script)})[script]
        how = f"{options.env_id}, {options.rounds} starts, nothing cached but files"
        rows.append((f"{script}: command to first environment step", median(values, 1, " s"), how))
    return rows


SBX = """
import sys, time
import sbx
from stable_baselines3.common.callbacks import BaseCallback

env_id, start, warm, total, seed = sys.argv[1], *map(int, sys.argv[2:])

class Clock(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == warm:
            self.begin = time.perf_counter()
        if self.num_timesteps == total:
            print("steps_per_second", (total - warm) / (time.perf_counter() - self.begin))
        return True

model = sbx.SAC("MlpPolicy", env_id, learning_starts=start, batch_size=256, buffer_size=1_000_000, train_freq=1,
                gradient_steps=1, policy_kwargs={"net_arch": [256, 256]}, seed=seed)
model.learn(total, callback=Clock())
"""


def peers_python(options: argparse.Namespace) -> str:
    if options.peers_python is None:
        raise Skip("no --peers-python")
    if not Path(options.peers_python).exists():
        raise Skip(f"there is no {options.peers_python}")
    return options.peers_python


def sbx(options: argparse.Namespace) -> list[Row]:
    python = peers_python(options)
    need("sac_jax.py")
    version = run_process([python, "-c", "from importlib.metadata import version; print(version('sbx-rl'))"], ROOT)

    def peer(i: int) -> float:
        # Learning starts at 1000; the clock starts 1000 steps later, when everything has been compiled.
        arguments = [options.env_id, "1000", "2000", f"{2000 + options.steps}", f"{i + 1}"]
        out = run_process([python, "-c", SBX, *arguments], ROOT)
        return float(re.search(r"steps_per_second (\S+)", out).group(1))

    def mine(i: int) -> float:
        return steps_per_second(options, "sac_jax.py", *off_policy_flags(options), "--seed", f"{i + 1}")

    rate = in_turns(options, {"sac_jax.py": mine, "SBX SAC": peer})
    how = (
        f"{options.env_id}, 2 x 256 units, batch 256, one environment; {options.rounds} rounds of {options.steps} steps"
    )
    return [
        ("sac_jax.py", median(rate["sac_jax.py"], 0, " steps/s"), how),
        (
            f"sac_jax.py / SBX {version.strip()} SAC, steps/s",
            median(ratios(rate["sac_jax.py"], rate["SBX SAC"])),
            how,
        ),
    ]


# PPO's runs are made of rollouts: both numbers of environments divide these steps.
PPO_STEPS = 102_400
ONE_ENV = ["--num-envs", "1", "--num-steps", "2048"]  # CleanRL's rollout


def ppo_flags(steps: int = PPO_STEPS) -> list[str]:
    return ["--total-timesteps", f"{steps}", "--eval-frequency", f"{steps}"]


def ppo(options: argparse.Namespace) -> list[Row]:
    python = peers_python(options)
    need("ppo_jax.py")
    if options.cleanrl is None or not Path(options.cleanrl).exists():
        raise Skip("no --cleanrl with the path of CleanRL's ppo_continuous_action.py")

    def peer(i: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--env-id", options.env_id, "--total-timesteps", f"{PPO_STEPS}", "--no-cuda", "--seed", f"{i + 1}"]
            command = [python, str(Path(options.cleanrl).resolve()), *flags]
            out = run_process(command, Path(folder), OMP_NUM_THREADS=f"{options.threads}")
        return float(re.findall(r"SPS: (\d+)", out)[-1])

    rate = in_turns(
        options,
        {
            "default environments": lambda i: steps_per_second(
                options, "ppo_jax.py", *ppo_flags(), "--seed", f"{i + 1}"
            ),
            "one environment": lambda i: steps_per_second(options, "ppo_jax.py", *ppo_flags(), *ONE_ENV),
            "CleanRL": peer,
        },
    )
    how = f"{options.env_id}, {PPO_STEPS} steps, {options.rounds} rounds in turns; CleanRL's default is one environment"
    return [
        ("ppo_jax.py", median(rate["default environments"], 0, " steps/s"), how),
        (
            "ppo_jax.py / CleanRL PPO, default environments",
            median(ratios(rate["default environments"], rate["CleanRL"])),
            how,
        ),
        ("ppo_jax.py / CleanRL PPO, one environment", median(ratios(rate["one environment"], rate["CleanRL"])), how),
    ]


def diffppo(options: argparse.Namespace) -> list[Row]:
    need("ppo_jax.py", "diffppo_jax.py")
    rate = in_turns(
        options,
        {
            script: lambda i, script=script: steps_per_second(options, script, *ppo_flags(), "--seed", f"{i + 1}")
            for script in ("ppo_jax.py", "diffppo_jax.py")
        },
    )
    how = f"{options.env_id}, default environments, {PPO_STEPS} steps, {options.rounds} rounds in turns"
    return [
        ("diffppo_jax.py, K = 8", median(rate["diffppo_jax.py"], 0, " steps/s"), how),
        (
            "diffppo_jax.py / ppo_jax.py, K = 8, steps/s",
            median(ratios(rate["diffppo_jax.py"], rate["ppo_jax.py"])),
            how,
        ),
    ]


ROWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "updates": updates,
    "startup": startup,
    "seeds": seeds,
    "sbx": sbx,
    "ppo": ppo,
    "diffppo": diffppo,
}


# --------------------------------------------------------------------------------------------------------------- main


def facts(threads: int | None = None) -> dict[str, str]:
    """Commit, device and versions of a measurement. `threads`: those that JAX was told to use, if it was."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") or "unknown"
    # What is measured is the code: the tables that this writes do not make it another one.
    if git("status", "--porcelain", "--untracked-files=no", "--", "*.py"):
        commit += " with changes"
    model = runs.cpu_model()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "mujoco", "gymnasium")
    )
    return {
        "commit": commit,
        "device": model if threads is None else f"{model}, {threads} thread{'s' if threads > 1 else ''}",
        "versions": f"python {platform.python_version()}, {versions}",
    }


def save(path: Path, rows: list[dict]) -> None:
    """Replaces the rows of the same quantities, keeps the others."""
    new = {row["quantity"]: row for row in rows}
    merged = [new.pop(row["quantity"], row) for row in plot.read_rows(path)] + list(new.values())
    export.write_csv(path, COLUMNS, merged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--env-id", default="Hopper-v4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=200, help="updates per round and algorithm")
    parser.add_argument("--steps", type=int, default=5000, help="learning steps of an off-policy run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", help="interpreter of the environment that holds SBX and CleanRL's packages")
    parser.add_argument("--cleanrl", help="CleanRL's ppo_continuous_action.py")
    parser.add_argument("--save", action="store_true", help="write the rows into benchmarks/speed.csv as well")
    options = parser.parse_args()
    os.environ["NPROC"] = str(options.threads)  # read by jax when it starts, here and in the processes
    here = facts(options.threads)
    rows = []
    for name in options.rows:
        try:
            measured = ROWS[name](options)
        except Skip as reason:
            print(f"{name}: skipped, {reason}", file=sys.stderr, flush=True)
            continue
        rows += [dict(zip(COLUMNS, (*row, *here.values()), strict=True)) for row in measured]
    print(f"Commit {here['commit']}; {here['device']}; {here['versions']}\n")
    print("| Quantity | Value | Measured |\n|---|---|---|")
    for row in rows:
        print(f"| {row['quantity']} | {row['value']} | {row['how']} |")
    if options.save and rows:
        save(ROOT / "benchmarks" / "speed.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
