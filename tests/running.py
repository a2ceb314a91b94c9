"""Runs the scripts as a user would, in this process or in one of their own, and reads what they leave behind."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import RunFolder, cli
from harness.agents import read_agents

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*_jax.py"))
TINY = "tests/harness/tiny_jax.py"
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


def module_of(script: str):
    """Imports a script by its path below ROOT; its folder must be on sys.path."""
    return importlib.import_module(Path(script).stem)


def known(script: str, settings: dict) -> dict:
    """The settings that the script has an argument for."""
    fields = module_of(script).Args.__dataclass_fields__
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


# ------------------------------------------------------------------------------------------------------ in this process


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def enter(script: str, settings: dict, status: int = 0, **variables: str) -> Done:
    """Runs a script's command in this process and asserts its exit status; `variables`: of the environment."""
    module = module_of(script)
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [script, *flags(settings)]
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(module.Args, module.train)
        left = 0
    except SystemExit as leaving:
        left = leaving.code
    except Exception:
        print(out.getvalue(), end="")  # no longer into `out`
        raise
    finally:
        sys.argv = argv
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert left == status, f"exit status {left}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(out.getvalue(), err.getvalue())


# ---------------------------------------------------------------------------------------------- in a process of its own


def environment(**more: str) -> dict[str, str]:
    """The environment of a script's process, as tests/conftest.py has it."""
    platform = os.environ.get("JAX_PLATFORMS", "cpu")
    settings = {"JAX_PLATFORMS": platform, "NPROC": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **settings, **more}


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


# ---------------------------------------------------------------------------------------------------- what they leave


def train(script: str, runs_folder: Path, settings: dict, how=enter, **more) -> Path:
    """Trains with SMALL overridden by `settings`; returns the run's folder. `how`: `enter` or `run`; `more`: for it."""
    before = set(runs_folder.glob("*")) if runs_folder.exists() else set()
    how(script, {**known(script, SMALL), "runs-folder": runs_folder, **settings}, **more)
    (folder,) = set(runs_folder.glob("*")) - before
    return folder


def scalars(folder: Path) -> list[tuple[int, int, str, float]]:
    """Rows (global_step, seed, tag, value) of scalars.csv, without wall time and charts/SPS, which measure time."""
    rows = RunFolder(folder).scalars()
    return [(step, seed, tag, value) for step, _, seed, tag, value in rows if tag != "charts/SPS"]


def agents(folder: Path):
    """The agents that a run saved last, leaves `[S, ..]`."""
    stored = RunFolder(folder)
    module = stored.script()
    args = stored.arguments(module.Args)
    env = importlib.import_module("envs").make_env(args.env_id, 1, 1, args.env_kwargs)
    return read_agents(stored, module, args, env)


# ------------------------------------------------------------------------------------------------- killed in the middle


class Killed(BaseException):
    pass


def half(write):
    """`write` that is killed in the middle."""

    def killed(self, content, *more):
        write(self, content[: len(content) // 2], *more)
        raise Killed

    return killed
