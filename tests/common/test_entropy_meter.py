"""The entropy meter: bound and estimate of a policy's entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logit

import sac_jax
from common import diffusion
from common.distributions import tanh_log_det
from harness import Evaluator


def test_entropy_terms_are_exact_without_drift():
    """f = 0: every path gives log p(a^0) itself, so the bound and the estimate are the same sample of the entropy."""
    schedule = diffusion.NoiseSchedule(logit(jnp.full((4, 2), 0.3)), prior_std=0.7)
    terms = jax.jit(
        lambda key: diffusion.entropy_terms(key, lambda a, k: jnp.zeros_like(a), schedule, (20_000,), tanh_log_det)
    )(jax.random.key(0))
    bound, estimate = terms["eval/entropy_bound"], terms["eval/entropy"]
    np.testing.assert_allclose(bound, estimate, atol=1e-4)
    x = np.linspace(-6, 6, 100_001) * 0.7
    log_p = -0.5 * (x / 0.7) ** 2 - 0.5 * np.log(2 * np.pi * 0.7**2)
    log_q = log_p - np.asarray(tanh_log_det(x[:, None]))
    entropy = -2 * np.sum(np.exp(log_p) * log_q) * (x[1] - x[0])
    assert float(bound.mean()) == pytest.approx(entropy, abs=0.02)


def test_entropy_estimate_rises_to_the_entropy():
    """A linear drift makes a^0 Gaussian with known variance: bound < estimate(4) < estimate(64) < entropy."""
    beta, slope = np.linspace(0.1, 0.7, 5), 0.8
    schedule = diffusion.NoiseSchedule(logit(beta)[:, None], 1.3, "noise")
    variance = 1.3**2
    for b in beta[::-1]:
        variance = (np.sqrt(1 - b) - slope * np.sqrt(b) * 1.3) ** 2 * variance + b * 1.3**2
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance)

    @jax.jit
    def terms(key):
        keys = jax.random.split(key)

        def sample(key, num_paths):
            no_squash = lambda a: jnp.zeros(a.shape[:-1])  # noqa: E731
            drift = lambda a, k: -slope * a  # noqa: E731
            return diffusion.entropy_terms(key, drift, schedule, (20_000,), no_squash, num_paths)

        return sample(keys[0], 4), sample(keys[1], 64)

    few, many = jax.tree.map(lambda x: float(x.mean()), terms(jax.random.key(0)))
    bound = few["eval/entropy_bound"]
    assert bound < few["eval/entropy"] - 0.02 < many["eval/entropy"] - 0.04
    assert many["eval/entropy"] < entropy + 0.01
    assert entropy - many["eval/entropy"] < 0.25 * (entropy - bound)


def test_sac_logs_its_entropy_and_evaluation_is_unchanged_by_the_meter():
    args = sac_jax.Args(env_id="Pendulum-v1", hidden_dim=8, eval_episodes=3)
    functions = args, sac_jax.sample_action, sac_jax.deterministic_action
    evaluator, without = Evaluator(*functions, sac_jax.entropy_terms), Evaluator(*functions)
    agents = jax.jit(jax.vmap(lambda key: sac_jax.init_agent(args, evaluator.env, key)))(jax.random.key(0)[None])
    results, plain = evaluator(agents, 0), without(agents, 0)
    np.testing.assert_array_equal(results["stochastic"]["return"], plain["stochastic"]["return"])
    assert "eval/entropy" not in plain["stochastic"]["metrics"]
    entropy = results["stochastic"]["metrics"]["eval/entropy"]
    assert entropy.shape == (1,)
    assert -5.0 < entropy[0] < np.log(2.0), "no density on [-1, 1] has a larger entropy than the uniform one"
    assert results["deterministic"]["metrics"] == {}
