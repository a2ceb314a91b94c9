"""Running mean and variance of observations and of discounted returns: a pytree and pure functions.

The statistics are part of the agent: they are saved with it, and frozen when it is evaluated.
"""

import jax
import jax.numpy as jnp
from flax import struct

EPSILON = 1e-8  # added to the variance before the square root


@struct.dataclass
class RunningStats:
    """Mean and variance over all rows seen, each of one row's shape, and their number (scalar)."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def init(shape: tuple[int, ...]) -> RunningStats:
    """Mean 0, variance 1, with the weight of 1e-4 rows (as Gymnasium's RunningMeanStd)."""
    return RunningStats(jnp.zeros(shape), jnp.ones(shape), jnp.full((), 1e-4, jnp.float32))


def update(stats: RunningStats, rows: jax.Array) -> RunningStats:
    """The statistics with the rows `[N, ..]` added (Chan et al. 1979, the pairwise update of mean and variance).

    Written as increments: no difference of large sums. In float32 `count` stands still where N is below 2^-24 of it.
    """
    count = stats.count + rows.shape[0]
    weight = rows.shape[0] / count
    delta = rows.mean(axis=0) - stats.mean
    var = stats.var + weight * (rows.var(axis=0) - stats.var + (1.0 - weight) * delta**2)
    return RunningStats(stats.mean + weight * delta, var, count)


def normalize(stats: RunningStats, x: jax.Array, clip: float = 10.0) -> jax.Array:
    """(x - mean) / std, clipped to [-clip, clip]; `x` `[.., *shape]`."""
    return jnp.clip((x - stats.mean) / jnp.sqrt(stats.var + EPSILON), -clip, clip)


def scale(stats: RunningStats, x: jax.Array, clip: float = 10.0) -> jax.Array:
    """x / std, clipped to [-clip, clip]: for rewards, with the statistics of discounted returns."""
    return jnp.clip(x / jnp.sqrt(stats.var + EPSILON), -clip, clip)
