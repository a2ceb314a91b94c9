"""Densities and divergences against closed forms."""

import jax.numpy as jnp
import numpy as np

from common.distributions import gaussian_entropy, gaussian_kl, gaussian_log_prob, tanh_log_det


def test_gaussian_log_prob_and_entropy_by_hand():
    """Of two dimensions; the entropy is the mean of -log p over the nodes of a quadrature."""
    mean, std = np.array([0.5, -1.0]), np.array([0.3, 2.0])
    x = np.array([[0.2, 0.4], [1.0, -3.0]])
    expected = np.sum(-0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi)), axis=-1)
    np.testing.assert_allclose(gaussian_log_prob(x, mean, std), expected, rtol=1e-6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    grid = mean + std * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    entropy = -np.sum(weights * gaussian_log_prob(grid, mean, std))
    np.testing.assert_allclose(gaussian_entropy(jnp.asarray(std)), entropy, rtol=1e-5)


def test_tanh_log_det_is_stable():
    x = jnp.array([[0.0], [1.5], [-30.0], [30.0]])
    expected = [0.0, np.log(1 - np.tanh(1.5) ** 2), 2 * (np.log(2) - 30), 2 * (np.log(2) - 30)]
    np.testing.assert_allclose(tanh_log_det(x), expected, rtol=1e-6)


def test_gaussian_kl_by_hand():
    kl = gaussian_kl(jnp.array([1.0]), jnp.array([2.0]), jnp.array([0.0]), jnp.array([1.0]))
    np.testing.assert_allclose(kl, -np.log(2) + 4 / 2 + 1 / 2 - 1 / 2, rtol=1e-6)
