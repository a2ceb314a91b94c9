"""Many agents from the code of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.seeds import learn_if, mean_metrics, vmap_seeds


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_vmap_seeds_is_a_loop_over_the_seeds(num_seeds):
    """Results are those of single calls, stacked; what follows the first argument is shared by all seeds."""
    shapes = []

    def f(x, step, table):
        shapes.append((x["a"].shape, x["b"].shape, step.shape, table.shape))
        return {"sum": x["a"] + step * table, "key": jax.random.split(x["key"])[0]}, x["b"] ** 2

    keys = jax.random.split(jax.random.key(0), num_seeds)
    xs = {"a": jnp.arange(2.0 * num_seeds).reshape(num_seeds, 2), "b": 1.0 + jnp.arange(num_seeds), "key": keys}
    rest = jnp.int32(3), jnp.array([10.0, 20.0])
    result = jax.jit(vmap_seeds(f))(xs, *rest)
    assert shapes == [((2,), (), (), (2,))]  # traced once, as for one seed
    single = [f(jax.tree.map(lambda x: x[s], xs), *rest) for s in range(num_seeds)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *single)
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), result, stacked)


def test_a_single_seed_has_no_batch_axis():
    """Its program multiplies matrices, not batches of one."""
    f = vmap_seeds(lambda x, y: x @ y)
    programs = [str(jax.make_jaxpr(f)(jnp.ones((s, 4, 5)), jnp.ones((5, 6)))) for s in (1, 2)]
    products = [line for line in programs[0].splitlines() if "dot_general" in line]
    assert len(products) == 1 and "f32[4,6]" in products[0]
    assert "f32[2,4,6]" in programs[1]


def test_metrics_are_means_of_the_steps_that_learned():
    def step(agent, due):
        return learn_if(due, lambda agent: (agent + 1.0, {"loss": 10.0 * agent}), agent)

    agent, metrics = jax.lax.scan(step, jnp.float32(1.0), jnp.array([False, True, False, True]))
    assert agent == 3.0 and mean_metrics(metrics) == {"loss": 15.0}
    agent, metrics = jax.lax.scan(step, jnp.float32(1.0), jnp.array([False, False]))
    assert agent == 1.0 and np.isnan(mean_metrics(metrics)["loss"])
    every = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.nan, jnp.nan]])  # of steps of three updates each
    assert mean_metrics({"loss": every}) == {"loss": 3.0}  # the updates weigh alike, not the steps
