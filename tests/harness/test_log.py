"""What a run writes down: scalars.csv and what a resume drops of it, TensorBoard, Weights & Biases."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs import Episode
from harness import Experiment, RunFolder, log
from harness.log import HEADER, Log, start_wandb
from harness.progress import Progress
from tests.running import TINY, Killed, enter, half

SETTINGS = {"env-id": "Pendulum-v1", "total-timesteps": 200, "eval-frequency": 100, "eval-episodes": 2}


@dataclass(frozen=True)
class Args(Experiment):
    log_frequency: int = 100


def test_rows_that_a_checkpoint_counted_on_are_missed(tmp_path, monkeypatch):
    """They are forced to disk before it: what a power cut leaves otherwise is said."""
    forced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_ino) or fsync(file))
    enter(TINY, {**SETTINGS, "runs-folder": tmp_path / "runs"})
    (whole,) = (tmp_path / "runs").iterdir()
    path = whole / "scalars.csv"
    assert path.stat().st_ino in forced
    size = path.stat().st_size
    for left in (0, 60):  # deleted, cut
        folder = tmp_path / str(left)
        shutil.copytree(whole, folder)
        path = folder / "scalars.csv"
        os.truncate(path, left) if left else path.unlink()
        said = enter(TINY, {"resume": folder, "total-timesteps": 300}).stdout
        assert f"scalars.csv has {left} bytes of {size:,} at step 200: rows before it are missing" in said
        steps = [row[0] for row in RunFolder(folder).scalars()]
        assert steps and min(steps) > 200


def make(folder, resume=False, **more):
    sizes = {"total_timesteps": 1000, "eval_frequency": 500, "seed": 4}
    return Args(**{**sizes, "resume": str(folder) if resume else None, **more})


def rows_of(folder):
    return [(step, seed, tag, value) for step, _, seed, tag, value in RunFolder(folder).scalars()]


def shown(folder):
    """What TensorBoard shows, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_values_by_step_seed_and_tag(tmp_path):
    """Every digit of a float64, in the order of writing, for the agents asked for."""
    log = Log(make(tmp_path, num_seeds=3), tmp_path, 0, None)
    log.values(100, {"a": np.array([0.1, 1 / 3, 2.5]), "b": np.array([-1e300, 5e-324, np.inf])}, [0, 1])
    size = log.flush()
    assert size == (tmp_path / "scalars.csv").stat().st_size
    assert (tmp_path / "scalars.csv").read_text().startswith(HEADER)
    assert rows_of(tmp_path) == [(100, 4, "a", 0.1), (100, 4, "b", -1e300), (100, 5, "a", 1 / 3), (100, 5, "b", 5e-324)]
    log.scalar(200, 2, "c", 7.0)
    log.close()
    assert rows_of(tmp_path)[-1] == (200, 6, "c", 7.0)
    assert [shown(tmp_path / f"seed_{seed}").keys() for seed in (4, 5, 6)] == [{"a", "b"}, {"a", "b"}, {"c"}]


def test_what_is_not_a_number_is_not_written(tmp_path):
    """NaN stands for no value."""
    log = Log(make(tmp_path, num_seeds=2), tmp_path, 0, None)
    log.values(100, {"a": np.array([np.nan, 1.0]), "b": np.array([2.0, np.nan])}, [0, 1])
    log.close()
    assert rows_of(tmp_path) == [(100, 4, "b", 2.0), (100, 5, "a", 1.0)]


def test_episodes_at_the_step_of_their_end(tmp_path):
    """Of the agents asked for; the last return is that of the last end."""
    done = np.zeros((2, 3, 2), bool)  # [S, T, N]
    done[0, 0, 1] = done[0, 2, 0] = done[1, 2, 1] = True
    numbers = np.arange(12.0).reshape(done.shape)
    log = Log(make(tmp_path, num_seeds=2), tmp_path, 0, None)
    episodes = Episode(done, numbers, numbers + 100, np.ones_like(done))
    assert log.episodes(100, 2, episodes, [0, 1]) == 11.0
    assert log.episodes(200, 2, episodes, [0]) == 4.0
    assert log.episodes(300, 2, episodes, []) is None
    log.close()
    ends = [(step, seed, value) for step, seed, tag, value in rows_of(tmp_path) if tag == "charts/episodic_return"]
    assert ends == [(102, 4, 1.0), (106, 4, 4.0), (106, 5, 11.0), (202, 4, 1.0), (206, 4, 4.0)]
    lengths = [value for _, _, tag, value in rows_of(tmp_path) if tag == "charts/episodic_length"]
    assert lengths == [value + 100 for *_, value in ends]


# -------------------------------------------------------------------------------------------------------------- resume


def test_a_tag_may_have_a_comma(tmp_path):
    """Also where the file is not what it was and its complete rows are looked for."""
    tags = ["losses/q(s,a)", 'a "quoted, one"']
    log = Log(make(tmp_path), tmp_path, 0, None)
    for tag in tags:
        log.scalar(100, 0, tag, 0.1)
    log.close()
    assert rows_of(tmp_path) == [(100, 4, tag, 0.1) for tag in tags]
    assert go_on(tmp_path, 100, None) == [*((100, 4, tag, 0.1) for tag in tags), (200, 4, "a", -1.0)]


@pytest.fixture
def logged(tmp_path):
    """A folder with the rows of steps 100 to 500, and the size of scalars.csv at step 300."""
    log, sizes = Log(make(tmp_path), tmp_path, 0, None), {}
    for step in range(100, 600, 100):
        log.scalar(step, 0, "a", step / 7)
        sizes[step] = log.flush()
    log.close()
    return tmp_path, sizes[300]


def go_on(folder, step, size):
    """A resumed run from a checkpoint writes one row; the rows that are there then, without the time."""
    log = Log(make(folder, resume=True), folder, step, size)
    log.scalar(step + 100, 0, "a", -1.0)
    log.flush()
    log.close()
    assert (folder / "scalars.csv").read_text().count("global_step") == 1
    return rows_of(folder)


def expected(last):
    return [(step, 4, "a", step / 7) for step in range(100, last + 100, 100)]


def test_what_came_after_the_checkpoint_is_dropped(logged):
    folder, size = logged
    assert go_on(folder, 300, size) == [*expected(300), (400, 4, "a", -1.0)]
    assert {tag: [step for step, _ in points] for tag, points in shown(folder).items()} == {"a": [100, 200, 300, 400]}


@pytest.mark.parametrize("start", [None, 4000000000], ids=["within a second", "a clock that was set back"])
def test_tensorboard_reads_the_files_of_a_run_in_their_order(logged, start):
    """It goes by their names, which have the second of their start; none takes the place of another."""
    folder, _ = logged
    if start is not None:
        (events,) = folder.glob("events.*")
        events.rename(events.with_name(f"events.out.tfevents.{start}.then"))
    (folder / "events.out.tfevents.profile").touch()  # of somebody else
    for step in (300, 300, 400, 500):
        go_on(folder, step, None)
    assert len(list(folder.glob("events.*.*.*.*"))) == 5
    assert [step for step, _ in shown(folder)["a"]] == [100, 200, 300, 400, 500, 600]


def test_rows_of_the_checkpoints_step_that_were_written_after_it_are_dropped(logged):
    """A run too short for an evaluation makes one at its end: a longer one has none at this step."""
    folder, size = logged
    text = (folder / "scalars.csv").read_text()
    (folder / "scalars.csv").write_text(text[:size] + "300,1.0,4,eval,9.0\n")
    assert go_on(folder, 300, size) == [*expected(300), (400, 4, "a", -1.0)]


@pytest.mark.parametrize("torn", ["400,1.0,4,a,1", "4", "400,1.0,4,a,1\n400,1.0"])
def test_a_torn_line_is_dropped(logged, torn):
    folder, size = logged
    text = (folder / "scalars.csv").read_text()
    (folder / "scalars.csv").write_text(text[:size] + torn)
    assert go_on(folder, 300, size) == [*expected(300), (400, 4, "a", -1.0)]


@pytest.mark.parametrize("what", ["shorter", "other bytes", "unknown size"])
def test_a_file_that_is_not_what_it_was_keeps_its_complete_rows(logged, what):
    folder, size = logged
    path = folder / "scalars.csv"
    lines = path.read_text().splitlines(keepends=True)
    if what == "shorter":  # than the checkpoint says: a row was taken out, and the last one is torn
        path.write_text("".join([lines[0], lines[1], lines[3][:-4]]))
        assert go_on(folder, 300, size) == [*expected(100), (400, 4, "a", -1.0)]
    elif what == "other bytes":  # a comment in the middle
        path.write_text("".join([*lines[:2], "# a note\n", *lines[2:]]))
        assert go_on(folder, 300, size) == [*expected(300), (400, 4, "a", -1.0)]
    else:  # no checkpoint: the run starts again from its beginning
        assert go_on(folder, 0, None) == [(100, 4, "a", -1.0)]


def test_a_file_that_is_gone_begins_again(logged):
    folder, size = logged
    (folder / "scalars.csv").unlink()
    assert go_on(folder, 300, size) == [(400, 4, "a", -1.0)]


def test_a_new_run_keeps_what_is_there(tmp_path):
    """Nothing is cut without --resume."""
    for step in (100, 200):
        log = Log(make(tmp_path), tmp_path, 0, None)
        log.scalar(step, 0, "a", 1.0)
        log.close()
    assert [row[0] for row in rows_of(tmp_path)] == [100, 200]


def test_a_torn_row_is_cut_on_closing(tmp_path):
    """A disk was full in the middle of it."""
    log = Log(make(tmp_path), tmp_path, 0, None)
    log.scalar(100, 0, "a" * 5000, 1.0)
    log.csv.write("200,1.0,4,b")
    log.close()
    text = (tmp_path / "scalars.csv").read_text()
    assert text.endswith(",1.0\n") and text.count("\n") == 2


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_deleted_is_noticed(tmp_path, replaced):
    log = Log(make(tmp_path), tmp_path, 0, None)
    (tmp_path / "scalars.csv").rename(tmp_path / "away")
    if replaced:
        shutil.copy(tmp_path / "away", tmp_path / "scalars.csv")
    log.scalar(100, 0, "a", 1.0)
    with pytest.raises(FileNotFoundError):
        log.flush()
    log.close()


def test_killed_while_it_drops_rows(tmp_path, monkeypatch):
    path, rows = tmp_path / "scalars.csv", [f"{step},1.0,1,a,1.0\n" for step in (100, 200, 300)]
    path.write_text(log.HEADER + "".join(rows))
    monkeypatch.setattr(Path, "write_bytes", half(Path.write_bytes))
    with pytest.raises(Killed):
        log._cut(path, None, 200)
    assert path.read_text() == log.HEADER + "".join(rows)
    monkeypatch.undo()
    log._cut(path, None, 200)
    assert path.read_text() == log.HEADER + "".join(rows[:2])


# ---------------------------------------------------------------------------------------------------- Weights & Biases

WANDB = """
import json, os
def init(**settings):
    if "LOGIN" not in os.environ:
        raise RuntimeError("No API key configured.\\nUse `wandb login`.")
    return Run(settings)
class Run:
    def __init__(self, settings):
        self.file = open(os.environ["LOGIN"], "a")
        self.file.write(json.dumps(settings, default=str) + "\\n")
    def define_metric(self, name, step_metric): pass
    def log(self, values):
        self.file.write(json.dumps(values) + "\\n")
        self.file.flush()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A stand-in for the wandb package that writes down what it is given. Returns its file and the runs' folder."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield tmp_path / "log", tmp_path / "runs"
    sys.modules.pop("wandb", None)


def assert_mirrored(lines, folder, several):
    """One call by row of scalars.csv."""
    prefix = "seed_{}/" if several else ""
    rows = [{prefix.format(seed) + tag: value, "global_step": step} for step, seed, tag, value in rows_of(folder)]
    assert len(rows) > 8 and [json.loads(line) for line in lines] == rows


def test_track_mirrors_every_scalar(wandb):
    log, runs = wandb
    settings = {**SETTINGS, "track": True, "num-seeds": 2, "runs-folder": runs}
    enter(TINY, settings, LOGIN=str(log))
    (folder,) = runs.iterdir()
    start, *lines = log.read_text().splitlines()
    start = json.loads(start)
    assert (start["name"], start["dir"], start["project"]) == (folder.name, str(folder), "diffusion-maxent-rl")
    assert start["resume"] == "allow" and start["config"]["seed"] == 1 and len(start["id"]) == 16
    assert_mirrored(lines, folder, several=True)
    # Without a login there is one line. A new run leaves no folder; one that is to go on keeps what it has.
    done = enter(TINY, settings, status=2)
    assert done.stderr.startswith("error: --track: RuntimeError: No API key configured. Use `wandb login`.")
    assert done.stderr.count("\n") == 1 and list(runs.iterdir()) == [folder]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    done = enter(TINY, {"resume": folder, "total-timesteps": 300}, status=2)
    assert "--track: RuntimeError: No API key" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_single_seed_has_no_prefix_and_a_resumed_run_keeps_its_name(wandb):
    log, runs = wandb
    enter(TINY, {**SETTINGS, "track": True, "runs-folder": runs}, LOGIN=str(log))
    (folder,) = runs.iterdir()
    first, *lines = log.read_text().splitlines()
    assert_mirrored(lines, folder, several=False)
    enter(TINY, {"resume": folder, "total-timesteps": 300}, LOGIN=str(log))
    again = json.loads(log.read_text().splitlines()[1 + len(lines)])
    assert [json.loads(first)[name] for name in ("name", "id")] == [again["name"], again["id"]]


def test_runs_of_one_name_are_not_one_run_there(wandb, monkeypatch):
    log, runs = wandb
    monkeypatch.setenv("LOGIN", str(log))
    ids = []
    for place in ("here", "here", "there"):
        (runs / place / "mine").mkdir(parents=True, exist_ok=True)
        start_wandb(Args(run_name="mine", track=True), runs / place / "mine").file.close()
        ids.append(json.loads(log.read_text().splitlines()[-1])["id"])
    assert ids[0] == ids[1] != ids[2]


def test_track_without_the_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = enter(TINY, {**SETTINGS, "track": True, "runs-folder": tmp_path}, status=2)
    assert done.stderr == "error: --track needs Weights & Biases: pip install '.[track]'\n"
    assert not list(tmp_path.iterdir())


def test_before_an_episode_has_ended_there_is_no_return_to_show(capsys):
    progress = Progress(300)
    progress.update(100, float("nan"))
    progress.evaluated(np.array([np.nan, np.nan]))
    progress.update(200, -12.345)
    progress.evaluated(np.array([20.0, np.nan, 21.0]))
    progress.update(300, -12.345)
    first, second, last = capsys.readouterr().out.splitlines()
    assert ", last return        -, evaluation        -, " in first
    assert ", last return    -12.3, evaluation        -, " in second
    assert ", last return    -12.3, evaluation     20.5, " in last


def test_the_rate_is_that_of_the_last_two_lines_without_compilation(capsys, monkeypatch):
    """Ten seconds for the first of ten parts, nine of them compiling: 100 steps/s, and nine seconds are left. Then five
    for each."""
    now = [0.0]
    monkeypatch.setattr("harness.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("harness.progress.compile_seconds", lambda begin: 9.0 if begin == 0.0 else 0.0)
    progress, now[0] = Progress(1000), 10.0
    progress.update(100, 1.0)
    for i in (1, 2):
        now[0] = 10.0 + 5.0 * i
        progress.update(100 + 100 * i, 1.0)
    first, second, third = capsys.readouterr().out.splitlines()
    assert "  100 steps/s, " in first and first.endswith(" 0:00:09 left")
    assert "   33 steps/s, " in second  # 200 steps in 6 s
    assert "   20 steps/s, " in third and third.endswith(" 0:00:35 left")
