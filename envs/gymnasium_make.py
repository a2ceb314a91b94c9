"""One Gymnasium environment, checked and wrapped: flat observations, actions in [-1, 1], replayable episodes."""

import base64
import contextlib
import ctypes
import importlib
import json
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from envs.gymnasium_spaces import check_spaces
from envs.interface import UserError, did_you_mean, one_line, parse_kwargs

MAX_REPLAY = 10_000  # steps; a longer episode begins anew when its run is resumed


def make_gymnasium(env_id: str, env_kwargs: str = "{}", **more: Any) -> gym.Env:
    """The environment as Gymnasium makes it, checked (see `envs.make_env` for the arguments).

    Raises:
      UserError: unknown id, or spaces that the algorithms cannot use.
    """
    kwargs = parse_kwargs(env_kwargs)
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever somebody's own code does
            raise UserError(f"cannot import {module!r} for environment {env_id!r} ({one_line(error)})") from None
    if name not in gym.registry:
        own = vars(sys.modules[module]).values() if module else ()  # of environments in JAX the classes are named
        classes = [x for x in own if isinstance(x, type) and x.__module__ == module and not issubclass(x, gym.Env)]
        known = [*gym.registry, *(x.__name__ for x in classes)]
        hint = did_you_mean(name, known, "see `gymnasium.pprint_registry()`")
        where = f"{module} neither registers nor has {name!r}" if module else f"unknown environment {env_id!r}"
        raise UserError(f"{where}; {hint}")
    with _without_warnings():  # "Hopper-v4 is out of date", "Box low's precision lowered": once per copy
        try:
            env = gym.make(name, disable_env_checker=True, **{**kwargs, **more})
        except Exception as error:
            raise UserError(f"cannot make environment {env_id!r}: {one_line(error)}") from error
    check_spaces(env_id, env)
    return env


def as_vectors(env: gym.Env) -> gym.Env:
    """What `make_gymnasium` returned with actions in [-1, 1] and flat observations."""
    actions, observations = env.action_space, env.observation_space
    with _without_warnings():
        if np.any(actions.low != -1.0) or np.any(actions.high != 1.0):
            env = _Rescaled(env, -1.0, 1.0)
        if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
            env = gym.wrappers.FlattenObservation(env)
    return env


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    level, gym.logger.min_level = gym.logger.min_level, gym.logger.ERROR
    try:
        yield
    finally:
        gym.logger.min_level = level


class _Rescaled(gym.wrappers.RescaleAction):
    """Rounding may put the end of the range beyond the environment's bounds, which its own checks would refuse."""

    def action(self, action):
        return np.clip(super().action(action), self.env.action_space.low, self.env.action_space.high)


class Replayable(gym.Wrapper):
    """Remembers how the running episode began and its actions, so that another copy can be brought to the same point.

    It also keeps the environment's arrays and the vector environment's apart: an environment may write to its action
    and go on writing to the observation it returned. Nothing here reads infos, whose arrays SyncVectorEnv cannot stack
    where their lengths differ.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.begin: dict[str, Any] = {}
        self.actions: list[np.ndarray] = []
        self.reward_sum, self.obs = 0.0, np.zeros(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.begin = {"seed": seed} if seed is not None else {"generator": self._generator_state()}
        self.actions, self.reward_sum = [], 0.0
        self.obs = np.array(self.env.reset(seed=seed, options=options)[0])
        return np.array(self.obs), {}

    def step(self, action):
        if len(self.actions) <= MAX_REPLAY:
            self.actions.append(np.array(action))
        obs, reward, terminated, truncated, _ = self.env.step(np.array(action))
        self.reward_sum += float(reward)
        self.obs = np.array(obs)
        return np.array(obs), reward, terminated, truncated, {}

    def save(self) -> dict[str, Any]:
        """How the episode began, what was done in it, and what it led to, for JSON."""
        actions = np.array(self.actions, np.float32)
        return {
            "begin": self.begin,
            "steps": len(actions),
            "actions": base64.b64encode(actions.tobytes()).decode(),
            "led_to": self._led_to(),
        }

    def replay(self, saved: dict[str, Any]) -> str | None:
        """Plays the episode of `save` again. Returns None where it led to the same, else why not."""
        if saved["steps"] > MAX_REPLAY:
            return f"its episode is longer than {MAX_REPLAY:,} steps"
        actions = np.frombuffer(base64.b64decode(saved["actions"]), np.float32).reshape(-1, *self.action_space.shape)
        try:
            if "generator" in saved["begin"]:
                if saved["begin"]["generator"] is None:
                    return "its random numbers cannot be saved"
                self.reset(seed=0)  # some environments make their generator here
                self.env.unwrapped.np_random.bit_generator.state = saved["begin"]["generator"]
            self.reset(seed=saved["begin"].get("seed"))
            for action in actions:
                self.step(action)
        except Exception as error:
            return one_line(error)
        return None if self._led_to() == saved["led_to"] else "the same actions lead elsewhere"

    def _led_to(self) -> list[str]:
        """The episode's last observation and the sum of its rewards, bit by bit."""
        return [base64.b64encode(np.asarray(x).tobytes()).decode() for x in (self.obs, self.reward_sum)]

    def _generator_state(self) -> dict[str, Any] | None:
        """Of the environment's random numbers; None where it has others than Gymnasium's, or no JSON can hold it."""
        try:
            state = self.env.unwrapped.np_random.bit_generator.state
            json.dumps(state)
        except (AttributeError, TypeError):
            return None
        return state


@contextlib.contextmanager
def global_generators_kept() -> Iterator[None]:
    """Some environments draw from Python's and NumPy's global generators: afterwards those are as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def prefer_headless_rendering() -> None:
    """Renders MuJoCo through EGL where there is no screen, and not at all where there is no EGL either.

    MuJoCo loads it when it is imported: without this not even training would start. Call before the first environment
    is made.
    """
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
        try:
            ctypes.CDLL("libEGL.so.1")
            os.environ["MUJOCO_GL"] = "egl"
        except OSError:
            os.environ["MUJOCO_GL"] = "disable"
