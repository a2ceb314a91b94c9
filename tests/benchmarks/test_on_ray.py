"""Sweeps on a real Ray: two nodes on this machine. Run with `pytest -m slow`."""

import importlib.util
import os
import re
import signal
from pathlib import Path

import pytest

from benchmarks import export
from tests.benchmarks import far

REASON = "" if importlib.util.find_spec("ray") else "no ray: '.[ray]'"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON or "all is there")]


@pytest.fixture
def sweep(tmp_path):
    started = []

    def sweep(*words, **variables):
        started.append(far.sweep(*words, "--on", "ray", "--runs", tmp_path / "runs", **variables))
        return started[-1]

    yield sweep
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait()


def parents(pid: int) -> list[int]:
    """The processes above one."""
    above = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        above.append(pid)
    return above


def trainer(run: Path) -> int:
    """The process that trains in a run folder."""
    return int(re.match(r"process (\d+) on ", (run / "lock").read_text())[1])


def test_a_node_is_removed(sweep, tmp_path):
    """Its runs end on the other node, with the numbers of undisturbed ones."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": far.IN_A_SWEEP})
    nodes = [cluster.add_node(num_cpus=2, env_vars=far.IN_A_SWEEP) for _ in range(2)]
    try:
        suite = far.write_suite(tmp_path, 1, 2)
        runs = far.folders(suite, tmp_path / "runs")
        process = sweep("mine", "--suites", suite, RAY_ADDRESS=cluster.address)
        far.wait_for(lambda: all(far.step(run) >= 700 for run in runs), process)
        raylets = {node: node.all_processes["raylet"][0].process.pid for node in nodes}
        (node,) = (node for node in nodes if raylets[node] in parents(trainer(runs[0])))
        on_it = [run for run in runs if raylets[node] in parents(trainer(run))]
        cluster.remove_node(node, allow_graceful=False)
        assert "2 runs finished now, 0 failed" in far.ended(process)
    finally:
        cluster.shutdown()
    assert runs[0] in on_it
    for run in runs:
        assert far.log_of(run).count("resumed at step") == (run in on_it), far.log_of(run)
        far.assert_as_undisturbed(run, suite, tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_called_again(sweep, tmp_path, number):
    """On a Ray of this machine; also a failure, and a worker that dies."""
    suite = far.write_suite(tmp_path, 1, 2, 3)
    *runs, third = far.folders(suite, tmp_path / "runs")
    process = sweep("mine", "--suites", suite, "--jobs", "2", RAY_ADDRESS="")
    far.wait_for(lambda: all(far.step(run) >= 300 for run in runs), process)
    process.send_signal(number)
    out = far.ended(process, status=128 + number)
    assert out.count("interrupted tiny") == 2 and "0 runs finished now, 0 failed" in out and not third.exists()
    process = sweep("mine", "--suites", suite, "--jobs", "2", RAY_ADDRESS="")
    far.wait_for(lambda: far.step(runs[0]) >= 700, process)
    os.kill(parents(trainer(runs[0]))[0], signal.SIGKILL)  # the worker: its run is tried again
    assert "3 runs finished now, 0 failed" in far.ended(process)
    assert far.log_of(runs[0]).count("resumed at step") == 2
    far.assert_as_undisturbed(runs[0], suite, tmp_path / "undisturbed")
    assert "0 runs to do (0 resumed), 3 already finished" in far.ended(sweep("mine", "--suites", suite))


def test_quick_suite(sweep, tmp_path):
    out = far.ended(sweep("quick", "--steps", "2000", "--jobs", "2", RAY_ADDRESS=""))
    assert "7 runs finished now, 0 failed" in out
    for run in (tmp_path / "runs").glob("*__quick_*"):
        assert export.read_run(run, allow_dirty=True)


@pytest.mark.parametrize(
    "words, variables, message",
    [(["colour=red"], {}, "colour"), (["num_cpus=1"], {"RAY_ADDRESS": "127.0.0.1:1"}, "no Ray at 127.0.0.1:1")],
)
def test_bad_settings_are_one_line(sweep, tmp_path, words, variables, message):
    out = far.ended(sweep("mine", "--suites", far.write_suite(tmp_path, 1), "--set", *words, **variables), status=2)
    assert out.splitlines()[-1].startswith("error: ") and message in out.splitlines()[-1] and "Traceback" not in out
