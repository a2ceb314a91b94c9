"""What tests ask of denoising chains."""

import jax
import jax.numpy as jnp

from common import diffusion


def log_densities(drift_fn, schedule, latents):
    """log q(a^{k-1} | a^k, s) and log pi(a^k | a^{k-1}) of given latents `[K+1, B, A]`; each `[K, B]`, k = 1 first."""
    steps = jnp.arange(1, schedule.num_denoising_steps + 1)
    of_step = jax.vmap(diffusion.step_log_densities, in_axes=(None, None, 0, 0, 0))
    return of_step(drift_fn, schedule, latents[1:], latents[:-1], steps)
