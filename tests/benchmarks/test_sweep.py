"""The sweep: skipping, resuming, failures, interruption. Where training adds nothing, stand_in.py takes its place."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from benchmarks import export, pages, suites, sweep
from harness import RunFolder
from harness.folder import LAYOUT

ROOT = sweep.ROOT
RUN_ALL = ROOT / "benchmarks" / "run_all.sh"
TIMEOUT = 600  # seconds; far above what anything here takes, so that a loaded machine fails nothing
SCRIPT = str(Path(__file__).with_name("stand_in.py"))


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """The tests' own settings only, and the stand-in where it can be imported, here and in a process."""
    for name in ("SUITE", "JOBS", "RUNS", "PYTHON", "STEPS", "DRY_RUN", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUN_FOLDER_LAYOUT", str(LAYOUT))
    monkeypatch.setenv("PYTHONPATH", str(Path(SCRIPT).parent))
    monkeypatch.syspath_prepend(Path(SCRIPT).parent)


def entry(name="a", **more):
    return {"name": name, "script": SCRIPT, "envs": ["Hopper-v4"], "seeds": [1], "steps": 1000} | more


def toml(*entries):
    """A file of suites with these runs as the suite `mine`."""
    lines = ["{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) + " }" for one in entries]
    return f"[mine]\nruns = [\n{', '.join(lines)}\n]\n"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the sweep on `mine`, asserts its exit status and returns what it printed."""

    def call(*words, entries=(), suite="mine", status=0):
        (tmp_path / "suites.toml").write_text(toml(*entries))
        options = ["--suites", tmp_path / "suites.toml", "--runs", tmp_path / "runs"]
        monkeypatch.setattr("sys.argv", ["sweep", suite, *map(str, options), *words])
        capsys.readouterr()
        try:
            left = sweep.main()
        except SystemExit as leaving:
            left = leaving.code
        printed = capsys.readouterr()
        assert left == status, f"{left}\n{printed.out}\n{printed.err}"
        return printed

    return call


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "entries, words, message",
    [
        ([entry(steps="many")], [], "must have name, script, flags, envs, seeds, steps"),
        ([entry(learning=1)], [], "and no more"),
        ([entry(seeds=[])], [], "whole numbers as seeds"),
        ([entry(seeds=["one"])], [], "whole numbers as seeds"),
        ([entry(seeds=[1, 1])], [], "names a run twice"),
        ([entry(script="no_such_script.py")], [], "no script 'no_such_script'"),
        ([entry(script="json.py")], [], "no script 'json'"),
        ([entry(flags="--q-lr 1")], [], "stand_in.py does not take '--q-lr 1"),
        ([entry(flags="--eval-episodes x")], [], "stand_in.py does not take"),
        ([entry(flags="--eval-episodes 0")], [], "--eval-episodes must be positive"),
        ([entry()], ["--steps", "many"], "argument --steps"),
        ([entry()], ["--jobs", "0"], "argument --jobs"),
        ([entry()], ["--no-such-option"], "unrecognized arguments"),
    ],
)
def test_bad_lists_and_settings_are_one_line(call, tmp_path, entries, words, message):
    printed = call(*words, entries=entries, status=2)
    assert printed.out == "" and not (tmp_path / "runs").exists()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and message in printed.err


def test_bad_files_and_suites_are_one_line(call, tmp_path):
    assert "no suite 'nothing'; there are mine" in call(suite="nothing", entries=[entry()], status=2).err
    for content in (None, "[mine"):
        path = tmp_path / "other.toml"
        path.write_text(content) if content else None
        printed = call("--suites", str(path), status=2)
        assert printed.err.startswith("error: cannot read") and printed.err.count("\n") == 1
    (tmp_path / "file").touch()
    assert call("--runs", str(tmp_path / "file"), entries=[entry()], status=2).err.count("\n") == 1


def test_seeds_are_one_process_on_a_gpu(call, monkeypatch):
    monkeypatch.setattr(sweep, "accelerator", lambda: True)
    both = [entry(seeds=[1, 2])]
    assert "--seed 1 --num-seeds 2" in call("--dry-run", entries=both).out
    assert "--num-seeds" not in call("--dry-run", "--vmap", "0", entries=both).out
    assert call(entries=both).out.endswith("1 runs finished now, 0 failed\n")
    assert "0 runs to do (0 resumed), 1 already finished" in call(entries=both).out


def test_run_all_passes_its_variables_on(tmp_path):
    runs = tmp_path / "runs"
    variables = {"SUITE": "quick", "DRY_RUN": "1", "RUNS": str(runs), "PYTHON": sys.executable, "STEPS": "8000"}
    done = subprocess.run([str(RUN_ALL)], env=os.environ | variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    first, *commands = done.stdout.splitlines()
    assert first == "# 7 runs to do (0 resumed), 0 already finished, 0 failed before; 56,000 environment steps"
    assert len(commands) == 7 and not runs.exists()
    assert commands[0].endswith(
        f"sac_jax.py --env-id Pendulum-v1 --seed 1 --total-timesteps 8000 --exp-name quick_sac --runs-folder {runs} "
        "--eval-frequency 2000 --learning-starts 1000 --hidden-dim 64"
    )
    assert os.access(RUN_ALL, os.X_OK)


# --------------------------------------------------------------------------------------------------------- scheduling


def test_a_failure_does_not_stop_the_others(call, tmp_path):
    entries = [
        entry("bad", flags="--behaviour fail"),
        entry("nan", flags="--behaviour nan"),
        entry("half", flags="--behaviour half"),
        entry("good", envs=["Hopper-v4", "Walker2d-v4"], seeds=[1, 2]),
    ]
    out = call("--jobs", "3", entries=entries, status=1).out.splitlines()
    assert out[0].startswith("7 runs to do (0 resumed), 0 already finished, 0 failed before")
    failed = sorted(out[out.index("4 runs finished now, 3 failed") + 1 :])
    assert [line.split(": ")[1] for line in failed] == [f"{x} Hopper-v4 seed 1" for x in ("bad", "half", "nan")]
    assert "exit status 1" in failed[0] and failed[0].endswith(": error: the reason of the failure")
    assert "exit status 0, but it is not finished" in failed[1]
    assert "stopped by NaN or infinity" in failed[2]
    # The second call repeats what can be repeated; the run that NaN stopped is named and not trained again.
    before = len(list((tmp_path / "runs").glob("*__nan__*")))
    out = call(entries=entries, status=1).out
    assert "2 runs to do (2 resumed), 4 already finished, 1 failed before" in out
    assert "failed: nan Hopper-v4 seed 1: a seed was stopped by NaN or infinity" in out
    assert "0 runs finished now, 3 failed" in out
    assert len(list((tmp_path / "runs").glob("*__nan__*"))) == before == 1
    assert "# nan Hopper-v4 seed 1: a seed was stopped" in call("--dry-run", entries=entries).out


def test_other_arguments_are_another_run(call, tmp_path):
    """A finished run counts only for the arguments and the steps that it was made with."""
    call(entries=[entry()])
    (folder,) = (tmp_path / "runs").glob("*__a__*")
    assert json.loads((folder / "versions.json").read_text())["threads"] == "1"
    assert "running" in (tmp_path / "runs" / "logs" / "Hopper-v4__a__1.log").read_text()
    out = call(entries=[entry()]).out
    assert "0 runs to do (0 resumed), 1 already" in out and "already there were begun at commit 0123456" in out
    for other in (entry(steps=2000), entry(flags="--behaviour slow"), entry(seeds=[11])):
        assert "1 runs to do (0 resumed), 0 already" in call("--dry-run", entries=[other]).out
    # Arguments that only say how a run is logged do not make it another one.
    assert "0 runs to do" in call("--dry-run", entries=[entry(flags="--checkpoint-frequency 500")]).out
    # A folder of another version is none of ours.
    stored = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(stored | {"layout": LAYOUT - 1}))
    assert "1 runs to do (0 resumed), 0 already" in call("--dry-run", entries=[entry()]).out


def test_a_finished_run_counts_beside_unfinished_ones(tmp_path):
    (job,) = suites.jobs_of(tomllib.loads(toml(entry())), "mine")
    assert suites.find(job, tmp_path / "none") == ("new", None)
    folders = [tmp_path / f"{job.prefix}{i}" for i in range(4)]
    stored = {"layout": LAYOUT, "script": "stand_in", "total_timesteps": 1000}
    finished = {"total_timesteps": 1000}
    for folder, summary in zip(folders, (None, finished, {"interrupted_by": "SIGTERM"}, None), strict=True):
        folder.mkdir()
        (folder / "args.json").write_text(json.dumps(stored))
        if summary:
            (folder / "summary.json").write_text(json.dumps(summary))
    assert suites.find(job, tmp_path) == ("finished", folders[1])
    (folders[1] / "summary.json").write_text(json.dumps(finished | {"stopped": {"1": {}}}))
    assert suites.find(job, tmp_path) == ("stopped", folders[1])
    (folders[1] / "args.json").unlink()
    assert suites.find(job, tmp_path) == ("unfinished", folders[3]), "the newest is resumed"


INTERRUPTED = [entry("a", flags="--behaviour wait", seeds=[1, 2, 3]), entry("b")]


def wait_for(condition):
    deadline = time.time() + TIMEOUT
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)


def two_wait(runs):
    return len(list(runs.glob("*__a__*/waits"))) == 2


def assert_resumed(call, runs):
    """The call after an interruption of INTERRUPTED with two jobs."""
    out = call("--dry-run", entries=INTERRUPTED).out
    assert out.startswith("# 4 runs to do (2 resumed)") and out.count("--resume") == 2
    # The third run of `a` starts anew and would wait: it is taken off the list.
    out = call("--jobs", "2", entries=[INTERRUPTED[0] | {"seeds": [1, 2]}, INTERRUPTED[1]]).out
    assert out.count("resume a Hopper-v4") == 2 and "3 runs finished now, 0 failed" in out
    assert len(list(runs.glob("Hopper-v4__a__*"))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interruption_and_a_second_call_that_finishes(call, tmp_path, number):
    over = threading.Event()

    def interrupt():
        wait_for(lambda: two_wait(tmp_path / "runs") or over.is_set())
        if not over.is_set():
            os.kill(os.getpid(), number)

    # A shell may have started the tests with the signal ignored.
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        out = call("--jobs", "2", entries=INTERRUPTED, status=128 + number).out
    finally:
        over.set()
        thread.join()
        signal.signal(number, before)
    assert out.count("interrupted a Hopper-v4") == 2 and "0 runs finished now, 0 failed" in out
    assert "start a Hopper-v4 seed 3" not in out and "start b" not in out
    assert_resumed(call, tmp_path / "runs")


def test_a_signal_to_the_process(call, tmp_path):
    call(entries=INTERRUPTED[1:])  # `b` is finished before
    (tmp_path / "suites.toml").write_text(toml(INTERRUPTED[0]))
    words = [sys.executable, "-m", "benchmarks.sweep", "mine", "--suites", tmp_path / "suites.toml", "--jobs", "2"]
    process = subprocess.Popen(
        [*words, "--runs", tmp_path / "runs"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: two_wait(tmp_path / "runs"))
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 143 and out.count("interrupted a Hopper-v4") == 2, out
    assert "exec " in RUN_ALL.read_text(), "a signal to run_all.sh reaches the sweep"


# --------------------------------------------------------------------------------------------------------- end to end

TINY = (
    "--eval-frequency 200 --log-frequency 100 --learning-starts 100 --eval-episodes 2 --buffer-size 1000 "
    "--batch-size 16 --hidden-dim 16"
)


def test_runs_results_and_tables_end_to_end(call, tmp_path, monkeypatch, capsys):
    """The sweep trains, a second call finds nothing to do, export and pages take it from there."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    entries = [entry("sac_jax", script="sac_jax.py", flags=TINY, envs=["Pendulum-v1"], steps=400)]
    assert "1 runs finished now, 0 failed" in call(entries=entries).out
    assert "0 runs to do (0 resumed), 1 already finished" in call(entries=entries).out
    (run,) = (tmp_path / "runs").glob("Pendulum*")
    assert [version["threads"] for version in RunFolder(run).versions()] == [1]

    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "README.md").write_text("<!-- table off-policy -->\n<!-- end -->\n")
    results = root / "benchmarks" / "results"
    monkeypatch.setattr("sys.argv", ["export", "--results", str(results), "--allow-dirty", str(run)])
    assert export.main() == 0
    monkeypatch.setattr("sys.argv", ["pages", "--tables", "--root", str(root)])
    assert pages.main() == 0
    assert "| Pendulum-v1 | 0.4k | 1 |" in (root / "README.md").read_text()
    # What it lists as the results is the run again.
    again = tomllib.loads(f"[mine]\nruns = [\n{' '.join(export.suite_entries(results))}\n]\n")
    (job,) = suites.jobs_of(again, "mine")
    assert suites.find(job, tmp_path / "runs") == ("finished", run)


@pytest.mark.slow
def test_quick_suite_end_to_end(tmp_path):
    """All scripts as the quick suite runs them, with fewer steps."""
    variables = {"STEPS": "8000", "RUNS": str(tmp_path / "runs"), "PYTHON": sys.executable, "JOBS": "2"}
    done = subprocess.run(
        [str(RUN_ALL)], env=os.environ | variables, capture_output=True, text=True, timeout=3 * TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 runs finished now, 0 failed" in done.stdout
    for folder in (tmp_path / "runs").glob("*__quick_*"):
        assert export.read_run(folder, allow_dirty=True)
