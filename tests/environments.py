"""Environments for the tests, by id: `tests.environments:Counting-v0`."""

import os
import random
import signal
import time

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Counting(PendulumEnv):
    """Pendulum that sends its process the signals in TEST_SIGNALS, such as "SIGTERM@150", at these of its steps."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def step(self, action):
        self.count += 1
        for word in os.environ.get("TEST_SIGNALS", "").split():
            name, _, count = word.partition("@")
            if self.count == int(count):
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(0.5)  # the thread that hears it takes its turn within this chunk
        return super().step(action)


class Slow(PendulumEnv):
    """Pendulum whose step takes SECONDS_PER_STEP, so that a run is in the middle for a while on any machine."""

    def step(self, action):
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
        return super().step(action)


class NotANumber(PendulumEnv):
    """Pendulum; copy number `which` of those made since `copies` was 0 gives the reward NaN from its step `at` on.

    A copy counts all its steps: where a resumed run replays its first episode, it comes to the same NaN.
    """

    copies = 0

    def __init__(self, which: int, at: int):
        super().__init__()
        self.faulty, self.at, self.count = NotANumber.copies == which, at, 0
        NotANumber.copies += 1

    def step(self, action):
        assert np.all(np.isfinite(action))
        self.count += 1
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.faulty and self.count >= self.at else reward, *rest


class Breaking(PendulumEnv):
    """Pendulum that cannot be stepped more than `at` times."""

    def __init__(self, at: int):
        super().__init__()
        self.left = at

    def step(self, action):
        self.left -= 1
        if self.left < 0:
            raise ValueError("the joint is broken")
        return super().step(action)


HIDDEN = {}


class Hidden(PendulumEnv):
    """Pendulum with state that no attribute shows, as in a C library: the number is only a handle."""

    def __init__(self):
        super().__init__()
        self.handle = len(HIDDEN)
        HIDDEN[self.handle] = 0.0

    def step(self, action):
        HIDDEN[self.handle] += 1.0
        obs, reward, *rest = super().step(action)
        return obs, reward + HIDDEN[self.handle], *rest


class Countdown(gym.Env):
    """`left`, drawn from 1 to `most` at the start, falls by 1 a step; the episode ends at 0. The reward is the action.

    With `most` 0 no episode ends. `fails`: the step of an episode that raises an exception.
    """

    def __init__(self, most: int = 250, fails: int = 0):
        self.most, self.fails, self.steps = most, fails, 0
        self.observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def _obs(self):
        return np.array([self.left], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.steps = int(self.np_random.integers(1, self.most + 1)) if self.most else 1000, 0
        return self._obs(), {}

    def step(self, action):
        self.left, self.steps = self.left - 1, self.steps + 1
        if self.steps == self.fails:
            raise ArithmeticError("the environment failed")
        return self._obs(), float(action[0]), bool(self.most and self.left == 0), False, {}


class Levels(gym.Env):
    """Whole numbers as actions, in a Box."""

    def __init__(self, dtype="int64", low=0.0, high=10.0):
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(low, high, (1,), np.dtype(dtype).type)


class Dice(PendulumEnv):
    """Starts from Python's own generator, which a seed seeds."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            random.seed(seed)
        self.state = np.array([random.uniform(-3, 3), 0.0])
        return self._get_obs(), {}


class Tree(PendulumEnv):
    """Refers to itself."""

    def __init__(self):
        super().__init__()
        self.node = {}
        self.node["parent"] = self.node


class CInt(PendulumEnv):
    """Wants a signed 32-bit seed, as simulators in C do."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.array(seed, np.int32)
        return super().reset(seed=seed)


class Parts(PendulumEnv):
    """A dictionary of a vector, a number and a choice."""

    def __init__(self):
        super().__init__()
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {"angle": box(-1, 1, (2,)), "speed": box(-8, 8, (1,), np.float64), "moves": gym.spaces.Discrete(2)}
        )

    def _get_obs(self):
        obs = super()._get_obs()
        return {"angle": obs[:2], "speed": obs[2:].astype(np.float64), "moves": int(abs(obs[2]) > 1)}


class Axes(PendulumEnv):
    """Observations of two axes, actions in an uneven Box of float64."""

    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
        self.action_space = gym.spaces.Box(-0.7, 0.1, (4,), np.float64)

    def _get_obs(self):
        return np.tile(super()._get_obs(), (2, 1))


class Wrong(PendulumEnv):
    """Speaks another interface, in one of several ways."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def reset(self, **more):
        if self.how == "no seed" and more:
            raise TypeError("reset() got an unexpected keyword argument 'seed'")
        obs, info = super().reset(**more)
        return obs if self.how == "no info" else (obs[:2] if self.how == "short" else obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.how == "four values":
            return obs, reward, terminated, info
        return obs, np.array([reward]) if self.how == "array" else reward, terminated, truncated, info


for cls in (Counting, Slow, NotANumber, Breaking, Hidden, Dice, Tree, CInt, Parts, Axes, Wrong):
    gym.register(f"{cls.__name__}-v0", entry_point=cls, max_episode_steps=200)
gym.register("Countdown-v0", entry_point=Countdown)
gym.register("Levels-v0", entry_point=Levels)
