"""For the tests of sweeps that leave this machine: a suite of real but small runs, its sweep, its undisturbed twin."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import standing, suites
from benchmarks.work import ROOT
from harness import RunFolder
from tests.running import TIMEOUT, scalars

TINY = ROOT / "tests" / "harness"  # tiny_jax.py
sys.path.append(str(TINY))
PATH = os.pathsep.join((str(ROOT), str(TINY)))
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": PATH}
IN_A_SWEEP = {**ENVIRONMENT, "SECONDS_PER_STEP": "0.01"}

# In a sweep a step takes 10 ms or more: 30 s of training, 10 s of evaluations.
SUITE = """
[mine]
envs = ["tests.environments:Slow-v0"]
steps = 3000
seeds = [{seeds}]
flags = "--log-frequency 50 --eval-frequency 1500 --eval-episodes 1 --checkpoint-frequency 500"
runs = [{{ name = "tiny", script = "tests/harness/tiny_jax.py" }}]
"""


def write_suite(folder: Path, *seeds: int) -> Path:
    path = folder / "suites.toml"
    path.write_text(SUITE.format(seeds=", ".join(map(str, seeds))))
    return path


def sweep(*words, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.sweep", *map(str, words)]
    environment = {**IN_A_SWEEP, **variables}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen, status: int = 0) -> str:
    """What a sweep printed, once it has ended with this exit status."""
    out, _ = process.communicate(timeout=TIMEOUT)
    print(out)
    assert process.returncode == status, out
    return out


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def step(run: Path) -> int:
    return max((row[0] for row in RunFolder(run).scalars()), default=0)


def folders(suite: Path, runs: Path) -> list[Path]:
    """The run folders of suite `mine`, in its order."""
    return [runs / job.name for job in suites.jobs_of(suites.read_suites(suite)[0], "mine")]


def log_of(run: Path) -> str:
    return (run.parent / "logs" / f"{run.name}.log").read_text()


def assert_as_undisturbed(run: Path, suite: Path, elsewhere: Path) -> None:
    """The run has the numbers of the same command in one go."""
    (job,) = (job for job in suites.jobs_of(suites.read_suites(suite)[0], "mine") if job.name == run.name)
    subprocess.run([sys.executable, *job.command(elsewhere)], cwd=ROOT, env={**ENVIRONMENT, "NPROC": "1"}, check=True)
    assert standing.look(job, run.parent).state == "finished"
    assert len(scalars(run)) > 50 and scalars(run) == scalars(elsewhere / run.name)
