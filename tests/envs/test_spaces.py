"""What an environment must be, said before anything is compiled; observations and actions of any shape and type."""

import json

import gymnasium as gym
import jax
import numpy as np
import pytest

from envs import UserError, make_env
from envs.gymnasium_make import make_gymnasium
from envs.gymnasium_spaces import flatten_observations


def make(name, num_envs=1, **kwargs):
    return make_env(f"tests.environments:{name}-v0", num_envs, 1, json.dumps(kwargs))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "need real numbers"),
        ({"dtype": "int8", "low": -1}, "need real numbers"),
        ({"dtype": "float64", "low": -1e308, "high": 1e308}, "whose width float32 cannot hold"),
        ({"dtype": "float32", "high": float("inf")}, "unbounded"),
        ({"dtype": "float32", "low": 1.0, "high": 1.0}, "of which a dimension has no width"),
    ],
)
def test_action_spaces_that_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        make("Levels", **kwargs)


@pytest.mark.parametrize(
    "how, message",
    [
        ("no seed", "unexpected keyword argument 'seed'"),
        ("no info", "cannot be reset with a seed and stepped once"),
        ("short", r"reset\(\) returned an observation of shape \(2,\)"),
        ("four values", "not enough values to unpack"),
        ("array", r"rewards of shape \(1,\), not numbers"),
    ],
)
def test_environments_of_another_interface(how, message):
    with pytest.raises(UserError, match=message) as error:
        make("Wrong", how=how)
    assert "\n" not in str(error.value)


def test_seeds_of_31_bits():
    env = make("CInt", 64)
    state = env.reset(jax.random.key(0))
    assert env.error is None and np.isfinite(state.obs).all()
    env.close()


def test_dictionaries_are_flattened_as_gymnasium_does():
    env = make("Parts", 2)
    space = gym.make("tests.environments:Parts-v0").observation_space
    assert env.observation_size == 5
    space.seed(0)
    rows = [space.sample() for _ in range(3)]
    expected = np.array([gym.spaces.flatten(space, row) for row in rows], np.float32)
    np.testing.assert_array_equal(env.flatten(rows[0]), expected[0])
    batch = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    np.testing.assert_array_equal(env.flatten(batch), expected)
    np.testing.assert_array_equal(env.flatten(expected), expected)
    with pytest.raises(UserError, match="no observation of"):
        env.flatten({"angle": [0.0, 1.0]})
    state = env.reset(jax.random.key(0))
    _, time_step = env.step(state, np.zeros((2, 1), np.float32))
    assert time_step.obs.shape == (2, 5) and env.error is None
    np.testing.assert_array_equal(np.asarray(time_step.obs[:, 2:4]).sum(axis=1), 1.0)  # keys in order: the choice
    env.close()


def test_observations_of_several_axes():
    """One, a batch, flat or not; another shape is refused, never guessed."""
    env = make("Axes")
    obs = np.arange(24.0).reshape(4, 2, 3)
    np.testing.assert_array_equal(env.flatten(obs), obs.reshape(4, 6))
    np.testing.assert_array_equal(env.flatten(obs[0]), obs[0].ravel())
    np.testing.assert_array_equal(env.flatten(obs.reshape(4, 6)), obs.reshape(4, 6))
    for wrong in (np.zeros((3, 2)), np.zeros(5), 0.0):
        with pytest.raises(UserError, match="not"):
            env.flatten(wrong)
    env.close()


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=2),
        gym.spaces.MultiBinary(4),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (2, 2))]),
    ],
)
def test_other_spaces_are_flattened_as_gymnasium_does(space):
    space.seed(0)
    for _ in range(5):
        row = space.sample()
        np.testing.assert_array_equal(flatten_observations(space, row), gym.spaces.flatten(space, row))


def test_numbers_and_choices_as_they_are_flattened_and_in_batches():
    number = gym.spaces.Box(-1, 1, ())
    for obs, shape in ((0.5, (1,)), ([0.5], (1,)), ([0.1, 0.2, 0.3], (3, 1)), ([[0.1], [0.2]], (2, 1))):
        assert flatten_observations(number, np.array(obs)).shape == shape
    both = gym.spaces.Dict(a=number, b=gym.spaces.Box(-1, 1, (2,)))
    for lead in ((), (1,), (3,)):
        assert flatten_observations(both, {"a": np.zeros(lead), "b": np.zeros((*lead, 2))}).shape == (*lead, 3)
    with pytest.raises(UserError, match="no observation of"):
        flatten_observations(both, {"a": np.zeros(3), "b": np.zeros((2, 2))})
    choice, flat = gym.spaces.Discrete(4), np.eye(4)
    np.testing.assert_array_equal(flatten_observations(choice, 1), flat[1])
    np.testing.assert_array_equal(flatten_observations(choice, np.array([3, 0, 1, 2])), flat[[3, 0, 1, 2]])
    np.testing.assert_array_equal(flatten_observations(choice, flat[1]), flat[1])
    np.testing.assert_array_equal(flatten_observations(choice, flat), flat)


def test_actions_in_the_units_type_and_bounds_of_the_space():
    env = make("Axes")
    space = gym.make("tests.environments:Axes-v0").action_space
    actions = env.to_env_units(np.random.default_rng(0).uniform(-1, 1, (1000, 4)).astype(np.float32))
    ends = env.to_env_units(np.float32([[-1] * 4, [1] * 4]))
    assert all(space.contains(action) for action in (*actions, *ends))
    env.close()


def test_a_render_mode_among_the_arguments_gives_way():
    """What a video needs is not refused as given twice."""
    env = make_gymnasium("Pendulum-v1", '{"render_mode": "human"}', render_mode="rgb_array")
    assert env.unwrapped.render_mode == "rgb_array"
    env.close()


def test_actions_in_the_units_of_an_uneven_space():
    env = make_env("tests.environments:Axes-v0", 1)  # -0.7 to 0.1
    actions = env.to_env_units(np.float32([-1.0, -0.5, 0.0, 1.0]))
    np.testing.assert_allclose(actions, [-0.7, -0.5, -0.3, 0.1], rtol=1e-6)
    env.close()
