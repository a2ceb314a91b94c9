"""Log-densities and divergences of diagonal Gaussians and of the tanh squashing. All sum over the last axis."""

import jax
import jax.numpy as jnp

LOG_2PI = 1.8378770664093453


def gaussian_log_prob(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Log-density of N(mean, std^2 I) at x, in nats. `[..., A]` (any broadcastable shapes) -> `[...]`."""
    z = (x - mean) / std
    return jnp.sum(-0.5 * (z * z + LOG_2PI) - jnp.log(std), axis=-1)


def gaussian_entropy(std: jax.Array) -> jax.Array:
    """Entropy of N(mean, std^2 I), in nats. `[..., A]` -> `[...]`."""
    return jnp.sum(jnp.log(std) + 0.5 * (LOG_2PI + 1.0), axis=-1)


def gaussian_kl(mean_p: jax.Array, std_p: jax.Array, mean_q: jax.Array, std_q: jax.Array) -> jax.Array:
    """KL(p || q) of two diagonal Gaussians, in nats. `[..., A]` -> `[...]`."""
    variance_ratio = (std_p / std_q) ** 2
    mean_term = ((mean_p - mean_q) / std_q) ** 2
    return 0.5 * jnp.sum(variance_ratio + mean_term - 1.0 - jnp.log(variance_ratio), axis=-1)


def tanh_log_det(x: jax.Array) -> jax.Array:
    """log |det d tanh(x) / dx| = sum log(1 - tanh(x)^2), in nats. `[..., A]` -> `[...]`.

    SAC's correction (1812.05905, appendix C, equation 26) in a form that does not cancel for large |x|.
    """
    return jnp.sum(2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x)), axis=-1)
