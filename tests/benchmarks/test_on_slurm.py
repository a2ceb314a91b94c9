"""Sweeps on a real Slurm: one node on this machine (slurm_cluster.py). Run with `pytest -m slow`."""

import importlib.util
import subprocess

import pytest

from benchmarks import export
from tests.benchmarks import far, slurm_cluster

REASON = slurm_cluster.missing() or ("" if importlib.util.find_spec("submitit") else "no submitit: '.[slurm]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON or "all is there")]


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """The SLURM_CONF of a cluster that runs while this module's tests do."""
    folder = tmp_path_factory.mktemp("slurm")
    yield str(slurm_cluster.start(folder))
    slurm_cluster.stop(folder)


@pytest.fixture
def slurm(conf):
    """Runs one of Slurm's commands, returns what it printed."""

    def slurm(*words):
        done = subprocess.run(words, env={**far.ENVIRONMENT, "SLURM_CONF": conf}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return slurm


@pytest.fixture
def sweep(conf, slurm, tmp_path):
    started = []

    def sweep(*words):
        started.append(far.sweep(*words, "--on", "slurm", "--runs", tmp_path / "runs", SLURM_CONF=conf))
        return started[-1]

    yield sweep
    for process in started:
        if process.poll() is None:
            process.kill()
    slurm("scancel", "--user=root")


def jobs(slurm) -> list[str]:
    return slurm("squeue", "--noheader", "--array", "--format=%i %T %r").splitlines()


def test_quick_suite_as_an_array(sweep, slurm, tmp_path):
    out = far.ended(sweep("quick", "--steps", "2000", "--set", "time=30"))
    assert "7 runs finished now, 0 failed" in out
    (script,) = (tmp_path / "runs" / "logs" / "slurm").glob("*_submission.sh")
    assert "--array=0-6" in script.read_text() and "--time=30" in script.read_text()
    for run in (tmp_path / "runs").glob("*__quick_*"):
        assert export.read_run(run, allow_dirty=True)
    assert "0 runs to do (0 resumed), 7 already finished" in far.ended(sweep("quick", "--steps", "2000"))
    assert jobs(slurm) == []


@pytest.mark.parametrize("how", ["SIGUSR1", "pre-emption"])
def test_a_signal_a_requeue_and_the_same_numbers(sweep, slurm, tmp_path, how):
    """SIGUSR1 by hand; or SIGTERM, because a job of a partition of higher priority needs the node."""
    suite = far.write_suite(tmp_path, 1, 2)
    process = sweep("mine", "--suites", suite, "--set", "time=10")
    runs = far.folders(suite, tmp_path / "runs")
    far.wait_for(lambda: all(far.step(run) >= 700 for run in runs), process)
    before = [far.step(run) for run in runs]
    if how == "SIGUSR1":
        for job in jobs(slurm):
            slurm("scancel", "--signal=USR1", job.split()[0])
    else:
        slurm("srun", "--partition=urgent", "--ntasks=2", "true")
    table = far.sweep("mine", "--suites", suite, "--status", "--runs", tmp_path / "runs")
    assert "2 runs: " in far.ended(table)
    assert "2 runs finished now, 0 failed" in far.ended(process)
    for run, step in zip(runs, before, strict=True):
        log = far.log_of(run)
        assert log.count("+ exit status 0") == 1 and log.count("resumed at step") == 1, log
        assert int(log.split("resumed at step ")[1].split()[0].replace(",", "")) >= step
        far.assert_as_undisturbed(run, suite, tmp_path / "undisturbed")


def test_more_than_its_time(sweep, slurm, tmp_path):
    """A minute before its limit of two a job goes back into the queue, as often as it takes."""
    suite = far.write_suite(tmp_path, 1)
    suite.write_text(suite.read_text().replace("steps = 3000", "steps = 6000"))
    process = sweep("mine", "--suites", suite, "--set", "time=2", "signal_delay_s=60")
    assert "1 runs finished now, 0 failed" in far.ended(process)
    (run,) = far.folders(suite, tmp_path / "runs")
    assert far.log_of(run).count("resumed at step") >= 1
    far.assert_as_undisturbed(run, suite, tmp_path / "undisturbed")


def test_failures_and_what_slurm_takes_away(sweep, slurm, tmp_path):
    """A cancelled job is not put back into the queue; it is named, and resumed by the next call."""
    suite = far.write_suite(tmp_path, 1, 2)
    process = sweep("mine", "--suites", suite, "--set", "time=10")
    run, other = far.folders(suite, tmp_path / "runs")
    far.wait_for(lambda: min(far.step(run), far.step(other)) >= 100, process)
    first = min(jobs(slurm)).split()[0]
    slurm("scancel", first)
    out = far.ended(process, status=1)
    assert "1 runs finished now, 1 failed" in out and "failed: tiny tests.environments:Slow-v0 seed 1: " in out
    assert "1 runs finished now, 0 failed" in far.ended(sweep("mine", "--suites", suite, "--set", "time=10"))
    assert "resumed at step" in far.log_of(run)
    far.assert_as_undisturbed(run, suite, tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "words, message",
    [
        (["partition=none"], "cannot submit: sbatch: error: Batch job submission failed: Invalid partition"),
        (["time=1h"], "time must be a whole number above 0"),
        (["colour=red"], "Unavailable parameter(s): ['colour']"),
    ],
)
def test_bad_settings_are_one_line(sweep, tmp_path, words, message):
    out = far.ended(sweep("mine", "--suites", far.write_suite(tmp_path, 1), "--set", *words), status=2)
    assert [line for line in out.splitlines() if line.startswith("error: ")] == [out.splitlines()[-1]]
    assert message in out and "Traceback" not in out
