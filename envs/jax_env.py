"""Environments written in JAX behind `envs.interface`, stepped on the device as a part of the compiled program.

An environment comes as one copy without wrappers: copies are vmapped here, and a new episode begins from a fresh reset,
never from a remembered start state, while the transition keeps the observation that the old one ended in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.interface import Environment, EnvState, TimeStep, UserError, new_episode, with_episode
from envs.jax_make import Task, make_jax, vector_of

RESET_BLOCKS = 16  # new episodes begin in blocks of a sixteenth of the copies

Inner = tuple[jax.Array, ...]  # the arrays of an environment's state that hold anything


def vmap_once(function: Callable) -> Callable:
    """`jax.vmap(function)` whose own vmap, over agents, makes the batch longer and not deeper.

    XLA (jaxlib 0.10.2, CPU) fails on products of MJX's sensors in a batch of batches (playground/FingerSpin).
    The price: no reverse-mode gradient.
    """
    batched = jax.custom_batching.custom_vmap(jax.vmap(function))

    @batched.def_vmap
    def over_agents(size, in_batched, *args):
        def longer(x, own):  # [S, N, ..], or [N, ..] for all agents -> [S N, ..]
            x = x if own else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = batched(*jax.tree.map(longer, args, tuple(in_batched)))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return batched


@struct.dataclass
class JaxEnvState(EnvState):
    """Adds what the environments themselves carry.

    Attributes:
      inner: of all of them, `[N, ..]` each.
      keys: `[N]`, what the next episode of each follows from.
    """

    inner: Inner
    keys: jax.Array


class JaxEnv(Environment):
    """See `envs.interface.Environment` for attributes and methods, `envs.make_env` for the arguments."""

    on_device = True

    def __init__(self, env_id: str, num_envs: int, num_seeds: int = 1, env_kwargs: str = "{}"):
        self.env_id, self.num_envs = env_id, num_envs
        self.task: Task = make_jax(env_id, env_kwargs)
        self.action_size = int(self.task.env.action_size)
        self.observation_size = vector_of(env_id, self.task.state.obs).shape[0]
        self.action_low = np.full(self.action_size, -1.0, np.float32)
        self.action_high = np.full(self.action_size, 1.0, np.float32)
        length, repeat = self.task.episode_length, self.task.action_repeat
        self.max_episode_steps = length and -(-length // repeat)

    def reset(self, key: jax.Array) -> JaxEnvState:
        inner, obs, keys = vmap_once(self._begin)(jax.random.split(key, self.num_envs))
        episode = new_episode(obs)
        return JaxEnvState(obs, episode.episode_return, episode.episode_length, inner, keys)

    def step(self, env_state: JaxEnvState, action: jax.Array) -> tuple[JaxEnvState, TimeStep]:
        # An agent whose parameters are no longer finite must not be taken for an environment whose numbers are not.
        action = jnp.where(jnp.isfinite(action), action, 0.0)
        inner, final_obs, reward, terminated = vmap_once(self._advance)(env_state.inner, action)
        limit = jnp.inf if self.max_episode_steps is None else self.max_episode_steps
        truncated = env_state.episode_length + 1 >= limit
        inner, obs, keys = self._restart(inner, final_obs, env_state.keys, terminated | truncated)
        env_state = env_state.replace(inner=inner, keys=keys)
        return with_episode(env_state, obs, final_obs, reward, terminated, truncated)

    def flatten(self, obs: Any) -> np.ndarray:
        if isinstance(obs, dict):
            if "state" not in obs:
                raise UserError(f"an observation of {self.env_id} is a vector or has the entry 'state', not {[*obs]}")
            obs = obs["state"]
        return super().flatten(obs)

    def inner_state(self, env_state: JaxEnvState, n: int) -> Any:
        """What the environment itself returned as the state of copy `n`."""
        return self._unpack(tuple(x[n] for x in env_state.inner))

    def _restart(
        self, inner: Inner, obs: jax.Array, keys: jax.Array, done: jax.Array
    ) -> tuple[Inner, jax.Array, jax.Array]:
        """New episodes where `done`, a block of copies after the other: a reset may cost as much as many steps."""
        size = -(-self.num_envs // RESET_BLOCKS)

        def block(carry):
            rows, waiting = carry
            (index,) = jnp.nonzero(waiting, size=size, fill_value=self.num_envs)  # beyond the last: no copy
            new = vmap_once(self._begin)(rows[2][index])
            rows = jax.tree.map(lambda old, x: old.at[index].set(x, mode="drop"), rows, new)
            return rows, waiting.at[index].set(False, mode="drop")

        return jax.lax.while_loop(lambda carry: carry[1].any(), block, ((inner, obs, keys), done))[0]

    # ---- one copy

    def _begin(self, key: jax.Array) -> tuple[Inner, jax.Array, jax.Array]:
        """What a copy carries, its first observation `[O]`, and the key of the episode after this one."""
        reset_key, key = jax.random.split(key)
        state = self._typed(self.task.env.reset(reset_key))
        return self._pack(state), self._vector(state), key

    def _advance(self, inner: Inner, action: jax.Array) -> tuple[Inner, jax.Array, jax.Array, jax.Array]:
        """What a copy carries after `action` `[A]`, its observation, reward and whether it terminated."""
        state, reward, ended = self._unpack(inner), jnp.float32(0.0), jnp.bool_(False)
        for _ in range(self.task.action_repeat):
            then = self._typed(self.task.env.step(state, action))
            reward += jnp.where(ended, 0.0, then.reward)
            state = jax.tree.map(lambda x, y: jnp.where(ended, x, y), state, then)  # it may have ended before
            ended |= then.done != 0
        return self._pack(state), self._vector(state), reward, ended

    def _vector(self, state: Any) -> jax.Array:
        return vector_of(self.env_id, state.obs).astype(jnp.float32)

    def _typed(self, state: Any) -> Any:
        """Strongly typed as after a step: a reset may return 0.0 where a step returns an array."""

        def one(x: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            is_key = jnp.issubdtype(like.dtype, jax.dtypes.extended)
            return x if is_key else jax.lax.convert_element_type(x, like.dtype)

        return jax.tree.map(one, state, self.task.state)

    def _pack(self, state: Any) -> Inner:
        # Physics engines carry dozens of empty arrays, which checkpoints do not take.
        return tuple(x for x in jax.tree.leaves(state) if x.size)

    def _unpack(self, inner: Inner) -> Any:
        full = iter(inner)
        leaves, structure = jax.tree.flatten(self.task.state)
        return structure.unflatten([next(full) if like.size else jnp.zeros(like.shape, like.dtype) for like in leaves])
