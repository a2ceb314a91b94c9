"""Many agents from the code of one, and what a chunk of training steps reports."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def vmap_seeds(f: Callable) -> Callable:
    """`f(x, *rest)` for all seeds at once: leaves of `x` and of the results get a leading axis `[S, ..]`.

    Several seeds are vmapped, the other arguments are shared by all. A single seed is not: on a CPU a batch axis of one
    costs 15 % of an update.
    """

    def for_all_seeds(x: Any, *rest: Any) -> Any:
        if jax.tree.leaves(x)[0].shape[0] > 1:
            return jax.vmap(f, in_axes=(0, *[None] * len(rest)))(x, *rest)
        result = f(jax.tree.map(lambda leaf: leaf.squeeze(0), x), *rest)
        return jax.tree.map(lambda leaf: leaf[None], result)

    return for_all_seeds


def learn_if(condition: Any, learn: Callable, agent: Any) -> tuple[Any, dict[str, jax.Array]]:
    """`learn(agent)` -> (agent, metrics) where `condition` holds, otherwise the agent as it is.

    A metric that was not computed is NaN: `mean_metrics` leaves it out. Keep `condition` the same for all seeds: under
    `jax.vmap` a batched one would compute both branches.
    """
    if condition is True:
        return learn(agent)

    def skip(agent):
        return agent, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(learn, agent)[1])

    return jax.lax.cond(condition, learn, skip, agent)


def mean_metrics(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean over all axes of what was computed, NaN where nothing was."""
    return jax.tree.map(jnp.nanmean, metrics)
