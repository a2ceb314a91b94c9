"""The hidden target, and what policies can reach on it."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.optimize import minimize
from scipy.special import ndtr

import sac_jax
from benchmarks import figures, hidden
from tests.benchmarks.untrained import untrained_run

HIDDEN = "benchmarks.hidden:HiddenTarget-v0"


def test_targets_and_hits_by_hand():
    expected = [[0.6, 0.0], [0.0, 0.6], [-0.6, 0.0], [0.0, -0.6]]
    np.testing.assert_allclose(hidden.targets(0.0), expected, atol=1e-12)
    np.testing.assert_allclose(hidden.targets(np.pi / 2), np.roll(expected, -1, axis=0), atol=1e-12)
    action = np.array([[0.6, 0.19], [0.6, 0.21], [-0.6, 0.0], [0.0, 0.0], [0.42, -0.42]])
    found = hidden.hits(action, 0.0)
    assert found.tolist() == [[True, *3 * [False]], 4 * [False], [False, False, True, False], 4 * [False], 4 * [False]]
    assert hidden.hits(action, -np.pi / 4)[4].tolist() == [True, False, False, False]


def test_episode_by_hand():
    env = gym.make(HIDDEN)
    which = set()
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        inner = env.unwrapped
        which.add(inner.hidden)
        np.testing.assert_allclose(obs, [np.cos(inner.theta), np.sin(inner.theta)], rtol=1e-6)
        places = hidden.targets(inner.theta).astype(np.float32)
        for t in range(10):
            after, reward, terminated, truncated, _ = env.step(places[(inner.hidden + 1 + t % 3) % 4])
            assert (reward, terminated, truncated) == (0.0, False, t == 9)
            np.testing.assert_array_equal(after, obs)
        env.reset(seed=seed)
        for _ in range(seed % 10):
            env.step(np.zeros(2, np.float32))
        assert env.step(places[inner.hidden])[1:4] == (1.0, True, seed % 10 == 9)
    assert which == {0, 1, 2, 3}
    env.close()


@pytest.mark.parametrize(("p", "value"), [([0.25] * 4, 0.9437), ([1, 0, 0, 0], 0.25), ([0.5, 0.5, 0, 0], 0.4995)])
def test_share_of_success_by_hand_and_by_playing(p, value):
    assert hidden.success(p) == pytest.approx(value, abs=1e-4)
    env, rng, found = gym.make(HIDDEN), np.random.default_rng(0), []
    for seed in range(600):
        env.reset(seed=seed)
        done = False
        while not done:
            place = hidden.targets(env.unwrapped.theta)[rng.choice(4, p=p)]
            _, reward, terminated, truncated, _ = env.step(place.astype(np.float32))
            done = terminated or truncated
        found.append(reward)
    env.close()
    assert np.mean(found) == pytest.approx(value, abs=4 * np.sqrt(value * (1 - value) / len(found)))


def hit_probabilities(mean, std, theta, latent):
    """Of a Gaussian in the plane behind `latent`, at each target: cells along the first axis, the chord across."""
    edges = hidden.RADIUS * np.linspace(-1, 1, 101)
    chord = np.sqrt(hidden.RADIUS**2 - ((edges[1:] + edges[:-1]) / 2) ** 2)
    found = []
    for x, y in hidden.targets(theta):
        cells = np.diff(ndtr((latent(x + edges) - mean[0]) / std[0]))
        across = ndtr((latent(y + chord) - mean[1]) / std[1]) - ndtr((latent(y - chord) - mean[1]) / std[1])
        found.append(np.sum(cells * across))
    return np.array(found)


@pytest.mark.parametrize(
    ("latent", "theta", "best"),
    [
        (np.arctanh, 0.0, 0.455),  # squashed by tanh
        (np.arctanh, np.pi / 8, 0.414),
        (np.arctanh, np.pi / 4, 0.473),
        (lambda x: x, np.pi / 16, 0.381),  # clipped
        (lambda x: x, np.pi / 4, 0.463),
    ],
)
def test_best_gaussian(latent, theta, best):
    """What SAC's and PPO's policies can reach at any temperature: about a half of what modes at all targets do."""
    rng = np.random.default_rng(0)

    def failure(x):
        return -hidden.success(hit_probabilities(x[:2], np.exp(x[2:]), theta, latent))

    starts = [np.concatenate([rng.normal(0, 0.5, 2), rng.uniform(-5, 0, 2)]) for _ in range(16)]
    found = [minimize(failure, x, method="Nelder-Mead", options={"maxiter": 200}).fun for x in starts]
    assert -min(found) == pytest.approx(best, abs=0.003)


def test_best_policy_at_the_temperature_of_the_suite():
    """Soft Bellman equation with all four equally likely at every try: 0.92 is the best at 0.02, not 0.944."""
    alpha, gamma, area = 0.02, 0.9, 4 * np.pi * hidden.RADIUS**2
    value = 0.0
    for _ in range(300):
        hit, miss = 0.25 + 0.75 * gamma * value, gamma * value
        weight = area * np.exp((hit - miss) / alpha)
        value = miss + alpha * np.log(weight + 4 - area)
    assert hidden.success([weight / (weight + 4 - area) / 4] * 4) == pytest.approx(0.924, abs=1e-3)


def test_picture_of_trained_agents(tmp_path, monkeypatch, capsys):
    place, drawn = tmp_path / "figures" / "hidden.png", []

    def call(*runs):
        monkeypatch.setattr(sys, "argv", ["hidden", *map(str, runs), "--theta", "0.7", "--figure", str(place)])
        hidden.main()

    args = {"total_timesteps": 10_000, "hidden_dim": 16, "runs_folder": str(tmp_path / "runs")}
    run = untrained_run(sac_jax.Args(env_id=HIDDEN, exp_name="sac_jax", **args), action_size=2)
    other = untrained_run(sac_jax.Args(env_id="Pendulum-v1", **args), action_size=2)
    draw = hidden.draw
    monkeypatch.setattr(hidden, "draw", lambda samples, *how: drawn.extend(samples) or draw(samples, *how))
    call(run, run)
    (title, action), again = drawn
    assert title == again[0] == "SAC" and action.shape == (2000, 2)
    assert action.std() == pytest.approx(np.exp(-1.5), rel=0.2), "the deviation that a new agent has"
    pixels = imread(place)[..., :3]
    assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.02
    with pytest.raises(SystemExit, match="2"):
        call(other)
    assert capsys.readouterr().err == f"error: {other} is no run on the hidden target\n"


def test_the_picture_says_in_how_many_episodes_such_actions_succeed(tmp_path, monkeypatch):
    """A half and two quarters of them hit three targets: the mean of 1 - 2^-10, twice 1 - 0.75^10, and 0."""
    made, grid_of = [], figures.grid_of
    monkeypatch.setattr(figures, "grid_of", lambda *sizes: made.append(grid_of(*sizes)) or made[-1])
    hidden.draw([("SAC", hidden.targets(0.4)[[0, 0, 1, 2]])], 0.4, tmp_path / "hidden.png")
    ((_, (axis,)),) = made
    assert axis.get_title() == "SAC\nfinds 0.72 here"
