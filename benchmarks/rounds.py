"""Measuring in rounds: what is compared runs in turns, so that other load on the machine meets both."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.work import ROOT
from harness import RunFolder

TIMEOUT = 1800  # seconds for one process
Row = tuple[str, str, str]  # quantity, value, how it was measured


class Skip(Exception):
    """A row that cannot be measured here, with the reason."""


def in_turns(rounds: int, measures: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Calls every measure once per round, with the round's number."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure(number))
            print(f"round {number + 1} of {rounds}: {name} {values[name][-1]:.4g}", file=sys.stderr, flush=True)
    return values


def median(values: list[float], digits: int = 2, unit: str = "") -> str:
    """The median, with the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Within each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def run_process(command: list[str], cwd: Path, seconds: float | None = None, **more: str) -> str:
    """What the process printed. Raises Skip: it failed, with its last line, or took longer than `seconds` (TIMEOUT).

    `more`: environment variables.
    """
    seconds = seconds or TIMEOUT
    env = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), **more}
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Skip(f"{' '.join(command[:3])} .. not finished after {seconds:g} s") from None
    if done.returncode:
        raise Skip(f"{' '.join(command[:3])} .. failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return done.stdout


def steps_per_second(options: argparse.Namespace, script: str, *flags: str) -> float:
    """Of a run of one of the scripts, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--env-id", options.env_id, "--runs-folder", folder, "--eval-episodes", "1"]
        run_process([*command, *flags], cwd=ROOT)
        (run,) = Path(folder).iterdir()
        return RunFolder(run).summary()["steps_per_second"]


def off_policy_flags(options: argparse.Namespace) -> list[str]:
    total = 1000 + options.steps
    return ["--learning-starts", "1000", "--total-timesteps", f"{total}", "--eval-frequency", f"{total}"]


PPO_STEPS = 102_400  # a run is made of rollouts: one environment's and the default number's both divide it


def ppo_flags() -> list[str]:
    return ["--total-timesteps", f"{PPO_STEPS}", "--eval-frequency", f"{PPO_STEPS}"]
