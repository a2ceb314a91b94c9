"""Environments stepped through the layer, for the tests of both kinds."""

import jax
import numpy as np


def in_a_scan(env, key, actions):
    """Steps environments through the layer with `actions` `[T, N, A]` in one jitted scan.

    Returns the initial observation and a TimeStep `[T, N, ..]`.
    """

    @jax.jit
    def rollout(key, actions):
        env_state = env.reset(key)
        return env_state.obs, jax.lax.scan(env.step, env_state, actions)[1]

    return jax.tree.map(np.asarray, rollout(key, actions))
