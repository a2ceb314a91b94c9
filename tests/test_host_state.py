"""A host environment that was saved in the middle of an episode continues bit for bit in a new copy."""

import json

import gymnasium as gym
import jax
import numpy as np
import pytest

from common import envs, host_state

STEPS = 200


def host_steps(env, actions):
    """What the environment layer's host side returns for actions `[T, N, A]`."""
    return [env._host_step(action) for action in actions]


@pytest.mark.parametrize(
    "env_id",
    [
        "Hopper-v4",
        "Ant-v4",
        "Humanoid-v4",
        "Reacher-v4",
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "Humanoid-v5",
        "tests.environments:Containers-v0",
    ],
)
def test_continues_bit_for_bit(env_id):
    env, other = envs.make_env(env_id, 2), envs.make_env(env_id, 2)
    env._host_reset(np.arange(2, dtype=np.uint32))
    other._host_reset(np.arange(10, 12, dtype=np.uint32))
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (17 + STEPS, 2, env.action_size)).astype(np.float32)
    host_steps(env, actions[:17])  # in the middle of an episode
    saved, arrays = env.save_host()
    saved = json.loads(json.dumps(saved))
    arrays = [np.array(x) for x in arrays]
    host_steps(other, actions[:5])
    expected = host_steps(env, actions[17:])  # the later steps must not reach into what was saved
    assert other.restore_host(saved, arrays) is None
    for t, (a, b) in enumerate(zip(expected, host_steps(other, actions[17:]), strict=True)):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=f"{env_id} step {t}")


def test_the_state_vector_alone_is_not_enough():
    """Ant's reward reads derived arrays that lag the state by a substep: without them the comparison above fails."""
    env, other = envs.make_gymnasium("Ant-v4"), envs.make_gymnasium("Ant-v4")
    env.reset(seed=0), other.reset(seed=1)
    action = np.full(env.action_space.shape, 0.3, np.float32)
    for _ in range(10):
        env.step(action)
    encoder = host_state.Encoder()
    layers = encoder.environment(env)
    for layer in layers:
        for value in layer.values():
            if isinstance(value, dict) and "mujoco" in value:
                value["mujoco"]["data"] = {}
    host_state.Decoder(encoder.arrays).environment(other, layers)
    assert env.step(action)[1] != other.step(action)[1]


@pytest.mark.parametrize(
    "name, reason", [("Opaque", "Opaque.handle is a object"), ("Hidden", "keeps a part of its state")]
)
def test_what_cannot_be_saved_is_named(name, reason):
    env = envs.make_env(f"tests.environments:{name}-v0", 1)
    env._host_reset(np.zeros(1, np.uint32))
    assert reason in env.restore_host(*env.save_host())


def test_an_environment_that_writes_to_its_action_can_be_saved():
    env = envs.make_env("tests.environments:WritesToItsAction-v0", 1)
    env._host_reset(np.zeros(1, np.uint32))
    assert env.restore_host(*env.save_host()) is None


def test_non_finite_actions_do_not_reach_the_environment():
    env = envs.make_env("Pendulum-v1", 2)
    env_state, _ = env.reset(jax.random.key(0))
    _, time_step = env.step(env_state, np.array([[np.nan], [np.inf]], np.float32))
    assert np.isfinite(time_step.obs).all() and np.isfinite(time_step.reward).all()


def test_saved_state_is_json_and_arrays_without_objects():
    env = envs.make_env("Hopper-v4", 1)
    env._host_reset(np.zeros(1, np.uint32))
    saved, arrays = env.save_host()
    json.dumps(saved)
    assert all(x.dtype.kind in "biufc" for x in arrays)
    assert isinstance(env.envs.envs[0], gym.Wrapper)
