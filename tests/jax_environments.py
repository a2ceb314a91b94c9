"""Environments written in JAX for the tests, by id: `tests.jax_environments:Walk`."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class State:
    obs: Any
    reward: jax.Array
    done: jax.Array
    place: jax.Array
    info: dict


class Walk:
    """A point on a line, pushed by the action and by noise. The reward is -place^2; it ends beyond +-1.

    Its state has what physics engines' have: an empty array, a key, integers, types that change with the first step.

    Args:
      dictionary: the observation is one, with the entry "state".
      nan_at: the step of an episode at which the reward is NaN, where the first push was above 0.5.
    """

    action_size = 1
    episode_length = 20

    def __init__(self, dictionary: bool = False, nan_at: int = 0):
        self.dictionary, self.nan_at = dictionary, nan_at

    def observe(self, place):
        obs = jnp.stack([place, place**2])
        return {"state": obs, "privileged_state": jnp.zeros(7)} if self.dictionary else obs

    def reset(self, key):
        place_key, key = jax.random.split(key)
        place = jax.random.uniform(place_key, minval=-0.5, maxval=0.5)
        info = {"key": key, "steps": 0, "nothing": jnp.zeros((0, 3)), "first": jnp.zeros(1)}
        return State(self.observe(place), 0.0, 0.0, place, info)

    def step(self, state, action):
        noise_key, key = jax.random.split(state.info["key"])
        place = state.place + 0.3 * action[0] + 0.1 * jax.random.normal(noise_key)
        steps = state.info["steps"] + 1
        first = jnp.where(steps == 1, action, state.info["first"])
        reward = jnp.where((steps == self.nan_at) & (first[0] > 0.5), jnp.nan, -(place**2))
        info = {**state.info, "key": key, "steps": steps, "first": first}
        return State(self.observe(place), reward, jnp.abs(place) > 1.0, place, info)


class Idle(Walk):
    action_size = 0


class Images(Walk):
    def observe(self, place):
        return {"pixels/view_0": jnp.zeros((4, 4, 3)), "state": jnp.stack([place])}


class Untold(Walk):
    def observe(self, place):
        return {"position": jnp.stack([place])}


class Grows(Walk):
    def step(self, state, action):
        then = super().step(state, action)
        return then.replace(info={**then.info, "more": jnp.zeros(1)})


class Fails(Walk):
    def step(self, state, action):
        raise ValueError("a joint is out of range")


class NoReset:
    action_size = 1


class Endless(Walk):
    """No time limit, and no end."""

    episode_length = None

    def step(self, state, action):
        return super().step(state, 0.0 * action).replace(done=False)


class Drawn(Walk):
    """A picture says how it was asked for."""

    def render(self, states, height, width, camera=None):
        return [(height, width, camera) for _ in states]


class DrawnSteps(Drawn):
    """A picture is the number of steps of the episode, which ends after four."""

    episode_length = 4

    def render(self, states, height, width, camera=None):
        return [int(state.info["steps"]) for state in states]


class DrawnFromOnePlace(Walk):
    mj_model = SimpleNamespace(ncam=2)

    def render(self, states, height, width):
        return [(height, width) for _ in states]


class Clock(Walk):
    """Reward 1 a step. After 5 steps it ends, and the observation is the time; or, with `cut`, only the time limit of 5
    steps ends it, and the observation is always 0: what is ahead looks the same at all times."""

    def __init__(self, cut: bool = False):
        super().__init__()
        self.cut = cut
        self.episode_length = 5 if cut else 50

    def observe(self, place):
        return place[None] * (not self.cut)

    def reset(self, key):
        state = super().reset(key)
        return state.replace(obs=jnp.zeros(1), place=jnp.float32(0.0))

    def step(self, state, action):
        place = state.place + 0.2
        return state.replace(obs=self.observe(place), reward=1.0, done=(place > 0.9) & (not self.cut), place=place)
