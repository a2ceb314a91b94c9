"""Environments for the tests, by id: `tests.environments:Counting-v0`."""

import os
import signal

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


for cls in (Counting, NotANumber, Hidden):
    gym.register(f"{cls.__name__}-v0", entry_point=cls, max_episode_steps=200)
gym.register("Countdown-v0", entry_point=Countdown)
