"""Runs the scripts in a process of their own, as a user would, and reads what they leave behind."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds; far above what any of these runs takes, so that a loaded machine fails nothing

# Small networks and chunks: crosses learning_starts, logs and evaluates within a second or two of training.
SMALL = {
    "env-id": "Pendulum-v1",
    "total-timesteps": 400,
    "learning-starts": 100,
    "log-frequency": 100,
    "eval-frequency": 200,
    "eval-episodes": 2,
    "buffer-size": 1000,
    "batch-size": 16,
    "hidden-dim": 16,
}


def known(script: str, settings: dict) -> dict:
    """The settings that the script has an argument for."""
    fields = importlib.import_module(script.removesuffix(".py")).Args.__dataclass_fields__
    return {name: value for name, value in settings.items() if name.replace("-", "_") in fields}


def small(script: str) -> dict:
    """SMALL as far as the script has these arguments, with two environments and, for PPO, a small rollout."""
    return known(script, {**SMALL, "num-envs": 2, "num-steps": 50, "num-minibatches": 2, "update-epochs": 2})


def flags(settings: dict) -> list[str]:
    """{"num-envs": 2} -> ["--num-envs", "2"]; True and False become --name and --no-name."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def environment(**more: str) -> dict[str, str]:
    """The environment of a script's process. XLA compiles without most optimisations: the tests compile more than
    they compute."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **more}


def command(script: str, settings: dict) -> list[str]:
    return [sys.executable, str(ROOT / script), *flags(settings)]


def run(script: str, settings: dict, status: int = 0, cwd: Path | None = None, **more: str):
    """Runs a script to its end and asserts its exit status. Returns the finished process with its output as text."""
    done = subprocess.run(
        command(script, settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=cwd or ROOT,
        env=environment(**more),
    )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def train(script: str, runs_folder: Path, settings: dict, **more: str) -> Path:
    """Trains with SMALL overridden by `settings`; returns the run's folder."""
    before = set(runs_folder.glob("*")) if runs_folder.exists() else set()
    run(script, {**known(script, SMALL), "runs-folder": runs_folder, **settings}, **more)
    (folder,) = set(runs_folder.glob("*")) - before
    return folder


def scalars(folder: Path) -> list[tuple[str, ...]]:
    """Rows (global_step, seed, tag, value) of scalars.csv, without wall time and charts/SPS, which measure time."""
    with (folder / "scalars.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(row["global_step"], row["seed"], row["tag"], row["value"]) for row in rows if row["tag"] != "charts/SPS"]
