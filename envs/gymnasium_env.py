"""Gymnasium environments behind `envs.interface`, stepped on the host by one ordered `io_callback` per step.

Under `jax.vmap` over S agents it is still one call, with all agents' actions: a custom vmap rule sees to it. The host
holds S x N environments; row s * N + n belongs to agent s.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from envs.gymnasium_make import Replayable, as_vectors, global_generators_kept, make_gymnasium
from envs.gymnasium_spaces import flatten_observations, try_out
from envs.interface import Environment, EnvState, TimeStep, new_episode, with_episode

# Computations that wait for a host callback must not occupy the thread that dispatches others.
jax.config.update("jax_cpu_enable_async_dispatch", False)


class GymnasiumEnv(Environment):
    """See `envs.interface.Environment` for attributes and methods, `envs.make_env` for the arguments."""

    def __init__(self, env_id: str, num_envs: int, num_seeds: int = 1, env_kwargs: str = "{}"):
        self.env_id, self.num_envs = env_id, num_envs
        own = make_gymnasium(env_id, env_kwargs)
        self._observation_space = own.observation_space
        self.action_low, self.action_high = own.action_space.low, own.action_space.high
        self.observation_size, self.action_size = gym.spaces.flatdim(own.observation_space), own.action_space.shape[0]
        self.max_episode_steps = own.spec.max_episode_steps
        try_out(env_id, as_vectors(own))
        self._make_one = lambda: Replayable(as_vectors(make_gymnasium(env_id, env_kwargs)))
        self.envs = gym.vector.SyncVectorEnv(
            [self._make_one] * (num_envs * num_seeds),
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        )
        self.error: Exception | None = None
        self._reset_call = _one_call_for_all_agents(self._host_reset, self._reset_shapes)
        self._step_call = _one_call_for_all_agents(self._host_step, self._step_shapes)

    def reset(self, key: jax.Array) -> EnvState:
        (obs,) = self._reset_call(jax.random.bits(key, (self.num_envs,), jnp.uint32))
        return new_episode(obs)

    def step(self, env_state: EnvState, action: jax.Array) -> tuple[EnvState, TimeStep]:
        # An agent whose parameters are no longer finite must not break the environment it shares a process with.
        action = jnp.where(jnp.isfinite(action), action, 0.0)
        return with_episode(env_state, *self._step_call(action))

    def flatten(self, obs: Any) -> np.ndarray:
        return flatten_observations(self._observation_space, obs)

    def close(self) -> None:
        self.envs.close()

    def save_host(self) -> dict[str, Any]:
        """The S x N running episodes: how each began, and its actions since."""
        return {f"{i:06d}": env.save() for i, env in enumerate(self.envs.envs)}

    def restore_host(self, saved: dict[str, Any]) -> str | None:
        """Replays the saved episodes."""
        for env, name in zip(self.envs.envs, sorted(saved), strict=True):
            if why := env.replay(saved[name]):
                return why
        return None

    def try_replay(self, saved: dict[str, Any]) -> str | None:
        """Replays the first saved episode in another copy. The process's own generators stay as they are."""
        with global_generators_kept():
            try:
                copy = self._make_one()
                copy.reset(seed=0)  # as a resumed run does before it replays
            except Exception:  # of some environments only one copy may exist
                return None
            try:
                return copy.replay(next(iter(saved.values())))
            finally:
                with contextlib.suppress(Exception):
                    copy.close()

    # ---- the host's side: arrays with leading axes (N,) for one agent, (S, N) for all of them

    def _reset_shapes(self, lead: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((*lead, self.observation_size), jnp.float32),)

    def _step_shapes(self, lead: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        obs = jax.ShapeDtypeStruct((*lead, self.observation_size), jnp.float32)
        flag = jax.ShapeDtypeStruct(lead, jnp.bool_)
        return obs, obs, jax.ShapeDtypeStruct(lead, jnp.float32), flag, flag

    def _host_reset(self, seeds: jax.Array) -> tuple[np.ndarray, ...]:
        seeds = np.asarray(seeds) & 0x7FFFFFFF  # environments in C take a signed 32-bit seed
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


def _one_call_for_all_agents(host_function: Callable, shapes_for: Callable) -> Callable:
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
