"""The sweep on this machine: skipping, resuming, failures, interruption, two at a time.

Where training adds nothing, stand_in.py takes its place. The other engines: test_on_slurm.py, test_on_ray.py.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks import export, on_here, pages, standing, suites, sweep
from benchmarks.work import ROOT, Process, Work
from harness import RunFolder, log, provenance
from harness.folder import LAYOUT

RUN_ALL = ROOT / "benchmarks" / "run_all.sh"
TIMEOUT = 600  # seconds; far above what anything here takes, so that a loaded machine fails nothing
SCRIPT = str(Path(__file__).with_name("stand_in.py"))


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """The tests' own settings only, the stand-in where it can be imported, here and in a process; no other engine."""
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"benchmarks.on_{'slurm' if name == 'submitit' else name}", raising=False)
    for name in ("SUITE", "JOBS", "RUNS", "PYTHON", "STEPS", "DRY_RUN", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUN_FOLDER_LAYOUT", str(LAYOUT))
    monkeypatch.setenv("PYTHONPATH", str(Path(SCRIPT).parent))
    monkeypatch.syspath_prepend(Path(SCRIPT).parent)


def entry(name="a", **more):
    return {"name": name, "script": SCRIPT, "envs": ["Hopper-v4"], "seeds": [1], "steps": 1000} | more


def toml(*entries):
    """A file of suites with these runs as the suite `mine`."""

    def written(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {written(inner)}" for key, inner in value.items()) + " }"
        return json.dumps(value)

    lines = [written(one) for one in entries]
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
        ([entry(flags="--num_seeds=2")], [], "may not have --num-seeds among its flags: the sweep gives it"),
        ([entry(settings={"long": "--total-timesteps 9"})], [], "may not have --total-timesteps among its flags"),
        ([entry(settings=["--eval-episodes 1"])], [], "must be flags by name"),
        ([entry(settings={"k1": 1})], [], "must be flags by name"),
        ([entry(flags="--eval-episodes 0")], [], "--eval-episodes must be positive"),
        ([entry()], ["--steps", "many"], "argument --steps: must be a positive whole number, not 'many'"),
        ([entry()], ["--jobs", "0"], "argument --jobs: must be a positive whole number, not '0'"),
        ([entry()], ["--no-such-option"], "unrecognized arguments"),
        ([entry()], ["--on", "nowhere"], "argument --on"),
        ([entry()], ["--on", "slurm"], "--on slurm needs submitit: pip install '.[slurm]'"),
        ([entry()], ["--on", "ray"], "--on ray needs ray: pip install '.[ray]'"),
        ([entry()], ["--set", "time"], "argument --set"),
        ([entry()], ["--set", "time=5"], "it has no settings: time"),
    ],
)
def test_bad_lists_and_settings_are_one_line(call, tmp_path, entries, words, message):
    printed = call(*words, entries=entries, status=2)
    assert printed.out == "" and not (tmp_path / "runs").exists()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and message in printed.err


def test_bad_files_and_suites_are_one_line(call, tmp_path):
    assert "no suite 'nothing'; there are mine" in call(suite="nothing", entries=[entry()], status=2).err
    for content in (None, "[mine", "mine = 3", "slurm = 3"):
        path = tmp_path / "other.toml"
        path.write_text(content) if content else None
        printed = call("--suites", str(path), status=2)
        assert printed.err.startswith("error: cannot read") and printed.err.count("\n") == 1
    (tmp_path / "file").touch()
    assert call("--runs", str(tmp_path / "file"), entries=[entry()], status=2).err.count("\n") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ('[mine]\ninclude = ["other"]\n[other]\ninclude = ["mine"]', "'mine' includes itself: mine > other > mine"),
        ('[mine]\nruns = ["sac_jax.py"]', "must have a list of tables as runs"),
        ("[mine]\nruns = 3", "must have a list of tables as runs"),
        ("[mine]\ninclude = 3", "of names as include"),
        ("[mine]\nrun = []", "has neither runs nor include nor results"),
        ('[mine]\nresults = "none"', "no results in '"),
        ('[mine]\nresults = ["none"]', "must have a folder as results"),
        ('[mine]\nresults = "none"\nseeds = [1]', "beside it no more than include"),
    ],
)
def test_suites_of_another_form_are_one_line(call, tmp_path, content, message):
    path = tmp_path / "other.toml"
    path.write_text(content)
    said = call("--suites", str(path), status=2).err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_disk_that_is_full_at_the_end_of_a_log_ends_one_run_only(tmp_path, monkeypatch):
    works = [Work(name, ("-c", ""), tmp_path / name) for name in "abc"]
    ended, say = [], Process._say

    def full(self, line):
        if line.startswith("+ exit status") and self._log.name.endswith("b"):
            raise OSError(28, "No space left on device")
        say(self, line)

    monkeypatch.setattr(Process, "_say", full)
    on_here.Engine(1, {}).run(works, lambda work: True, lambda work: ended.append(work.name))
    assert ended == ["a", "b", "c"]


def test_seeds_are_one_process_on_a_gpu(call, monkeypatch):
    monkeypatch.setattr(on_here, "accelerator", lambda: True)
    both = [entry(seeds=[1, 2])]
    assert "--seed 1 --num-seeds 2" in call("--dry-run", entries=both).out
    assert "--num-seeds" not in call("--dry-run", "--vmap", "0", entries=both).out
    assert call(entries=both).out.endswith("1 runs finished now, 0 failed\n")
    assert "0 runs to do (0 resumed), 1 already finished" in call(entries=both).out
    # Also from a machine without one, which would have made them two.
    monkeypatch.setattr(on_here, "accelerator", lambda: False)
    assert "1 runs: 0 waiting" in call("--status", entries=both).out
    assert "0 runs to do (0 resumed), 1 already finished" in call(entries=both).out
    assert "2 runs to do" in call("--dry-run", "--vmap", "0", entries=both).out
    # Entry by entry: what has not begun is divided as the machine has it.
    more = [*both, entry(name="b", seeds=[1, 2])]
    assert "2 runs to do (0 resumed), 1 already finished" in call("--dry-run", entries=more).out
    monkeypatch.setattr(on_here, "accelerator", lambda: True)
    assert "1 runs to do (0 resumed), 1 already finished" in call("--dry-run", entries=more).out


def test_run_all_passes_its_variables_on(tmp_path):
    runs = tmp_path / "runs"
    variables = {"SUITE": "quick", "DRY_RUN": "1", "RUNS": str(runs), "PYTHON": sys.executable, "STEPS": "8000"}
    done = subprocess.run([str(RUN_ALL)], env=os.environ | variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    first, *commands = done.stdout.splitlines()
    assert first == "# 7 runs to do (0 resumed), 0 already finished, 0 failed before; 56,000 environment steps"
    assert len(commands) == 7 and not runs.exists()
    before, name, after = commands[0].partition("Pendulum-v1__quick_sac__1__quick-")
    assert before.endswith(
        "sac_jax.py --env-id Pendulum-v1 --seed 1 --total-timesteps 8000 --exp-name quick_sac "
        f"--runs-folder {runs} --run-name "
    )
    assert name and after[8:] == " --eval-frequency 2000 --learning-starts 1000 --hidden-dim 64"
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


def test_other_settings_are_another_run(call, tmp_path):
    """A run is known by the name of its folder, which says what it was made with."""
    call(entries=[entry()])
    (folder,) = (tmp_path / "runs").glob("*__a__*")
    assert folder.name.startswith("Hopper-v4__a__1__mine-")
    assert json.loads((folder / "versions.json").read_text())["threads"] == "1"
    log = (tmp_path / "runs" / "logs" / f"{folder.name}.log").read_text().splitlines()
    assert log[0].startswith("+ ") and log[1].startswith("running") and log[2] == "+ exit status 0"
    out = call(entries=[entry()]).out
    assert "0 runs to do (0 resumed), 1 already" in out and "already there were begun at commit 0123456" in out
    for other in (entry(steps=2000), entry(flags="--behaviour slow"), entry(seeds=[11])):
        assert "1 runs to do (0 resumed), 0 already" in call("--dry-run", entries=[other]).out
    # Arguments that only say how a run is logged do not make it another one.
    assert "0 runs to do" in call("--dry-run", entries=[entry(flags="--checkpoint-frequency 500")]).out


def test_code_that_has_changed_since_is_named(call, tmp_path, monkeypatch):
    """Of what was in no commit, then or now; the runs are not repeated."""
    call(entries=[entry()])
    (folder,) = (tmp_path / "runs").glob("*__a__*")
    mine = tmp_path / "mine.py"
    mine.write_text("loss = 1\n")
    versions = json.loads((folder / "versions.json").read_text())
    versions["git_changes"] = {str(mine): provenance.digest(str(mine))}
    (folder / "versions.json").write_text(json.dumps(versions))
    monkeypatch.setattr(provenance, "commit_and_changes", lambda: ("0123456", {str(mine): "0", "/other/idea.py": "1"}))
    assert "other code" not in call(entries=[entry()]).out
    mine.write_text("loss = 2\n")
    out = call(entries=[entry()]).out
    assert f".. with other code than now of {mine}: what has finished stays, the rest goes on with that of now" in out
    assert "0 runs to do (0 resumed), 1 already" in out
    mine.unlink()  # or on another machine
    assert "other code" not in call(entries=[entry()]).out
    monkeypatch.setattr(provenance, "commit_and_changes", lambda: ("0123456", {"sac_jax.py": "0"}))
    assert ".. with other code than now of sac_jax.py: " in call(entries=[entry()]).out


def test_a_script_is_found_where_it_lies(call, tmp_path, monkeypatch):
    """By its name alone, in a folder that Python looks in and runs are not started in, even by a link from there."""
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "tiny_link.py").symlink_to(ROOT / "tests" / "harness" / "tiny_jax.py")
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.delenv("PYTHONPATH")  # what the script imports is found all the same
    own = entry("tiny", script="tiny_link.py", envs=["Pendulum-v1"], steps=100, flags="--eval-episodes 1")
    assert "1 runs finished now, 0 failed" in call(entries=[own]).out
    (folder,) = (tmp_path / "runs").glob("*tiny*")
    assert RunFolder(folder).stored_args()["script"] == "tiny_link"
    command = call("--dry-run", entries=[entry(script="sac_jax.py", steps=9000)]).out.splitlines()[1]
    assert command.split()[1] == "sac_jax.py"


def test_settings_are_multiplied(call):
    """Algorithms x settings x environments x seeds."""
    many = entry(envs=["Hopper-v4", "Walker2d-v4"], seeds=[1, 2], settings={"x": "", "y": "--behaviour half"})
    commands = call("--dry-run", entries=[many, entry("b")]).out.splitlines()[1:]
    names = [command.split("--exp-name ")[1].split()[0] for command in commands]
    assert names == ["a_x"] * 4 + ["a_y"] * 4 + ["b"]
    assert ["--behaviour half" in command for command in commands] == [False] * 4 + [True] * 4 + [False]


def test_two_sweeps_share_a_folder(call, tmp_path):
    """What one of them runs the other leaves to it; the table shows how all of it stands."""
    entries = [entry("stay", flags="--behaviour stay"), entry("done"), entry("bad", flags="--behaviour fail")]
    (tmp_path / "first.toml").write_text(toml(entries[0], entry("late", flags="--behaviour stay")))
    first = [sys.executable, "-m", "benchmarks.sweep", "mine", "--suites", tmp_path / "first.toml", "--vmap", "0"]
    process = subprocess.Popen(
        [*first, "--runs", tmp_path / "runs"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: list((tmp_path / "runs").glob("*__stay__*/stays")))
        out = call(entries=entries, status=1).out
        assert "2 runs to do" in out and "stay Hopper-v4 seed 1: another sweep is running it" in out
        assert "1 runs finished now, 1 failed" in out
        rows = call("--status", entries=[*entries, entry("new")]).out.splitlines()
        assert rows[0].split() == ["run", "state", "step", "of", "steps/s"]
        assert [row.split()[4:8] for row in rows[1:3]] == [
            ["running", "100", "1,000", "250"],
            ["finished", "1,000", "1,000"],
        ]
        assert rows[3].split()[4:7] == ["failed", "100", "1,000"] and "exit status 1" in rows[3]
        assert rows[3].endswith(": error: the reason of the failure")
        assert rows[4].split()[4:] == ["waiting", "0", "1,000"]
        assert rows[5] == "4 runs: 1 waiting, 1 running, 1 finished, 1 failed"
        # The first sweep comes to `late` while another process is at it, of which it knew nothing when it began.
        (job,) = suites.jobs_of(tomllib.loads(toml(entry("late", flags="--behaviour stay"))), "mine")
        late = subprocess.Popen([sys.executable, *job.command(tmp_path / "runs")], env={**os.environ, "NPROC": "1"})
        wait_for(lambda: list((tmp_path / "runs").glob("*__late__*/stays")))
        next((tmp_path / "runs").glob("*__stay__*/stays")).with_name("go").touch()
        out, _ = process.communicate(timeout=TIMEOUT)
        assert "left late Hopper-v4 seed 1: running by another sweep" in out
        assert out.endswith("1 runs finished now, 0 failed, 1 left to another sweep\n") and process.returncode == 0
        next((tmp_path / "runs").glob("*__late__*/stays")).with_name("go").touch()
        assert late.wait(timeout=TIMEOUT) == 0
    finally:
        process.kill()
    assert {path.read_text() for path in (tmp_path / "runs").glob("*/starts")} == {"start\n"}


def test_a_run_that_is_refused_is_left_to_the_other(call, tmp_path, monkeypatch):
    """Two sweeps looked at the same moment: the run folder's lock lets one of them have the run."""
    monkeypatch.setattr(sweep.Report, "begin", lambda self, work: True)
    (job,) = suites.jobs_of(tomllib.loads(toml(entry(flags="--behaviour stay"))), "mine")
    other = []

    def outlook(stands):
        words = [sys.executable, *job.command(tmp_path / "runs")]
        other.append(subprocess.Popen(words, env={**os.environ, "NPROC": "1"}))
        wait_for(lambda: list((tmp_path / "runs").glob("*/stays")))
        return []

    monkeypatch.setattr(sweep, "outlook", outlook)
    out = call(entries=[entry(flags="--behaviour stay")]).out
    assert out.endswith("0 runs finished now, 0 failed, 1 left to another sweep\n")
    next((tmp_path / "runs").glob("*/stays")).with_name("go").touch()
    assert other[0].wait(timeout=TIMEOUT) == 0
    assert [path.read_text() for path in (tmp_path / "runs").glob("*/starts")] == ["start\n"]


INTERRUPTED = [entry("a", flags="--behaviour wait", seeds=[1, 2, 3]), entry("b")]


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def two_wait(runs):
    return len(list(runs.glob("*__a__*/waits"))) == 2


def assert_resumed(call, runs):
    """The call after an interruption of INTERRUPTED with two jobs."""
    assert call("--dry-run", entries=INTERRUPTED).out.startswith("# 4 runs to do (2 resumed)")
    rows = call("--status", entries=INTERRUPTED).out.splitlines()
    assert [row.split()[4:6] for row in rows[1:5]] == [["waiting", "100"]] * 2 + [["waiting", "0"]] * 2
    # The third run of `a` starts anew and would wait: it is taken off the list.
    out = call("--jobs", "2", entries=[INTERRUPTED[0] | {"seeds": [1, 2]}, INTERRUPTED[1]]).out
    assert out.count("resume a Hopper-v4") == 2 and "3 runs finished now, 0 failed" in out
    assert [path.read_text() for path in runs.glob("Hopper-v4__a__*/starts")] == ["start\nstart\n"] * 2


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


def test_a_list_that_is_cut():
    """As in `| head -1`: the process is ended without a traceback."""
    command = [sys.executable, "-m", "benchmarks.sweep", "gym", "--dry-run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGPIPE and error == ""


@pytest.fixture
def job():
    """Of three seeds."""
    (job,) = suites.jobs_of({"mine": {"runs": [entry(script="sac_jax.py", seeds=[1, 2, 3], steps=9000)]}}, "mine", True)
    return job


@pytest.fixture
def begun(job, tmp_path):
    """Its folder."""
    folder = RunFolder(tmp_path / job.name)
    folder.path.mkdir()
    folder.write_args(job.args)
    return folder


def test_a_run_that_ends_while_it_is_looked_at_has_finished(job, begun, tmp_path, monkeypatch):
    def held(folder):  # it writes its summary before it releases the lock
        begun.write_json("summary.json", {"total_timesteps": 9000})
        return False

    monkeypatch.setattr(standing, "held", held)
    assert standing.look(job, tmp_path).state == "finished"


def test_the_speed_of_a_running_run_is_its_last(job, begun, tmp_path, monkeypatch):
    rows = "".join(f"{step},1.0,1,charts/SPS,{value}\n" for step, value in ((1000, 500.0), (2000, 30.0)))
    (begun.path / "scalars.csv").write_text(log.HEADER + rows)
    monkeypatch.setattr(standing, "held", lambda folder: True)
    stand = standing.look(job, tmp_path)
    assert (stand.state, stand.step, stand.speed) == ("running", 2000, 30.0)


def test_steps_to_do_are_those_of_all_seeds(job, tmp_path):
    (line,) = standing.outlook([standing.look(job, tmp_path)])
    assert line.endswith("; 27,000 environment steps")


def test_a_sweep_of_a_run_that_nan_stopped_has_not_succeeded(call):
    """Also where nothing is left to do."""
    nan = [entry("nan", flags="--behaviour nan")]
    for todo in (1, 0):
        assert f"{todo} runs to do" in call(entries=nan, status=1).out


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_that_comes_while_a_run_starts_reaches_it(number, monkeypatch):
    engine, sent = on_here.Engine(1, {}), []

    def start(work):
        engine._signal(number)
        return SimpleNamespace(send=sent.append, wait=lambda: 0)

    monkeypatch.setattr(on_here, "Process", start)
    engine._run_one(None)
    assert sent == [number]


def test_a_run_has_a_session_of_its_own(tmp_path):
    """Ctrl-C in a terminal would reach it twice, from there and from the sweep: the second leaves at once."""
    work = Work("a", ("-c", "import os; print(os.getsid(0) == os.getpid())"), tmp_path / "log")
    assert Process(work).wait() == 0
    assert "\nTrue\n" in work.log.read_text()


ON_A_LEASH = """
import os, sys, time
from pathlib import Path
from benchmarks.work import Process, Work
there = Path(sys.argv[1])
words = ("-c", f"import pathlib, time; pathlib.Path({str(there)!r}).touch(); time.sleep(60)")
process = Process(Work("a", words, there.with_name("log")), leash=True)
while not there.exists():
    time.sleep(0.02)
print(process._process.pid, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    "status, state",
    [*((x, "waiting") for x in (None, 130, 143, -2, -15)), (1, "failed"), (0, "failed")],
)
def test_what_an_exit_status_says_of_a_run(job, begun, tmp_path, status, state):
    """A signal that comes before Python can hear it ends a process by its number."""
    (tmp_path / "logs").mkdir()
    end = "" if status is None else f"+ exit status {status}\n"
    (tmp_path / "logs" / f"{job.name}.log").write_text(f"+ python a.py\nrunning\n{end}")
    stand = standing.look(job, tmp_path)
    assert (stand.state, stand.to_do) == (state, True) and stand.why.endswith(": running")


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the parent's death is Linux's")
def test_a_run_on_a_leash_ends_with_its_parent(tmp_path):
    """Otherwise it holds the lock of its folder, and another machine cannot go on with it."""
    words = [sys.executable, "-c", ON_A_LEASH, str(tmp_path / "there")]
    pid = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(int(pid), 9)
    pytest.fail("it goes on")


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
    # The suite of these results is the run again.
    (job,) = suites.jobs_of({"mine": {"results": str(results)}}, "mine")
    assert job.name == run.name


@pytest.mark.slow
def test_quick_suite_end_to_end(tmp_path):
    """All scripts as the quick suite runs them, with fewer steps."""
    variables = {"STEPS": "2000", "RUNS": str(tmp_path / "runs"), "PYTHON": sys.executable, "JOBS": "2"}
    done = subprocess.run(
        [str(RUN_ALL)], env=os.environ | variables, capture_output=True, text=True, timeout=3 * TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 runs finished now, 0 failed" in done.stdout
    for folder in (tmp_path / "runs").glob("*__quick_*"):
        assert export.read_run(folder, allow_dirty=True)


def test_ray_cancels_a_task_that_a_signal_crosses(monkeypatch):
    """It comes after the decision to hand the task over and before the task is known: with a stand-in for Ray."""
    cancelled, handed = [], SimpleNamespace(options=lambda name: SimpleNamespace(remote=lambda *task: name))
    ray = ModuleType("ray")
    ray.ObjectRef, ray.cancel, ray.wait = str, cancelled.append, lambda refs, timeout: (refs, [])
    ray.remote = lambda **settings: lambda task: handed
    monkeypatch.setitem(sys.modules, "ray", ray)
    spec = importlib.util.spec_from_file_location("on_stand_in_ray", ROOT / "benchmarks" / "on_ray.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine, works = module.Engine(None, {}), [SimpleNamespace(name="first"), SimpleNamespace(name="second")]
    engine._run(works, lambda work: engine._signal(signal.SIGINT) is None, lambda work: None)
    assert cancelled == ["first"]
