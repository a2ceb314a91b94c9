"""Small copies of runs, and those in benchmarks/agents."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import sac_jax
from benchmarks import keep
from envs import UserError, make_env
from harness import RunFolder, load_agent, show
from harness.checkpoint import complete
from harness.seal import damage
from tests.benchmarks.untrained import evaluated_run, untrained_run
from tests.running import ROOT, SMALL, agents, enter, train

AGENTS = sorted((ROOT / "benchmarks" / "agents").glob("*/"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("crossq_jax.py", tmp_path_factory.mktemp("runs"), {**SMALL, "num-seeds": 2})


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_copy_acts_as_the_run_and_shows_the_same(run, tmp_path, capsys, monkeypatch):
    """Of two seeds the one with the lower score."""
    copy = tmp_path / "agents" / "copy"
    returns = RunFolder(run).summary()["episodic_return"]
    kept = min((1, 2), key=lambda seed: returns[str(seed)]["deterministic_score"])
    monkeypatch.setattr("sys.argv", ["keep", str(run), str(copy)])
    keep.main()
    assert capsys.readouterr().out == f"seed {kept} of {run} is kept in {copy}\n"
    obs, key = np.random.default_rng(0).normal(size=(5, 3)), jax.random.key(0)
    for deterministic in (False, True):
        was = load_agent(run, kept, deterministic)(obs, key)
        for seed in (None, kept):
            np.testing.assert_array_equal(load_agent(copy, seed, deterministic)(obs, key), was)
    with pytest.raises(UserError, match=f"has the seeds {kept} to {kept}, not {3 - kept}"):
        load_agent(copy, 3 - kept)
    show.show(show.Settings(copy, episodes=2, policy="deterministic"))
    (shown,) = re.findall(r"return +(-?[\d.]+) ", capsys.readouterr().out)
    assert float(shown) == pytest.approx(returns[str(kept)]["deterministic_last"], abs=0.0051)
    summary = RunFolder(run).summary()
    assert RunFolder(copy).summary() == {**summary, "episodic_return": {str(kept): returns[str(kept)]}}
    evaluations = [row for row in RunFolder(run).scalars() if row[2] == kept and row[3].startswith("eval/")]
    assert RunFolder(copy).scalars() == evaluations and evaluations
    args = RunFolder(run).stored_args()
    own = {"runs_folder": "runs", "seed": kept, "num_seeds": 1}
    assert RunFolder(copy).stored_args() == {**args, **own} and args["runs_folder"] != "runs"
    # Without the buffer, with zeros in the place of critics and optimisers. (How often Orbax writes a node of its trees
    # depends on time: of small ones the size varies by half.)
    (checkpoint,) = (copy / "checkpoints").iterdir()
    assert {path.name for path in checkpoint.iterdir()} == {"agent", "seal.json"} and size(copy) < size(run)
    for path, x in jax.tree_util.tree_leaves_with_path(agents(copy)):
        assert jax.tree_util.keystr(path, simple=True, separator=".").startswith("actor.params") or not np.any(x), path


def test_a_copy_does_not_say_where_it_was_trained(run, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    own = {"run_name": "mine", "wandb_project_name": "secret", "wandb_entity": "me", "runs_folder": str(tmp_path)}
    changed = {"/home/me/a/mine.py": "b", "/home/me/mine.py": None, "sac_jax.py": "0123456789ab"}
    versions = {**json.loads((run / "versions.json").read_text()), "git_changes": changed}
    versions["resumed"] = [{**versions, "step": 200, "jax": "0.0.1", "git_changes": [*changed]}]  # by an older commit
    (mine / "args.json").write_text(json.dumps(RunFolder(run).stored_args() | own))
    (mine / "versions.json").write_text(json.dumps(versions))
    copy = tmp_path / "copy"
    keep.keep(mine, 1, copy)
    first, later = RunFolder(copy).versions()
    assert first["git_changes"] == {"mine.py": "b", "mine.py (2)": None, "sac_jax.py": "0123456789ab"}
    assert later["git_changes"] == {"mine.py": None, "mine.py (2)": None, "sac_jax.py": None}
    assert (first["step"], later["step"], first["git_commit"]) == (0, 200, versions["git_commit"])
    for path in ("args.json", "versions.json", "summary.json"):
        text = (copy / path).read_text()
        assert not any(word in text for word in ("secret", '"me"', "/home", str(tmp_path))), path


def test_what_cannot_be_kept_and_what_a_copy_cannot(run, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    keep.keep(run, 1, copy)
    with pytest.raises(UserError, match="is there already: the last argument is the folder to make"):
        keep.keep(run, 1, copy)
    for place in (copy / "args.json" / "copy", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"(json/copy|xxx)' cannot be made: "):
            keep.keep(run, 1, place)
    monkeypatch.setattr(keep.os.path, "lexists", lambda path: False)  # made by somebody else after the look
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="copy' cannot be made: FileExistsError"):
        keep.keep(run, 1, copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    said = enter("crossq_jax.py", {"resume": copy, "total-timesteps": 800}, status=2).stderr
    assert "000000000400 has no rest of the training state" in said and said.count("\n") == 1
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished: unfinished"):
        keep.keep(unfinished, 1, tmp_path / "other")
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (last,) = complete(damaged / "checkpoints")
    shutil.copytree(last, last.with_name("000000000200"))  # intact, but of other agents than the last evaluation
    (last / "seal.json").unlink()
    with pytest.raises(UserError, match=r"the last checkpoint of .* is damaged"):
        keep.keep(damaged, 1, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_several_seeds_the_median_is_kept(tmp_path):
    """By score, which is neither the largest evaluation nor the last; in one run or in several."""
    returns = {1: [900, 0, 5, 10], 2: [0, 7, 7, 1], 3: [0, 1, 1, 4], 4: [0, 0, 0, 99], 5: [8] * 30, 6: [0, 3, 3, 3]}
    returns[5][19] = -1000  # of thirty evaluations the last ten count
    runs = [evaluated_run(tmp_path / str(seed), {seed: own}) for seed, own in returns.items()]
    means = [round(score, 9) for run in runs for score in keep.scores(run).values()]
    assert means == [5, 5, 2, 33, 8, 3]
    assert keep.median(runs[2:]) == (runs[5], 6)  # 2, 33, 8, 3: the lower of the middle two
    assert keep.median(runs[3:]) == (runs[4], 5) and keep.median(runs[3:4]) == (runs[3], 4)
    together = evaluated_run(tmp_path / "together", {seed: returns[seed] for seed in (3, 4, 5)})
    assert keep.median([together]) == (together, 5)
    assert keep.median([runs[5], together]) == (runs[5], 6)


def test_runs_that_have_no_median(tmp_path):
    run = evaluated_run(tmp_path / "run", {1: [1]})
    for name, returns, args, says in (
        ("again", {1: [1]}, {"exp_name": "again"}, "'.*/run' and '.*/again' both have the seed 1$"),
        ("overlap", {0: [1], 1: [1]}, {}, "'.*/run' and '.*/overlap' both have the seed 1$"),
        ("other", {2: [1]}, {"gamma": 0.9}, "of two commands: .* --total-timesteps 120000 --gamma 0.9; diffsac_jax.py"),
        ("there", {2: [1]}, {"env_id": "Ant-v4"}, "of two commands: diffsac_jax.py --env-id Ant-v4 --total"),
        ("never", {2: []}, {}, "'.*/never' was never evaluated$"),
    ):
        with pytest.raises(UserError, match=says):
            keep.median([run, evaluated_run(tmp_path / name, returns, **args)])
    # How a run was logged makes no difference.
    keep.median([run, evaluated_run(tmp_path / "logged", {2: [1]}, track=True, checkpoint_frequency=0)])


def test_damaged_files_are_one_line(tmp_path, monkeypatch, capsys):
    run = evaluated_run(tmp_path / "run", {1: [1]})
    with (run / "scalars.csv").open("a") as file:
        file.write("5,1.0,1,eval/episodic_return_deterministic,?\n")
    monkeypatch.setattr("sys.argv", ["keep", str(run), str(tmp_path / "copy")])
    with pytest.raises(SystemExit) as leaving:
        keep.main()
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and f"{run / 'scalars.csv'}' is damaged: ValueError: could not convert" in said
    assert said.count("\n") == 1 and sorted(tmp_path.iterdir()) == [run]


def test_an_agent_of_another_form_is_refused_not_emptied(run, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "ACTS", ("temperature",))
    with pytest.raises(UserError, match=r"an agent of crossq_jax\.py acts with more than temperature"):
        keep.keep(run, 1, tmp_path / "copy")


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


def test_the_seed_that_is_asked_for_is_kept(tmp_path):
    """Which is not the first of its run."""
    args = sac_jax.Args(
        env_id="benchmarks.turning:TurningAgent-v0", num_seeds=2, total_timesteps=10_000, hidden_dim=8,
        runs_folder=str(tmp_path / "runs"),
    )  # fmt: skip
    run = untrained_run(args, action_size=1)
    returns = {"1": {"deterministic_last": 1.0}, "2": {"deterministic_last": 2.0}}
    RunFolder(run).write_json("summary.json", {**RunFolder(run).summary(), "episodic_return": returns})
    keep.keep(run, 2, tmp_path / "copy")
    obs, key = np.ones((4, 2)), jax.random.key(0)
    first, second = (load_agent(run, seed)(obs, key) for seed in (1, 2))
    kept = load_agent(tmp_path / "copy")(obs, key)
    np.testing.assert_array_equal(kept, second)
    assert np.all(kept != first)
    assert RunFolder(tmp_path / "copy").summary()["episodic_return"] == {"2": returns["2"]}
    assert {row[2] for row in RunFolder(tmp_path / "copy").scalars()} == {2}
