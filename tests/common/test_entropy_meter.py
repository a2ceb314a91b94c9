"""The entropy meter: bound and estimate of a policy's entropy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logit

import sac_jax
from common import diffusion
from common.distributions import tanh_log_det
from harness import Evaluator
from tests.agents import random_agent, small_args
from tests.running import SCRIPTS, module_of

NAMES = [f"eval/entropy{suffix}" for suffix in ("_bound", "_low", "", "_high")]


def no_squash(latent):
    return jnp.zeros(latent.shape[:-1])


def means(schedule, drift_fn, squash_log_det=no_squash, num_others=16, num_samples=20_000):
    """The mean of each of the entropy's terms over the samples, in the order of NAMES."""
    terms = partial(diffusion.entropy_terms, drift_fn=drift_fn, schedule=schedule, shape=(num_samples,))
    terms = jax.jit(partial(terms, squash_log_det=squash_log_det, num_others=num_others))(jax.random.key(0))
    return [float(terms[name].mean()) for name in NAMES]


def test_entropy_terms_without_drift():
    """f = 0: a^0 ~ N(0, nu^2 I), the bound is the entropy itself and the two others lie around it."""
    schedule = diffusion.NoiseSchedule(logit(jnp.full((4, 2), 0.3)), prior_std=0.7)
    bound, low, middle, high = means(schedule, lambda a, k: jnp.zeros_like(a), tanh_log_det, num_others=64)
    x = np.linspace(-6, 6, 100_001) * 0.7
    log_p = -0.5 * (x / 0.7) ** 2 - 0.5 * np.log(2 * np.pi * 0.7**2)
    log_q = log_p - np.asarray(tanh_log_det(x[:, None]))
    entropy = -2 * np.sum(np.exp(log_p) * log_q) * (x[1] - x[0])
    assert bound == pytest.approx(entropy, abs=0.02)
    assert middle == pytest.approx(entropy, abs=0.02)
    assert low < entropy < high


def entropy_of_a_linear_chain(beta, slope, prior_std):
    """The variance of a^0 in closed form: the drift -slope a^k, in units of the step's deviation."""
    variance = prior_std**2
    for b in beta[::-1]:
        variance = (np.sqrt(1 - b) - slope * np.sqrt(b) * prior_std) ** 2 * variance + b * prior_std**2
    return 0.5 * np.log(2 * np.pi * np.e * variance)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_entropy_lies_between_its_bounds(num_steps):
    """A linear drift makes a^0 Gaussian with known variance: more chains close in on it from both sides."""
    beta, slope = np.linspace(0.1, 0.7, num_steps), 0.8
    schedule = diffusion.NoiseSchedule(logit(beta)[:, None], 1.3, "noise")
    entropy = entropy_of_a_linear_chain(beta, slope, 1.3)
    _, low, _, high = means(schedule, lambda a, k: -slope * a, num_others=4)
    _, lower_16, middle, higher_16 = means(schedule, lambda a, k: -slope * a, num_others=16)
    error = 0.02  # of the means of 20,000 samples with a deviation of about one
    assert low < lower_16 < entropy + error and entropy - error < higher_16 < high
    assert middle == pytest.approx(entropy, abs=error)


def test_the_estimate_of_a_policy_much_narrower_than_the_prior():
    """Six dimensions at SAC's target of -1 each, K = 8: with 8 other chains within 0.1 per dimension, where the chain's
    bound is 0.9 below the entropy. The chain is the best one for a Gaussian target of deviation s, the marginals of its
    noising s^2 r^k; its own variance is r s^2."""
    num_steps, dims = 8, 6
    std = 0.089 ** ((num_steps + 1) / num_steps)
    r = std ** (-2 / (num_steps + 1))
    variance = std**2 * r ** np.arange(num_steps + 1)
    beta = np.diff(variance) / (1 - variance[:-1])
    kept = jnp.asarray(np.sqrt(1 - beta) * (variance[:-1] / variance[1:] - 1))  # the drift's share of the mean
    schedule = diffusion.NoiseSchedule(jnp.tile(logit(jnp.asarray(beta))[:, None], (1, dims)), 1.0, "noise")
    drift_fn = lambda a, k: kept[k - 1] / jnp.sqrt(jnp.asarray(beta))[k - 1] * a  # noqa: E731
    marginal = 1.0
    for b, v, next_v in zip(beta[::-1], variance[:0:-1], variance[-2::-1], strict=True):
        marginal = (np.sqrt(1 - b) * next_v / v) ** 2 * marginal + b
    assert marginal == pytest.approx(0.089**2)
    entropy = dims * 0.5 * np.log(2 * np.pi * np.e * marginal)
    bound, _, middle, _ = means(schedule, drift_fn, num_others=8, num_samples=2000)
    gap = diffusion.path_kl_per_dimension(num_steps, 1.0, entropy / dims)
    assert bound == pytest.approx(entropy - gap * dims, abs=0.05 * dims)
    assert middle == pytest.approx(entropy, abs=0.1 * dims)


def test_the_estimate_of_a_policy_with_four_modes():
    """a^1 is wide, and its signs say in which of four narrow modes a^0 ends: the entropy is log 4 above a mode's. With
    16 other chains the estimate is within 0.05 nats per dimension. In one chain of a hundred none of them is in its
    mode, and by these the upper bound is more than a nat off."""
    schedule = diffusion.NoiseSchedule(logit(jnp.array([[0.001] * 2, [0.999] * 2])), 1.0, "noise")
    towards = lambda a, k: jnp.where(k == 1, (0.6 * jnp.sign(a) - schedule.scale[0] * a) / schedule.std[0], 0.0)  # noqa: E731
    entropy = np.log(4) + np.log(2 * np.pi * np.e * 0.001)
    _, low, middle, high = means(schedule, towards, num_samples=4000)
    assert middle == pytest.approx(entropy, abs=0.1)
    assert low < entropy and high > entropy + 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_meter_of_every_script(script):
    """With zero weights, of two dimensions. A chain makes tanh of N(0, nu^2), of which -l is the entropy itself; SAC's
    Gaussian tanh of N(0, exp(-3)), as log std lies between -5 and 2; PPO's, before clipping, N(0, 1).
    """
    module = module_of(script)
    args = small_args(module)
    agent = random_agent(module, args, scale=0.0)
    if is_chain := hasattr(module, "diffusion"):
        std = args.prior_std
    elif script != "ppo_jax.py":
        std = np.exp(-1.5)
    else:
        std = 1.0
    terms = jax.jit(partial(module.entropy_terms, args))(agent, jax.random.key(1), jnp.zeros((4000, 3)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    log_det = weights @ np.log(1 - np.tanh(std * nodes) ** 2) / weights.sum() if script != "ppo_jax.py" else 0.0
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e * std**2) + log_det)
    if is_chain:
        assert float(terms["eval/entropy_bound"].mean()) == pytest.approx(entropy, abs=0.08)
    assert float(terms["eval/entropy"].mean()) == pytest.approx(entropy, abs=0.25 if is_chain else 0.08)


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
