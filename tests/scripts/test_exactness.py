"""What the policies must reach where the answer is known: numbered identities, listed in docs/correctness.md."""

import dataclasses
import importlib
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training.train_state import TrainState

from common import replay
from common.distributions import gaussian_log_prob
from envs.interface import EnvState, new_episode, with_episode
from harness.clock import jit_for_few_calls

pytestmark = pytest.mark.usefixtures("all_optimizations")

# Algorithms with the chain and SAC's critics.
DIFFUSION = ["diffsac_jax", pytest.param("diffwpo_jax", marks=pytest.mark.slow)]


def load(name):
    return importlib.import_module(name)


def make_args(module, **settings):
    """Arguments, without those that the algorithm does not have."""
    fields = {field.name for field in dataclasses.fields(module.Args)}
    return module.Args(**{name: value for name, value in settings.items() if name in fields})


def with_known_critic(agent, value):
    """The agent with twin critics that know Q exactly: `value`, (obs `[B, O]`, action `[B, A]`) -> `[B]`."""

    def apply_fn(params, obs, action):
        return jnp.stack([value(obs, action)] * 2)

    return agent.replace(critic=TrainState.create(apply_fn=apply_fn, params={}, tx=optax.identity()), target_params={})


def with_actor_params(agent, params):
    return agent.replace(actor=agent.actor.replace(params=params))


def with_rate(agent, **rates):
    """The agent with other optimisers of its parts: Adam with these learning rates, numbers or schedules."""
    parts = {}
    for name, rate in rates.items():
        part, tx = getattr(agent, name), optax.adam(rate)
        parts[name] = part.replace(tx=tx, opt_state=tx.init(part.params))
    return agent.replace(**parts)


def train(module, args, agent, key, num_updates, draw_batch, averaged=0):
    """`num_updates` of the script's updates on batches draw_batch(key), in one compiled loop.

    `averaged`: the actor's parameters are their mean over so many of the last updates, which takes Adam's noise out.
    """

    @jax.jit
    def loop(agent, key):
        def one(carry, key_and_index):
            (agent, total), (key, i) = carry, key_and_index
            batch_key, update_key = jax.random.split(key)
            agent, _ = module.update(args, agent, update_key, draw_batch(batch_key), i)
            weight = i >= num_updates - averaged
            return (agent, jax.tree.map(lambda x, y: x + weight * y, total, agent.actor.params)), None

        zeros = jax.tree.map(jnp.zeros_like, agent.actor.params)
        each = jax.random.split(key, num_updates), jnp.arange(num_updates)
        (agent, total), _ = jax.lax.scan(one, (agent, zeros), each)
        return with_actor_params(agent, jax.tree.map(lambda x: x / averaged, total)) if averaged else agent

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
    agent = jit_for_few_calls(partial(module.init_agent, args, BANDIT))(agent_key)
    if start is not None:
        layers = agent.actor.params["params"]
        mean = {**layers["Dense_2"], "bias": jnp.asarray(start)}
        agent = with_actor_params(agent, {"params": {**layers, "Dense_2": mean}})
    agent = with_known_critic(agent, bandit_value)
    falling = optax.piecewise_constant_schedule(args.policy_lr, {num_updates // 2: 0.1})
    agent = with_rate(agent, actor=falling)  # at a constant rate the shares of the modes wander
    agent = train(module, args, agent, train_key, num_updates, partial(bandit_batch, 512))
    elbo, shares = bandit_figures(module, args, agent)
    print(f"identity 3, {name} {settings}: ELBO {elbo:.3f}, modes {np.round(100 * shares, 1)} %")
    return elbo, shares


@pytest.mark.slow
def test_identity_3_diffusion_policy_finds_all_modes():
    """DiffSAC's own losses: ELBO above -0.6, each mode 25 % +- 4 %."""
    elbo, shares = train_bandit("diffsac_jax", 8_000, num_denoising_steps=8, prior_std=0.4)
    assert -0.6 < elbo < 0.0
    assert np.all(np.abs(shares - 0.25) < 0.04)


def test_identity_3_gaussian_finds_one_mode():
    """The best Gaussian has one mode and an ELBO of -log 4. SAC starts at a mode: from elsewhere it ends lower."""
    elbo, shares = train_bandit("sac_jax", 3000, start=(0.55, 0.0))
    assert -1.42 < elbo < -1.38
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


def train_control(name, num_updates, prior_std=None, **settings):
    """Trains on the exact Q: half of the updates, then half with a tenth of the learning rate, averaged at the end.

    Returns module, args and agent.
    """
    module = load(name)
    more = {} if prior_std is None else {"prior_std": float(prior_std)}
    settings = {"autotune": False, "alpha": ALPHA, "hidden_dim": 32, **settings}
    args = make_args(module, gamma=GAMMA, policy_lr=1e-3, q_lr=1e-2, **settings, **more)
    agent = jit_for_few_calls(partial(module.init_agent, args, CONTROL))(jax.random.key(0))
    agent = with_known_critic(agent, quadratic_value)
    half = num_updates // 2
    rates = {part: optax.piecewise_constant_schedule(args.policy_lr, {half: 0.1}) for part in ("actor", "temperature")}
    agent = with_rate(agent, **rates)
    agent = train(module, args, agent, jax.random.key(1), num_updates, partial(control_batch, 256), averaged=half)
    return module, args, agent


def assert_control_is_optimal(name, num_updates, prior_std=None, **settings):
    module, args, agent = train_control(name, num_updates, prior_std, **settings)
    np.testing.assert_allclose(agent.temperature.params["log_alpha"], np.log(ALPHA), rtol=1e-6)  # --no-autotune
    gain, variance = gain_and_variance(module, args, agent)
    expected = VARIANCE * (1.0 if prior_std is None else widening(args.num_denoising_steps, prior_std))
    print(
        f"identity 10, {name}, exact Q, nu = {prior_std}: gain {gain:.4f} ({gain / GAIN:.3f} of the Riccati gain), "
        f"variance {variance:.4f} ({variance / expected:.3f} of {expected:.4f})"
    )
    assert abs(gain / GAIN - 1) < 0.02 and abs(variance / expected - 1) < 0.05


def test_riccati_solution():
    np.testing.assert_allclose([P, GAIN, VARIANCE], [1.460, 0.511, 0.25], rtol=3e-3)


@struct.dataclass
class ControlState(EnvState):
    """The observation is the state x."""

    key: jax.Array


class Control:
    """The linear-quadratic problem with the interface of `envs`: 20 steps, then truncated."""

    observation_size, action_size = 1, 1

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, key):
        start_key, key = jax.random.split(key)
        x = jax.random.uniform(start_key, (self.num_envs, 1), minval=-1.0, maxval=1.0)
        return ControlState(**vars(new_episode(x)), key=key)

    def step(self, state, action):
        noise_key, start_key, key = jax.random.split(state.key, 3)
        a = BOUND * action
        reward = -(state.obs**2 + a**2)[:, 0]
        final = DECAY * state.obs + a + 0.1 * jax.random.normal(noise_key, state.obs.shape)
        truncated = state.episode_length + 1 == 20
        start = jax.random.uniform(start_key, state.obs.shape, minval=-1.0, maxval=1.0)
        x = jnp.where(truncated[:, None], start, final)
        state, time_step = with_episode(state, x, final, reward, jnp.zeros_like(truncated), truncated)
        return state.replace(key=key), time_step


def test_identity_10_sac_exact_q():
    assert_control_is_optimal("sac_jax", 20_000)


@pytest.mark.parametrize("prior_std", [LATENT_STD, pytest.param(1.0, marks=pytest.mark.slow)], ids=["nu = s", "nu = 1"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_identity_10_diffusion_exact_q(name, prior_std):
    # DiffWPO's gradient has the score's noise on top of DiffSAC's.
    num_updates = 48_000 if name == "diffwpo_jax" else 16_000 if prior_std == 1.0 else 6000
    assert_control_is_optimal(name, num_updates, prior_std, num_denoising_steps=8)


def test_the_policy_soon_acts_as_precisely_as_the_reward_asks():
    """Q = -|u|^2 / (2 * 0.3^2) at temperature 0.02: the optimum's deviation is 0.04, the chain's own 0.06, the start's
    0.6. After 500 updates it is below 0.1; with noise levels that are raw parameters it was 0.20."""
    module, obs = load("diffsac_jax"), jnp.ones((64, 3))
    args = module.Args(hidden_dim=128, alpha=0.02, autotune=False, gamma=0.0)
    sizes = SimpleNamespace(observation_size=3, action_size=2)
    agent = jit_for_few_calls(partial(module.init_agent, args, sizes))(jax.random.key(0))
    agent = with_known_critic(agent, lambda obs, action: -(action**2).sum(-1) / 0.18)
    batch = replay.Transition(obs, jnp.zeros((64, 2)), jnp.zeros(64), obs, jnp.zeros(64, bool))
    agent = train(module, args, agent, jax.random.key(1), 500, lambda key: batch)
    action, _ = jax.jit(partial(module.sample_action, args))(agent, jax.random.key(2), jnp.ones((4000, 3)))
    deviation = np.std(action, axis=0)
    assert np.all((0.03 < deviation) & (deviation < 0.1)), deviation


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_identity_12_the_temperature_holds_the_real_entropy(num_steps):
    """With the target on the estimate: the executed actions' entropy, of the Gaussian that the regression leaves, and
    the temperature that makes the bound's optimum as wide. It starts half a unit of log alpha away."""
    target = -1.2
    variance = np.exp(2 * target) / (2 * np.pi * np.e)  # of u = a / 10; r s^2 = s^(2K/(K+1)) with nu = 1
    alpha = 2 * (1 + GAMMA * P) * BOUND**2 * variance ** ((num_steps + 1) / num_steps)
    start = {"alpha": float(alpha * np.exp(0.5))}
    settings = {"num_denoising_steps": num_steps, "autotune": True, "target_entropy_scale": -target}
    module, args, agent = train_control("diffsac_jax", 16_000, **settings, **start)
    _, variance = gain_and_variance(module, args, agent)
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance / BOUND**2)
    print(
        f"identity 12, K = {num_steps}: entropy {entropy:.3f} ({target}), alpha {float(agent.alpha):.4f} ({alpha:.4f})"
    )
    assert abs(entropy - target) < 0.05 and abs(float(agent.alpha) / alpha - 1) < 0.1


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
    env = Control(10)
    # Of the updates' counters: the first update is made when learning starts.
    late = int(args.num_updates * (0.6 * args.total_timesteps - args.learning_starts) / args.num_envs)
    falling = lambda rate: optax.piecewise_constant_schedule(rate, {late: 0.1})  # noqa: E731
    rates = {"actor": falling(args.policy_lr), "critic": falling(args.q_lr)}
    rates |= {"multiplier": falling(args.q_lr)} if name == "diffwpo_jax" else {}

    def init_training(key):
        state = module.init_training(args, env, key)
        return state.replace(agent=with_rate(state.agent, **rates))

    state = jax.jit(jax.vmap(init_training))(jax.random.split(jax.random.key(0), 1))
    actors = []
    for step in range(0, args.total_timesteps, args.log_frequency):
        state, *_ = module.train_chunk(args, env, state, jnp.int32(step))
        if step >= 0.7 * args.total_timesteps:
            actors.append(jax.device_get(state.agent.actor.params))
    actor_params = jax.tree.map(lambda *x: np.mean(x, axis=0), *actors)
    agent = jax.tree.map(lambda x: x[0], with_actor_params(state.agent, actor_params))
    gain, variance = gain_and_variance(module, args, agent)
    print(f"identity 10, {name}, end to end: gain {gain / GAIN:.3f}, variance {variance / VARIANCE:.3f} of the optimum")
    assert abs(gain / GAIN - 1) < 0.05 and abs(variance / VARIANCE - 1) < 0.15
