"""A host environment that was saved in the middle of an episode continues bit for bit in a new copy."""

import json
import random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from envs import UserError, make_env
from envs.gymnasium_make import MAX_REPLAY, Replayable


def host_steps(env, actions):
    """What the environment layer's host side returns for actions `[T, N, A]`: arrays `[T, N, ..]`."""
    return [np.array(x) for x in zip(*(env._host_step(action) for action in actions), strict=True)]


def started(env_id, seed, limit=None, num_envs=2):
    """Environments with the seeds `seed`, `seed + 1`, .. whose episodes end after `limit` steps at the latest."""
    env = make_env(env_id, num_envs, env_kwargs="{}" if limit is None else f'{{"max_episode_steps": {limit}}}')
    env._host_reset(np.arange(seed, seed + num_envs, dtype=np.uint32))
    return env


@pytest.mark.parametrize(
    "env_id, limit",
    [
        ("Pendulum-v1", 60),
        ("Hopper-v4", 60),
        ("Walker2d-v4", 60),
        ("HalfCheetah-v4", 60),
        ("Ant-v4", 60),
        ("Humanoid-v4", 60),
        ("Reacher-v4", 30),
        ("Hopper-v5", 60),
        ("Ant-v5", 60),
        ("MountainCarContinuous-v0", 60),
        ("Humanoid-v5", 60),
    ],
)
@pytest.mark.parametrize("before", [17, 200], ids=["first episode", "later episode"])
def test_continues_bit_for_bit(env_id, limit, before):
    """Over further ends of episodes, from the first episode, which a seed began, and from one that a reset began."""
    env, other = started(env_id, 0, limit), started(env_id, 10, limit)
    actions = np.random.default_rng(0).uniform(-1, 1, (before + 200, 2, env.action_size)).astype(np.float32)
    *_, terminated, truncated = host_steps(env, actions[:before])
    ends = (terminated | truncated).sum(axis=0)
    assert np.all(ends >= 3) if before == 200 else not ends.all()
    saved = json.loads(json.dumps(env.save_host()))
    host_steps(other, actions[:5])
    expected = host_steps(env, actions[before:])  # the later steps must not reach into what was saved
    assert np.all((expected[3] | expected[4]).sum(axis=0) >= 3)
    assert other.restore_host(saved) is None
    for name, x, y in zip(
        ("obs", "final_obs", "reward", "terminated", "truncated"),
        expected,
        host_steps(other, actions[before:]),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y, err_msg=f"{env_id} {name}")
    env.close(), other.close()


@pytest.mark.parametrize("before", [0, 100])
def test_saved_where_an_episode_has_just_begun(before):
    """No action was taken in it yet: where a chunk is a multiple of the time limit, every checkpoint is like this."""
    env, other = started("Pendulum-v1", 0, 50), started("Pendulum-v1", 10, 50)
    actions = np.random.default_rng(0).uniform(-1, 1, (before + 120, 2, 1)).astype(np.float32)
    if before:
        host_steps(env, actions[:before])
    saved = json.loads(json.dumps(env.save_host()))
    assert [episode["steps"] for episode in saved.values()] == [0, 0]
    host_steps(other, actions[:5])
    assert other.restore_host(saved) is None
    for x, y in zip(host_steps(env, actions[before:]), host_steps(other, actions[before:]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_restored_environment_can_be_saved_again():
    """Saved at once it says the same; saved later, it leads on from there."""
    env, other, third = (started("Pendulum-v1", seed, 50) for seed in (0, 10, 20))
    actions = np.random.default_rng(0).uniform(-1, 1, (120, 2, 1)).astype(np.float32)
    host_steps(env, actions[:70])
    saved = env.save_host()
    assert other.restore_host(saved) is None
    assert other.save_host() == saved
    host_steps(other, actions[70:90])
    assert third.restore_host(json.loads(json.dumps(other.save_host()))) is None
    host_steps(env, actions[70:90])
    for x, y in zip(host_steps(env, actions[90:]), host_steps(third, actions[90:]), strict=True):
        np.testing.assert_array_equal(x, y)


class Carried(PendulumEnv):
    """Pendulum whose rewards add up over all episodes: a reset does not set their sum."""

    def __init__(self):
        super().__init__()
        self.sum = 0.0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.sum += float(reward)
        return obs, self.sum, *rest


class OneEpisode(PendulumEnv):
    """Pendulum that raises in its second episode."""

    def reset(self, **kwargs):
        if getattr(self, "used", False):
            raise RuntimeError("no second\nepisode")
        self.used = True
        return super().reset(**kwargs)


class WritesToItsAction(PendulumEnv):
    """Pendulum with actions in [-1, 1], which it scales in place."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action):
        action *= 0.5
        return super().step(action)


class Held(PendulumEnv):
    """Pendulum with an attribute of which nobody knows whether it is state; its reset sets all that is."""

    def __init__(self):
        super().__init__()
        self.handle, self.history = object(), []

    def reset(self, **kwargs):
        self.history = []
        return super().reset(**kwargs)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.history.append(float(reward))
        return obs, sum(self.history), *rest


class OwnGenerator(PendulumEnv):
    """Pendulum with noise from a generator of its own, which a seeded reset makes and later resets go on with."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.noise = np.random.RandomState(seed % 1000)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.noise.normal(), *rest


class OtherGenerator(PendulumEnv):
    """Pendulum whose np_random is of a kind that no JSON holds."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        if seed is not None:
            self.np_random = np.random.Generator(np.random.MT19937(seed))
        return obs, info


class OldGenerator(PendulumEnv):
    """Pendulum whose np_random is NumPy's older one."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.RandomState(seed)
        self.state, self.last_u = self.np_random.uniform(-1, 1, 2), None
        return self._get_obs(), {}


for cls in (Carried, OneEpisode, WritesToItsAction, Held, OwnGenerator, OtherGenerator, OldGenerator):
    gym.register(f"{cls.__name__}-v0", entry_point=cls, max_episode_steps=50)


@pytest.mark.parametrize("name", ["WritesToItsAction", "Held"])
def test_nothing_but_the_reset_matters(name):
    env, other = started(f"{name}-v0", 0), started(f"{name}-v0", 10)
    actions = np.random.default_rng(0).uniform(-1, 1, (130, 2, 1)).astype(np.float32)
    host_steps(env, actions[:70])
    host_steps(other, actions[:33])
    assert other.restore_host(env.save_host()) is None
    for x, y in zip(host_steps(env, actions[70:]), host_steps(other, actions[70:]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Carried", "the same actions lead elsewhere"),
        ("tests.environments:Hidden", "the same actions lead elsewhere"),
        ("OwnGenerator", "the same actions lead elsewhere"),
        ("OneEpisode", "RuntimeError: no second episode"),
        ("OtherGenerator", "its random numbers cannot be saved"),
        ("OldGenerator", "its random numbers cannot be saved"),
    ],
)
def test_what_a_reset_does_not_set_is_noticed(name, reason):
    """State from earlier episodes is in no replay: the copy says so instead of going on with other numbers."""
    env, other = started(f"{name}-v0", 0, 50), started(f"{name}-v0", 10, 50)
    host_steps(env, np.full((20 if name == "OneEpisode" else 70, 2, 1), 0.3, np.float32))
    assert env.error is None
    saved = json.loads(json.dumps(env.save_host()))
    assert env.try_replay(saved) == reason
    assert other.restore_host(saved) == reason


def test_a_replay_is_tried_beside_the_training():
    """On another copy, and with the process's own generators as they were: training goes on as if it had not been."""
    name = "tests.environments:Dice-v0"  # starts from Python's generator
    env = started(name, 3, 20, num_envs=1)
    host_steps(env, np.zeros((10, 1, 1), np.float32))
    saved, python, numpy = env.save_host(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert env.try_replay(saved) is None  # the seed of its first episode seeds that generator
    assert random.getstate() == python
    np.testing.assert_equal(np.random.get_state(), numpy)  # noqa: NPY002
    host_steps(env, np.zeros((20, 1, 1), np.float32))
    assert env.try_replay(env.save_host()) == "the same actions lead elsewhere"
    before, state = env.save_host(), env.envs.envs[0].unwrapped.state.copy()
    env.try_replay(saved)
    assert env.save_host() == before and before != saved
    np.testing.assert_array_equal(env.envs.envs[0].unwrapped.state, state)


def test_of_some_environments_there_is_only_one(monkeypatch):
    env = started("Pendulum-v1", 0)

    def make_one():
        raise UserError("the port is taken")

    with monkeypatch.context() as patch:
        patch.setattr(env, "_make_one", make_one)
        assert env.try_replay(env.save_host()) is None
    monkeypatch.setattr(Replayable, "close", make_one)
    assert env.try_replay(env.save_host()) is None


def test_an_episode_above_the_limit_is_refused(monkeypatch):
    """At MAX_REPLAY steps it is still replayed; above, the actions are not even kept."""
    assert MAX_REPLAY == 10_000
    monkeypatch.setattr("envs.gymnasium_make.MAX_REPLAY", 100)
    env, other = started("Pendulum-v1", 0), started("Pendulum-v1", 10)
    actions = np.random.default_rng(0).uniform(-1, 1, (150, 2, 1)).astype(np.float32)
    host_steps(env, actions[:100])
    saved = env.save_host()
    host_steps(env, actions[100:101])
    too_long = env.save_host()
    assert other.restore_host(saved) is None
    assert other.restore_host(too_long) == "its episode is longer than 100 steps"
    host_steps(env, actions[101:])
    assert all(len(copy.actions) == 101 for copy in env.envs.envs)


def test_saved_episodes_are_json():
    """By name in the order of the environments, how each began and its actions, in a few bytes per step."""
    env = started("Hopper-v4", 3)
    host_steps(env, np.zeros((4, 2, 3), np.float32))
    saved = env.save_host()
    assert list(saved) == ["000000", "000001"]
    assert [episode["begin"] for episode in saved.values()] == [{"seed": 3}, {"seed": 4}]
    assert [episode["steps"] for episode in saved.values()] == [4, 4]
    assert json.loads(json.dumps(saved)) == saved
    assert len(json.dumps(saved["000000"]["actions"])) == 4 * 3 * 4 * 4 // 3 + 2
    assert all(isinstance(copy, Replayable) for copy in env.envs.envs)
