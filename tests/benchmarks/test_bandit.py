"""The bandits with known densities: what their measures say, and that every algorithm can be trained on them."""

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bandit
from benchmarks.results import ALGORITHMS
from benchmarks.tables import BANDIT_COLUMNS


def bandit_named(name):
    return next(b for b in bandit.BANDITS if b.name == name)


def exact_samples(n=50_000):
    rng = np.random.default_rng(0)
    means = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]])
    return means[rng.integers(4, size=n)] + 0.4 * rng.standard_normal((n, 2))


def test_normalisers():
    """Mixtures are normalised over x = 4u: over u the integral is 4^-A. The Gaussian ridge: 2 pi 0.2 / 4^2."""
    assert bandit.log_normaliser(bandit_named("two")) == pytest.approx(-np.log(4), abs=1e-3)
    assert bandit.log_normaliser(bandit_named("four")) == pytest.approx(-np.log(16), abs=1e-3)
    assert bandit.log_normaliser(bandit_named("ridge")) == pytest.approx(np.log(2 * np.pi * 0.2 / 16), abs=1e-3)


def test_measures_of_exact_and_of_collapsed_samples():
    four, x = bandit_named("four"), exact_samples()
    exact = bandit.measure(four, x, np.zeros(len(x)))
    assert exact["elbo_gap"] == exact["log_z_error"] == 0.0
    assert exact["ess"] == pytest.approx(1.0)
    assert exact["worst_region"] > 0.95
    assert exact["grid_kl"] < 0.03
    one_mode = x[x[:, 0] > 1.2]
    collapsed = bandit.measure(four, one_mode, np.full(len(one_mode), -np.log(4)))
    assert collapsed["worst_region"] == 0.0
    assert collapsed["grid_kl"] == pytest.approx(np.log(4), abs=0.1)
    assert collapsed["elbo_gap"] == pytest.approx(np.log(4))
    assert bandit.measure(four, x, np.log(1.0 + np.arange(len(x)) % 2))["ess"] == pytest.approx(0.9)


def test_exact_critic():
    bandits = tuple(b for b in bandit.BANDITS if b.size == 2)
    q = bandit.exact_q(bandits)
    obs, action = jnp.array([[0.0], [2.0]]), jnp.array([[0.5, 0.0], [0.1, 0.1]])
    values = q(obs, action)
    np.testing.assert_allclose(values[0], np.log(0.25 / (2 * np.pi * 0.16)) + np.log(16), rtol=1e-3)
    np.testing.assert_allclose(values[1], -0.5 * 0.32 - np.log(2 * np.pi * 0.2 / 16), rtol=1e-3)


@pytest.mark.parametrize("name", bandit.ALGORITHMS)
def test_every_algorithm_is_given_the_exact_critic(name):
    """One program trains an agent per bandit; it is traced here, not compiled."""
    assert f"{name}_jax" in ALGORITHMS
    args = bandit.make_args(name, 2, 8)
    agent = jax.eval_shape(bandit.learner(name, args, bandit.BANDITS[:1], 3), 0, jax.random.key(0))
    critics = agent.critic.apply_fn(None, jnp.zeros((5, 1)), jnp.full((5, 1), 0.5))
    assert critics.shape == (2, 5) and len(set(np.ravel(critics))) == 1
    assert float(critics[0, 0]) == pytest.approx(np.log(0.7 / np.sqrt(2 * np.pi * 0.16)) + np.log(4), rel=1e-3)


def test_the_table_shows_means_over_seeds_and_the_worst_region_of_all(tmp_path):
    row = {"bandit": "two", "K": 8, "updates": 9, "commit": "c" * 40, "device": "d", "versions": "v"}
    figures = dict.fromkeys(BANDIT_COLUMNS, 0.5)
    rows = [
        row | figures | {"algorithm": "diffsac", "seed": seed, "worst_region": w} for seed, w in ((1, 0.9), (2, 0.7))
    ]
    rows.append(row | figures | {"algorithm": "diffwpo", "seed": 1, "elbo_gap": 0.4, "worst_region": 0.2})
    bandit.write_csv(tmp_path / "bandit.csv", rows[0], rows)
    table = bandit.bandit_table(tmp_path / "bandit.csv")
    assert "| two | DiffSAC | 8 | 0.500 | 0.500 | 0.500 | **0.700** | **0.500** |" in table
    assert "| two | DiffWPO | 8 | 0.400 | 0.500 | 0.500 | 0.200 | **0.500** |" in table
    assert "seeds 1, 2" in table


def end_to_end(tmp_path, algorithms):
    place, figure = tmp_path / "trial.csv", tmp_path / "figures" / "trial.png"
    small = {"steps": (1,), "seeds": (1, 4), "updates": 5, "samples": 500, "hidden_dim": 8}
    bandit.main(bandit.Settings(algorithms=algorithms, results=place, **small))
    with place.open() as file:
        rows = list(csv.DictReader(file))
    names = [b.name for b in bandit.BANDITS]
    expected = [(name, a, seed) for name in names for a in algorithms for seed in "14"]
    assert [(row["bandit"], row["algorithm"], row["seed"]) for row in rows] == expected
    assert all(row["K"] == ("" if row["algorithm"] == "sac" else "1") for row in rows)
    assert all(np.isfinite(float(row[column])) for row in rows for column in BANDIT_COLUMNS)
    assert figure.stat().st_size > 5000  # beside the CSV, so that a trial leaves the committed one alone


def test_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bandit, "BANDITS", bandit.BANDITS[:1])
    end_to_end(tmp_path, ("sac",))
    assert capsys.readouterr().out.count("| two |") == 1


@pytest.mark.slow
def test_all_algorithms_and_bandits_end_to_end(tmp_path):
    end_to_end(tmp_path, tuple(bandit.ALGORITHMS))


def test_the_normaliser_of_the_ring():
    """A Gaussian of the radius, 2.5 and 0.3, times the circumference: 2 pi 2.5 0.3 sqrt(2 pi) / 4^2."""
    (ring,) = (x for x in bandit.BANDITS if x.name == "ring")
    mass = 2 * np.pi * 2.5 * 0.3 * np.sqrt(2 * np.pi)
    assert bandit.log_normaliser(ring) == pytest.approx(np.log(mass / 16), abs=1e-3)


def test_agents_stand_by_seed_and_bandit(monkeypatch):
    monkeypatch.setattr(bandit, "learner", lambda *_: lambda number, key: (number, jax.random.key_data(key)))
    number, key = bandit.train_agents("sac", None, bandit.BANDITS[:2], (4, 5, 6), 1)
    np.testing.assert_array_equal(number, [[0, 1]] * 3)
    for row, seed in zip(key, (4, 5, 6), strict=True):
        np.testing.assert_array_equal(row, jax.random.key_data(jax.random.split(jax.random.key(seed), 2)))


def test_log_weights_are_q_less_the_log_likelihood(monkeypatch):
    """At x = 2, the mean of the mode with 0.7 of the mass; the sampler says a log-likelihood of -1."""

    def sample_action(args, agent, key, obs):
        return jnp.full((len(obs), 1), 0.5), jnp.full(len(obs), -1.0)

    monkeypatch.setitem(bandit.ALGORITHMS, "known", SimpleNamespace(sample_action=sample_action))
    x, log_weight = bandit.sampler("known", None, bandit.BANDITS[:1], 3)(jnp.zeros(1), 1)
    np.testing.assert_array_equal(x, np.full((1, 3, 1), 2.0))
    q = np.log(0.7 / np.sqrt(2 * np.pi * 0.16)) + np.log(4)
    np.testing.assert_allclose(log_weight, np.full((1, 3), q + 1), 1e-3)


def test_each_seeds_own_agents_are_measured(tmp_path, monkeypatch, capsys):
    """Agents are the numbers of their seeds, and so are the weights."""
    monkeypatch.setattr(bandit, "train_agents", lambda name, args, bandits, seeds, updates: jnp.array(seeds, float))
    monkeypatch.setattr(
        bandit, "sampler", lambda *_: lambda agents, seed: (np.full((1, 9, 1), 2.0), np.full((1, 9), -float(agents)))
    )
    monkeypatch.setattr(bandit, "picture", lambda *_: None)
    monkeypatch.setattr(bandit, "BANDITS", bandit.BANDITS[:1])
    asked = bandit.Settings(("diffsac",), steps=(16, 2), seeds=(3, 10), results=tmp_path / "trial.csv")
    rows = bandit.main(asked)
    assert [(row["K"], row["seed"], row["elbo_gap"]) for row in rows] == [
        (2, 3, 3.0), (2, 10, 10.0), (16, 3, 3.0), (16, 10, 10.0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", bandit.ALGORITHMS)
def test_the_policy_that_is_asked_for_is_the_density(name):
    """Of one step, at the temperature 1, which stays."""
    args = bandit.make_args(name, 5, 8)
    assert (args.gamma, args.alpha, args.autotune) == (0.0, 1.0, False)
    assert getattr(args, "num_denoising_steps", 5) == 5


@pytest.mark.parametrize("more", [0.0, 5.0, -800.0])
def test_the_error_of_the_normaliser_by_hand(more):
    """Weights of 1 and 3, whose mean is 2, all times the same."""
    x = np.zeros((10, 2))
    found = bandit.measure(bandit.BANDITS[1], x, more + np.tile([0.0, np.log(3.0)], 5))
    assert found["log_z_error"] == pytest.approx(abs(np.log(2.0) + more))
