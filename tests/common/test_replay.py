"""The replay buffer against plain Python lists, and what its size costs inside a scan."""

import time
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import replay

pytestmark = pytest.mark.usefixtures("all_optimizations")

ROW = replay.Transition(
    obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    action=jax.ShapeDtypeStruct((1,), jnp.float32),
    reward=jax.ShapeDtypeStruct((), jnp.float32),
    next_obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    terminated=jax.ShapeDtypeStruct((), jnp.bool_),
)


def transitions(step, num_envs):
    """Rows that carry their own number: environment n at `step` is number step + n (numbers start at 1)."""
    number = 1.0 + step + jnp.arange(num_envs, dtype=jnp.float32)
    obs = jnp.stack([number, -number], axis=1)
    return replay.Transition(obs, number[:, None], 2 * number, obs + 0.5, jnp.arange(num_envs) % 2 == 0)


@pytest.mark.parametrize("num_envs, num_steps", [(1, 7), (1, 23), (3, 2), (3, 11)])
def test_wraps_around_and_keeps_the_newest_rows(num_envs, num_steps):
    length = replay.capacity(9, num_envs)
    insert = jax.jit(replay.insert)
    buffer, newest = replay.init(length, ROW), deque(maxlen=length)
    for i in range(num_steps):
        rows = transitions(i * num_envs, num_envs)
        buffer = insert(buffer, jnp.int32(i * num_envs), rows)
        newest.extend(np.asarray(rows.reward).tolist())
    stored = np.asarray(buffer.reward)
    assert sorted(stored[stored > 0]) == sorted(newest)
    filled = stored > 0
    np.testing.assert_array_equal(buffer.obs[filled, 0], stored[filled] / 2)  # rows stay together
    np.testing.assert_array_equal(buffer.next_obs[filled, 1], -stored[filled] / 2 + 0.5)
    np.testing.assert_array_equal(buffer.action[filled, 0], stored[filled] / 2)
    np.testing.assert_array_equal(buffer.terminated[filled], (stored[filled] / 2 - 1) % num_envs % 2 == 0)


def test_capacity_holds_whole_steps():
    assert replay.capacity(10, 3) == 9
    assert replay.capacity(9, 3) == 9
    assert replay.capacity(2, 3) == 3


@pytest.mark.parametrize("stored, filled", [(1, 1), (6, 6), (12, 12), (30, 12)])
def test_samples_what_was_stored_and_nothing_else(stored, filled):
    buffer = replay.init(12, ROW)
    for i in range(0, stored, 3 if stored > 1 else 1):
        buffer = replay.insert(buffer, i, transitions(i, 3 if stored > 1 else 1))
    batch = jax.jit(replay.sample, static_argnums=3)(jax.random.key(0), buffer, jnp.int32(stored), 12_000)
    numbers, counts = np.unique(np.asarray(batch.reward) / 2, return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(stored - filled, stored) + 1)
    # Uniform: each count is binomial; 6 standard deviations.
    expected = 12_000 / filled
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected) + 1e-9)
    np.testing.assert_array_equal(batch.obs[:, 0], batch.reward / 2)  # a row's parts come from the same row


def test_vmapped_agents_write_like_single_ones():
    rows = [jax.tree.map(lambda x: x if x.dtype == bool else 10 * a + x, transitions(3, 3)) for a in range(2)]
    single = [replay.insert(replay.init(12, ROW), 3, r) for r in rows]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    buffers = jax.vmap(lambda _: replay.init(12, ROW))(jnp.arange(2))
    both = jax.jit(jax.vmap(replay.insert, in_axes=(0, None, 0)))(buffers, jnp.int32(3), stack)
    jax.tree.map(lambda x, *y: np.testing.assert_array_equal(x, jnp.stack(y)), both, *single)


@pytest.mark.parametrize("num_agents", [1, 2])
def test_a_million_rows_cost_like_ten_thousand(num_agents):
    """Inside a scan XLA updates the buffer in place: at most 4x per step (a copy of the buffer would cost 100x).

    The smallest time of interleaved repetitions; more of them only where the machine is busy.
    """
    row = ROW.replace(obs=jax.ShapeDtypeStruct((11,), jnp.float32), next_obs=jax.ShapeDtypeStruct((11,), jnp.float32))
    num_steps, sizes = 1000, (10_000, 1_000_000)
    new = jax.tree.map(lambda x: jnp.ones((1, *x.shape), x.dtype), row)

    def one_step(buffer, key, step):
        buffer = replay.insert(buffer, step, new)
        batch = replay.sample(key, buffer, step + 1, 256)
        return buffer, sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(batch))

    @partial(jax.jit, donate_argnums=0)
    def chunk(buffer, key, start):
        keys, steps = jax.random.split(key, num_steps), start + jnp.arange(num_steps)
        if num_agents == 1:
            return jax.lax.scan(lambda buffer, x: one_step(buffer, *x), buffer, (keys, steps))
        keys = jax.vmap(partial(jax.random.split, num=num_agents))(keys)
        agents_step = jax.vmap(one_step, in_axes=(0, 0, None))
        return jax.lax.scan(lambda buffer, x: agents_step(buffer, *x), buffer, (keys, steps))

    buffers = {size: replay.init(size, row) for size in sizes}
    if num_agents > 1:
        buffers = jax.tree.map(lambda x: jnp.repeat(x[None], num_agents, axis=0), buffers)
    best = dict.fromkeys(sizes, np.inf)
    for repetition in range(50):
        for size in sizes:
            begin = time.perf_counter()
            buffers[size], sums = chunk(buffers[size], jax.random.key(repetition), jnp.int32(2 * size))
            sums.block_until_ready()
            if repetition > 0:  # the first call compiles
                best[size] = min(best[size], time.perf_counter() - begin)
        ratio = best[sizes[1]] / best[sizes[0]]
        if repetition >= 5 and ratio <= 4:
            break
    micros = {size: 1e6 * seconds / num_steps for size, seconds in best.items()}
    print(
        f"insert and sample, {num_agents} agents: {micros[10_000]:.1f} us at 10k rows, "
        f"{micros[1_000_000]:.1f} us at 1M, ratio {ratio:.2f}"
    )
    assert ratio <= 4
