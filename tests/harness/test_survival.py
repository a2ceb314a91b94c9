"""What may happen to a run: kill -9, signals, numbers that are not finite, a full disk, a deleted folder."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest

from common import checkpoints, runs
from tests.scripts import SMALL, TIMEOUT, command, environment, run, scalars, train
from tests.test_resume import OFF_POLICY, assert_equal_runs, assert_tensorboard_shows_one_curve

SCRIPT = "sac_jax.py"
# Evaluates only at the end: what these tests are about does not need more.
SETTINGS = {**OFF_POLICY, "eval-frequency": 800, "checkpoint-frequency": 100}


def start(settings, **more):
    return subprocess.Popen(
        command(SCRIPT, settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )


def wait_for(process, condition):
    begin = time.time()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() - begin < TIMEOUT
        time.sleep(0.01)


def checkpoints_of(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


# ------------------------------------------------------------------------------------------------------------ kill -9


def test_killed_three_times(tmp_path):
    """Killed at steps drawn at random, at whatever point the writing of the checkpoint is by then."""
    whole = train(SCRIPT, tmp_path / "whole", SETTINGS)
    runs = tmp_path / "runs"
    draw = random.Random(1)
    settings, at = {**SETTINGS, "runs-folder": runs}, 0
    for _ in range(3):
        at += draw.randint(51, 200)
        run(SCRIPT, settings, status=-signal.SIGKILL, TEST_SIGNALS=f"SIGKILL@{at}")
        (folder,) = runs.iterdir()
        settings = {"resume": folder}
        with (folder / "scalars.csv").open("a") as file:
            file.write("99,1.0,1,char")  # a torn line
    run(SCRIPT, settings)
    assert_equal_runs(folder, whole)
    assert_tensorboard_shows_one_curve(folder)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path):
    """Killed after delays drawn at random, also while it compiles, evaluates, writes or closes."""
    total = 2000
    settings = {**SETTINGS, "total-timesteps": total, "log-frequency": 50, "eval-frequency": 200}
    begin = time.time()
    whole = train(SCRIPT, tmp_path / "whole", settings)
    seconds = time.time() - begin
    runs = tmp_path / "runs"
    draw = random.Random(2)
    kills, folder = 0, None
    while kills < 50:
        process = start({"resume": folder} if folder else {**settings, "runs-folder": runs})
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
    run(SCRIPT, {"resume": folder} if folder else {**settings, "runs-folder": runs})
    (folder,) = runs.iterdir()
    assert_equal_runs(folder, whole)
    assert_tensorboard_shows_one_curve(folder)


# ------------------------------------------------------------------------------------------------------------ signals


def test_sigusr1_writes_a_checkpoint_and_sigint_ends_the_run(tmp_path):
    """SIGINT is ignored at the start, as it is in a background process of a shell without job control."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = run(
            SCRIPT,
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
    assert (folder / "agent.msgpack").exists()
    assert f"continue with: python {SCRIPT} --resume {folder}" in done.stdout


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_sigint_leaves_at_once_after_another_signal(first, tmp_path):
    """In the middle of a chunk that would take minutes."""
    total = 1_000_000
    settings = {**SMALL, "env-id": SETTINGS["env-id"], "log-frequency": total, "eval-frequency": total}
    run(
        SCRIPT,
        {**settings, "total-timesteps": total, "runs-folder": tmp_path},
        status=130,
        TEST_SIGNALS=f"{first}@100 SIGINT@300",
    )
    (folder,) = tmp_path.iterdir()
    assert not (folder / "summary.json").exists()


# ---------------------------------------------------------------------------------------------------------- NaN guard


def test_nan_of_an_environment_stops_its_seed_only(tmp_path):
    def settings(which):
        kwargs = json.dumps({"which": which, "at": 430})
        nan = {"env-id": "tests.environments:NotANumber-v0", "env-kwargs": kwargs, "num-seeds": 2}
        return {**SETTINGS, **nan, "seed": 5, "total-timesteps": 600, "eval-frequency": 300}

    clean = train(SCRIPT, tmp_path / "clean", settings(which=-1))
    done = run(SCRIPT, {**settings(which=1), "runs-folder": tmp_path / "nan"}, status=3)
    (folder,) = (tmp_path / "nan").iterdir()
    assert [row for row in scalars(folder) if row[1] == "5"] == [row for row in scalars(clean) if row[1] == "5"]
    stopped = [row for row in scalars(folder) if row[1] == "6"]
    assert stopped == [row for row in scalars(clean) if row[1] == "6" and int(row[0]) <= 400]
    summary = summary_of(folder)
    assert summary["step"] == 600 and list(summary["stopped"]) == ["6"] and summary["evaluations"] == 2
    clean_summary = summary_of(clean)
    assert summary["episodic_return"]["5"] == clean_summary["episodic_return"]["5"]
    # Of the stopped seed the evaluation before it counts, not what its replaced actions reach afterwards.
    before = [float(row[3]) for row in stopped if row[2] == "eval/episodic_return_stochastic"]
    assert [summary["episodic_return"]["6"]["stochastic_last"]] == before
    what = summary["stopped"]["6"]
    assert (what["step"], what["cause"]) == (430, "environment")
    assert "seed 6 stopped at step 430 (environment)" in done.stdout
    with np.load(folder / what["dump"], allow_pickle=False) as dump:
        assert np.argwhere(~dump["log.finite"])[0].tolist() == [29, 0]
        assert np.isnan(dump["buffer.reward"][29:]).all() and np.isfinite(dump["buffer.reward"][:29]).all()
        assert "agent.actor_params.params.Dense_0.kernel" in dump


def test_what_counts_as_finite():
    """The log of a temperature or multiplier of 0 is -inf and no accident; a weight of -inf is."""
    agents = {"weights": np.zeros((4, 3), np.float32), "log_alpha": np.float32([0.0, -np.inf, 1.0, np.nan])}
    agents["weights"][2, 1] = -np.inf
    assert runs._finite_agents(agents).tolist() == [True, True, False, False]


def test_nan_of_learning_ends_the_run(tmp_path):
    done = run(SCRIPT, {**SETTINGS, "q-lr": 1e38, "runs-folder": tmp_path}, status=3)
    (folder,) = tmp_path.iterdir()
    summary = summary_of(folder)
    assert summary["stopped"]["1"]["cause"] == "learning" and summary["step"] == 150
    assert "stopped at step 150 (learning)" in done.stdout
    assert (folder / summary["stopped"]["1"]["dump"]).exists()
    assert checkpoints_of(folder) == [100]  # the last good one, not the state with NaN
    assert all(np.isfinite(float(value)) for *_, value in scalars(folder))


# ----------------------------------------------------------------------------------------- the folder cannot be written


def assert_stopped_with_one_line(process, folder, reason):
    err = process.stderr
    lines = [line for line in err.splitlines() if "Warn" not in line and "WARN" not in line]
    assert len([line for line in lines if line.startswith("error: ")]) == 1 and "Traceback" not in err, err
    assert reason in err and "stopped at step" in err, err
    step = checkpoints_of(folder)[-1]
    assert f"from step {step:,} continue with: python {SCRIPT} --resume {folder}" in err
    return step


def test_full_disk_as_a_limit_on_the_size_of_files(tmp_path):
    """scalars.csv meets the limit after some checkpoints; without the limit the run goes on from the last."""
    settings = {**SETTINGS, "total-timesteps": 5000, "log-frequency": 10, "checkpoint-frequency": 200}
    process = subprocess.run(
        command(SCRIPT, {**settings, "eval-frequency": 5000, "runs-folder": tmp_path}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert process.returncode == 1, process.stderr
    (folder,) = tmp_path.iterdir()
    step = assert_stopped_with_one_line(process, folder, "File too large")
    assert 0 < step < 5000
    rows = scalars(folder)
    run(SCRIPT, {"resume": folder, "total-timesteps": step + 100, "eval-frequency": step + 100})
    kept = [row for row in rows if int(row[0]) <= step]
    assert scalars(folder)[: len(kept)] == kept
    assert summary_of(folder)["step"] == step + 100


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        settings = {**SETTINGS, "total-timesteps": 100_000, "buffer-size": 100_000, "eval-frequency": 100_000}
        done = run(SCRIPT, {**settings, "runs-folder": disk}, status=1)
        (folder,) = disk.iterdir()
        step = assert_stopped_with_one_line(done, folder, "No space left on device")
        # The checkpoint that it names is whole.
        store = checkpoints.Checkpoints(folder, on_done=lambda state: None)
        assert store._check(folder / "checkpoints" / f"{step:012d}")["step"] == step
        assert all(row[3] for row in scalars(folder))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_missing_lock_costs_nothing(tmp_path):
    """A run whose lock was tidied away meets an error: only a deleted folder is deleted."""
    run = SimpleNamespace(folder=tmp_path, step=7, checkpoints=checkpoints.Checkpoints(tmp_path, lambda state: None))
    run._resume_command = lambda: "resume"
    (tmp_path / "scalars.csv").write_text("rows")
    with pytest.raises(runs.RunFolderError, match=r"cannot write to .* there is no checkpoint yet"):
        with runs.Run._writing(run):
            raise OSError(28, "No space left on device")
    assert (tmp_path / "scalars.csv").read_text() == "rows"
    (tmp_path / "scalars.csv").unlink()
    (tmp_path / "checkpoints").mkdir()  # by the thread that wrote one when the folder was deleted
    with pytest.raises(runs.RunFolderError, match="was deleted"):
        with runs.Run._writing(run):
            raise FileNotFoundError(2, "No such file or directory")
    assert not tmp_path.exists()


@pytest.mark.parametrize("num_envs, learning_starts, total", [(1, 10, 40), (4, 10, 40), (16, 20, 64), (16, 64, 64)])
def test_number_of_updates(num_envs, learning_starts, total):
    args = SimpleNamespace(num_envs=num_envs, num_updates=2.0 * num_envs)
    run = SimpleNamespace(args=args, step=total, learning_starts=learning_starts)
    expected = sum(2 * num_envs for step in range(0, total, num_envs) if step >= learning_starts)
    assert runs.Run._num_updates(run) == expected


def test_folder_deleted_during_the_run(tmp_path):
    process = start({**SETTINGS, "total-timesteps": 10_000_000, "runs-folder": tmp_path})
    try:
        wait_for(process, lambda: any(tmp_path.glob("*/checkpoints/0*[0-9]")))
        (folder,) = tmp_path.iterdir()
        folder.rename(tmp_path / "gone")
        shutil.rmtree(tmp_path / "gone")
        _, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"the folder {folder} was deleted: stopped at step" in err and "Traceback" not in err
    assert not os.path.exists(folder)
