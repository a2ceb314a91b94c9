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
    """Pendulum; of the copies made in this process, number `which` gives the reward NaN from its step `at` on."""

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


class Opaque(PendulumEnv):
    """Pendulum with an attribute of which nobody knows whether it is state."""

    def __init__(self):
        super().__init__()
        self.handle = object()


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


class Containers(PendulumEnv):
    """Pendulum with state in lists, tuples and dictionaries; two attributes are one array."""

    def __init__(self):
        super().__init__()
        self.history, self.table = [], {"sum": np.float32(0.0), 3: (1, 2.5, None)}
        self.total = self.also_total = np.zeros(2)
        self.noise = np.random.RandomState(3)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.history.append(float(reward))
        self.table["sum"] += np.float32(reward)
        self.total += obs[:2]
        return obs, sum(self.history[-3:]) + self.table["sum"] + self.also_total[0] + self.noise.normal(), *rest


class WritesToItsAction(PendulumEnv):
    """Pendulum with actions in [-1, 1], which it scales in place."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action):
        action *= 0.5
        return super().step(action)


for cls in (Counting, NotANumber, Opaque, Hidden, Containers, WritesToItsAction):
    gym.register(f"{cls.__name__}-v0", entry_point=cls, max_episode_steps=200)
