"""What may happen to a run: kill -9, signals, numbers that are not finite, a full disk, a deleted folder."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint
import pytest

from harness import RunFolder, checkpoint, seal
from harness.folder import RunFolderError
from harness.lock import lock
from harness.progress import Progress
from tests import environments
from tests.harness.test_resume import COUNTING, OFF_POLICY, assert_equal_runs, assert_tensorboard_shows_one_curve
from tests.running import ROOT, TIMEOUT, TINY, command, enter, environment, run, scalars, train

SETTINGS = {
    "env-id": COUNTING,  # episodes of 200 steps
    "total-timesteps": 800,
    "log-frequency": 50,
    "eval-frequency": 400,
    "eval-episodes": 2,
    "checkpoint-frequency": 100,
    "memory": 1000,
    "learning-starts": 0,
}


def start(script, settings, **more):
    return subprocess.Popen(
        command(script, settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )


def wait_for(process, condition):
    begin = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begin < TIMEOUT
        time.sleep(0.01)


def checkpoints_of(folder):
    return sorted(int(path.name) for path in checkpoint.complete(folder / "checkpoints"))


def summary_of(folder):
    return RunFolder(folder).summary()


# ------------------------------------------------------------------------------------------------------------ kill -9


def test_killed_twice(tmp_path):
    """Killed at steps drawn at random, at whatever point the writing of the checkpoint is by then."""
    settings = {**SETTINGS, "total-timesteps": 1200}
    whole = train(TINY, tmp_path / "whole", settings)
    runs = tmp_path / "runs"
    draw = random.Random(1)
    settings, before = {**settings, "runs-folder": runs}, 0
    for _ in range(2):
        # The environment counts the steps of its running episode that are replayed. Where a checkpoint begins, the one
        # before it is complete: each start adds at least one.
        run(TINY, settings, status=-signal.SIGKILL, TEST_SIGNALS=f"SIGKILL@{before % 200 + draw.randint(201, 300)}")
        (folder,) = runs.iterdir()
        settings = {"resume": folder}
        with (folder / "scalars.csv").open("a") as file:
            file.write("99,1.0,1,char")  # a torn line
        assert RunFolder(folder).status() == "unfinished"
        assert before < checkpoints_of(folder)[-1] < 1200
        before = checkpoints_of(folder)[-1]
    enter(TINY, settings)
    assert_equal_runs(folder, whole)
    assert_tensorboard_shows_one_curve(folder)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path):
    """Killed after delays drawn at random, also while it compiles, evaluates, writes or closes."""
    script = "sac_jax.py"
    settings = {**OFF_POLICY, "total-timesteps": 2000, "checkpoint-frequency": 100}
    begin = time.monotonic()
    whole = train(script, tmp_path / "whole", settings, how=run)
    seconds = time.monotonic() - begin
    runs = tmp_path / "runs"
    draw = random.Random(2)
    kills, folder = 0, None
    while kills < 50:
        process = start(script, {"resume": folder} if folder else {**settings, "runs-folder": runs})
        try:
            process.communicate(timeout=draw.uniform(0.0, seconds))
            assert process.returncode == 0
            (folder,) = runs.iterdir()
            assert_equal_runs(folder, whole)
            assert_tensorboard_shows_one_curve(folder)
            shutil.rmtree(runs)  # it finished: the remaining kills hit another one
            folder = None
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            print(f"kill {kills}", flush=True)
            for path in runs.glob("*/args.json"):
                folder = path.parent
            if folder is None:
                shutil.rmtree(runs, ignore_errors=True)  # killed before the folder said what it is
    run(script, {"resume": folder} if folder else {**settings, "runs-folder": runs})
    (folder,) = runs.iterdir()
    assert_equal_runs(folder, whole)
    assert_tensorboard_shows_one_curve(folder)


# ------------------------------------------------------------------------------------------------------------ signals


def test_sigusr1_writes_a_checkpoint_and_sigint_ends_the_run(tmp_path):
    """SIGINT is ignored at the start, as it is in a background process of a shell without job control."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = enter(
            TINY,
            {**SETTINGS, "checkpoint-frequency": 0, "runs-folder": tmp_path, "total-timesteps": 8000},
            status=130,
            TEST_SIGNALS="SIGUSR1@110 SIGINT@310",
        )
    finally:
        signal.signal(signal.SIGINT, before)
    (folder,) = tmp_path.iterdir()
    steps = checkpoints_of(folder)
    assert len(steps) == 2 and 110 < steps[0] < steps[1] < 8000 and steps[1] > 310
    assert summary_of(folder)["step"] == steps[1] and summary_of(folder)["interrupted_by"] == "SIGINT"
    assert RunFolder(folder).status() == "unfinished"
    assert "SIGUSR1: a checkpoint after this chunk" in done.stdout
    assert "SIGINT: ends after this chunk with a checkpoint" in done.stdout
    assert f"continue with: python {TINY} --resume {folder}" in done.stdout and done.stderr == ""


def test_sigterm_after_the_last_step_interrupts_nothing(tmp_path):
    """The signal comes in the last chunk: the run ends as without it."""
    settings = {**SETTINGS, "total-timesteps": 400, "runs-folder": tmp_path}
    enter(TINY, settings, TEST_SIGNALS="SIGTERM@390")
    (folder,) = tmp_path.iterdir()
    assert summary_of(folder)["interrupted_by"] is None and RunFolder(folder).status() == "finished"


@pytest.mark.parametrize("first", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_sigint_leaves_at_once_after_another_signal(first, tmp_path):
    """In the middle of a chunk that would take minutes."""
    total = 1_000_000
    chunk = {"total-timesteps": total, "log-frequency": total, "eval-frequency": total}
    run(TINY, {**SETTINGS, **chunk, "runs-folder": tmp_path}, status=130, TEST_SIGNALS=f"{first}@100 SIGINT@300")
    (folder,) = tmp_path.iterdir()
    assert not (folder / "summary.json").exists()
    os.close(lock(folder))  # the kernel released it


# ---------------------------------------------------------------------------------------------------------- NaN guard


def nan_of_environment(which, at):
    environments.NotANumber.copies = -1  # the first is only tried out
    kwargs = json.dumps({"which": which, "at": at})
    return {**SETTINGS, "env-id": "tests.environments:NotANumber-v0", "env-kwargs": kwargs}


def test_nan_of_an_environment_stops_its_seed_only(tmp_path, monkeypatch):
    more = {"num-seeds": 2, "seed": 5, "total-timesteps": 200, "eval-frequency": 100, "learning-rate": 1e-4}
    clean = train(TINY, tmp_path / "clean", {**nan_of_environment(-1, 130), **more})
    shown = []  # beside the steps, of the seeds that go on
    monkeypatch.setattr(Progress, "evaluated", lambda self, returns: shown.append(len(returns)))
    folder = train(TINY, tmp_path / "nan", {**nan_of_environment(1, 130), **more}, status=3)
    assert shown == [2, 1]
    assert [row for row in scalars(folder) if row[1] == 5] == [row for row in scalars(clean) if row[1] == 5]
    stopped = [row for row in scalars(folder) if row[1] == 6]
    assert stopped == [row for row in scalars(clean) if row[1] == 6 and row[0] <= 100]
    summary, clean_summary = summary_of(folder), summary_of(clean)
    assert summary["step"] == 200 and list(summary["stopped"]) == ["6"] and summary["evaluations"] == 2
    assert summary["episodic_return"]["5"] == clean_summary["episodic_return"]["5"]
    # Of the stopped seed the evaluation before it counts, not what its replaced actions reach afterwards.
    before = [value for _, _, tag, value in stopped if tag == "eval/episodic_return_stochastic"]
    assert [summary["episodic_return"]["6"]["stochastic_last"]] == before
    what = summary["stopped"]["6"]
    assert (what["step"], what["cause"]) == (130, "environment")
    assert what["what"] == "an observation or reward of environment 0 is not finite"
    assert RunFolder(folder).status() == "stopped"
    # The other seed may go on; the stopped one stays stopped.
    enter(TINY, {"resume": folder, "total-timesteps": 300}, status=3)
    assert [row for row in scalars(folder) if row[1] == 6] == stopped and scalars(folder)[-1][:2] == (300, 5)
    assert summary_of(folder)["stopped"] == summary["stopped"]


def assert_resuming_repeats_it(folder, step, cause):
    """The last checkpoint is before the NaN, so a resume comes to it again: the same rows and the same exit status."""
    rows, summary = scalars(folder), summary_of(folder)
    assert checkpoints_of(folder) == [100]
    assert list(summary["stopped"]) == ["1"] and RunFolder(folder).status() == "stopped"
    assert (summary["stopped"]["1"]["step"], summary["stopped"]["1"]["cause"]) == (step, cause)
    assert len(rows) > 1 and all(np.isfinite(value) for *_, value in rows)
    lost = folder.with_name("lost")
    shutil.copytree(folder, lost)
    shutil.rmtree(lost / "checkpoints")
    environments.NotANumber.copies = -1  # the first is only tried out
    assert "are missing" in enter(TINY, {"resume": lost}, status=2).stderr
    environments.NotANumber.copies = -1
    done = enter(TINY, {"resume": folder}, status=3)
    assert "resumed at step 100" in done.stdout and f"seed 1 stopped at step {step} ({cause})" in done.stdout
    assert scalars(folder) == rows and checkpoints_of(folder) == [100]
    again = summary_of(folder)
    for name in ("stopped", "step", "episodic_return", "evaluations"):
        assert again[name] == summary[name], name


def test_nan_of_an_environment_is_reached_again_from_the_last_checkpoint(tmp_path):
    folder = train(TINY, tmp_path, nan_of_environment(0, 170), status=3)
    assert_resuming_repeats_it(folder, 170, "environment")


def test_nan_of_learning_is_reached_again_from_the_last_checkpoint(tmp_path):
    """The first updates, after step 120, make numbers that are not finite."""
    folder = train(TINY, tmp_path, {**SETTINGS, "learning-rate": 1e38, "learning-starts": 120}, status=3)
    assert_resuming_repeats_it(folder, 150, "learning")


def test_nan_before_the_first_checkpoint_is_reached_again_from_the_start(tmp_path):
    folder = train(TINY, tmp_path, nan_of_environment(0, 70), status=3)
    rows, summary = scalars(folder), summary_of(folder)
    assert checkpoints_of(folder) == [] and summary["stopped"]["1"]["step"] == 70 and rows
    environments.NotANumber.copies = -1
    done = enter(TINY, {"resume": folder}, status=3)
    assert "no checkpoint yet: starts from the beginning" in done.stdout and "seed 1 stopped at step 70" in done.stdout
    assert scalars(folder) == rows and summary_of(folder)["stopped"] == summary["stopped"]


@pytest.mark.slow
def test_a_learning_rate_that_is_too_large_ends_a_run(tmp_path):
    """Of a script, with the losses and the optimiser that it has."""
    folder = train("sac_jax.py", tmp_path, {**OFF_POLICY, "q-lr": 1e38, "checkpoint-frequency": 100}, status=3)
    summary = summary_of(folder)
    assert summary["stopped"]["1"]["cause"] == "learning" and summary["step"] == 150
    assert checkpoints_of(folder) == [100]  # the last good one, not the state with NaN
    assert all(np.isfinite(value) for *_, value in scalars(folder))


# ----------------------------------------------------------------------------------------- the folder cannot be written


def assert_stopped_with_one_line(err, folder, reason):
    """Returns the step of the checkpoint that the line names; it is there and intact."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert reason in err and "stopped at step" in err, err
    step = checkpoints_of(folder)[-1]
    assert f"from step {step:,} continue with: python {ROOT / TINY} --resume {folder}" in err, err
    assert seal.damage(folder / "checkpoints" / f"{step:012d}") is None
    return step


def test_full_disk_as_a_limit_on_the_size_of_files(tmp_path):
    """scalars.csv meets the limit after some checkpoints; without the limit the run goes on from the last."""
    settings = {**SETTINGS, "total-timesteps": 5000, "log-frequency": 10, "checkpoint-frequency": 200}
    process = start(TINY, {**settings, "eval-frequency": 5000, "runs-folder": tmp_path})
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, err
    (folder,) = tmp_path.iterdir()
    step = assert_stopped_with_one_line(err, folder, "File too large")
    assert 0 < step < 5000
    rows = scalars(folder)
    enter(TINY, {"resume": folder, "total-timesteps": step + 100, "eval-frequency": step + 100})
    kept = [row for row in rows if row[0] <= step]
    assert len(kept) > 10 and scalars(folder)[: len(kept)] == kept
    assert summary_of(folder)["step"] == step + 100


@pytest.fixture
def disk(tmp_path):
    """A file system of 500 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(disk):
    more = {"total-timesteps": 100_000, "eval-frequency": 100_000, "log-frequency": 10, "memory": 25_000}
    done = run(TINY, {**SETTINGS, **more, "runs-folder": disk}, status=1)
    (folder,) = disk.iterdir()
    assert_stopped_with_one_line(done.stderr, folder, "No space left on device")
    assert (folder / "scalars.csv").read_bytes().endswith(b"\n")  # no torn row


def test_folder_deleted_during_the_run(tmp_path):
    process = start(TINY, {**SETTINGS, "total-timesteps": 10_000_000, "runs-folder": tmp_path})
    try:
        wait_for(process, lambda: any(tmp_path.glob("*/checkpoints/0*[0-9]")))
        (folder,) = tmp_path.iterdir()
        folder.rename(tmp_path / "gone")
        shutil.rmtree(tmp_path / "gone")
        _, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 1
    assert err == f"error: the folder {folder} was deleted or moved: nothing is left there\n"
    assert not os.path.exists(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("what")])
def test_a_checkpoint_that_could_not_be_begun_is_not_named(error, tmp_path, monkeypatch):
    """A disk may be full before Orbax has made its first folder."""

    def save(*_, **__):
        raise error

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "save", save)
    done = enter(TINY, {**SETTINGS, "runs-folder": tmp_path}, status=1)
    (folder,) = tmp_path.iterdir()
    what = "cannot write to" if isinstance(error, OSError) else "something went wrong while writing to"
    assert done.stderr.startswith(f"error: {what} {folder}") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("stopped at step 100; there is no checkpoint yet\n")


@pytest.mark.parametrize("at, evaluated, step, last", [(70, 800, 50, None), (330, 200, 200, 100)])
def test_an_environment_that_breaks_says_from_where_to_go_on(at, evaluated, step, last, tmp_path, capsys):
    """Its exception stays: it is somebody's own code that has failed, in training or in an evaluation."""
    breaking = {
        "env-id": "tests.environments:Breaking-v0",
        "env-kwargs": f'{{"at": {at}}}',
        "eval-frequency": evaluated,
    }
    with pytest.raises(ValueError, match=r"^the joint is broken$"):
        enter(TINY, {**SETTINGS, **breaking, "runs-folder": tmp_path})
    (folder,) = tmp_path.iterdir()
    then = f"from step {last} continue with: python {TINY} --resume {folder}"
    said = f"stopped at step {step}; {then if last else 'there is no checkpoint yet'}"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert checkpoints_of(folder)[-1:] == ([last] if last else [])


def test_a_missing_lock_costs_nothing(tmp_path):
    """A run whose lock was tidied away meets an error: only a deleted folder is deleted."""
    folder = RunFolder(tmp_path)
    (tmp_path / "scalars.csv").write_text("rows")
    with pytest.raises(RunFolderError, match=r"^cannot write to .* \(No space left on device\): then$"):
        with folder.writing(lambda: "then"):
            raise OSError(28, "No space left on device")
    assert (tmp_path / "scalars.csv").read_text() == "rows"
    (tmp_path / "scalars.csv").unlink()
    (tmp_path / "checkpoints").mkdir()  # by the thread that wrote one when the folder was deleted
    with pytest.raises(RunFolderError, match="was deleted or moved: nothing is left there"):
        with folder.writing(lambda: "then"):
            raise FileNotFoundError(2, "No such file or directory")
    assert not tmp_path.exists()
