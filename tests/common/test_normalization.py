"""Running mean and variance against those of all rows together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import normalization


def test_running_statistics_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(size=(500, 8, 3)) * [0.1, 1.0, 30.0] + [50.0, 0.0, -7.0]
    add = jax.jit(
        lambda rows: jax.lax.scan(lambda s, x: (normalization.update(s, x), None), normalization.init((3,)), rows)
    )
    stats, _ = add(jnp.asarray(rows, jnp.float32))
    flat = rows.reshape(-1, 3)
    np.testing.assert_allclose(stats.mean, flat.mean(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(stats.var, flat.var(axis=0), rtol=2e-2)
    assert float(stats.count) == pytest.approx(4000, abs=1)
    normal = normalization.normalize(stats, jnp.asarray(flat[:5], jnp.float32))
    np.testing.assert_allclose(normal, (flat[:5] - flat.mean(axis=0)) / flat.std(axis=0), rtol=5e-2, atol=5e-2)
    far = jnp.asarray([[1e3, 1e3, -1e9]])
    np.testing.assert_array_equal(normalization.normalize(stats, far), [[10.0, 10.0, -10.0]])
    np.testing.assert_array_equal(normalization.scale(stats, far)[0, 1:], [10.0, -10.0])
    assert float(normalization.scale(stats, jnp.ones(3))[2]) == pytest.approx(1 / 30, rel=0.05)
