"""The sampler and the chain's log-likelihood terms against what is known in closed form."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logit
from scipy.optimize import minimize
from scipy.special import expit

from common import diffusion
from common.distributions import gaussian_log_prob
from tests.chains import log_densities
from tests.running import ROOT

MEANS = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]])
SIGMA = 0.4


def mixture_log_density(x):
    """Four equal Gaussians of standard deviation 0.4, normalised: log Z = 0. `[..., 2]` -> `[...]`."""
    parts = gaussian_log_prob(x[..., None, :], jnp.asarray(MEANS, x.dtype), jnp.full((2,), SIGMA, x.dtype))
    return jax.nn.logsumexp(parts, axis=-1) - jnp.log(4.0)


def zero_drift(latent, k):
    return jnp.zeros_like(latent)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-4), (True, 1e-10)])
def test_identity_1_zero_drift_telescopes(prediction, x64, tolerance):
    """f = 0: sum_k rho_k = log p(a^0) - log p(a^K) for any beta in [0.01, 0.99]."""
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        sample = jax.jit(lambda key, schedule: diffusion.sample_chain(key, zero_drift, schedule, (256,)))
        for seed in range(5):
            beta_key, chain_key = jax.random.split(jax.random.key(seed))
            beta = jax.random.uniform(beta_key, (8, 3), dtype, 0.01, 0.99)
            schedule = diffusion.NoiseSchedule(logit(beta), prior_std=1.5, prediction=prediction)
            chain = sample(chain_key, schedule)
            assert chain.latents.dtype == dtype
            difference = diffusion.prior_log_prob(schedule, chain.latents[0]) - chain.prior_log_prob
            np.testing.assert_allclose(chain.rho.sum(0), difference, rtol=tolerance, atol=tolerance)
        print(f"identity 1, {dtype.__name__}: {jnp.abs(chain.rho.sum(0) - difference).max():.1e} apart at most")


@pytest.mark.usefixtures("all_optimizations")
@pytest.mark.parametrize("drift_scale", [0.0, 0.1])  # at 0.2 the weights' standard error is above 2 %
def test_identity_2_known_normaliser(drift_scale):
    """w = Q/tau - l has E[exp w] = Z within 2 % from 10^6 chains and E[w] <= log Z, whatever the drift."""
    weights_key, chain_key = jax.random.split(jax.random.key(1))
    weights = drift_scale * jax.random.normal(weights_key, (2, 2))

    def drift_fn(latent, k):
        return jnp.tanh(latent @ weights) * jnp.sin(1.0 + k)

    schedule = diffusion.NoiseSchedule(diffusion.initial_noise_logits(8, 2), prior_std=1.5)

    @jax.jit
    def log_weights(key):
        chain = diffusion.sample_chain(key, drift_fn, schedule, (100_000,))
        return mixture_log_density(chain.latents[0]) - diffusion.chain_log_likelihood(chain)

    w = np.concatenate([log_weights(key) for key in jax.random.split(chain_key, 10)]).astype(np.float64)
    print(f"identity 2, drift {drift_scale}: E[exp w] = {np.exp(w).mean():.4f}, E[w] = {w.mean():.3f}")
    assert abs(np.exp(w).mean() - 1.0) < 0.02
    assert w.mean() < 0.0


@pytest.mark.usefixtures("all_optimizations")
@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_identity_4_entropy_bound_is_the_path_kl(slope):
    """A linear drift makes the path jointly Gaussian: H(a^0) + E[l] equals the closed-form KL between the two paths."""
    num_steps, prior_std = 5, 1.3
    beta = np.linspace(0.1, 0.7, num_steps)
    schedule = diffusion.NoiseSchedule(logit(beta)[:, None], prior_std, prediction="noise")
    sample = jax.jit(lambda key: diffusion.sample_chain(key, lambda latent, k: -slope * latent, schedule, (1_000_000,)))
    chain = sample(jax.random.key(3))
    measured = float(diffusion.chain_log_likelihood(chain).mean(dtype=jnp.float32))

    # a^{k-1} = g_k a^k + s_k eps. In float64: every level's marginal variance, then the expected log-ratios.
    gain = np.sqrt(1 - beta) - slope * np.sqrt(beta) * prior_std
    variance = np.zeros(num_steps + 1)
    variance[num_steps] = prior_std**2
    for k in range(num_steps, 0, -1):
        variance[k - 1] = gain[k - 1] ** 2 * variance[k] + beta[k - 1] * prior_std**2
    expected = -0.5 * np.log(2 * np.pi * prior_std**2) - 0.5
    for k in range(1, num_steps + 1):
        s2 = beta[k - 1] * prior_std**2
        # E[(a^k - sqrt(1 - beta) a^{k-1})^2] with Cov(a^k, a^{k-1}) = g_k Var(a^k)
        residual = (
            variance[k] - 2 * np.sqrt(1 - beta[k - 1]) * gain[k - 1] * variance[k] + (1 - beta[k - 1]) * variance[k - 1]
        )
        expected += -0.5 + 0.5 * residual / s2
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance[0])

    # The same path KL from the joint covariances: KL( q(a^0..a^K) || marginal(a^0) pi(a^1 | a^0) .. ).
    path = np.eye(num_steps + 1)  # a^K and the noises of the steps, as columns
    q_rows = [path[0] * prior_std]
    for k in range(num_steps, 0, -1):
        q_rows.append(gain[k - 1] * q_rows[-1] + path[num_steps - k + 1] * np.sqrt(beta[k - 1]) * prior_std)
    q_cov = np.stack(q_rows[::-1]) @ np.stack(q_rows[::-1]).T
    p_rows = [path[0] * np.sqrt(variance[0])]
    for k in range(1, num_steps + 1):
        p_rows.append(np.sqrt(1 - beta[k - 1]) * p_rows[-1] + path[k] * np.sqrt(beta[k - 1]) * prior_std)
    p_cov = np.stack(p_rows) @ np.stack(p_rows).T
    logdet = np.linalg.slogdet
    path_kl = 0.5 * (np.trace(np.linalg.solve(p_cov, q_cov)) - num_steps - 1 + logdet(p_cov)[1] - logdet(q_cov)[1])

    print(f"identity 4: {abs(entropy + expected - path_kl):.1e} apart, {abs(measured - expected):.1e} from 10^6 chains")
    np.testing.assert_allclose(entropy + expected, path_kl, atol=1e-10)
    np.testing.assert_allclose(measured, expected, atol=5e-3)
    if slope == 0.0:
        assert abs(path_kl) < 1e-10
    else:
        assert path_kl > 0.05


def test_action_prediction_is_ddpm_posterior_mean():
    """The denoising mean is DDPM's posterior mean given a^k and the predicted a^0 (2006.11239, eq. 7)."""
    with jax.enable_x64(True):
        beta = jnp.linspace(0.05, 0.6, 4)[:, None]
        schedule = diffusion.NoiseSchedule(logit(beta), 1.0, "action")
        latent, drift = jnp.array([[0.7]]), jnp.array([[-0.3]])
        abar = np.concatenate([[1.0], np.cumprod(1 - np.asarray(beta)[:, 0])])
        for k in range(1, 5):
            b = float(beta[k - 1, 0])
            prediction = float(drift[0, 0]) + np.sqrt(abar[k]) * 0.7
            posterior = np.sqrt(abar[k - 1]) * b / (1 - abar[k]) * prediction
            posterior += np.sqrt(1 - b) * (1 - abar[k - 1]) / (1 - abar[k]) * 0.7
            mean, std = diffusion.denoising_mean_std(schedule, drift, latent, k)
            np.testing.assert_allclose(mean[0, 0], posterior, rtol=1e-12)
            np.testing.assert_allclose(std[0], np.sqrt(b), rtol=1e-12)
        assert float(diffusion.drift_coefficient(schedule)[0, 0]) == pytest.approx(1.0)


def test_step_log_densities_match_the_sampled_chain():
    schedule = diffusion.NoiseSchedule(diffusion.initial_noise_logits(6, 2))

    def drift_fn(latent, k):
        return jnp.sin(latent) * jnp.cos(jnp.asarray(k, jnp.float32))

    chain = jax.jit(lambda key: diffusion.sample_chain(key, drift_fn, schedule, (32,)))(jax.random.key(0))
    log_denoising, log_noising = jax.jit(partial(log_densities, drift_fn, schedule))(chain.latents)
    np.testing.assert_allclose(log_denoising - log_noising, chain.rho, rtol=1e-4, atol=1e-4)


def test_steps_of_their_own_need_noise_levels_of_no_row():
    """With k `[B]`, levels `[K, A]` are each row's own step; levels `[K, B, A]` would broadcast to `[B, B, A]`."""
    latent, next_latent = jax.random.normal(jax.random.key(0), (2, 4, 3))
    logits, k = jax.random.normal(jax.random.key(1), (5, 3)), jnp.array([1, 5, 2, 3])

    def drift_fn(latent, k):
        return jnp.sin(latent)

    densities = jax.jit(partial(diffusion.step_log_densities, drift_fn))
    together = densities(diffusion.NoiseSchedule(logits), latent, next_latent, k)
    for row in range(4):
        alone = densities(diffusion.NoiseSchedule(logits), latent[row], next_latent[row], k[row])
        np.testing.assert_allclose([x[row] for x in together], alone, rtol=1e-5)
    of_rows = diffusion.NoiseSchedule(jnp.tile(logits[:, None], (1, 4, 1)))
    with pytest.raises(ValueError, match=r"noise levels \(5, 4, 3\) at k \(4,\) do not fit latents \(4, 3\)"):
        diffusion.step_log_densities(drift_fn, of_rows, latent, next_latent, k)
    assert diffusion.step_log_densities(drift_fn, of_rows, latent, next_latent, 2)[0].shape == (4,)


def test_deterministic_chain_follows_the_means():
    schedule = diffusion.NoiseSchedule(logit(jnp.array([[0.2], [0.5]])), 1.0, "noise")
    latent = 0.0
    for beta in (0.5, 0.2):
        latent = np.sqrt(1 - beta) * latent + np.sqrt(beta) * 0.9
    result = diffusion.deterministic_chain(lambda latent, k: jnp.full_like(latent, 0.9), schedule, (3,))
    np.testing.assert_allclose(result, np.full((3, 1), latent), rtol=1e-6)


def test_an_unknown_prediction_is_refused():
    schedule = diffusion.NoiseSchedule(jnp.zeros((2, 1)), prediction="velocity")
    with pytest.raises(ValueError, match="prediction 'velocity' is none of action, noise"):
        diffusion.drift_coefficient(schedule)


@partial(jax.jit, static_argnames="prediction")
def kernels_and_gradients(logits, latents, prediction):
    """Means and stds of the kernels, densities and the chain of means, and their Jacobians in the logits."""

    def terms(logits):
        schedule = diffusion.NoiseSchedule(logits, 1.3, prediction)

        def drift_fn(latent, k):
            return jnp.sin(latent + k)

        kernels = [diffusion.denoising_mean_std(schedule, latents[0], latents[1], k) for k in (1, 2, 3)]
        kernels += [diffusion.noising_mean_std(schedule, latents[1], k) for k in (1, 2, 3)]
        densities = log_densities(drift_fn, schedule, latents)
        return kernels, (*densities, diffusion.deterministic_chain(drift_fn, schedule, (2,)))

    return terms(logits), jax.jacrev(terms)(logits)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_noise_levels_that_float32_rounds_to_0_or_1(prediction):
    """Values and gradients in float32 are finite and those of float64, where sigmoid(b) is 0 or 1 in float32.

    Training drives beta_K towards 1: nothing rewards remembering the prior's noise.
    """
    latents = np.random.default_rng(0).normal(size=(4, 2, 1))
    for extreme in (-40.0, -18.0, -17.0, 8.0, 17.0, 40.0, 200.0):
        logits = np.array([[-2.0], [0.5], [extreme]] if extreme > 0 else [[extreme], [0.0], [1.0]])
        with jax.enable_x64(True):
            exact = kernels_and_gradients(logits, latents, prediction)
        found = kernels_and_gradients(logits.astype(np.float32), latents.astype(np.float32), prediction)
        if extreme < 0:  # a level near 0 has densities of the order 1 / beta: only its kernels are compared
            exact, found = [(x[0],) for x in exact], [(x[0],) for x in found]
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            assert (x.dtype, y.dtype) == (jnp.float32, jnp.float64)
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5, err_msg=str(extreme))
        if extreme < 0 and prediction == "action":
            schedule = diffusion.NoiseSchedule(jnp.asarray(logits, jnp.float32))
            assert float(diffusion.drift_coefficient(schedule)[0, 0]) == pytest.approx(1.0, abs=1e-5)


def test_initial_noise_levels():
    beta = jax.nn.sigmoid(diffusion.initial_noise_logits(4, 2, 0.05, 0.6))
    np.testing.assert_allclose(beta[:, 0], [0.05, 0.2333333, 0.4166667, 0.6], rtol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(diffusion.initial_noise_logits(1, 3)), np.full((1, 3), 0.6), rtol=1e-5)


@pytest.mark.parametrize("num_steps, prior_std, std", [(1, 1.0, 0.5), (2, 1.0, 0.2), (3, 1.5, 0.4), (2, 0.3, 0.3)])
def test_path_kl_per_dimension_is_the_smallest_of_all_linear_chains(num_steps, prior_std, std):
    """Found numerically over gains and noise levels of a^{k-1} = g_k a^k + sqrt(beta_k) nu eps that end at `std`."""

    def gap(x):
        beta = expit(x[:num_steps])
        beta[0] *= min(1.0, (std / prior_std) ** 2)  # the last kernel alone is no wider than a^0
        variances, covariances = [prior_std**2], []  # from a^K on; of neighbours
        for b, gain in zip(beta[:0:-1], x[num_steps:], strict=True):
            covariances.append(gain * variances[-1])
            variances.append(gain**2 * variances[-1] + b * prior_std**2)
        covariances.append(np.sqrt((std**2 - beta[0] * prior_std**2) * variances[-1]))
        variances.append(std**2)
        gap = -0.5 * np.log(2 * np.pi * prior_std**2) - 0.5 + 0.5 * np.log(2 * np.pi * np.e * std**2)
        for b, upper, lower, both in zip(beta[::-1], variances[:-1], variances[1:], covariances, strict=True):
            distance = upper - 2 * np.sqrt(1 - b) * both + (1 - b) * lower  # E (a^k - sqrt(1 - beta_k) a^{k-1})^2
            gap += 0.5 * distance / (b * prior_std**2) - 0.5
        return gap

    starts = np.random.default_rng(0).normal(size=(20, 2 * num_steps - 1))
    smallest = min(minimize(gap, x, method="BFGS").fun for x in starts)
    entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
    assert smallest == pytest.approx(diffusion.path_kl_per_dimension(num_steps, prior_std, entropy), abs=1e-4)


def test_path_kl_per_dimension_of_the_default_target():
    """At SAC's target entropy, -1 nat, K = 8; and 0 at a deviation of nu."""
    assert diffusion.path_kl_per_dimension(8, 1.0, -1.0) == pytest.approx(0.904, abs=0.001)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.3**2)
    assert diffusion.path_kl_per_dimension(8, 0.3, entropy) == pytest.approx(0.0, abs=1e-12)
    # Narrower than any policy: a target that no policy reaches, but a number in float32, for 100 dimensions too.
    assert np.isfinite(np.float32(100 * diffusion.path_kl_per_dimension(1, 1.0, -400.0)))


def test_the_example_of_the_readme():
    """With a network that is 0 the chain is stationary at its prior: l is the density of tanh of a standard normal."""
    code = re.search(r"<!-- example: policy -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names = {"jnp": jnp, "key": jax.random.key(0), "obs": jnp.zeros((5, 11)), "f": lambda obs, latent, k: 0.0 * latent}
    exec(code, names)
    latent = names["chain"].latents[0]
    assert names["action"].shape == (5, 3) and names["l"].shape == (5,)
    expected = gaussian_log_prob(latent, jnp.zeros(3), jnp.ones(3)) - jnp.log1p(-(jnp.tanh(latent) ** 2)).sum(-1)
    np.testing.assert_allclose(names["l"], expected, rtol=1e-3)
