"""The run folder: names, what is read from it, and what of it is broken or missing."""

import fcntl
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import sac_jax
from envs import UserError
from harness import Experiment, RunFolder
from harness.folder import LAYOUT, RunFolderError, script_of
from harness.lock import held, lock, unlock
from harness.log import HEADER
from tests.running import Killed, half


@dataclass(frozen=True)
class Args(Experiment):
    """Of a script that is this file."""

    log_frequency: int = 10
    width: float = 0.5
    note: str | None = None


def make(folder, **more):
    return Args(**{"env_id": "Pendulum-v1", "runs_folder": str(folder), **more})


@pytest.fixture
def folder(tmp_path):
    """A folder with its arguments."""
    created = RunFolder.create(make(tmp_path, total_timesteps=100, eval_frequency=100))
    created.write_args(make(tmp_path, total_timesteps=100, eval_frequency=100))
    return created


def test_names(tmp_path):
    """Environment, experiment, seeds and time; characters that a path has not are replaced."""
    names = {}
    for what, more in {
        "one": {},
        "several": {"seed": 3, "num_seeds": 4},
        "module": {"env_id": "tests.environments:Counting-v0", "exp_name": "a/b:c"},
    }.items():
        folder = RunFolder.create(make(tmp_path / what / "new", **more)).path
        assert folder.is_dir() and folder.parent == tmp_path / what / "new"
        names[what] = re.sub(r"\d{8}-\d{6}", "TIME", folder.name)
    assert names == {
        "one": "Pendulum-v1__test_folder__1__TIME",  # the script, which is this file here
        "several": "Pendulum-v1__test_folder__3-6__TIME",
        "module": "tests.environments-Counting-v0__a-b-c__1__TIME",
    }


def test_runs_of_one_second_have_folders_of_their_own(tmp_path):
    folders = [RunFolder.create(make(tmp_path)).path for _ in range(5)]
    assert len(set(folders)) == 5 and all(folder.is_dir() for folder in folders)
    assert any(folder.name.endswith("-2") for folder in folders)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"^cannot make a folder in '{parent}': "):
            RunFolder.create(make(parent))


def test_a_name_of_ones_own(tmp_path):
    """May be there already: killed before it had arguments, or by another process at this moment."""
    for _ in range(2):
        assert RunFolder.create(make(tmp_path / "new", run_name="mine")).path == tmp_path / "new" / "mine"
    for name in ("", ".", "..", "a/b", "/", "a/"):
        with pytest.raises(UserError, match="is not the name of a folder"):
            make(tmp_path, run_name=name)


def test_a_folder_of_somebodys_own_is_no_place_for_a_run(tmp_path):
    """Nothing is written there, and nothing is removed where --track finds no login."""
    args = make(tmp_path, run_name="mine")
    for name in ("lock", "wandb_token", "args.json.part"):  # of a start that was killed
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).touch()
    os.close(lock(RunFolder.create(args).path, new=True))
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine' is there already and is no run: it has 'notes\.txt'"):
        lock(RunFolder.create(args).path, new=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_who_holds_the_lock(folder):
    """A second process is refused, also where both found no run; a look at the lock refuses nobody."""
    assert not held(folder.path) and not held(folder.path / "nowhere")
    with pytest.raises(UserError, match="another process has just begun a run in"):
        lock(folder.path, new=True)
    assert not held(folder.path)
    file = lock(folder.path)
    assert held(folder.path)
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on "):
        lock(folder.path)
    os.close(file)
    with (folder.path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        release = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        release.start()
        os.close(lock(folder.path))
        release.join()


def test_a_folder_in_which_no_run_began_is_removed(folder, tmp_path):
    """It has the lock alone, as memory ran out; a run's folder stays, and so does what somebody else put there."""
    empty, taken = tmp_path / "empty", tmp_path / "taken"
    for path in (empty, taken):
        path.mkdir()
        file = lock(path, new=True)
        if path == taken:
            (path / "notes").touch()
        unlock(file, path, ours=True)
    unlock(lock(folder.path), folder.path, ours=True)
    known = tmp_path / "known"  # by its name: somebody may wait for its lock
    known.mkdir()
    unlock(lock(known, new=True), known, ours=False)
    assert known.exists() and not held(known)
    assert not empty.exists() and {path.name for path in taken.iterdir()} == {"lock", "notes"}
    assert (folder.path / "args.json").exists() and not held(folder.path)


def test_arguments_come_back(folder, tmp_path):
    stored = folder.stored_args()
    assert stored["script"] == "test_folder" == script_of(Args) and stored["layout"] == LAYOUT
    assert folder.arguments(Args) == make(tmp_path, total_timesteps=100, eval_frequency=100)
    folder.write_args(make(tmp_path, resume=str(folder.path)))  # a resumed run's folder does not say so
    assert folder.stored_args()["resume"] is None


def change_args(folder, **more):
    stored = {**folder.stored_args(), **more}
    (folder.path / "args.json").write_text(json.dumps({k: v for k, v in stored.items() if v != "gone"}))


@pytest.mark.parametrize("row", ["100,1.0,1,a,1.0.0", "\0" * 200_000 + "100,1.0,1,a,1.0"])
def test_damaged_scalars_are_one_line(folder, row):
    """A number that is none; what a power cut leaves where blocks were not written."""
    (folder.path / "scalars.csv").write_text(f"{HEADER}100,1.0,1,a,1.0\n{row}\n")
    with pytest.raises(UserError, match=r"scalars.csv' is damaged: ") as caught:
        folder.scalars()
    assert str(folder.path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_a_scripts_run_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"was made by test_folder\.py, not by sac_jax\.py: use that script"):
        folder.arguments(sac_jax.Args)
    change_args(folder, width="gone", new=1)
    with pytest.raises(UserError, match=r"another version of test_folder\.py, which differs in new, width"):
        folder.arguments(Args)
    change_args(folder, layout="gone")
    with pytest.raises(UserError, match="has the layout 1 of another version"):
        folder.stored_args()
    (folder.path / "args.json").unlink()
    for path in (folder.path, tmp_path / "nowhere", tmp_path / "new\nline"):
        with pytest.raises(UserError, match=r"is not a run folder: it has no args\.json") as error:
            RunFolder(path).stored_args()
        assert "\n" not in str(error.value)
    (folder.path / "args.json").mkdir()
    with pytest.raises(UserError, match=r"is not the args\.json of a run"):
        folder.stored_args()


def test_the_script_that_made_it(folder):
    change_args(folder, script="sac_jax")
    assert folder.script() is sac_jax
    for name in ("os", "no_such_script", "json.no", "", ".", "sac_jax.py", None, 3):
        change_args(folder, script=name)
        with pytest.raises(UserError, match=r"^the run '.*' needs its script: ") as error:
            folder.script()
        assert "\n" not in str(error.value)


def test_status(folder):
    """A run that was to be extended and was killed still has the summary of its first end."""

    def summary(**more):
        folder.write_json("summary.json", {"total_timesteps": 100, "interrupted_by": None, "stopped": {}, **more})

    assert folder.summary() == {} and folder.status() == "unfinished"
    summary()
    assert folder.status() == "finished"
    summary(stopped={"1": {"step": 30}})
    assert folder.status() == "stopped"
    summary(interrupted_by="SIGTERM")
    assert folder.status() == "unfinished"
    summary()
    change_args(folder, total_timesteps=200)
    assert folder.status() == "unfinished"
    (folder.path / "summary.json").write_text('{"total_time')
    assert folder.summary() == {} and folder.status() == "unfinished"


def test_scalars(folder):
    """What a kill left of the last row is no row."""
    path = folder.path / "scalars.csv"
    assert folder.scalars() == []
    header, row = "global_step,wall_time,seed,tag,value\n", "50,1.5,2,losses/a,-0.25\n"
    path.write_text(header)
    assert folder.scalars() == []
    path.write_text(header + row + row.replace("-0.25", "inf") + "100,1.6,2,loss")
    assert folder.scalars() == [(50, 1.5, 2, "losses/a", -0.25), (50, 1.5, 2, "losses/a", float("inf"))]
    for torn in ("", "-", "1e", "2"):  # of 2e2
        path.write_text(header + row + "100,1.6,2,charts/SPS," + torn)
        assert folder.scalars() == folder.scalars(10**6) == [(50, 1.5, 2, "losses/a", -0.25)]
    path.write_text(header + row * 100)
    assert folder.scalars(len(row) * 10) == folder.scalars()[:9], "the first may be torn"
    assert folder.scalars(10**6) == folder.scalars() != []


def test_json_has_no_nan(folder):
    folder.write_json("x.json", {"a": float("nan"), "b": [float("inf"), 1.5, {"c": float("-inf")}], "d": "NaN"})
    assert json.loads((folder.path / "x.json").read_text()) == {"a": None, "b": [None, 1.5, {"c": None}], "d": "NaN"}
    assert not list(folder.path.glob("*.part"))


@pytest.mark.parametrize("content", ["null", "[]", "3", "{"])
def test_an_unreadable_summary_is_none(folder, content):
    (folder.path / "summary.json").write_text(content)
    assert folder.summary() == {} and folder.status() == "unfinished"


def test_unreadable_versions_are_none(folder):
    assert folder.versions() == []
    for content in ("", "{", "[]", "3"):
        (folder.path / "versions.json").write_text(content)
        assert folder.versions() == []


def test_errors_while_writing_say_how_to_go_on(folder, monkeypatch):
    (folder.path / "lock").touch()
    for error, message in (
        (OSError(28, "No space left on device"), "cannot write to {} (No space left on device): go on"),
        (OSError("odd"), "cannot write to {} (OSError: odd): go on"),
        (ValueError("two\nlines"), "something went wrong while writing to {} (ValueError: two lines): go on"),
    ):
        with pytest.raises(RunFolderError) as raised, folder.writing(lambda: "go on"):
            raise error
        assert str(raised.value) == message.format(folder.path) and raised.value.__cause__ is error
    with folder.writing(lambda: "go on"):
        pass

    def unreachable(path):
        raise OSError(116, "Stale file handle")

    # A folder that cannot be looked at is not taken for one that was deleted.
    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match=r"\(Stale file handle\): go on"):
        patch.setattr(Path, "exists", unreachable)
        with folder.writing(lambda: "go on"):
            raise OSError(116, "Stale file handle")
    assert (folder.path / "args.json").exists()
    with pytest.raises(KeyboardInterrupt), folder.writing(lambda: "go on"):
        raise KeyboardInterrupt


def test_killed_while_it_writes_a_small_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_json("args.json", {"seed": 1})
    monkeypatch.setattr(Path, "write_text", half(Path.write_text))
    with pytest.raises(Killed):
        folder.write_json("args.json", {"seed": 2})
    assert json.loads((tmp_path / "args.json").read_text()) == {"seed": 1}
