"""Many agents from the code of one."""

from collections.abc import Callable
from typing import Any

import jax


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
