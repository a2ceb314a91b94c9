"""Environments behind one pure interface, for use inside a jitted training loop.

    env.reset(key)             -> (env_state, obs [N, O])
    env.step(env_state, action [N, A]) -> (env_state, TimeStep)

N environments run side by side for one agent. Actions lie in [-1, 1]; the environment layer rescales them to the
environment's bounds. Episodes restart by themselves. Both functions may be called inside jit, scan and vmap.

A Gymnasium environment is stepped on the host: `GymnasiumEnv` makes one ordered `io_callback` per step. Under
`jax.vmap` over S agents it is still one call, with all agents' actions: a custom vmap rule sees to it. The host holds
S x N environments; row s * N + n belongs to agent s.
"""

import ctypes
import difflib
import importlib
import json
import os
import sys
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from common import UserError, host_state

# Computations that wait for a host callback must not occupy the thread that dispatches others.
jax.config.update("jax_cpu_enable_async_dispatch", False)


@struct.dataclass
class EnvState:
    """What the environment layer carries on the device: the running return (reward units) and length (steps), `[N]`."""

    episode_return: jax.Array
    episode_length: jax.Array


@struct.dataclass
class TimeStep:
    """The result of one step of N environments.

    Attributes:
      obs: `[N, O]`, to act on next (after the reset where an episode ended).
      final_obs: `[N, O]`, what this transition ended in (before any reset): the next observation for learning.
      reward: `[N]`.
      terminated, truncated: bool `[N]`.
      episode_return, episode_length: `[N]`, of the episode up to and with this step; final where it ended here.
    """

    obs: jax.Array
    final_obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array

    @property
    def done(self) -> jax.Array:
        return self.terminated | self.truncated


def make_env(env_id: str, num_envs: int, num_agents: int = 1, env_kwargs: str = "{}") -> "GymnasiumEnv":
    """N environments for each of S agents: any registered Gymnasium id, or `module:id` to import a module first.

    Args:
      env_kwargs: keyword arguments of the environment as a JSON object.

    Raises:
      UserError: unknown id, or spaces that the algorithms cannot use.
    """
    return GymnasiumEnv(env_id, num_envs, num_agents, env_kwargs)


def make_gymnasium(env_id: str, env_kwargs: str = "{}", **more: Any) -> gym.Env:
    """One Gymnasium environment with a flat float observation and actions in [-1, 1] (see `make_env`)."""
    try:
        kwargs = json.loads(env_kwargs)
        assert isinstance(kwargs, dict)
    except (json.JSONDecodeError, AssertionError):
        raise UserError(f"--env-kwargs must be a JSON object such as '{{\"key\": 1}}', not {env_kwargs!r}") from None
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(f"cannot import {module!r} for environment {env_id!r}: {error}") from None
    if name not in gym.registry:
        near = difflib.get_close_matches(name, list(gym.registry), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; see `gymnasium.pprint_registry()`"
        raise UserError(f"unknown environment {env_id!r}{hint}")

    level, gym.logger.min_level = gym.logger.min_level, gym.logger.ERROR  # "Hopper-v4 is out of date", once per copy
    try:
        env = gym.make(name, disable_env_checker=True, **kwargs, **more)
    except Exception as error:
        raise UserError(f"cannot make environment {env_id!r}: {one_line(error)}") from error
    finally:
        gym.logger.min_level = level

    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        raise UserError(f"{env_id!r} has the action space {actions}; these algorithms need a one-dimensional Box")
    if not np.all(np.isfinite(actions.low) & np.isfinite(actions.high) & (actions.low < actions.high)):
        raise UserError(f"{env_id!r} has the unbounded action space {actions}; give it finite bounds in a wrapper")
    if not isinstance(observations, gym.spaces.Box):
        raise UserError(f"{env_id!r} has the observation space {observations}; these algorithms need a Box")
    if observations.dtype == np.uint8 and len(observations.shape) >= 2:
        raise UserError(f"{env_id!r} has image observations {observations.shape}; these algorithms need vectors")
    if np.any(actions.low != -1.0) or np.any(actions.high != 1.0):
        env = _Rescaled(env, -1.0, 1.0)
    if len(observations.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    return env


class _Rescaled(gym.wrappers.RescaleAction):
    """Rounding may put the end of the range beyond the environment's bounds, which its own checks would refuse."""

    def action(self, action):
        return np.clip(super().action(action), self.env.action_space.low, self.env.action_space.high)


def action_bounds(env: gym.Env) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action `[A]` of what `make_gymnasium` wrapped: those of `gymnasium.make`'s result."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, _Rescaled):
            return layer.env.action_space.low, layer.env.action_space.high
        layer = layer.env
    return env.action_space.low, env.action_space.high


class _Apart(gym.Wrapper):
    """Keeps an environment's arrays and the vector environment's apart.

    An environment may write to its action and go on writing to the observation it returned. Nothing here reads infos,
    whose arrays SyncVectorEnv cannot stack where their lengths differ.
    """

    def reset(self, **kwargs):
        return np.array(self.env.reset(**kwargs)[0]), {}

    def step(self, action):
        obs, reward, terminated, truncated, _ = self.env.step(np.array(action))
        return np.array(obs), reward, terminated, truncated, {}


def one_line(error: BaseException) -> str:
    """The exception's type and message without line breaks."""
    return f"{type(error).__name__}: {error}".replace("\n", " ").strip()


class GymnasiumEnv:
    """Gymnasium environments stepped on the host (module docstring). Hashed by identity: a static jit argument.

    Attributes:
      num_envs, num_agents: N and S.
      observation_size, action_size: O and A.
      action_low, action_high: the environment's own bounds, `[A]`.
      max_episode_steps: the time limit, or None.
      error: the exception that an environment raised during a step, or None. The step then returned NaN.
    """

    def __init__(self, env_id: str, num_envs: int, num_agents: int = 1, env_kwargs: str = "{}"):
        self.env_id, self.env_kwargs = env_id, env_kwargs
        self.num_envs, self.num_agents = num_envs, num_agents
        self.envs = gym.vector.SyncVectorEnv(
            [lambda: _Apart(make_gymnasium(env_id, env_kwargs))] * (num_envs * num_agents),
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        )
        first = self.envs.envs[0].env
        self.observation_size = int(first.observation_space.shape[0])
        self.action_size = int(first.action_space.shape[0])
        self.action_low, self.action_high = action_bounds(first)
        self.max_episode_steps = first.spec.max_episode_steps
        self.error: Exception | None = None
        self._reset_call = _one_call_for_all_agents(self._host_reset, self._reset_shapes)
        self._step_call = _one_call_for_all_agents(self._host_step, self._step_shapes)

    def reset(self, key: jax.Array) -> tuple[EnvState, jax.Array]:
        """New episodes, seeded from the key (consumed). obs `[N, O]`."""
        seeds = jax.random.bits(key, (self.num_envs,), jnp.uint32)
        (obs,) = self._reset_call(seeds)
        return EnvState(jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, jnp.int32)), obs

    def step(self, env_state: EnvState, action: jax.Array) -> tuple[EnvState, TimeStep]:
        """One step of the N environments with actions `[N, A]` in [-1, 1]."""
        # An agent whose parameters are no longer finite must not break the environment it shares a process with.
        action = jnp.where(jnp.isfinite(action), action, 0.0)
        obs, final_obs, reward, terminated, truncated = self._step_call(action)
        episode_return = env_state.episode_return + reward
        episode_length = env_state.episode_length + 1
        time_step = TimeStep(obs, final_obs, reward, terminated, truncated, episode_return, episode_length)
        running = ~time_step.done
        return EnvState(episode_return * running, episode_length * running), time_step

    def close(self) -> None:
        self.envs.close()

    def save_host(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the host holds of the S x N environments, as JSON and arrays. See `common.host_state`."""
        encoder = host_state.Encoder()
        try:
            return {"envs": [encoder.environment(env.env) for env in self.envs.envs]}, encoder.arrays
        except host_state.NotSaveable as error:
            return {"not_saveable": str(error)}, []

    def restore_host(self, saved: dict[str, Any], arrays: list[np.ndarray]) -> str | None:
        """Continues the saved episodes; the environments must have been reset before.

        Returns None, or why it is impossible: then the environments are unusable until the next `reset`.
        """
        if "not_saveable" in saved:
            return saved["not_saveable"]
        if not host_state.works(lambda: _Apart(make_gymnasium(self.env_id, self.env_kwargs))):
            return "it keeps a part of its state where it cannot be seen"
        decoder = host_state.Decoder(arrays)
        try:
            for env, layers in zip(self.envs.envs, saved["envs"], strict=True):
                decoder.environment(env.env, layers)
        except host_state.NotSaveable as error:
            return str(error)
        return None

    # ---- the host's side: arrays with leading axes (N,) for one agent, (S, N) for all of them

    def _reset_shapes(self, lead: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((*lead, self.observation_size), jnp.float32),)

    def _step_shapes(self, lead: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        obs = jax.ShapeDtypeStruct((*lead, self.observation_size), jnp.float32)
        flag = jax.ShapeDtypeStruct(lead, jnp.bool_)
        return obs, obs, jax.ShapeDtypeStruct(lead, jnp.float32), flag, flag

    def _host_reset(self, seeds: jax.Array) -> tuple[np.ndarray, ...]:
        seeds = np.asarray(seeds)
        try:
            obs, _ = self.envs.reset(seed=[int(seed) for seed in seeds.ravel()])
        except Exception as error:
            return self._failed(error, self._reset_shapes(seeds.shape))
        return (obs.astype(np.float32).reshape(*seeds.shape, -1),)

    def _host_step(self, action: jax.Array) -> tuple[np.ndarray, ...]:
        action = np.asarray(action)
        lead = action.shape[:-1]
        try:
            obs, reward, terminated, truncated, info = self.envs.step(action.reshape(-1, self.action_size))
        except Exception as error:
            return self._failed(error, self._step_shapes(lead))
        obs = obs.astype(np.float32)
        final_obs = obs
        done = terminated | truncated
        if done.any():
            final_obs = obs.copy()
            final_obs[done] = np.stack(info["final_obs"][done])
        return (
            obs.reshape(*lead, -1),
            final_obs.reshape(*lead, -1),
            reward.astype(np.float32).reshape(lead),
            terminated.reshape(lead),
            truncated.reshape(lead),
        )

    def _failed(self, error: Exception, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[np.ndarray, ...]:
        # An exception may not cross the compiled loop: it is kept, and the training loop asks for it after the chunk.
        self.error = self.error or error
        return tuple(np.full(s.shape, np.nan if s.dtype == jnp.float32 else False, s.dtype) for s in shapes)


def _one_call_for_all_agents(host_function, shapes_for):
    """An ordered host call that stays one call under `jax.vmap` over the agents. First argument `[N, ..]`."""

    @jax.custom_batching.custom_vmap
    def call(x):
        return io_callback(host_function, shapes_for(x.shape[:1]), x, ordered=True)

    @call.def_vmap
    def rule(axis_size, in_batched, x):
        del axis_size, in_batched  # one argument, so it is the batched one
        result = io_callback(host_function, shapes_for(x.shape[:2]), x, ordered=True)
        return result, jax.tree.map(lambda _: True, result)

    return call


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
