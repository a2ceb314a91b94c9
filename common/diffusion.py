"""The diffusion sampler and the terms of the denoising chain's log-likelihood.

A chain of K denoising steps turns prior noise a^K ~ N(0, nu^2 I) into an action, with nu = `prior_std`.
Each step k = K, K-1, .., 1 has a noise level beta_k in (0, 1), learned, one per action dimension, and two kernels
(beta_k may depend on s: then pi does, too, and every statement here holds at each s):

    denoising (the policy)      q(a^{k-1} | a^k, s) = N( sqrt(1 - beta_k) a^k + c_k nu f(a^k, s, k),  beta_k nu^2 I )
    noising (the reference)    pi(a^k | a^{k-1})    = N( sqrt(1 - beta_k) a^{k-1},                    beta_k nu^2 I )

Both are the exact variance-preserving kernels, not an Euler discretisation. c_k sets the units of the network's output
f, the drift:

    prediction="action"   c_k = sqrt(abar_{k-1}) beta_k / (1 - abar_k), with abar_k = prod_{i<=k} (1 - beta_i): then
                          nu f + sqrt(abar_k) a^k predicts a^0 and the mean is DDPM's posterior mean
    prediction="noise"    c_k = sqrt(beta_k): f is in units of the step's own standard deviation

With f = 0 the chain is stationary at N(0, nu^2 I). The chain log-likelihood

    l = log p(a^K) + sum_k rho_k,     rho_k = log q(a^{k-1} | a^k, s) - log pi(a^k | a^{k-1})

takes the place of the action's log-density in a maximum-entropy algorithm (it is a log-ratio of paths, not a density):
E[l] >= E[log q(a^0 | s)], so -E[l] bounds the entropy from below (arXiv 2512.02019; the data-processing inequality).
The chain does not include the tanh: the algorithm subtracts the log-determinant of its squashing.

Names: `noising` and `denoising`, never forward and backward. Latents are indexed by noise level; arrays over levels
put level 0 first. Shapes: B batch (any leading axes), A action dimensions, K denoising steps.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from common.distributions import gaussian_log_prob

PREDICTIONS = ("action", "noise")

# drift_fn(latent [B, A], k, int32 [B] or scalar) -> drift [B, A]: the network with everything else bound.
DriftFn = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class NoiseSchedule:
    """Logits b of the noise levels beta_k = sigmoid(b[k-1]), the prior's deviation nu, and the choice of c_k.

    b is `[K, A]`, the same levels for all rows, or `[K, B, A]`; so are the properties and the terms of single steps.

    Everything is computed from log beta and log(1 - beta), which float32 holds for any b above -80: training may drive
    beta_K so close to 1 that 1 - beta is 0 in float32, and the gradient of its root infinite.
    """

    logits: jax.Array
    prior_std: float = struct.field(pytree_node=False, default=1.0)
    prediction: str = struct.field(pytree_node=False, default="action")

    @property
    def num_denoising_steps(self) -> int:
        return self.logits.shape[0]

    @property
    def beta(self) -> jax.Array:
        return jax.nn.sigmoid(self.logits)

    @property
    def std(self) -> jax.Array:
        """sqrt(beta) nu, the standard deviation of both kernels."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.logits)) * self.prior_std

    @property
    def scale(self) -> jax.Array:
        """sqrt(1 - beta), what a step keeps of the latent."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.logits))


@struct.dataclass
class DenoisingChain:
    """One sampled chain per batch row.

    Attributes:
      latents: `[K+1, B, A]`, latents[k] is a^k.
      rho: `[K, B]` in nats, rho[k-1] is rho_k.
      prior_log_prob: `[B]` in nats, log p(a^K).
    """

    latents: jax.Array
    rho: jax.Array
    prior_log_prob: jax.Array


def initial_noise_logits(
    num_denoising_steps: int, action_dim: int, first: float = 0.05, last: float = 0.6
) -> jax.Array:
    """Logits b `[K, A]` of levels sigmoid(b), linear from `first` (k = 1) to `last` (k = K, also where K = 1)."""
    beta = jnp.linspace(first, last, num_denoising_steps) if num_denoising_steps > 1 else jnp.array([last])
    return jnp.tile(jnp.log(beta / (1.0 - beta))[:, None], (1, action_dim))


def level_embedding(k: jax.Array, num_denoising_steps: int) -> jax.Array:
    """sin and cos of (k/K)(pi/2){1, 2, 4, 8}. Level k, int `[...]` -> `[..., 8]`."""
    angle = (jnp.asarray(k, jnp.float32) / num_denoising_steps * (jnp.pi / 2))[..., None]
    angle = angle * jnp.array([1.0, 2.0, 4.0, 8.0])
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def chain_metrics(rho: jax.Array, schedule: NoiseSchedule) -> dict[str, jax.Array]:
    """The mean of rho_k `[K, ..]` of every step, and the noise levels' range, by TensorBoard tag."""
    metrics = {f"diffusion/rho_{k}": x.mean() for k, x in enumerate(rho, start=1)}
    return metrics | {"diffusion/beta_min": schedule.beta.min(), "diffusion/beta_max": schedule.beta.max()}


def drift_coefficient(schedule: NoiseSchedule) -> jax.Array:
    """c_k for every step, shaped as the logits (see the module docstring)."""
    log_beta = jax.nn.log_sigmoid(schedule.logits)
    if schedule.prediction == "noise":
        return jnp.exp(0.5 * log_beta)
    if schedule.prediction not in PREDICTIONS:
        raise ValueError(f"prediction {schedule.prediction!r} is none of {', '.join(PREDICTIONS)}")
    log_abar = jnp.cumsum(jax.nn.log_sigmoid(-schedule.logits), axis=0)
    log_abar_before = jnp.concatenate([jnp.zeros_like(log_abar[:1]), log_abar[:-1]])
    return jnp.exp(0.5 * log_abar_before + log_beta) / -jnp.expm1(log_abar)


def denoising_mean_std(
    schedule: NoiseSchedule, drift: jax.Array, latent: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of q(a^{k-1} | a^k, s).

    Args:
      drift: f(a^k, s, k), `[B, A]`.
      latent: a^k, `[B, A]`.
      k: the step, in 1 .. K, int scalar, or `[B]` where the noise levels are `[K, A]`. Or all steps at once: k
        1 .. K, `[K]`, with drift and latent `[K, B, A]` and noise levels `[K, B, A]`.

    Returns: mean as `latent`, std `[A]` or as `latent`. Raises ValueError where the noise levels do not fit the rows.
    """
    mean = schedule.scale[k - 1] * latent + drift_coefficient(schedule)[k - 1] * schedule.prior_std * drift
    if mean.shape != latent.shape:
        raise ValueError(f"noise levels {schedule.logits.shape} at k {jnp.shape(k)} do not fit latents {latent.shape}")
    return mean, schedule.std[k - 1]


def noising_mean_std(schedule: NoiseSchedule, latent: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of pi(a^k | a^{k-1}) for `latent` = a^{k-1}; shapes as in `denoising_mean_std`."""
    return schedule.scale[k - 1] * latent, schedule.std[k - 1]


def prior_log_prob(schedule: NoiseSchedule, latent: jax.Array) -> jax.Array:
    """log p(a^K) of the prior N(0, nu^2 I). `[..., A]` -> `[...]`."""
    return gaussian_log_prob(latent, jnp.zeros_like(latent), jnp.full_like(latent, schedule.prior_std))


def sample_prior(key: jax.Array, schedule: NoiseSchedule, shape: tuple[int, ...]) -> jax.Array:
    """a^K ~ N(0, nu^2 I), `[*shape, A]`. The key is consumed."""
    return schedule.prior_std * jax.random.normal(key, (*shape, schedule.logits.shape[-1]))


def sample_noise(key: jax.Array, schedule: NoiseSchedule, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """What a chain is made of: a^K `[*shape, A]`, and standard normal noise `[K, *shape, A]`. The key is consumed."""
    draws = jax.random.normal(key, (schedule.num_denoising_steps + 1, *shape, schedule.logits.shape[-1]))
    return schedule.prior_std * draws[0], draws[1:]


def denoise(drift_fn: DriftFn, schedule: NoiseSchedule, last: jax.Array, noise: jax.Array) -> DenoisingChain:
    """The chain from a^K = `last` `[B, A]` with noise[k-1] of `noise` `[K, B, A]` in step k, differentiable in all."""

    def step(latent, terms):
        k, noise, scale, std, coefficient = terms
        mean = scale * latent + coefficient * drift_fn(latent, k)
        next_latent = mean + std * noise
        log_denoising = gaussian_log_prob(next_latent, mean, std)
        return next_latent, (next_latent, log_denoising - gaussian_log_prob(latent, scale * next_latent, std))

    # The schedule once: within the loop all its levels would be computed, and differentiated, at every step.
    steps = jnp.arange(1, schedule.num_denoising_steps + 1)
    terms = steps, noise, schedule.scale, schedule.std, drift_coefficient(schedule) * schedule.prior_std
    _, (latents, rho) = jax.lax.scan(step, last, terms, reverse=True)
    return DenoisingChain(jnp.concatenate([latents, last[None]]), rho, prior_log_prob(schedule, last))


def sample_chain(key: jax.Array, drift_fn: DriftFn, schedule: NoiseSchedule, shape: tuple[int, ...]) -> DenoisingChain:
    """A whole chain from the prior for `shape` batch rows. The key is consumed."""
    return denoise(drift_fn, schedule, *sample_noise(key, schedule, shape))


def deterministic_chain(drift_fn: DriftFn, schedule: NoiseSchedule, shape: tuple[int, ...]) -> jax.Array:
    """a^0 `[*shape, A]` of the chain of means, started from a^K = 0: the deterministic policy."""
    zeros = jnp.zeros((schedule.num_denoising_steps + 1, *shape, schedule.logits.shape[-1]), schedule.logits.dtype)
    return denoise(drift_fn, schedule, zeros[0], zeros[1:]).latents[0]


def step_log_densities(
    drift_fn: DriftFn, schedule: NoiseSchedule, latent: jax.Array, next_latent: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log q(a^{k-1} | a^k, s) and log pi(a^k | a^{k-1}) of given steps, each `[B]` in nats.

    Args:
      latent, next_latent: a^k and a^{k-1}, `[B, A]`.
      k: the step, in 1 .. K, int scalar, or `[B]` where the noise levels are `[K, A]`.
    """
    denoising = denoising_mean_std(schedule, drift_fn(latent, k), latent, k)
    noising = noising_mean_std(schedule, next_latent, k)
    return gaussian_log_prob(next_latent, *denoising), gaussian_log_prob(latent, *noising)


def chain_log_likelihood(chain: DenoisingChain) -> jax.Array:
    """l = log p(a^K) + sum_k rho_k, `[B]` in nats, before the squashing's log-determinant is subtracted."""
    return chain.prior_log_prob + chain.rho.sum(axis=0)


def path_kl_per_dimension(num_denoising_steps: int, prior_std: float, entropy: float) -> float:
    """Smallest gap E[l] - E[log q(a^0)] of a chain whose a^0 is a Gaussian of this entropy; both in nats per dimension.

    K/2 (r - 1 - log r), r = (nu^2 / s^2)^(1/K), s the Gaussian's deviation: less the larger K is. log r is cut at 80.
    """
    log_std = entropy - 0.5 * math.log(2.0 * math.pi * math.e)
    log_r = min(2.0 * (math.log(prior_std) - log_std) / num_denoising_steps, 80.0)  # finite in float32
    return num_denoising_steps / 2 * (math.exp(log_r) - 1.0 - log_r)


def log_prob_estimates(
    key: jax.Array, drift_fn: DriftFn, schedule: NoiseSchedule, latents: jax.Array, num_others: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples of an upper bound, an estimate and a lower bound of E[log q(a^0 | s)], each `[B]` in nats (key consumed).

    Given a^1, the action's density is the last kernel's, q_m = q(a^0 | a^1_m, s). With M = `num_others` further chains
    at the same s, and m = 0 the chain that made a^0, whose latents are `latents` `[K+1, B, A]`:

        upper = log mean_{m=0..M} q_m,     lower = log mean_{m=1..M} q_m        (1805.11183; 1810.02789)

    Both close in on E[log q(a^0)] as M grows. Where none of the M comes near a^0, as when each is in another mode, a
    sample of the lower bound is hundreds of nats too low. So the estimate is the mean of the two with lower cut at
    log q_0 - 2.5 log(M + 1). The 2.5 is measured on trained policies: docs/diffsac.md, which has the errors, too.
    Unlike importance sampling with paths noised from a^0 (1905.03290), it stays close at few steps of a narrow policy.
    """
    drifts = jax.vmap(drift_fn, in_axes=(0, None))  # of several chains at the same observations
    others = sample_chain(key, drifts, schedule, (num_others, *latents.shape[1:-1]))
    last = jnp.concatenate([latents[1:2], others.latents[1]])  # a^1 of all M + 1
    log_densities = gaussian_log_prob(latents[0], *denoising_mean_std(schedule, drifts(last, 1), last, 1))
    own, others = log_densities[0], jax.nn.logsumexp(log_densities[1:], axis=0)
    upper, lower = jnp.logaddexp(own, others) - math.log(num_others + 1), others - math.log(num_others)
    return upper, (upper + jnp.maximum(lower, own - 2.5 * math.log(num_others + 1))) / 2, lower


def entropy_terms(
    key: jax.Array,
    drift_fn: DriftFn,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    squash_log_det: Callable[[jax.Array], jax.Array],
    num_others: int = 64,
) -> dict[str, jax.Array]:
    """Samples of the entropy's estimate, the bounds on its two sides, and -l, for `shape` batch rows (key consumed).

    All are of the squashed action: `squash_log_det`, a^0 `[B, A]` -> `[B]`, is added to `log_prob_estimates`.

    Returns: by TensorBoard tag, `[B]` in nats.
    """
    chain_key, other_key = jax.random.split(key)
    chain = sample_chain(chain_key, drift_fn, schedule, shape)
    log_det = squash_log_det(chain.latents[0])
    upper, estimate, lower = log_prob_estimates(other_key, drift_fn, schedule, chain.latents, num_others)
    return {
        "eval/entropy": log_det - estimate,
        "eval/entropy_low": log_det - upper,
        "eval/entropy_high": log_det - lower,
        "eval/entropy_bound": log_det - chain_log_likelihood(chain),
    }
