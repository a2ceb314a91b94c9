"""DiffSAC's losses by hand, the noise levels' gradient (identity 9), and what the temperature is held to."""

import importlib
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsac_jax
from common import diffusion, replay
from common.distributions import tanh_log_det
from tests.agents import random_agent

B, O, A, K = 12, 3, 2, 3
SIZES = SimpleNamespace(observation_size=O, action_size=A)
SMALL = {"hidden_dim": 8, "head_dim": 8, "num_denoising_steps": K}


def agent_and_batch(module, args, dtype):
    """A random agent, and a batch."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    obs, action, reward, next_obs = draw(B, O), np.tanh(draw(B, A)), draw(B), draw(B, O)
    batch = replay.Transition(obs, action, reward, next_obs, np.arange(B) % 4 == 0)
    return random_agent(module, args, O, A, dtype, seed=4, scale=0.4), batch


def with_noise_logits(params, logits, kernel=None):
    """An actor's parameters with other noise logits; `kernel`: with what the state adds to them scaled by it."""
    net = params["params"]
    levels = net["levels"] if kernel is None else jax.tree.map(lambda x: kernel * x, net["levels"])
    return {"params": {**net, "noise_logits": logits, "levels": levels}}


def log_normal(x, mean, std):
    return float(np.sum(-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)))


def log_lik_by_hand(args, agent, obs, latents):
    """l = log p(a^K) + sum_k rho_k - log det tanh of one chain `[K+1, A]` at obs `[O]`, by loops over numpy arrays."""
    net, nu = jax.tree.map(np.asarray, agent.actor.params)["params"], args.prior_std
    dense = lambda name, x: x @ net[name]["kernel"] + net[name]["bias"]  # noqa: E731
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    encoded = relu(dense("trunk_1", relu(dense("trunk_0", obs))))
    features = dense("from_obs", encoded)
    logits = net["noise_logits"] + np.einsum("h,hka->ka", encoded, net["levels"]["kernel"])
    beta = 1 / (1 + np.exp(-logits))
    abar = np.concatenate([np.ones((1, A)), np.cumprod(1 - beta, axis=0)])
    total = log_normal(latents[K], 0.0, np.full(A, nu))
    for k in range(1, K + 1):
        angle = k / K * (np.pi / 2) * np.array([1, 2, 4, 8])
        level = np.concatenate([np.sin(angle), np.cos(angle)])
        hidden = relu(features + dense("from_latent", latents[k] / nu) + dense("from_level", level))
        shift, pull = np.split(dense("drift", relu(dense("head", hidden))), 2)
        drift = shift - pull * latents[k] / nu
        b = beta[k - 1]
        c = np.sqrt(b) if args.prediction == "noise" else np.sqrt(abar[k - 1]) * b / (1 - abar[k])
        mean = np.sqrt(1 - b) * latents[k] + c * nu * drift
        total += log_normal(latents[k - 1], mean, np.sqrt(b) * nu)
        total -= log_normal(latents[k], np.sqrt(1 - b) * latents[k - 1], np.sqrt(b) * nu)
    return total - np.sum(np.log(1 - np.tanh(latents[0]) ** 2))


@pytest.mark.parametrize("prediction, prior_std", [("action", 1.0), ("noise", 0.7)])
def test_losses_by_hand(prediction, prior_std):
    """Target, critics' loss and actor's loss, sample by sample."""
    with jax.enable_x64(True):
        args = diffsac_jax.Args(**SMALL, prediction=prediction, prior_std=prior_std, alpha=0.3)
        agent, batch = agent_and_batch(diffsac_jax, args, "float64")
        critic, alpha = jax.jit(agent.critic.apply_fn), float(agent.alpha)
        critic_key, actor_key = jax.random.split(jax.random.key(2))
        terms = partial(diffsac_jax.policy_terms, args, agent)
        chains = [
            diffusion.sample_chain(key, *terms(obs), (B,))
            for key, obs in ((critic_key, batch.next_obs), (actor_key, batch.obs))
        ]
        errors, actor_terms = [], []
        for i in range(B):
            log_lik, latent = (
                [
                    log_lik_by_hand(args, agent, obs[i], np.asarray(c.latents[:, i]))
                    for c, obs in zip(chains, (batch.next_obs, batch.obs), strict=True)
                ],
                [np.asarray(c.latents[0, i]) for c in chains],
            )
            next_q = np.asarray(critic(agent.target_params, batch.next_obs[i : i + 1], np.tanh(latent[0])[None])).min()
            target = batch.reward[i] + args.gamma * (not batch.terminated[i]) * (next_q - alpha * log_lik[0])
            q = np.asarray(critic(agent.critic.params, batch.obs[i : i + 1], batch.action[i : i + 1]))[:, 0]
            errors.append((q - target) ** 2)
            q = np.asarray(critic(agent.critic.params, batch.obs[i : i + 1], np.tanh(latent[1])[None])).min()
            actor_terms.append(alpha * log_lik[1] - q)
        loss, _ = diffsac_jax.critic_loss(agent.critic.params, args, agent, critic_key, batch)
        np.testing.assert_allclose(loss, np.sum(errors) / B, rtol=1e-7)  # constants are float32
        loss, _ = diffsac_jax.actor_loss(agent.actor.params, args, agent, actor_key, batch)
        np.testing.assert_allclose(loss, np.mean(actor_terms), rtol=1e-7)


def test_identity_9_gradient_of_the_noise_levels():
    """The whole chain at fixed noise: automatic against central differences, in float64."""
    with jax.enable_x64(True):
        for prediction in diffusion.PREDICTIONS:
            args = diffsac_jax.Args(**SMALL, prediction=prediction, alpha=0.5)
            agent, batch = agent_and_batch(diffsac_jax, args, "float64")

            @jax.jit
            def loss(logits, args=args, agent=agent, batch=batch):
                return diffsac_jax.actor_loss(
                    with_noise_logits(agent.actor.params, logits), args, agent, jax.random.key(1), batch
                )[0]

            logits = np.asarray(agent.actor.params["params"]["noise_logits"])
            automatic, numeric = jax.grad(loss)(logits), np.zeros_like(logits)
            for index in np.ndindex(logits.shape):
                step = np.zeros_like(logits)
                step[index] = 1e-5
                numeric[index] = (loss(logits + step) - loss(logits - step)) / 2e-5
            print(f"identity 9, {prediction}: differs by {np.abs(automatic / numeric - 1).max():.1e}")
            np.testing.assert_allclose(automatic, numeric, rtol=1e-6, atol=1e-8)
            assert np.abs(automatic).min() > 1e-4


@pytest.mark.parametrize("name", ["diffsac_jax", pytest.param("diffwpo_jax", marks=pytest.mark.slow)])
def test_an_update_at_noise_levels_of_1_is_finite(name):
    """beta_K = 1 - 1e-11, which is 1 in float32: where long training leads."""
    module = importlib.import_module(name)
    args = module.Args(**SMALL)
    agent, batch = agent_and_batch(module, args, "float32")
    before = agent.actor.params["params"]["noise_logits"].at[-1].set(25.0)
    params = with_noise_logits(agent.actor.params, before, kernel=0.0)
    agent = agent.replace(actor=agent.actor.replace(params=params))
    after, metrics = jax.device_get(jax.jit(partial(module.update, args))(agent, jax.random.key(1), batch, 0))
    assert metrics["diffusion/beta_max"] == 1.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
    # Every level but the last, whose gradient has vanished, goes on learning.
    moved = np.abs(after.actor.params["params"]["noise_logits"] - before)
    assert moved[:-1].min() > 1e-5


log_prob_estimate = jax.jit(diffsac_jax.log_prob_estimate, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def sample_chain(args, agent, key, obs):
    return diffusion.sample_chain(key, *diffsac_jax.policy_terms(args, agent, obs), (len(obs),))


@partial(jax.jit, static_argnums=0)
def log_prob_estimates(args, agent, key, obs, latents):
    return diffusion.log_prob_estimates(key, *diffsac_jax.policy_terms(args, agent, obs), latents, 16)


def test_the_temperature_is_held_by_the_estimate_or_by_the_bound():
    """The estimate is of the first 16 rows, by 16 other chains: the mean of its bounds with the lower one cut."""
    args = diffsac_jax.Args(**SMALL)
    agent, _ = agent_and_batch(diffsac_jax, args, "float32")
    obs = jnp.asarray(np.random.default_rng(1).normal(size=(64, O)), jnp.float32)
    drift_fn, schedule = diffsac_jax.policy_terms(args, agent, obs)
    chain = sample_chain(args, agent, jax.random.key(0), obs)
    bound = diffsac_jax.Args(**SMALL, entropy_paths=0)
    far = chain.latents[1].at[0].add(50.0)  # a row that no other chain comes near
    mean, _ = diffusion.denoising_mean_std(schedule, drift_fn(far, 1), far, 1)
    chain = chain.replace(latents=chain.latents.at[1].set(far).at[0, 0].set(mean[0]))
    chain = chain.replace(rho=chain.rho + 1000.0)  # where l is higher, it does not count
    held = log_prob_estimate(bound, agent, jax.random.key(1), obs, chain)
    np.testing.assert_allclose(held, diffsac_jax.squash(chain)[1].mean(), rtol=1e-6)
    held = log_prob_estimate(args, agent, jax.random.key(1), obs, chain)
    latents = chain.latents[:, :16]
    upper, estimate, lower = log_prob_estimates(args, agent, jax.random.key(1), obs[:16], latents)
    np.testing.assert_allclose(held, (estimate - tanh_log_det(latents[0])).mean(), rtol=1e-5)
    log_own = upper + np.log(17 - 16 * np.exp(lower - upper))
    cut = log_own - 2.5 * np.log(17)
    assert lower[0] < cut[0] - 1000 and (lower[1:] > cut[1:]).any()
    np.testing.assert_allclose(estimate, (upper + np.maximum(lower, cut)) / 2, rtol=1e-3)


def test_where_the_estimate_falls_short_the_bound_is_held():
    """It lies at most 1.75 log 17 nats above the last kernel's entropy: 9 nats too low for a wide policy of which l is
    exact, f = 0. With beta_1 = 0.008 and six dimensions the entropy before the tanh is 6 log(2 pi e) / 2 = 8.5."""
    args = diffsac_jax.Args(**SMALL, prior_std=1.0)
    agent = random_agent(diffsac_jax, args, O, 6, scale=0.0)  # f = 0
    logits = diffusion.initial_noise_logits(K, 6).at[0].set(float(np.log(0.008 / 0.992)))
    agent = agent.replace(actor=agent.actor.replace(params=with_noise_logits(agent.actor.params, logits)))
    obs = jnp.zeros((256, O))
    chain = sample_chain(args, agent, jax.random.key(1), obs)
    bound = diffsac_jax.squash(chain)[1][:16].mean()
    _, estimate, _ = log_prob_estimates(args, agent, jax.random.key(2), obs, chain.latents)
    entropy = -(bound + tanh_log_det(chain.latents[0]).mean())
    assert entropy == pytest.approx(8.5, abs=0.3) and -estimate.mean() < entropy - 8
    assert log_prob_estimate(args, agent, jax.random.key(2), obs, chain) == bound


def test_default_target_entropy():
    """SAC's own with the estimate; with the bound as much colder as the bound is loose."""
    assert diffsac_jax.Args().target_entropy(6) == -6.0
    for scale in (1.0, 1.5, 3.0):
        gap = diffusion.path_kl_per_dimension(8, 1.0, -scale)
        bound = diffsac_jax.Args(entropy_paths=0, target_entropy_scale=scale)
        assert bound.target_entropy(6) == pytest.approx(-6 * (scale + gap))
    colder = [diffsac_jax.Args(entropy_paths=0, target_entropy_scale=scale).target_entropy(1) for scale in (1.0, 3.0)]
    assert colder == pytest.approx([-1.904, -6.65], abs=0.01)
    assert diffsac_jax.Args(target_entropy_scale=1.5).target_entropy(2) == -3.0
