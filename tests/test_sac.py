"""One update of SAC and DiffSAC term by term, and agents trained side by side against single ones."""

import dataclasses
import importlib
import logging
import re
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import envs, replay

ALGORITHMS = ["sac_jax", "diffsac_jax"]
SIZES = SimpleNamespace(observation_size=3, action_size=2)  # what init_agent asks of an environment
LEARNED = ("actor_params", "critic_params", "target_params", "log_alpha")
B = 6


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    return importlib.import_module(request.param)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def small_args(algorithm, **settings):
    """Arguments for small networks; three denoising steps where the algorithm has them."""
    settings = {"hidden_dim": 8, "num_denoising_steps": 3, **settings}
    fields = {field.name for field in dataclasses.fields(algorithm.Args)}
    return algorithm.Args(**{name: value for name, value in settings.items() if name in fields})


@cache
def initial_agent(algorithm, args, seed=0):
    return jax.device_get(jax.jit(partial(algorithm.init_agent, args, SIZES))(jax.random.key(seed)))


def make_agent(algorithm, args, dtype="float32", seed=0):
    """An agent away from its initial values: every parameter is random, the target critics are others."""
    agent, rng = initial_agent(algorithm, args), np.random.default_rng(seed)
    move = partial(jax.tree.map, lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype))
    agent = agent.replace(**{name: move(getattr(agent, name)) for name in LEARNED})
    return jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, agent)


def make_batch(dtype="float32", terminated=None, size=B):
    rng = np.random.default_rng(1)
    return replay.Transition(
        obs=rng.normal(size=(size, 3)).astype(dtype),
        action=np.tanh(rng.normal(size=(size, 2))).astype(dtype),
        reward=rng.normal(size=size).astype(dtype),
        next_obs=rng.normal(size=(size, 3)).astype(dtype),
        terminated=np.arange(size) % 3 == 1 if terminated is None else np.full(size, terminated),
    )


def log_normal(x, mean, std):
    return np.sum(-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi))


def log_det(x):
    return np.sum(np.log(1 - np.tanh(x) ** 2))


def assert_trees_close(x, y, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *jax.device_get((x, y)))


# ------------------------------------------------------------------------------------------------------ losses by hand


def test_sac_losses_by_hand():
    """Both losses, written out sample by sample in float64."""
    sac = importlib.import_module("sac_jax")
    with jax.enable_x64(True):
        args = small_args(sac, gamma=0.9)
        agent, batch = make_agent(sac, args, "float64"), make_batch("float64")
        key, alpha = jax.random.key(2), np.exp(float(agent.log_alpha))
        noise = np.asarray(jax.random.normal(key, (B, 2)))
        actor, critic = jax.jit(agent.actor.apply), jax.jit(agent.critic.apply)

        def act(i, obs):
            mean, log_std = (np.asarray(x)[0] for x in actor(agent.actor_params, obs[i : i + 1]))
            assert np.all((log_std >= -5) & (log_std <= 2))
            x = mean + np.exp(log_std) * noise[i]
            return np.tanh(x), log_normal(x, mean, np.exp(log_std)) - log_det(x)

        def q(params, i, obs, action):
            return np.asarray(critic(params, obs[i : i + 1], action[None]))[:, 0]

        critic_errors, actor_terms = [], []
        for i in range(B):
            next_action, log_prob = act(i, batch.next_obs)
            value = q(agent.target_params, i, batch.next_obs, next_action).min() - alpha * log_prob
            target = batch.reward[i] + (0.0 if batch.terminated[i] else 0.9 * value)
            critic_errors.append((q(agent.critic_params, i, batch.obs, batch.action[i]) - target) ** 2)
            action, log_prob = act(i, batch.obs)
            actor_terms.append(alpha * log_prob - q(agent.critic_params, i, batch.obs, action).min())

        loss, metrics = jax.jit(sac.critic_loss, static_argnums=1)(agent.critic_params, args, agent, key, batch)
        np.testing.assert_allclose(loss, np.mean(critic_errors, axis=0).sum(), rtol=1e-10)
        np.testing.assert_allclose(metrics["losses/qf_loss"], np.mean(critic_errors), rtol=1e-10)
        loss, _ = jax.jit(sac.actor_loss, static_argnums=1)(agent.actor_params, args, agent, key, batch)
        np.testing.assert_allclose(loss, np.mean(actor_terms), rtol=1e-10)


class HandChain:
    """DiffSAC's kernels in plain numpy, for one sample at a time."""

    def __init__(self, agent, args):
        self.params, self.nu = agent.actor_params["drift"], args.prior_std
        self.drift, self.critic = jax.jit(agent.actor.apply), jax.jit(agent.critic.apply)
        self.beta = 1 / (1 + np.exp(-np.asarray(agent.actor_params["noise_logits"])))
        self.num_steps = len(self.beta)
        abar = np.cumprod(1 - self.beta, axis=0)
        before = np.concatenate([np.ones((1, 2)), abar[:-1]])
        self.c = np.sqrt(before) * self.beta / (1 - abar) if args.prediction == "action" else np.sqrt(self.beta)

    def mean_std(self, obs, latent, k):
        """Of the denoising kernel from a^k."""
        drift = np.asarray(self.drift(self.params, obs[None], latent[None], k))[0]
        mean = np.sqrt(1 - self.beta[k - 1]) * latent + self.c[k - 1] * self.nu * drift
        return mean, np.sqrt(self.beta[k - 1]) * self.nu

    def log_ratio(self, obs, latent, next_latent, k):
        """rho_k for a^k = latent, a^{k-1} = next_latent."""
        log_noise = log_normal(latent, np.sqrt(1 - self.beta[k - 1]) * next_latent, np.sqrt(self.beta[k - 1]) * self.nu)
        return log_normal(next_latent, *self.mean_std(obs, latent, k)) - log_noise

    def q(self, params, obs, latent, j):
        """Both critics; at level 0 they are given the action."""
        given = np.tanh(latent) if j == 0 else latent
        return np.asarray(self.critic(params, obs[None], given[None], j))[:, 0]


@pytest.mark.parametrize("prediction, prior_std", [("action", 1.0), ("noise", 0.7)])
def test_diffsac_losses_by_hand(prediction, prior_std):
    """Level-0 target, inner targets, the one-step actor loss and the loss through the chain, sample by sample."""
    diffsac = importlib.import_module("diffsac_jax")
    with jax.enable_x64(True):
        args = small_args(diffsac, gamma=0.9, prediction=prediction, prior_std=prior_std)
        agent, batch = make_agent(diffsac, args, "float64"), make_batch("float64")
        chain_key, critic_key, actor_key = jax.random.split(jax.random.key(2), 3)
        alpha, hand = np.exp(float(agent.log_alpha)), HandChain(agent, args)
        sample_chain = jax.jit(partial(diffsac.sample_chain, args))
        chain = sample_chain(agent, chain_key, batch.next_obs)
        latents, weight = np.asarray(chain.latents), np.where(batch.terminated, 0.0, 1.0)

        def log_likelihood(latents, obs, up_to):
            """sum_{k <= up_to} rho_k - ldj, and log p(a^K) as well where up_to = K."""
            ratios = [hand.log_ratio(obs, latents[k], latents[k - 1], k) for k in range(1, up_to + 1)]
            prior = log_normal(latents[-1], 0.0, np.full(2, prior_std)) if up_to == hand.num_steps else 0.0
            return sum(ratios) + prior - log_det(latents[0])

        j = np.asarray(jax.random.randint(critic_key, (B,), 1, hand.num_steps))
        step_key, noise_key = jax.random.split(actor_key)
        k = np.asarray(jax.random.randint(step_key, (B,), 1, hand.num_steps + 1))
        noise = np.asarray(jax.random.normal(noise_key, (B, 2)))
        assert set(j) == {1, 2} and set(k) == {1, 2, 3}  # every case occurs in the batch
        outer, inner, actor_terms = [], [], []
        for i in range(B):
            obs, next_obs = batch.obs[i], batch.next_obs[i]
            next_q = hand.q(agent.target_params, next_obs, latents[0, i], 0).min()
            value = next_q - alpha * log_likelihood(latents[:, i], next_obs, hand.num_steps)
            q = np.asarray(hand.critic(agent.critic_params, obs[None], batch.action[i : i + 1], 0))[:, 0]
            outer.append((q - batch.reward[i] - 0.9 * weight[i] * value) ** 2)
            target = next_q - alpha * log_likelihood(latents[:, i], next_obs, j[i])
            inner.append(weight[i] * (hand.q(agent.critic_params, next_obs, latents[j[i], i], j[i]) - target) ** 2)

            latent = latents[k[i], i]
            mean, std = hand.mean_std(next_obs, latent, k[i])
            next_latent = mean + std * noise[i]
            rho = hand.log_ratio(next_obs, latent, next_latent, k[i]) - (log_det(next_latent) if k[i] == 1 else 0.0)
            q = hand.q(agent.critic_params, next_obs, next_latent, k[i] - 1).min()
            actor_terms.append(weight[i] * (alpha * rho - q))

        critic_loss = jax.jit(diffsac.critic_loss, static_argnums=1)
        loss, metrics = critic_loss(agent.critic_params, args, agent, critic_key, batch, chain)
        np.testing.assert_allclose(loss, np.mean(outer + inner, axis=0).sum(), rtol=1e-9)
        np.testing.assert_allclose(metrics["losses/qf_loss"], np.mean(outer), rtol=1e-9)
        actor_loss = jax.jit(diffsac.actor_loss, static_argnums=1)
        loss, _ = actor_loss(agent.actor_params, args, agent, actor_key, batch, chain)
        np.testing.assert_allclose(loss, np.mean(actor_terms), rtol=1e-9)

        # Through the chain: at s, action-level critics only.
        args = dataclasses.replace(args, backprop_through_chain=True)
        loss, _ = critic_loss(agent.critic_params, args, agent, critic_key, batch, chain)
        np.testing.assert_allclose(loss, np.mean(outer, axis=0).sum(), rtol=1e-9)
        at_obs = np.asarray(sample_chain(agent, actor_key, batch.obs).latents)
        terms = [
            alpha * log_likelihood(at_obs[:, i], batch.obs[i], hand.num_steps)
            - hand.q(agent.critic_params, batch.obs[i], at_obs[0, i], 0).min()
            for i in range(B)
        ]
        actor_loss = jax.jit(diffsac.chain_actor_loss, static_argnums=1)
        loss, _ = actor_loss(agent.actor_params, args, agent, actor_key, batch, chain)
        np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-9)


def test_one_denoising_step_has_no_inner_critics():
    """At K = 1 no level is drawn: the critic's loss does not depend on its key, with K = 3 it does."""
    diffsac = importlib.import_module("diffsac_jax")
    for num_steps in (1, 3):
        args = small_args(diffsac, num_denoising_steps=num_steps)
        agent, batch = make_agent(diffsac, args), make_batch()

        @jax.jit
        def loss(key):
            chain = diffsac.sample_chain(args, agent, jax.random.key(0), batch.next_obs)
            return diffsac.critic_loss(agent.critic_params, args, agent, key, batch, chain)[0]

        assert (loss(jax.random.key(1)) == loss(jax.random.key(2))) == (num_steps == 1)


# ---------------------------------------------------------------------------------------------------------- one update


@pytest.fixture(scope="module")
def updates():
    """{algorithm: jitted update with the default small arguments}, compiled once for this module."""
    jitted = {}

    def get(algorithm, **settings):
        args = small_args(algorithm, **settings)
        if args not in jitted:
            jitted[args] = jax.jit(partial(algorithm.update, args))
        return args, jitted[args]

    return get


def test_every_parameter_gets_a_gradient(algorithm, updates):
    """From the agent's own start: after a few updates every array has moved; from random values, every noise level."""
    args, update = updates(algorithm)
    batch = make_batch(terminated=False)
    start = initial_agent(algorithm, args)
    agent = start
    for key in jax.random.split(jax.random.key(4), 4):
        agent, _ = update(agent, key, batch)
    for name in LEARNED:
        before, after = getattr(start, name), jax.device_get(getattr(agent, name))
        for path, x in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: np.abs(x - y), before, after)):
            assert np.max(x) > 0, f"{name}{jax.tree_util.keystr(path)} did not move"
            if "noise_logits" in jax.tree_util.keystr(path):
                assert np.all(x > 0), "a noise level did not move"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(agent))


def test_targets_move_by_polyak(algorithm, updates):
    args, update = updates(algorithm)
    agent = make_agent(algorithm, args)
    after, _ = update(agent, jax.random.key(0), make_batch())
    new = jax.device_get(after.critic_params)
    expected = jax.tree.map(lambda t, q: (1 - args.tau) * t + args.tau * q, agent.target_params, new)
    assert_trees_close(after.target_params, expected, rtol=1e-5, atol=1e-7)
    assert args.tau == 0.005


def test_terminated_transitions_do_not_bootstrap(algorithm, updates):
    """Where an episode terminated, what the next observation is changes nothing; elsewhere it does."""
    args, update = updates(algorithm)
    agent, key = make_agent(algorithm, args), jax.random.key(0)
    for terminated in (True, False):
        batch = make_batch(terminated=terminated)
        after, metrics = update(agent, key, batch)
        other, other_metrics = update(agent, key, batch.replace(next_obs=batch.next_obs + 1.0))
        if terminated:
            for name in LEARNED:
                assert_trees_close(getattr(after, name), getattr(other, name), rtol=0, atol=0)
        else:
            assert abs(metrics["losses/qf_loss"] - other_metrics["losses/qf_loss"]) > 1e-3


@pytest.mark.parametrize("direction", [1, -1])
def test_temperature_moves_towards_the_target_entropy(algorithm, updates, direction):
    """Up where the policy has less entropy than the target, down where it has more. Adam's first step is q_lr."""
    args, update = updates(algorithm)
    # At the start the policy is wide; with random parameters it is narrow.
    agent = make_agent(algorithm, args) if direction == 1 else initial_agent(algorithm, args)
    after, metrics = update(agent, jax.random.key(0), make_batch(terminated=False))
    assert np.sign(args.target_entropy(2) - metrics["losses/entropy"]) == direction
    np.testing.assert_allclose(after.log_alpha - agent.log_alpha, direction * args.q_lr, rtol=1e-3)


def test_default_target_entropy():
    sac, diffsac = importlib.import_module("sac_jax"), importlib.import_module("diffsac_jax")
    assert sac.Args().target_entropy(3) == -3.0
    assert diffsac.Args().target_entropy(3) == pytest.approx(-3 * 1.78, abs=0.03)
    assert diffsac.Args(target_entropy_scale=2.0).target_entropy(3) == -6.0


# ------------------------------------------------------------------------------------------------------ training steps


def start_training(algorithm, args, env, seeds):
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return jax.jit(jax.vmap(partial(algorithm.init_state, args, env)))(keys)


def test_buffer_holds_what_each_transition_ended_in():
    """Truncated steps are stored as not terminated, with the observation before the reset: they bootstrap from it."""
    algorithm = importlib.import_module("sac_jax")  # the training section is the same in all of them
    args = small_args(
        algorithm, num_envs=2, learning_starts=100, total_timesteps=100, log_frequency=100, eval_frequency=100
    )
    env = envs.make_env("tests.test_envs:Grid-v0", 2, env_kwargs='{"max_episode_steps": 4}')
    state, log = algorithm.train_chunk(args, env, start_training(algorithm, args, env, [0]), jnp.int32(0))
    rows = jax.tree.map(lambda x: np.asarray(x[0]).reshape(-1, 2, *x.shape[2:])[:50], state.buffer)  # [T, N, ..]
    done = np.asarray(log.done[:, 0])
    # This environment counts its steps in the observation, and terminates where the first action is above 0.9.
    np.testing.assert_array_equal(rows.next_obs[..., 0], rows.obs[..., 0] + 1)
    np.testing.assert_array_equal(rows.terminated, rows.action[..., 0] > 0.9)
    np.testing.assert_array_equal(done, rows.terminated | (rows.next_obs[..., 0] == 4))
    np.testing.assert_array_equal(rows.obs[1:, :, 0], np.where(done[:-1], 0, rows.next_obs[:-1, :, 0]))
    truncated = done & ~rows.terminated
    assert truncated.sum() > 5 and rows.terminated.sum() > 1
    assert np.all((rows.action >= -1) & (rows.action <= 1)) and rows.action.std() > 0.5  # uniform before learning


PENDULUM = dict(total_timesteps=120, learning_starts=40, log_frequency=40, eval_frequency=120, batch_size=8)


@pytest.fixture(scope="module")
def side_by_side():
    """{algorithm: runs of one agent and of two, as {seeds: [state at the start, after warm-up, after learning]}}."""
    results = {}

    def get(algorithm):
        if algorithm not in results:
            args = small_args(algorithm, num_denoising_steps=2, buffer_size=200, **PENDULUM)
            single, both = (envs.make_env("Pendulum-v1", 1, n, '{"max_episode_steps": 15}') for n in (1, 2))
            runs = {}
            for seeds in [(1,), (2,), (1, 2), (1, 5), (1, "NaN")]:
                env = single if len(seeds) == 1 else both
                state = start_training(algorithm, args, env, [2 if s == "NaN" else s for s in seeds])
                states = [jax.device_get(key_data(state))]
                state, _ = algorithm.train_chunk(args, env, state, jnp.int32(0))
                states.append(jax.device_get(key_data(state)))
                if "NaN" in seeds:
                    poison = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.agent.actor_params)
                    state = state.replace(agent=state.agent.replace(actor_params=poison))
                for step in (40, 80):
                    state, _ = algorithm.train_chunk(args, env, state, jnp.int32(step))
                states.append(jax.device_get(key_data(state)))
                runs[seeds] = states
            results[algorithm] = args, runs
        return results[algorithm]

    return get


def key_data(state):
    return state.replace(key=jax.random.key_data(state.key))


def agent_of(state, index):
    return jax.tree.map(lambda x: x[index], state)


def test_warm_up_of_agents_side_by_side_equals_single_runs(algorithm, side_by_side):
    """Keys, environments and all warm-up transitions are bit-equal to the single run's; parameters to 1e-6."""
    _, runs = side_by_side(algorithm)
    for index, seed in enumerate((1, 2)):
        for time in (0, 1):
            ours, single = agent_of(runs[1, 2][time], index), agent_of(runs[(seed,)][time], 0)
            for part in ("buffer", "env_state", "obs", "key"):
                assert_trees_close(getattr(ours, part), getattr(single, part), rtol=0, atol=0)
            assert_trees_close(ours.agent, single.agent, rtol=1e-6, atol=1e-6)
    assert np.any(runs[1, 2][1].buffer.obs[0] != runs[1, 2][1].buffer.obs[1])


def test_number_of_updates(algorithm, side_by_side):
    """No update during the warm-up, then one per environment step."""
    args, runs = side_by_side(algorithm)
    for states in runs.values():
        for name in ("actor_opt_state", "critic_opt_state", "alpha_opt_state"):
            counts = [getattr(state.agent, name)[0].count for state in states]
            np.testing.assert_array_equal(counts[1], 0)
            np.testing.assert_array_equal(counts[2], args.total_timesteps - args.learning_starts)


@pytest.mark.parametrize("other", [5, "NaN"])
def test_other_agents_change_nothing(algorithm, side_by_side, other):
    """An agent's results are bit-identical whatever the other agent's seed is, and when the other turns NaN."""
    _, runs = side_by_side(algorithm)
    ours, theirs = agent_of(runs[1, 2][2], 0), agent_of(runs[1, other][2], 0)
    assert_trees_close(ours, theirs, rtol=0, atol=0)
    second = jax.tree.leaves(agent_of(runs[1, other][2], 1).agent.actor_params)
    assert np.isnan(second[0]).all() == (other == "NaN")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours.agent))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_one_update_of_agents_side_by_side(algorithm, dtype, tolerance):
    """From one common state and batch, one update agrees with the single agent's, relative to each array's scale."""
    with jax.enable_x64(dtype == "float64"):
        args = small_args(algorithm, num_denoising_steps=2)
        agents = [make_agent(algorithm, args, dtype, seed) for seed in (0, 1)]
        batch, keys = make_batch(dtype, size=32), jax.random.split(jax.random.key(5), 2)
        update = jax.jit(partial(algorithm.update, args))
        # A few updates first: in Adam's first step rounding decides the sign of what has no gradient.
        agents = [update(update(agent, keys[0], batch)[0], keys[1], batch)[0] for agent in agents]
        stack = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(agents))
        both_update = jax.jit(jax.vmap(partial(algorithm.update, args), in_axes=(0, 0, None)))
        both, metrics = jax.device_get(both_update(stack, keys, batch))
        worst = 0.0
        for index in range(2):
            single, single_metrics = jax.device_get(update(agents[index], keys[index], batch))
            ours = [getattr(agent_of(both, index), name) for name in LEARNED]
            theirs = [getattr(single, name) for name in LEARNED]
            assert all(x.dtype == dtype for x in jax.tree.leaves(ours))
            differences = jax.tree.map(
                lambda x, y: float(np.max(np.abs(x - y)) / np.max(np.abs(y))),
                (ours, agent_of(metrics, index)),
                (theirs, single_metrics),
            )
            worst = max(worst, *jax.tree.leaves(differences))
        print(f"{algorithm.__name__}, {dtype}: one update side by side differs by {worst:.1e}")
        assert worst < tolerance


def test_each_jitted_function_compiles_once(algorithm, tmp_path, caplog):
    """Over a whole run: the chunk once, the evaluation's rollout once per policy."""
    settings = {**PENDULUM, "eval_frequency": 40}
    args = small_args(algorithm, num_denoising_steps=2, eval_episodes=2, runs_folder=str(tmp_path), **settings)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        algorithm.main(args)
    compiled = re.findall(r"Compiling (?:jit\()?(\w+)", caplog.text)
    counts = {name: compiled.count(name) for name in ("train_chunk", "_start", "_rollout")}
    assert counts == {"train_chunk": 1, "_start": 1, "_rollout": 2}
