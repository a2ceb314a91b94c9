"""What the policies must reach where the answer is known: numbered identities, listed in docs/correctness.md."""

import dataclasses
import importlib
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from common import diffusion, envs, replay
from common.distributions import gaussian_log_prob

# Algorithms with the chain, the per-step critics and one actor loss per step.
DIFFUSION = ["diffsac_jax", pytest.param("diffwpo_jax", marks=pytest.mark.slow)]


def load(name):
    return importlib.import_module(name)


def make_args(module, **settings):
    """Arguments, without those that the algorithm does not have."""
    fields = {field.name for field in dataclasses.fields(module.Args)}
    return module.Args(**{name: value for name, value in settings.items() if name in fields})


class KnownCritic(nn.Module):
    """Twin critics `[2, B]` that know the value of an action exactly; values of latents (j >= 1) they learn.

    For a chain of linear-Gaussian steps these are quadratic in (s, a^j): `quadratic` learns just that.
    """

    value: callable  # (obs [B, O], action [B, A]) -> [B]
    num_steps: int
    quadratic: bool = False
    scale: tuple = (1.0,)  # of the latents: one for all levels, or one per level

    @nn.compact
    def __call__(self, obs, latent, j=0):
        j = jnp.broadcast_to(j, obs.shape[:-1])
        scale = jnp.broadcast_to(jnp.asarray(self.scale), self.num_steps)[j]
        x = jnp.concatenate([obs, latent / scale[..., None]], axis=-1)
        if self.quadratic:
            products = [x[..., i] * x[..., m] for i in range(x.shape[-1]) for m in range(i + 1)]
            features = jnp.stack([jnp.ones_like(products[0]), *jnp.moveaxis(x, -1, 0), *products], axis=-1)
            weights = self.param("weights", nn.initializers.zeros, (2, self.num_steps, features.shape[-1]))
            learned = jnp.einsum("bf,cbf->cb", features, weights[:, j])
        else:
            x = jnp.concatenate([x, diffusion.level_embedding(j, self.num_steps)], axis=-1)
            heads = []
            for _ in range(2):
                h = nn.relu(nn.Dense(128)(x))
                h = nn.relu(nn.Dense(128)(h))
                heads.append(nn.Dense(1)(h)[..., 0])
            learned = jnp.stack(heads)
        return jnp.where(j == 0, self.value(obs, latent), learned)


def with_critic(agent, args, critic, sizes):
    """The agent with other critics, at their initial parameters."""
    obs, action = jnp.zeros((1, sizes.observation_size)), jnp.zeros((1, sizes.action_size))
    params = critic.init(jax.random.key(11), obs, action)
    return agent.replace(
        critic=critic,
        critic_params=params,
        target_params=params,
        critic_opt_state=optax.adam(args.q_lr).init(params),
    )


def train(module, args, agent, key, num_updates, draw_batch, average=False):
    """`num_updates` of the script's updates on batches draw_batch(key), in one compiled loop.

    `average`: the actor's parameters are their mean over these updates, which takes Adam's noise out.
    """

    @jax.jit
    def loop(agent, key):
        def one(carry, key):
            agent, total = carry
            batch_key, update_key = jax.random.split(key)
            agent, _ = module.update(args, agent, update_key, draw_batch(batch_key))
            return (agent, jax.tree.map(jnp.add, total, agent.actor_params)), None

        zeros = jax.tree.map(jnp.zeros_like, agent.actor_params)
        (agent, total), _ = jax.lax.scan(one, (agent, zeros), jax.random.split(key, num_updates))
        return agent.replace(actor_params=jax.tree.map(lambda x: x / num_updates, total)) if average else agent

    return loop(agent, key)


# ------------------------------------------------------------------------- identity 3: the mixture, learned as a bandit

MEANS = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]], np.float32)
BANDIT = SimpleNamespace(observation_size=1, action_size=2)


def log_mixture(x):
    """Four equal Gaussians of standard deviation 0.4, normalised. `[..., 2]` -> `[...]`."""
    return jax.nn.logsumexp(gaussian_log_prob(x[..., None, :], MEANS, jnp.full(2, 0.4)), axis=-1) - jnp.log(4.0)


def bandit_value(obs, action):
    """Log-density over u in [-1, 1]^2 of the mixture on Box(-4, 4): with temperature 1, log Z = 0."""
    return log_mixture(4.0 * action) + 2 * jnp.log(4.0)


def bandit_batch(size, key):
    """One state, no discounting, never terminated."""
    zeros = jnp.zeros((size, 1))
    action = jax.random.uniform(key, (size, 2), minval=-1.0, maxval=1.0)
    return replay.Transition(zeros, action, bandit_value(zeros, action), zeros, jnp.zeros(size, bool))


def bandit_figures(module, args, agent, num_samples=100_000):
    """ELBO E[Q - l] (0 is exact) and the share of each mode."""
    sample = jax.jit(partial(module.sample_action, args))
    action, log_prob = sample(agent, jax.random.key(99), jnp.zeros((num_samples, 1)))
    elbo = float(jnp.mean(bandit_value(None, action) - log_prob))
    nearest = np.argmin(np.linalg.norm(4 * np.asarray(action)[:, None] - MEANS, axis=-1), axis=1)
    return elbo, np.bincount(nearest, minlength=4) / num_samples


def train_bandit(name, num_updates, start=None, **settings):
    """`start`: where SAC's mean begins, before the tanh."""
    module = load(name)
    args = make_args(module, gamma=0.0, autotune=False, alpha=1.0, hidden_dim=64, policy_lr=1e-3, q_lr=1e-3, **settings)
    agent_key, train_key = jax.random.split(jax.random.key(0))
    agent = jax.jit(partial(module.init_agent, args, BANDIT))(agent_key)
    if start is not None:
        layers = agent.actor_params["params"]
        mean = {**layers["Dense_2"], "bias": jnp.asarray(start)}
        agent = agent.replace(actor_params={"params": {**layers, "Dense_2": mean}})
    steps = getattr(args, "num_denoising_steps", 1)
    agent = with_critic(agent, args, KnownCritic(bandit_value, steps, quadratic=steps == 1), BANDIT)
    agent = train(module, args, agent, train_key, num_updates, partial(bandit_batch, 256))
    elbo, shares = bandit_figures(module, args, agent)
    print(f"identity 3, {name} {settings}: ELBO {elbo:.3f}, modes {np.round(100 * shares, 1)} %")
    return elbo, shares


def test_identity_3_diffusion_policy_finds_all_modes():
    """DiffSAC's own losses: ELBO above -0.6, each mode 25 % +- 4 %."""
    elbo, shares = train_bandit("diffsac_jax", 10_000, num_denoising_steps=8, prior_std=0.4)
    assert -0.6 < elbo < 0.0
    assert np.all(np.abs(shares - 0.25) < 0.04)


def test_identity_3_gaussian_finds_one_mode():
    """The best Gaussian has one mode and an ELBO of -log 4. SAC starts at a mode: from elsewhere it ends lower."""
    elbo, shares = train_bandit("sac_jax", 3000, start=(0.55, 0.0))
    assert elbo < -1.38
    assert shares.max() > 0.9


# ------------------------------------------------------------------------- identity 10: linear-quadratic soft control

# x' = 0.9 x + a + 0.1 w, r = -(x^2 + a^2), gamma 0.9, temperature 1.16; a = 10 u. The soft-optimal policy is Gaussian.
GAMMA, ALPHA, BOUND, DECAY = 0.9, 1.16, 10.0, 0.9
P = 1.0
for _ in range(1000):
    P = 1 + GAMMA * P * DECAY**2 - (GAMMA * P * DECAY) ** 2 / (1 + GAMMA * P)
GAIN = GAMMA * P * DECAY / (1 + GAMMA * P)
VARIANCE = ALPHA / (2 * (1 + GAMMA * P))
LATENT_STD = np.sqrt(VARIANCE) / BOUND
CONTROL = SimpleNamespace(observation_size=1, action_size=1)


def quadratic_value(obs, action):
    """The soft-optimal Q up to a constant: -(x^2 + a^2) - gamma P (0.9 x + a)^2."""
    x, a = obs[..., 0], BOUND * action[..., 0]
    return -(x**2 + a**2) - GAMMA * P * (DECAY * x + a) ** 2


def control_batch(size, key):
    """States over the range of the regression; the exact critic does not ask for actions and rewards."""
    x = jax.random.uniform(key, (size, 1), minval=-1.2, maxval=1.2)
    zeros = jnp.zeros(size)
    return replay.Transition(x, jnp.zeros((size, 1)), zeros, x, zeros.astype(bool))


def gain_and_variance(module, args, agent, num_samples=200_000):
    """Of the executed actions, by regression over |x| <= 1."""
    x = jax.random.uniform(jax.random.key(98), (num_samples, 1), minval=-1.0, maxval=1.0)
    action, _ = jax.jit(partial(module.sample_action, args))(agent, jax.random.key(99), x)
    x, a = np.asarray(x[:, 0], np.float64), BOUND * np.asarray(action[:, 0], np.float64)
    slope, offset = np.polyfit(x, a, 1)
    return -slope, np.var(a - slope * x - offset)


def widening(num_steps, prior_std):
    """The tied chain's optimum is wider than its target by r = (nu^2 / s^2)^(1 / (K + 1))."""
    return (prior_std / LATENT_STD) ** (2 / (num_steps + 1))


def best_levels(num_steps, prior_std):
    """The optimum of the bound: variances s^2 r^k of a^k under the noising, and the beta_k that make them so."""
    variance = LATENT_STD**2 * widening(num_steps, prior_std) ** np.arange(num_steps + 1)
    return variance, np.diff(variance) / np.maximum(prior_std**2 - variance[:-1], 1e-12)


def train_control(name, num_updates, prior_std=None, **settings):
    """Trains on the exact Q: half of the updates, then half with a tenth of the learning rate, averaged at the end."""
    module = load(name)
    more = {} if prior_std is None else {"prior_std": float(prior_std)}
    args = make_args(
        module, gamma=GAMMA, autotune=False, alpha=ALPHA, hidden_dim=32, policy_lr=1e-3, q_lr=1e-2, **settings, **more
    )
    agent = jax.jit(partial(module.init_agent, args, CONTROL))(jax.random.key(0))
    steps, scale = getattr(args, "num_denoising_steps", 1), (1.0,)
    if prior_std is not None:
        variance, beta = best_levels(steps, prior_std)
        scale = tuple(float(x) for x in np.sqrt(variance[:-1]))
        if not np.isclose(prior_std, LATENT_STD):  # b_1 would have to travel 3 units: start half a unit away
            logits = jnp.asarray(np.log(beta / (1 - beta))[:, None] + 0.5, jnp.float32)
            agent = agent.replace(actor_params={**agent.actor_params, "noise_logits": logits})
    agent = with_critic(agent, args, KnownCritic(quadratic_value, steps, True, scale), CONTROL)
    batch, tuned = partial(control_batch, 256), dataclasses.replace(args, policy_lr=args.policy_lr / 10)
    agent = train(module, args, agent, jax.random.key(1), num_updates // 2, batch)
    agent = train(module, tuned, agent, jax.random.key(2), num_updates // 2, batch, average=True)
    np.testing.assert_allclose(agent.log_alpha, np.log(ALPHA), rtol=1e-6)  # --no-autotune
    gain, variance = gain_and_variance(module, args, agent)
    expected = VARIANCE * (1.0 if prior_std is None else widening(steps, prior_std))
    print(
        f"identity 10, {name}, exact Q, nu = {prior_std}: gain {gain:.4f} ({gain / GAIN:.3f} of the Riccati gain), "
        f"variance {variance:.4f} ({variance / expected:.3f} of {expected:.4f})"
    )
    return gain / GAIN, variance / expected


def test_riccati_solution():
    np.testing.assert_allclose([P, GAIN, VARIANCE], [1.460, 0.511, 0.25], rtol=3e-3)


@struct.dataclass
class ControlState:
    x: jax.Array
    t: jax.Array
    key: jax.Array


class Control:
    """The linear-quadratic problem with the interface of `common.envs`: 20 steps, then truncated."""

    observation_size, action_size = 1, 1

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, key):
        start_key, key = jax.random.split(key)
        x = jax.random.uniform(start_key, (self.num_envs, 1), minval=-1.0, maxval=1.0)
        return ControlState(x, jnp.int32(0), key), x

    def step(self, state, action):
        noise_key, start_key, key = jax.random.split(state.key, 3)
        a = BOUND * action
        reward = -(state.x**2 + a**2)[:, 0]
        final = DECAY * state.x + a + 0.1 * jax.random.normal(noise_key, state.x.shape)
        truncated = state.t + 1 == 20
        start = jax.random.uniform(start_key, state.x.shape, minval=-1.0, maxval=1.0)
        x = jnp.where(truncated, start, final)
        zeros = jnp.zeros(self.num_envs)
        flags = jnp.broadcast_to(truncated, (self.num_envs,))
        time_step = envs.TimeStep(x, final, reward, jnp.zeros_like(flags), flags, zeros, zeros)
        return ControlState(x, jnp.where(truncated, 0, state.t + 1), key), time_step


def test_identity_10_sac_exact_q():
    gain, variance = train_control("sac_jax", 20_000)
    assert abs(gain - 1) < 0.02 and abs(variance - 1) < 0.05


@pytest.mark.parametrize("prior_std", [LATENT_STD, 1.0], ids=["nu = s", "nu = 1"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_identity_10_diffusion_exact_q(name, prior_std):
    # DiffWPO's gradient has the score's noise on top of DiffSAC's: after 16,000 updates the gain is 0.988, not 0.996.
    num_updates = 48_000 if name == "diffwpo_jax" else 16_000
    gain, variance = train_control(name, num_updates, prior_std, num_denoising_steps=8)
    assert abs(gain - 1) < 0.02 and abs(variance - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac_jax", *DIFFUSION])
def test_identity_10_end_to_end(name):
    """With learned critics, in the script's own training loop (nu = s for the diffusion policies).

    At constant learning rates the noise of the updates moves the gain by 10 % to either side. So the last two fifths
    take a tenth of them, and the actor is the mean over the last three tenths. The buffer forgets the wild actions of
    the start, whose returns of -100 the critics would have to fit as well. All settings are the same for all.
    """
    module, num_steps = load(name), 50_000
    args = make_args(
        module, gamma=GAMMA, autotune=False, alpha=ALPHA, hidden_dim=64, batch_size=512, buffer_size=100_000,
        num_envs=10, updates_per_step=0.2, total_timesteps=num_steps * 10, learning_starts=5000,
        prior_std=float(LATENT_STD), num_denoising_steps=8,
    )  # fmt: skip
    tuned = dataclasses.replace(args, policy_lr=args.policy_lr / 10, q_lr=args.q_lr / 10)
    env = Control(10)
    state = jax.jit(jax.vmap(partial(module.init_state, args, env)))(jax.random.split(jax.random.key(0), 1))
    actors = []
    for step in range(0, args.total_timesteps, args.log_frequency):
        settings = args if step < 0.6 * args.total_timesteps else tuned
        state, _ = module.train_chunk(settings, env, state, jnp.int32(step))
        if step >= 0.7 * args.total_timesteps:
            actors.append(jax.device_get(state.agent.actor_params))
    actor_params = jax.tree.map(lambda *x: np.mean(x, axis=0), *actors)
    agent = jax.tree.map(lambda x: x[0], state.agent.replace(actor_params=actor_params))
    gain, variance = gain_and_variance(module, args, agent)
    print(f"identity 10, {name}, end to end: gain {gain / GAIN:.3f}, variance {variance / VARIANCE:.3f} of the optimum")
    assert abs(gain / GAIN - 1) < 0.05 and abs(variance / VARIANCE - 1) < 0.15
