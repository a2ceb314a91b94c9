"""DiffWPO's actor loss: the identities that tie it to DiffSAC's and to Wasserstein policy optimisation (2505.00663)."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsac_jax
import diffwpo_jax
from common import diffusion, replay
from common.distributions import gaussian_log_prob, tanh_log_det
from tests.agents import largest_difference, random_agent

B, O, A, K = 16, 3, 2, 4
SETTINGS = {"hidden_dim": 8, "head_dim": 8, "num_denoising_steps": K, "prior_std": 1.3}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def make_agent(module, args, alpha, multiplier=0.0):
    agent = random_agent(module, args, O, A, "float64", seed=2, scale=0.3)
    temperature = agent.temperature.replace(params={"log_alpha": jnp.log(jnp.float64(alpha))})
    if module is diffwpo_jax:
        log_multiplier = {"log": jnp.log(jnp.float64(multiplier))}
        agent = agent.replace(multiplier=agent.multiplier.replace(params=log_multiplier))
    return agent.replace(temperature=temperature)


def make_batch(size=B):
    rng = np.random.default_rng(4)
    return replay.Transition(
        obs=jnp.asarray(rng.standard_normal((size, O))),
        action=jnp.asarray(rng.uniform(-1, 1, (size, A))),
        reward=jnp.asarray(rng.standard_normal(size)),
        next_obs=jnp.asarray(rng.standard_normal((size, O))),
        terminated=jnp.zeros(size, bool),
    )


actor_loss = jax.jit(diffwpo_jax.actor_loss, static_argnums=1)


@cache
def compiled_gradient(module, args):
    """Of the actor's loss: (params, agent, key, batch)."""
    return jax.jit(jax.grad(lambda params, *more: module.actor_loss(params, args, *more)[0]))


def gradient(module, args, agent, key, batch):
    return compiled_gradient(module, args)(agent.actor.params, agent, key, batch)


def assert_close(tree, other, tolerance, what):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(other))
    assert scale > 1e-3, "a gradient of zero shows nothing"
    print(f"{what}: gradients differ by {largest_difference(tree, other):.1e} of the largest entry")
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == jnp.float64
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("prediction", ["action", pytest.param("noise", marks=pytest.mark.slow)])
def test_identity_7_at_temperature_zero_the_gradient_is_diffsacs_sample_by_sample(prediction):
    """Noise levels included: one sample per batch, so that nothing averages out."""
    args = {m: m.Args(**SETTINGS, prediction=prediction) for m in (diffsac_jax, diffwpo_jax)}
    for seed in range(3):
        key, batch = jax.random.key(seed), make_batch(1)
        by_module = [gradient(m, args[m], make_agent(m, args[m], 0.0), key, batch) for m in (diffwpo_jax, diffsac_jax)]
        assert_close(*by_module, 1e-10, f"identity 7, temperature 0, {prediction}")


def test_identity_7_at_any_temperature_the_gradients_agree_in_expectation():
    """The difference of the two is the score's noise: its mean is zero within five standard errors."""
    args = {m: m.Args(**SETTINGS) for m in (diffsac_jax, diffwpo_jax)}
    agents = {m: make_agent(m, args[m], 0.7) for m in args}
    batch = make_batch(64)

    @jax.jit
    def difference(key):
        of = [
            jax.grad(lambda p, m=m: m.actor_loss(p, args[m], agents[m], key, batch)[0])(agents[m].actor.params)
            for m in (diffwpo_jax, diffsac_jax)
        ]
        return jnp.concatenate([(x - y).ravel() for x, y in zip(*map(jax.tree.leaves, of), strict=True)])

    samples = np.asarray(jax.lax.map(difference, jax.random.split(jax.random.key(0), 1500)))
    error = samples.std(axis=0) / np.sqrt(len(samples))
    moving = error > 0
    z = samples.mean(axis=0)[moving] / error[moving]
    print(
        f"identity 7, any temperature: {len(z)} entries, z up to {np.abs(z).max():.1f}, mean of z^2 {(z**2).mean():.2f}"
    )
    assert moving.mean() > 0.9 and np.abs(z).max() < 5.0 and 0.5 < (z**2).mean() < 1.6


def test_identity_7_velocities_are_finite_differences_of_the_objective():
    """In every latent: what is added to a^{k-1} is passed on by the rest of the chain, noise and parameters fixed."""
    args = diffwpo_jax.Args(**SETTINGS)
    agent, batch, alpha = make_agent(diffwpo_jax, args, 0.7), make_batch(2), 0.7
    drift, schedule = diffwpo_jax.policy_terms(args, agent, batch.obs)
    last, noise = diffusion.sample_noise(jax.random.key(1), schedule, (2,))

    @jax.jit
    def objective(delta):
        """min Q - alpha l of the chain with delta[k-1] added to a^{k-1}, by a loop."""
        latent, log_lik = last, diffusion.prior_log_prob(schedule, last)
        for k in range(K, 0, -1):
            mean, std = diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k)
            after = mean + std * noise[k - 1] + delta[k - 1]
            log_noising = gaussian_log_prob(latent, *diffusion.noising_mean_std(schedule, after, k))
            log_lik += gaussian_log_prob(after, mean, std) - log_noising
            latent = after
        q = agent.critic.apply_fn(agent.critic.params, batch.obs, jnp.tanh(latent)).min(axis=0)
        return jnp.sum(q - alpha * (log_lik - tanh_log_det(latent)))

    original = diffusion.denoising_mean_std
    # The velocity is what the loss's gradient with respect to a shift of the means is made of, without preconditioner.
    shift = jnp.zeros((K, 2, A))

    def shifted_loss(shift):
        def mean_std(schedule, drift, latent, k):
            mean, std = original(schedule, drift, latent, k)
            if jnp.ndim(latent) == 3:  # the pass over all K B rows
                mean = mean + shift
            return mean, std

        diffusion.denoising_mean_std = mean_std
        try:
            plain = diffwpo_jax.Args(**SETTINGS, precondition=False, kl_multiplier=0.0)
            return diffwpo_jax.actor_loss(agent.actor.params, plain, agent, jax.random.key(1), batch)[0]
        finally:
            diffusion.denoising_mean_std = original

    velocity = -2 * jax.grad(shifted_loss)(shift) * schedule.std**2
    step, numeric = 1e-5, np.zeros(velocity.shape)
    for index in np.ndindex(K, 2, A):
        delta = np.zeros((K, 2, A))
        delta[index] = step
        numeric[index] = (objective(delta) - objective(-delta)) / (2 * step)
    print(f"identity 7: velocities differ by {np.abs(velocity / numeric - 1).max():.1e} from finite differences")
    np.testing.assert_allclose(velocity, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precondition", [True, False])
def test_one_step_is_vanilla_wpo(precondition):
    """K = 1, temperature 0, no trust region: -velocity . grad_x log N(x; mean, std), by default with Fisher's matrix.

    Its derivatives in mean and std; the preconditioner multiplies them by std^2 and std^2 / 2.
    """
    args = diffwpo_jax.Args(**{**SETTINGS, "num_denoising_steps": 1, "precondition": precondition})
    agent, batch, key = make_agent(diffwpo_jax, args, 0.0), make_batch(), jax.random.key(3)
    _, schedule = diffwpo_jax.policy_terms(args, agent, batch.obs)
    last, noise = diffusion.sample_noise(key, schedule, (B,))

    @jax.jit
    def gaussian(params):
        drift, schedule = diffwpo_jax.policy_terms(args, diffwpo_jax.with_actor(agent, params), batch.obs)
        return diffusion.denoising_mean_std(schedule, drift(last, 1), last, 1)

    mean, std = gaussian(agent.actor.params)
    x = mean + std * noise[0]
    value = lambda x: agent.critic.apply_fn(agent.critic.params, batch.obs, jnp.tanh(x)).min(axis=0).sum()  # noqa: E731
    velocity = jax.grad(value)(x)
    in_mean, in_std = -velocity / B / std**2, -velocity * 2 * (x - mean) / B / std**3
    if precondition:
        in_mean, in_std = in_mean * std**2, in_std * std**2 / 2
    _, pull = jax.vjp(gaussian, agent.actor.params)
    (expected,) = pull((in_mean, in_std))
    assert_close(gradient(diffwpo_jax, args, agent, key, batch), expected, 1e-10, "identity 7, one step")


def test_identity_8_nothing_leaks_through_the_latents():
    """The gradient is the same where the agent that made the chain depends on the parameters too."""
    args = diffwpo_jax.Args(**SETTINGS)
    agent, batch, key = make_agent(diffwpo_jax, args, 0.7, 0.3), make_batch(), jax.random.key(3)

    def loss(params):
        return diffwpo_jax.actor_loss(params, args, diffwpo_jax.with_actor(agent, params), key, batch)[0]

    attached = jax.jit(jax.grad(loss))(agent.actor.params)
    detached = gradient(diffwpo_jax, args, agent, key, batch)
    assert_close(attached, detached, 1e-12, "identity 8")  # rounding of another program


def test_trust_region_is_the_kl_of_the_target_to_the_actor():
    """Summed over steps and dimensions, averaged over states, element by element; and its part of the loss."""
    args = diffwpo_jax.Args(**SETTINGS)
    agent, batch, key = make_agent(diffwpo_jax, args, 0.7, 0.3), make_batch(), jax.random.key(3)
    loss, (chain, metrics, _) = actor_loss(agent.actor.params, args, agent, key, batch)
    new, old = (
        diffwpo_jax.policy_terms(args, diffwpo_jax.with_actor(agent, params), batch.obs)
        for params in (agent.actor.params, agent.target_actor_params)
    )
    total = 0.0
    for k in range(1, K + 1):
        latent = chain.latents[k]
        (m, s), (m_t, s_t) = (
            diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k) for drift, schedule in (new, old)
        )
        total += np.sum(np.log(s / s_t) + (s_t**2 + (m_t - m) ** 2) / (2 * s**2) - 0.5) / B
    np.testing.assert_allclose(metrics["diffusion/kl"], total, rtol=1e-10)
    np.testing.assert_allclose(loss, metrics["losses/actor_loss"] + 0.3 * total, rtol=1e-10)


def test_the_trust_region_pulls_with_its_multiplier():
    """A multiplier of 0.3 adds 0.3 times the KL's gradient at the chain's latents, which no gradient passes."""
    args = diffwpo_jax.Args(**SETTINGS)
    agent, batch, key = make_agent(diffwpo_jax, args, 0.7), make_batch(), jax.random.key(3)
    latents = actor_loss(agent.actor.params, args, agent, key, batch)[1][0].latents

    def kl(params):
        total, who = 0.0, (params, agent.target_actor_params)
        new, old = (diffwpo_jax.policy_terms(args, diffwpo_jax.with_actor(agent, x), batch.obs) for x in who)
        for k in range(1, K + 1):
            (m, s), (m_t, s_t) = (
                diffusion.denoising_mean_std(schedule, drift(latents[k], k), latents[k], k)
                for drift, schedule in (new, old)
            )
            total += jnp.sum(jnp.log(s / s_t) + (s_t**2 + (m_t - m) ** 2) / (2 * s**2) - 0.5) / B
        return total

    @jax.jit
    def with_multiplier(x):
        pulled = agent.replace(multiplier=agent.multiplier.replace(params={"log": jnp.log(x)}))
        return jax.grad(lambda params: diffwpo_jax.actor_loss(params, args, pulled, key, batch)[0])(agent.actor.params)

    added = jax.tree.map(jnp.subtract, with_multiplier(0.3), with_multiplier(0.0))
    expected = jax.tree.map(lambda x: 0.3 * x, jax.jit(jax.grad(kl))(agent.actor.params))
    assert_close(added, expected, 1e-9, "trust region")


def test_the_multiplier_moves_towards_the_bound_and_the_copy_follows_the_actor():
    """Down where the bound is three quarters of the KL, per dimension, of two. Up where the copy is further away."""
    args, key, batch = diffwpo_jax.Args(**SETTINGS), jax.random.key(0), make_batch()
    agent = make_agent(diffwpo_jax, args, 0.7, 0.3)
    chain_key, _ = jax.random.split(jax.random.split(key)[1])
    kl = float(actor_loss(agent.actor.params, args, agent, chain_key, batch)[1][1]["diffusion/kl"])
    args = dataclasses.replace(args, kl_bound=0.75 * kl)
    update = jax.jit(diffwpo_jax.update, static_argnums=0)
    for direction, copy in ((-1, agent.target_actor_params), (1, jax.tree.map(lambda x: 3 * x, agent.actor.params))):
        before = agent.replace(target_actor_params=copy)
        after, metrics = update(args, before, key, batch, 0)
        assert metrics["diffusion/kl"] == pytest.approx(kl) if direction == -1 else metrics["diffusion/kl"] > 2 * kl
        assert np.sign(after.multiplier.params["log"] - agent.multiplier.params["log"]) == direction
        expected = jax.tree.map(lambda new, old: args.tau * new + (1 - args.tau) * old, after.actor.params, copy)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), after.target_actor_params, expected)


def test_without_a_trust_region_a_kl_that_overflows_stops_nothing():
    """0 times infinity is NaN: with --kl-multiplier 0 the term is left out, not multiplied by 0."""
    args = diffwpo_jax.Args(**SETTINGS, kl_multiplier=0.0)
    agent, batch, key = make_agent(diffwpo_jax, args, 0.7), make_batch(), jax.random.key(3)
    far = agent.replace(target_actor_params=jax.tree.map(lambda x: 1e200 * x, agent.target_actor_params))
    kl = actor_loss(agent.actor.params, args, far, key, batch)[1][1]["diffusion/kl"]
    assert not np.isfinite(kl)
    by_target = [gradient(diffwpo_jax, args, x, key, batch) for x in (far, agent)]
    assert_close(*by_target, 1e-12, "without a trust region")
    after, _ = jax.jit(diffwpo_jax.update, static_argnums=0)(args, far, key, batch, 0)
    assert after.multiplier.params["log"] == -np.inf
