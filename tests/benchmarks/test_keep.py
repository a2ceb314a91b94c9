"""Small copies of runs, and those in benchmarks/agents."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import keep
from envs import UserError, make_env
from harness import RunFolder, load_agent, show
from harness.checkpoint import complete
from harness.seal import damage
from tests.benchmarks.untrained import evaluated_run
from tests.running import ROOT, SMALL, enter, train

AGENTS = sorted((ROOT / "benchmarks" / "agents").glob("*/"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("crossq_jax.py", tmp_path_factory.mktemp("runs"), {**SMALL, "num-seeds": 2})


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_copy_acts_as_the_run_and_shows_the_same(run, tmp_path, capsys):
    copy = tmp_path / "agents" / "copy"
    keep.keep(run, copy)
    obs, key = np.random.default_rng(0).normal(size=(5, 3)), jax.random.key(0)
    for seed in (1, 2):
        for deterministic in (False, True):
            was, is_ = (load_agent(folder, seed, deterministic)(obs, key) for folder in (run, copy))
            np.testing.assert_array_equal(is_, was)
    show.show(show.Settings(copy, episodes=2, policy="deterministic"))
    shown = re.findall(r"return +(-?[\d.]+) ", capsys.readouterr().out)
    recorded = RunFolder(run).summary()["episodic_return"].values()
    assert [float(x) for x in shown] == [pytest.approx(x["deterministic_last"], abs=0.0051) for x in recorded]
    assert RunFolder(copy).summary() == RunFolder(run).summary()
    evaluations = [row for row in RunFolder(run).scalars() if row[3].startswith("eval/")]
    assert RunFolder(copy).scalars() == evaluations and evaluations
    args = RunFolder(run).stored_args()
    assert RunFolder(copy).stored_args() == {**args, "runs_folder": "runs"} and args["runs_folder"] != "runs"
    assert size(copy) < 0.4 * size(run)


def test_what_cannot_be_kept_and_what_a_copy_cannot(run, tmp_path):
    copy = tmp_path / "copy"
    keep.keep(run, copy)
    with pytest.raises(UserError, match="is there already"):
        keep.keep(run, copy)
    said = enter("crossq_jax.py", {"resume": copy, "total-timesteps": 800}, status=2).stderr
    assert "000000000400 has no rest of the training state" in said and said.count("\n") == 1
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished: unfinished"):
        keep.keep(unfinished, tmp_path / "other")
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (last,) = complete(damaged / "checkpoints")
    shutil.copytree(last, last.with_name("000000000200"))  # intact, but of other agents than the last evaluation
    (last / "seal.json").unlink()
    with pytest.raises(UserError, match=r"the last checkpoint of .* is damaged"):
        keep.keep(damaged, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_several_runs_the_median_is_kept(tmp_path):
    """By score, which is neither the largest evaluation nor the last."""
    scores = {1: [900, 0, 5, 10], 2: [0, 7, 7, 1], 3: [0, 1, 1, 4], 4: [0, 0, 0, 99]}
    runs = [evaluated_run(tmp_path / str(seed), returns, seed=seed) for seed, returns in scores.items()]
    assert [round(keep.score(run), 9) for run in runs] == [5, 5, 2, 33]
    scores = {5: [0, 8, 8, 8], 6: [0, 3, 3, 3]}
    runs += [evaluated_run(tmp_path / str(seed), returns, seed=seed) for seed, returns in scores.items()]
    assert keep.median(runs[2:]) == runs[5]  # 2, 33, 8, 3: the lower of the middle two
    assert keep.median(runs[3:]) == runs[4] and keep.median(runs[3:4]) == runs[3]
    again = evaluated_run(tmp_path / "again", [1], seed=6)
    other = evaluated_run(tmp_path / "other", [1], seed=7, gamma=0.9)
    for odd, says in ((again, "'.*/6' and '.*/again' have the same seed"), (other, "and '.*/other' differ in gamma$")):
        with pytest.raises(UserError, match=says):
            keep.median([*runs[3:], odd])
    with pytest.raises(UserError, match=r"'.*/never' was never evaluated"):
        keep.median([runs[0], evaluated_run(tmp_path / "never", [], seed=8)])


def test_an_agent_of_another_form_is_refused_not_emptied(run, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "ACTS", ("temperature",))
    with pytest.raises(UserError, match=r"an agent of crossq_jax\.py acts with more than temperature"):
        keep.keep(run, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_an_agent_to_try_is_as_good_as_recorded(folder, capsys):
    """The deterministic policy's mean over its last evaluation's episodes: the same to the digits where the physics and
    the arithmetic are the same to the bit. (Of one that falls now and then three episodes say too little.)"""
    show.show(show.Settings(folder, episodes=10, policy="deterministic"))
    (shown,) = re.findall(r"return +(-?[\d.]+) ", capsys.readouterr().out)
    (returns,) = RunFolder(folder).summary()["episodic_return"].values()
    assert float(shown) >= 0.8 * returns["deterministic_last"]


def test_agents_to_try_act_and_are_small():
    """With the scripts as they are now: a new argument or another network would make them useless."""
    assert AGENTS and sum(map(size, AGENTS)) < 4e6
    for folder in AGENTS:
        (checkpoint,) = complete(folder / "checkpoints")
        assert damage(checkpoint) is None
        obs = np.zeros(make_env(RunFolder(folder).stored_args()["env_id"], 1).observation_size)
        assert np.all(np.abs(load_agent(folder, deterministic=True)(obs, jax.random.key(0))) <= 1)
