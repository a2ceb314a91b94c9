"""Agents for tests of single functions, and how far two are apart."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np


def small_args(module, **settings):
    """Arguments for small networks; three denoising steps where the algorithm has them."""
    settings = {"hidden_dim": 8, "head_dim": 8, "num_denoising_steps": 3, **settings}
    fields = {field.name for field in dataclasses.fields(module.Args)}
    return module.Args(**{name: value for name, value in settings.items() if name in fields})


def random_agent(module, args, observation_size=3, action_size=2, dtype="float32", seed=0, scale=0.5):
    """An agent whose parameters are random, those of its targets too, made without compiling its initialisation.

    The temperature is that of `args`; optimisers and running statistics are as at the start.
    """
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        if "log_alpha" in name and "opt_state" not in name:
            values = np.full(x.shape, np.log(args.alpha))
        elif "opt_state" in name or "batch_stats" in name:
            values = np.full(x.shape, float("'var'" in name))
        else:
            values = scale * rng.standard_normal(x.shape)
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes(module, args, observation_size, action_size))


@cache
def shapes(module, args, observation_size, action_size):
    """Cached, because agents that were made apart have optimisers that are not equal to JAX."""
    sizes = SimpleNamespace(observation_size=observation_size, action_size=action_size)
    return jax.eval_shape(partial(module.init_agent, args, sizes), jax.random.key(0))


def largest_difference(tree, other):
    """Of two trees, over the largest entry of `other`."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
    return max(np.abs(x - y).max() for x, y in pairs) / max(np.abs(y).max() for _, y in pairs)
