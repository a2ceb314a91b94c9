"""Speed against the usual implementations, which are installed in an environment of their own (see speed.py)."""

import argparse
import re
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.rounds import (
    PPO_STEPS,
    ROOT,
    Row,
    Skip,
    in_turns,
    median,
    off_policy_flags,
    ppo_flags,
    ratios,
    run_process,
    steps_per_second,
)

SBX = """
import sys, time
import sbx
from stable_baselines3.common.callbacks import BaseCallback

algorithm, env_id, start, warm, total, seed = *sys.argv[1:3], *map(int, sys.argv[3:])

class Clock(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == warm:
            self.begin = time.perf_counter()
        if self.num_timesteps == total:
            print("steps_per_second", (total - warm) / (time.perf_counter() - self.begin))
        return True

model = getattr(sbx, algorithm)("MlpPolicy", env_id, learning_starts=start, batch_size=256, buffer_size=1_000_000,
                                train_freq=1, gradient_steps=1, policy_kwargs={"net_arch": [256, 256]}, seed=seed)
model.learn(total, callback=Clock())
"""
ONE_ENV = ["--num-envs", "1", "--num-steps", "2048"]  # CleanRL's rollout


def peers_python(options: argparse.Namespace) -> str:
    if options.peers_python is None:
        raise Skip("no --peers-python")
    if not Path(options.peers_python).exists():
        raise Skip(f"there is no {options.peers_python}")
    return options.peers_python


def sbx(options: argparse.Namespace) -> list[Row]:
    """SAC's and CrossQ's steps/s against SBX's."""
    python = peers_python(options)
    version = run_process([python, "-c", "from importlib.metadata import version; print(version('sbx-rl'))"], ROOT)

    def theirs(algorithm: str, i: int) -> float:
        # Learning starts at 1000; the clock starts 1000 steps later, when everything has been compiled.
        arguments = [algorithm, options.env_id, "1000", "2000", f"{2000 + options.steps}", f"{i + 1}"]
        out = run_process([python, "-c", SBX, *arguments], ROOT)
        return float(re.search(r"steps_per_second (\S+)", out).group(1))

    def ours(script: str, i: int) -> float:
        return steps_per_second(options, script, *off_policy_flags(options), "--seed", f"{i + 1}")

    scripts = {"SAC": "sac_jax.py", "CrossQ": "crossq_jax.py"}
    measures = {script: partial(ours, script) for script in scripts.values()}
    rate = in_turns(options.rounds, measures | {f"SBX {name}": partial(theirs, name) for name in scripts})
    how = (
        f"{options.env_id}, 2 x 256 units, batch 256, one environment; {options.rounds} rounds of {options.steps} steps"
    )
    rows = []
    for name, script in scripts.items():
        ratio = median(ratios(rate[script], rate[f"SBX {name}"]))
        rows.append((script, median(rate[script], 0, " steps/s"), how))
        rows.append((f"{script} / SBX {version.strip()} {name}, steps/s", ratio, how))
    return rows


def ppo(options: argparse.Namespace) -> list[Row]:
    """PPO's steps/s against CleanRL's."""
    python = peers_python(options)
    if options.cleanrl is None or not Path(options.cleanrl).exists():
        raise Skip("no --cleanrl with the path of CleanRL's ppo_continuous_action.py")

    def theirs(i: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--env-id", options.env_id, "--total-timesteps", f"{PPO_STEPS}", "--no-cuda", "--seed", f"{i + 1}"]
            command = [python, str(Path(options.cleanrl).resolve()), *flags]
            out = run_process(command, Path(folder), OMP_NUM_THREADS=f"{options.threads}")
        return float(re.findall(r"SPS: (\d+)", out)[-1])

    measures = {
        "default environments": lambda i: steps_per_second(options, "ppo_jax.py", *ppo_flags(), "--seed", f"{i + 1}"),
        "one environment": lambda i: steps_per_second(options, "ppo_jax.py", *ppo_flags(), *ONE_ENV),
        "CleanRL": theirs,
    }
    rate = in_turns(options.rounds, measures)
    how = f"{options.env_id}, {PPO_STEPS} steps, {options.rounds} rounds in turns; CleanRL's default is one environment"
    rows = [("ppo_jax.py", median(rate["default environments"], 0, " steps/s"), how)]
    for ours in ("default environments", "one environment"):
        rows.append((f"ppo_jax.py / CleanRL PPO, {ours}, steps/s", median(ratios(rate[ours], rate["CleanRL"])), how))
    return rows
