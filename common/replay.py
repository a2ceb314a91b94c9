"""Replay buffer: a pytree on the device and two pure functions.

The buffer holds no counters. What was written where follows from the number of environment steps taken, which is the
same for all agents trained side by side: under `jax.vmap` the data is batched and the index is not. Keep the buffer in
a `lax.scan`: there XLA updates it in place, so that a write does not cost more in a long buffer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Transition:
    """obs `[B, O]`, action `[B, A]`, reward `[B]`, next_obs `[B, O]` (before any reset), terminated bool `[B]`."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


def capacity(buffer_size: int, num_envs: int) -> int:
    """Rows of the buffer: `buffer_size` rounded down to whole steps of `num_envs` environments, at least one step."""
    return max(buffer_size // num_envs, 1) * num_envs


def init(num_rows: int, row: Any) -> Any:
    """An empty buffer of `num_rows` rows shaped like the pytree `row` (arrays or ShapeDtypeStructs without batch)."""
    return jax.tree.map(lambda x: jnp.zeros((num_rows, *x.shape), x.dtype), row)


def insert(buffer: Any, step: jax.Array, rows: Any) -> Any:
    """Writes the N `rows` of the environment steps `step` .. `step + N - 1`, over the oldest ones once it is full.

    `step` and the buffer's length must be multiples of N.
    """
    start = step % jax.tree.leaves(buffer)[0].shape[0]
    return jax.tree.map(lambda data, x: jax.lax.dynamic_update_slice_in_dim(data, x, start, axis=0), buffer, rows)


def sample(key: jax.Array, buffer: Any, num_stored: jax.Array, batch_size: int) -> Any:
    """`batch_size` rows drawn uniformly with replacement from the `num_stored` rows ever written (the key is consumed).

    `num_stored` may exceed the buffer's length: then every row is filled.
    """
    filled = jnp.minimum(num_stored, jax.tree.leaves(buffer)[0].shape[0])
    rows = jax.random.randint(key, (batch_size,), 0, filled)
    return jax.tree.map(lambda data: data[rows], buffer)
