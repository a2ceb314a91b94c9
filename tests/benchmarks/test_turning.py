"""The turning agent, and how often a policy turns to either side of it."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest

import harness
import harness.run
import sac_jax
from benchmarks import export, turning
from benchmarks.results import read_rows
from benchmarks.tables import turning_table
from tests.benchmarks.untrained import untrained_run

TURNING = "benchmarks.turning:TurningAgent-v0"


def test_reward_by_hand():
    action = np.array([0.5, -0.5, 0.0, 1.0, -1.0, 0.25, 0.75])
    expected = [1.0, 1.0, 0.85, 0.0, 0.0, 0.85 + 0.15 * (1 - 0.75**2), 1 - (0.3125 / 0.75) ** 2]
    np.testing.assert_allclose(turning.reward(action), expected, rtol=1e-12)


def test_agent_moves_by_45_degrees_and_is_truncated():
    env = gym.make(TURNING)
    starts, sides = set(), set()
    for seed in range(40):
        obs, _ = env.reset(seed=seed)
        starts.add(tuple(np.round(obs, 3)))
        after, *_ = env.step(np.zeros(1, np.float32))
        sides.add(float(np.sign(obs[0] * after[1] - obs[1] * after[0])))
    assert len(starts) == 8, "the heading at the reset is any multiple of 45 degrees"
    assert sides == {-1.0, 1.0}, "a = 0 turns to a random side"

    obs, _ = env.reset(seed=0)
    for t in range(100):
        action = np.array([0.3 if t % 3 else -0.9], np.float32)
        before = np.arctan2(obs[1], obs[0])
        obs, reward, terminated, truncated, _ = env.step(action)
        turned = (np.arctan2(obs[1], obs[0]) - before + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(np.degrees(turned), 45 * np.sign(action[0]), atol=1e-3)
        assert reward == pytest.approx(float(turning.reward(action)[0]))
        assert not terminated
        assert truncated == (t == 99)
    env.close()


def test_shares_by_hand():
    angle = np.radians([0, 0, 0, 0, 45, 45, 315])
    obs = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    action = np.array([[-0.5], [-0.3], [0.2], [0.6], [0.9], [0.26], [-0.1]])
    shares = turning.shares(obs, action)
    assert list(shares) == list(range(0, 360, 45))
    assert shares[0] == {"left": 0.5, "middle": 0.25, "right": 0.25}
    assert shares[45] == {"left": 0.0, "middle": 0.0, "right": 1.0}
    assert shares[315] == {"left": 0.0, "middle": 1.0, "right": 0.0}
    assert np.isnan(shares[180]["left"])


def test_rollout_by_hand():
    """A policy that only turns left by 45 degrees: every heading in turn, and the largest return."""
    obs, action, reward = turning.rollout(lambda obs, key: np.full((len(obs), 1), -0.5), seed=1, episodes=6)
    assert obs.shape == (100, 6, 2) and action.shape == (100, 6, 1) and reward.shape == (100, 6)
    angle = np.degrees(np.arctan2(obs[..., 1], obs[..., 0]))
    np.testing.assert_allclose(np.diff(angle, axis=0) % 360, 315, atol=1e-3)
    assert len(set(np.round(angle[0]))) > 1, "episodes begin at different headings"
    np.testing.assert_allclose(reward.sum(axis=0), 100.0)
    shares = turning.shares(obs.reshape(-1, 2), action.reshape(-1, 1))
    assert all(share == {"left": 1.0, "middle": 0.0, "right": 0.0} for share in shares.values())


def test_rollout_draws_anew_at_every_step():
    """The key differs from step to step; seed and key give the same episodes again."""

    def act(obs, key):
        return np.asarray(jax.random.uniform(key, (len(obs), 1), minval=-1.0, maxval=1.0))

    first, again, other = (turning.rollout(act, seed, episodes=3) for seed in (1, 1, 2))
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(np.unique(first[1])) > 200
    assert not np.array_equal(first[1], other[1])


# ------------------------------------------------------------------------------------------------------------ results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    args = sac_jax.Args(env_id=TURNING, num_seeds=2, gamma=0.9, alpha=0.05, total_timesteps=10_000, hidden_dim=16)
    return untrained_run(dataclasses.replace(args, runs_folder=str(tmp_path_factory.mktemp("runs"))), action_size=1)


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["turning", *map(str, words)])
        capsys.readouterr()
        return turning.main(), capsys.readouterr()

    return call


def test_results_and_their_table(run, tmp_path, call, monkeypatch):
    results = tmp_path / "turning.csv"
    status, printed = call(run, "--episodes", 16, "--results", results)
    assert status == 0 and printed.out.count("smallest side") == 2
    rows = read_rows(results)
    with Path(turning.__file__).with_name("turning.csv").open() as file:
        assert list(rows[0]) == next(csv.reader(file)), "columns as in the committed file"
    assert [(row["seed"], row["heading"]) for row in rows] == [(s, str(h)) for s in "12" for h in range(0, 360, 45)]
    sides = ("left", "middle", "right")
    assert all(sum(float(row[side]) for side in sides) == pytest.approx(1, abs=2e-4) for row in rows)
    assert [row["left"] for row in rows[:8]] != [row["left"] for row in rows[8:]], "every seed has its own agent"
    line = turning_table(results).splitlines()[2]
    assert line.startswith("| SAC | `--gamma 0.9 --hidden-dim 16 --alpha 0.05` | 10k | 1 |") and "| ccccccc |" in line
    of_seed = [row for row in rows if row["seed"] == "1"]
    side = min(float(row[side]) for row in of_seed for side in ("left", "right"))
    assert f"| {side:.2f} | {max(float(row['middle']) for row in of_seed):.2f} |" in line
    # A second measurement takes the place of the first.
    monkeypatch.setattr(turning, "measure", lambda *_: [row | {"return": 1.0} for row in of_seed])
    assert call(run, "--results", results)[0] == 0
    assert [row["return"] for row in read_rows(results)] == ["1.0000"] * 8 + [row["return"] for row in rows[8:]]


def test_a_refused_run_costs_the_others_nothing(run, tmp_path, call):
    """And of two runs with the same name and seeds the later one counts."""
    results = tmp_path / "turning.csv"
    status, printed = call(run, tmp_path / "nothing", run, "--episodes", 2, "--results", results)
    assert status == 2 and printed.err.count("\n") == 1 and len(read_rows(results)) == 16


@pytest.mark.parametrize("what", ["unfinished", "elsewhere", "nothing"])
def test_refusals_are_one_line(run, tmp_path, call, what):
    folder = tmp_path / "run"
    if what != "nothing":
        shutil.copytree(run, folder)
    if what == "unfinished":
        (folder / "summary.json").unlink()
    if what == "elsewhere":
        stored = json.loads((folder / "args.json").read_text())
        (folder / "args.json").write_text(json.dumps(stored | {"env_id": "Pendulum-v1"}))
    status, printed = call(folder, "--results", tmp_path / "turning.csv")
    assert status == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not (tmp_path / "turning.csv").exists()


def test_a_return_is_the_sum_over_an_episode(monkeypatch):
    source = dict.fromkeys(turning.SOURCE, "1") | {"env_id": "benchmarks.turning:TurningAgent-v0"}
    monkeypatch.setattr(export, "read_run", lambda run: [source])
    monkeypatch.setattr(harness, "load_agent", lambda run, seed: None)
    rewards = np.tile([1.0, 0.5], (100, 1))
    monkeypatch.setattr(turning, "rollout", lambda *_: (np.ones((100, 2, 2)), np.ones((100, 2, 1)), rewards))
    rows = turning.measure(Path("run"), 2)
    assert [row["heading"] for row in rows] == [*range(0, 360, 45)] and {row["return"] for row in rows} == {75.0}
