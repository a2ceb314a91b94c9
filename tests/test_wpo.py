"""DiffWPO's actor loss: the identities that tie it to DiffSAC's and to Wasserstein policy optimisation (2505.00663)."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsac_jax
import diffwpo_jax
from common import diffusion, replay
from common.distributions import gaussian_log_prob

B, O, A = 16, 3, 2
ENV = SimpleNamespace(observation_size=O, action_size=A)
SETTINGS = {"hidden_dim": 8, "num_denoising_steps": 4, "prior_std": 1.3, "alpha": 0.7}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def shake(params, seed):
    """Random parameters of the same shapes, in float64 (the network's last layer would start at zero)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape)), params)


def make_agent(module, args, env=ENV):
    agent = jax.eval_shape(partial(module.init_agent, args, env), jax.random.key(0))
    agent = agent.replace(
        actor_params=shake(agent.actor_params, 1),
        critic_params=shake(agent.critic_params, 2),
        log_alpha=jnp.log(jnp.float64(args.alpha)),
    )
    if module is diffwpo_jax:
        log_kl_multiplier = jnp.log(jnp.float64(args.kl_multiplier))
        agent = agent.replace(target_actor_params=shake(agent.actor_params, 3), log_kl_multiplier=log_kl_multiplier)
    # What the actor loss does not read stays a shape.
    return agent.replace(
        **{field: None for field in vars(agent) if field == "target_params" or field.endswith("opt_state")}
    )


def make_batch(dtype=np.float64):
    rng = np.random.default_rng(4)
    return replay.Transition(
        obs=jnp.asarray(rng.standard_normal((B, O)).astype(dtype)),
        action=jnp.asarray(rng.uniform(-1, 1, (B, A)).astype(dtype)),
        reward=jnp.asarray(rng.standard_normal(B).astype(dtype)),
        next_obs=jnp.asarray(rng.standard_normal((B, O)).astype(dtype)),
        terminated=jnp.asarray((rng.uniform(size=B) < 0.3).astype(dtype)),
    )


def make_problem(module, **settings):
    """args, agent, key, batch and latents for the module's actor_loss; equal for both modules."""
    args = module.Args(**{**SETTINGS, **settings})
    num_steps = args.num_denoising_steps
    latents = jnp.asarray(np.random.default_rng(5).standard_normal((num_steps + 1, B, A)))
    chain = diffusion.DenoisingChain(latents, jnp.zeros((num_steps, B)), jnp.zeros(B))
    return args, make_agent(module, args), jax.random.key(6), make_batch(), chain


@partial(jax.jit, static_argnums=(0, 2))
def _gradient(actor_loss, params, args, *rest):
    return jax.grad(lambda p: actor_loss(p, args, *rest)[0])(params)


def gradient(module, args, agent, *rest):
    return _gradient(module.actor_loss, agent.actor_params, args, agent, *rest)


def kernel(params, args, agent, key, batch, chain):
    """k, a^k, the reparameterised a^{k-1} that actor_loss draws from `key`, the kernel's mean and std, the schedule."""
    step_key, noise_key = jax.random.split(key)
    k = jax.random.randint(step_key, (B,), 1, args.num_denoising_steps + 1)
    latent = chain.latents[k, jnp.arange(B)]
    drift, schedule = diffwpo_jax.policy_terms(args, agent.replace(actor_params=params), batch.next_obs)
    mean, std = diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k)
    fixed_mean, fixed_std = jax.lax.stop_gradient((mean, std))
    return k, latent, fixed_mean + fixed_std * jax.random.normal(noise_key, latent.shape), mean, std, schedule


def value_gradient(agent, batch, k, x):
    """grad_x min_i Q_i(s', x, k-1), with tanh x in the place of x at k = 1."""

    def q(x):
        value_input = jnp.where((k == 1)[:, None], jnp.tanh(x), x)
        return agent.critic.apply(agent.critic_params, batch.next_obs, value_input, k - 1).min(axis=0).sum()

    return jax.grad(q)(x)


def assert_equal(tree, other, tolerance=1e-10):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(other))
    assert scale > 1e-3, "a gradient of zero shows nothing"
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == jnp.float64
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    print(f"largest difference {max(float(jnp.abs(x - y).max()) for x, y in pairs) / scale:.1e} of the largest entry")


def add(tree, other):
    return jax.tree.map(jnp.add, tree, other)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_identity_7a_gradient_of_the_squared_velocity(x64, prediction):
    """Without preconditioner and without -tau log pi, pi detached: the gradient of |tau g - grad Q|^2 / (2 tau)."""
    problem = make_problem(diffwpo_jax, precondition=False, kl_multiplier=0.0, prediction=prediction)
    args, agent, _, batch, _ = problem
    weight, tau = 1.0 - batch.terminated, args.alpha

    def log_pi_term(params):
        k, latent, x, _, _, schedule = kernel(params, *problem)
        log_pi = gaussian_log_prob(latent, *diffusion.noising_mean_std(schedule, x, k))
        return jnp.mean(weight * tau * log_pi)

    def squared_velocity(params):
        k, latent, x, mean, std, schedule = kernel(params, *problem)
        beta = jax.lax.stop_gradient(schedule.beta)[k - 1]
        g = -(x - mean) / std**2  # gradients with respect to x of log q, log pi and the tanh's log-determinant
        g -= jnp.sqrt(1 - beta) * (latent - jnp.sqrt(1 - beta) * x) / (beta * args.prior_std**2)
        g += (k == 1)[:, None] * 2 * jnp.tanh(x)
        return jnp.mean(weight * ((tau * g - value_gradient(agent, batch, k, x)) ** 2).sum(-1) / (2 * tau))

    left = add(gradient(diffwpo_jax, *problem), jax.jit(jax.grad(log_pi_term))(agent.actor_params))
    assert_equal(left, jax.jit(jax.grad(squared_velocity))(agent.actor_params))


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_identity_7b_the_reparameterised_gradient(x64, prediction):
    """With both, DiffSAC's gradient up to tau times the score of the same sample, whose expectation is zero."""
    problem = make_problem(diffwpo_jax, kl_multiplier=0.0, prediction=prediction)
    args, agent, _, batch, _ = problem

    def score(params):
        _, _, x, mean, std, _ = kernel(params, *problem)
        return jnp.mean((1.0 - batch.terminated) * args.alpha * gaussian_log_prob(x, mean, std))

    left = add(gradient(diffwpo_jax, *problem), jax.jit(jax.grad(score))(agent.actor_params))
    assert_equal(left, gradient(diffsac_jax, *make_problem(diffsac_jax, prediction=prediction)))


def test_identity_7b_at_temperature_zero_sample_by_sample(x64):
    """tau = 0: DiffWPO's gradient is DiffSAC's for the same noise."""
    problems = []
    for module, settings in ((diffwpo_jax, {"kl_multiplier": 0.0}), (diffsac_jax, {})):
        args, agent, *rest = make_problem(module, **settings)
        problems.append((args, agent.replace(log_alpha=jnp.float64(-jnp.inf)), *rest))
    assert_equal(gradient(diffwpo_jax, *problems[0]), gradient(diffsac_jax, *problems[1]))


def test_one_step_is_vanilla_wpo(x64):
    """K = 1, a^1 = 0, tau = 0, no preconditioner, no trust region: the gradient with respect to mean and std of
    -grad_a Q . grad_a log N(a; mean, std) at a = mean + std eps, for Q(tanh .)."""
    args, agent, key, batch, chain = make_problem(
        diffwpo_jax, num_denoising_steps=1, precondition=False, kl_multiplier=0.0
    )
    agent = agent.replace(log_alpha=jnp.float64(-jnp.inf))
    problem = (args, agent, key, batch, chain.replace(latents=jnp.zeros_like(chain.latents)))

    @jax.jit
    def by_hand(params):
        (mean, std), pull_back = jax.vjp(lambda params: kernel(params, *problem)[3:5], params)
        k, _, x, *_ = kernel(params, *problem)
        velocity = (1.0 - batch.terminated)[:, None] / B * value_gradient(agent, batch, k, x)
        return pull_back((-velocity / std**2, -velocity * 2 * (x - mean) / std**3))[0], mean

    expected, mean = by_hand(agent.actor_params)
    assert_equal(gradient(diffwpo_jax, *problem), expected)
    drift, _ = diffwpo_jax.policy_terms(args, agent, batch.next_obs)
    np.testing.assert_allclose(mean, args.prior_std * drift(jnp.zeros((B, A)), 1), rtol=1e-12)


def test_identity_8_nothing_leaks_through_the_latent(x64):
    """Gradients are the same whether a^k was detached before or depends on the parameters."""
    args, agent, key, batch, _ = make_problem(diffwpo_jax)

    def chain(params):
        return diffwpo_jax.sample_chain(args, agent.replace(actor_params=params), jax.random.key(5), batch.next_obs)

    def loss(params):
        return diffwpo_jax.actor_loss(params, args, agent, key, batch, chain(params))[0]

    expected = gradient(diffwpo_jax, args, agent, key, batch, jax.jit(chain)(agent.actor_params))
    assert_equal(jax.jit(jax.grad(loss))(agent.actor_params), expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_identity_9_gradient_of_the_noise_levels(x64, monkeypatch, k):
    """In expectation over the step's noise (by quadrature), the gradient with respect to the noise levels equals
    finite differences of E[tau rho_k - Q]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = jnp.asarray(weights / np.sqrt(2 * np.pi))
    args = diffwpo_jax.Args(num_denoising_steps=3, hidden_dim=8, prior_std=1.3, alpha=0.7, kl_multiplier=0.0)
    agent = make_agent(diffwpo_jax, args, SimpleNamespace(observation_size=O, action_size=1))

    def q(obs, a, level):
        return (jnp.sin(1.7 * a) * (1 + level[:, None]) + 0.3 * a).sum(-1)

    class Critic:  # smooth and known
        def apply(self, params, obs, a, level):
            return jnp.stack([q(obs, a, level)] * 2)

    class Actor:
        def apply(self, params, obs, latent, k):
            return jnp.full_like(latent, 0.4)

    agent = agent.replace(actor=Actor(), critic=Critic())
    latent, ones = jnp.float64(0.8), jnp.ones((80, 1))
    obs = jnp.zeros((80, O))
    # The batch mean becomes the quadrature: row i carries weight 80 w_i.
    batch = replay.Transition(obs, ones, ones[:, 0], obs, 1.0 - 80 * weights)
    chain = diffusion.DenoisingChain(latent * jnp.ones((4, 80, 1)), jnp.zeros((3, 80)), jnp.zeros(80))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(nodes)[:, None])
    monkeypatch.setattr(jax.random, "randint", lambda key, shape, low, high: jnp.full(shape, k))
    params = agent.actor_params
    grad = jax.jit(jax.grad(lambda p: diffwpo_jax.actor_loss(p, args, agent, jax.random.key(0), batch, chain)[0]))(
        params
    )

    def objective(logits):
        beta = 1 / (1 + np.exp(-logits[:, 0]))
        abar = np.cumprod(1 - beta)
        c = np.sqrt(abar[k - 2] if k > 1 else 1.0) * beta[k - 1] / (1 - abar[k - 1])
        mean, std = np.sqrt(1 - beta[k - 1]) * 0.8 + c * 1.3 * 0.4, np.sqrt(beta[k - 1]) * 1.3
        x = mean + std * nodes
        log_q = -0.5 * nodes**2 - np.log(std)
        log_pi = -0.5 * ((0.8 - np.sqrt(1 - beta[k - 1]) * x) / std) ** 2 - np.log(std)
        ldj = np.log1p(-(np.tanh(x) ** 2)) if k == 1 else 0.0
        a = np.tanh(x) if k == 1 else x
        value = np.sin(1.7 * a) * k + 0.3 * a
        return np.sum(np.asarray(weights) * (0.7 * (log_q - log_pi - ldj) - value))

    base = np.asarray(params["noise_logits"])
    expected = np.zeros(3)
    for i in range(3):
        step = np.zeros_like(base)
        step[i] = 1e-5
        expected[i] = (objective(base + step) - objective(base - step)) / 2e-5
    assert abs(expected[k - 1]) > 1e-3
    np.testing.assert_allclose(grad["noise_logits"][:, 0], expected, rtol=1e-7, atol=1e-8)


def test_trust_region_is_the_kl_of_the_target_to_the_actor(x64):
    """K times the mean KL(target kernel || kernel), weighted by the multiplier and not preconditioned."""
    args, agent, *rest = make_problem(diffwpo_jax)
    off = agent.replace(log_kl_multiplier=jnp.float64(-jnp.inf))
    batch = rest[1]

    def kl(params):
        *_, mean, std, _ = kernel(params, args, agent, *rest)
        *_, target_mean, target_std, _ = kernel(agent.target_actor_params, args, agent, *rest)
        terms = (jnp.log(std / target_std) + (target_std**2 + (target_mean - mean) ** 2) / (2 * std**2) - 0.5).sum(-1)
        return 4 * jnp.mean((1.0 - batch.terminated) * terms)

    _, metrics = jax.jit(diffwpo_jax.actor_loss, static_argnums=1)(agent.actor_params, args, agent, *rest)
    np.testing.assert_allclose(metrics["diffusion/kl"], kl(agent.actor_params), rtol=1e-10)
    difference = jax.tree.map(
        jnp.subtract, gradient(diffwpo_jax, args, agent, *rest), gradient(diffwpo_jax, args, off, *rest)
    )
    expected = jax.tree.map(lambda g: jnp.exp(agent.log_kl_multiplier) * g, jax.jit(jax.grad(kl))(agent.actor_params))
    assert_equal(difference, expected, 1e-9)


def test_update_compiles_once_and_moves_everything():
    """Two updates, one compilation; every parameter moves, targets by Polyak, the multiplier towards the bound.

    Identity 12: with JAX's check on, no key is used twice.
    """
    args = diffwpo_jax.Args(hidden_dim=8, num_denoising_steps=3, tau=0.25, kl_bound=1e6)
    agent = jax.jit(partial(diffwpo_jax.init_agent, args, ENV))(jax.random.key(0))
    batch = make_batch(np.float32)
    update = jax.jit(diffwpo_jax.update, static_argnames="args")
    with jax.debug_key_reuse(True):
        first, _ = update(args, agent, jax.random.key(1), batch)
        second, metrics = update(args, first, jax.random.key(2), batch)
        jax.jit(diffwpo_jax.entropy, static_argnums=0)(args, agent, jax.random.key(3), batch.obs)
    assert update._cache_size() == 1
    assert all(np.isfinite(x).all() for x in metrics.values())
    # The last layer starts at zero: what lies before it gets a gradient from the second update on.
    for name in ("actor_params", "critic_params"):
        moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), getattr(first, name), getattr(second, name))
        assert all(jax.tree.leaves(moved)), moved
    for name, target in (("actor_params", "target_actor_params"), ("critic_params", "target_params")):
        expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, getattr(second, name), getattr(first, target))
        for x, y in zip(jax.tree.leaves(getattr(second, target)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    assert second.log_kl_multiplier < first.log_kl_multiplier < agent.log_kl_multiplier  # far below the bound
    # The bound is per action dimension.
    second = second.replace(kl_opt_state=agent.kl_opt_state)
    kl = float(update(args, second, jax.random.key(3), batch)[1]["diffusion/kl"])
    for factor, sign in ((0.99, 1), (1.01, -1)):
        near = replace(args, kl_bound=factor * kl / ENV.action_size)
        third, _ = update(near, second, jax.random.key(3), batch)
        assert np.sign(third.log_kl_multiplier - second.log_kl_multiplier) == sign
