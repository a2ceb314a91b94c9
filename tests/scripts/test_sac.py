"""One update of SAC term by term; updates of SAC and its kin, and agents trained side by side against single ones."""

import importlib
import inspect
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from common import replay
from envs import make_env
from tests.agents import random_agent, small_args

OTHERS = ["diffsac_jax", "diffcrossq_jax", "crossq_jax"]
SIZES = SimpleNamespace(observation_size=3, action_size=2)  # what init_agent asks of an environment
B = 6


@pytest.fixture(params=["sac_jax", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)])
def algorithm(request):
    return importlib.import_module(request.param)


@cache
def initial_agent(algorithm, args):
    """With the optimisers of `make_agent`, so that one compiled update serves both."""
    agent = jax.jit(partial(algorithm.init_agent, args, SIZES))(jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(make_agent(algorithm, args)), jax.device_get(jax.tree.leaves(agent)))


def learned(agent):
    """All parameters of an agent by name."""
    return {
        "actor": agent.actor.params,
        "critic": agent.critic.params,
        "target": getattr(agent, "target_params", {}),  # CrossQ has none
        "temperature": agent.temperature.params,
    }


def make_agent(algorithm, args, dtype="float32", seed=0):
    return jax.device_get(random_agent(algorithm, args, 3, 2, dtype, seed))


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


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def assert_trees_close(x, y, **tolerance):
    """Leaf by leaf: the optimisers of agents that were made apart are not equal to Python."""
    ours, theirs = (jax.tree_util.tree_leaves_with_path(jax.device_get(tree)) for tree in (x, y))
    for (path, a), (other_path, b) in zip(ours, theirs, strict=True):
        assert path == other_path
        np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(path))


# ------------------------------------------------------------------------------------------------------ losses by hand


def test_sac_losses_by_hand():
    """Both losses, written out sample by sample in float64."""
    sac = importlib.import_module("sac_jax")
    with jax.enable_x64(True):
        args = small_args(sac, gamma=0.9)
        agent, batch = make_agent(sac, args, "float64"), make_batch("float64")
        key, alpha = jax.random.key(2), float(agent.alpha)
        noise = np.asarray(jax.random.normal(key, (B, 2)))
        actor, critic = jax.jit(agent.actor.apply_fn), jax.jit(agent.critic.apply_fn)

        def act(i, obs):
            mean, log_std = (np.asarray(x)[0] for x in actor(agent.actor.params, obs[i : i + 1]))
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
            critic_errors.append((q(agent.critic.params, i, batch.obs, batch.action[i]) - target) ** 2)
            action, log_prob = act(i, batch.obs)
            actor_terms.append(alpha * log_prob - q(agent.critic.params, i, batch.obs, action).min())

        loss, metrics = jax.jit(sac.critic_loss, static_argnums=1)(agent.critic.params, args, agent, key, batch)
        np.testing.assert_allclose(loss, np.mean(critic_errors, axis=0).sum(), rtol=1e-10)
        np.testing.assert_allclose(metrics["losses/qf_loss"], np.mean(critic_errors), rtol=1e-10)
        loss, _ = jax.jit(sac.actor_loss, static_argnums=1)(agent.actor.params, args, agent, key, batch)
        np.testing.assert_allclose(loss, np.mean(actor_terms), rtol=1e-10)


# ---------------------------------------------------------------------------------------------------------- one update


@pytest.fixture(scope="module")
def updates():
    """{algorithm: small arguments and the jitted update}, compiled once for this module."""
    jitted = {}

    def get(algorithm):
        args = small_args(algorithm, alpha=0.3)
        if args not in jitted:
            jitted[args] = jax.jit(partial(algorithm.update, args))
        return args, jitted[args]

    return get


@pytest.mark.parametrize("algorithm", ["sac_jax", "diffcrossq_jax"], indirect=True)
def test_every_parameter_gets_a_gradient(algorithm, updates):
    """From the agent's own start: after a few updates every array has moved; from random values, every noise level."""
    args, update = updates(algorithm)
    batch = make_batch(terminated=False, size=32)
    start = initial_agent(algorithm, args)
    agent = start
    for key in jax.random.split(jax.random.key(4), 4):
        agent, _ = update(agent, key, batch, 0)
    for name, after in jax.device_get(learned(agent)).items():
        before = learned(start)[name]
        for path, x in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: np.abs(x - y), before, after)):
            assert np.max(x) > 0, f"{name}{jax.tree_util.keystr(path)} did not move"
            if "noise_logits" in jax.tree_util.keystr(path):
                assert np.all(x > 0), "a noise level did not move"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(agent))


WITH_TARGETS = pytest.mark.parametrize("algorithm", ["sac_jax", "diffsac_jax", "diffwpo_jax"], indirect=True)
ALL = pytest.mark.parametrize(
    "algorithm", ["sac_jax", "diffsac_jax", "diffwpo_jax", "diffcrossq_jax", "crossq_jax"], indirect=True
)


@WITH_TARGETS
def test_targets_move_by_polyak(algorithm, updates):
    args, update = updates(algorithm)
    agent = make_agent(algorithm, args)
    after, _ = update(agent, jax.random.key(0), make_batch(size=32), 0)
    assert_trees_close(after.target_params, polyak(args, agent, after), rtol=1e-5, atol=1e-7)
    assert args.tau == 0.005


def polyak(args, before, after):
    """What the targets should be after an update."""
    new = jax.device_get(after.critic.params)
    return jax.tree.map(lambda t, q: (1 - args.tau) * t + args.tau * q, before.target_params, new)


@WITH_TARGETS
def test_terminated_transitions_do_not_bootstrap(algorithm, updates):
    """Where an episode terminated, what the next observation is changes nothing; elsewhere it does.

    (CrossQ's joint batch normalises with the next observations; test_crossq.py has its target.)
    """
    args, update = updates(algorithm)
    agent, key = make_agent(algorithm, args), jax.random.key(0)
    for terminated in (True, False):
        batch = make_batch(terminated=terminated, size=32)
        after, metrics = update(agent, key, batch, 0)
        other, other_metrics = update(agent, key, batch.replace(next_obs=batch.next_obs + 1.0), 0)
        if terminated:
            assert_trees_close(learned(after), learned(other), rtol=0, atol=0)
        else:
            assert abs(metrics["losses/qf_loss"] - other_metrics["losses/qf_loss"]) > 1e-3


def test_the_temperature_rises_where_the_policy_has_less_entropy_than_the_target(updates):
    """Far out, where tanh is flat, little of its width is left. (Where it has more: first steps, below.)"""
    sac = importlib.import_module("sac_jax")
    args, update = updates(sac)
    agent = initial_agent(sac, args)
    agent = agent.replace(actor=agent.actor.replace(params=jax.tree.map(lambda x: x + 2.0, agent.actor.params)))
    after, metrics = update(agent, jax.random.key(0), make_batch(terminated=False, size=32), 0)
    assert metrics["losses/entropy"] < args.target_entropy(2) == -2.0
    for own in (sac, importlib.import_module("crossq_jax")):
        assert small_args(own, target_entropy_scale=2.5).target_entropy(2) == -5.0
    moved = after.temperature.params["log_alpha"] - agent.temperature.params["log_alpha"]
    np.testing.assert_allclose(moved, args.q_lr, rtol=1e-3)


@ALL
def test_the_start(algorithm):
    """The temperature is alpha, the critics differ, copies are copies; a chain has its noise levels and no drift."""
    args = small_args(algorithm, alpha=0.3)
    agent = initial_agent(algorithm, args)
    assert float(agent.alpha) == pytest.approx(0.3)
    for x in jax.tree.leaves(agent.critic.params):
        assert x.shape[0] == 2 and (np.ptp(x) == 0 or not np.array_equal(x[0], x[1]))
    for copy, original in (("target_params", agent.critic), ("target_actor_params", agent.actor)):
        if hasattr(agent, copy):
            assert_trees_close(getattr(agent, copy), original.params, rtol=0, atol=0)
    if hasattr(algorithm, "diffusion"):
        drift, schedule = algorithm.policy_terms(args, agent, make_batch().obs)
        np.testing.assert_allclose(schedule.beta, np.broadcast_to([[[0.05]], [[0.325]], [[0.6]]], (3, B, 2)), rtol=1e-5)
        assert not np.any(drift(jnp.ones((B, 2)), 1))


@ALL
def test_first_steps_have_their_own_rates_and_gradients(algorithm, updates):
    """At the start the entropy is above the target: the temperature falls by q_lr; the actor moves by policy_lr.

    Adam's first step has the gradient's sign only: its first moment is a tenth of the gradient.
    """
    args, update = updates(algorithm)
    agent = initial_agent(algorithm, args)
    agent = agent.replace(temperature=agent.temperature.replace(params={"log_alpha": np.log(np.float32(0.5))}))
    after, metrics = update(agent, jax.random.key(0), make_batch(terminated=False, size=32), 0)
    assert metrics["losses/entropy"] > args.target_entropy(2) + 0.5
    moved = after.temperature.params["log_alpha"] - agent.temperature.params["log_alpha"]
    np.testing.assert_allclose(moved, -args.q_lr, rtol=1e-3)
    gradient = 10 * after.temperature.opt_state[0].mu["log_alpha"]
    np.testing.assert_allclose(gradient, 0.5 * (metrics["losses/entropy"] - args.target_entropy(2)), rtol=1e-4)
    for part, rate in (("actor", args.policy_lr), ("critic", args.q_lr)):
        new, old = (getattr(x, part).params for x in (after, agent))
        steps = jax.tree.map(lambda x, y: np.abs(x - y).max(), new, old)
        np.testing.assert_allclose(max(jax.tree.leaves(steps)), rate, rtol=1e-2)
    if hasattr(agent, "multiplier"):  # 0.3 at the start; the bound is 0.2 for each of two dimensions
        gradient = 10 * after.multiplier.opt_state[0].mu["log"]
        np.testing.assert_allclose(gradient, -0.3 * (metrics["diffusion/kl"] - 0.4), rtol=1e-4)


MOMENTUM = (("mu", np.float32(1e3)), ("nu", np.float32(1.0)))


@ALL
def test_the_actor_learns_from_the_critics_that_were_just_updated(algorithm, updates):
    """As in CleanRL: an optimiser with momentum takes them far away, to where the actor's gradient is another."""
    args, update = updates(algorithm)
    agent, batch, key = make_agent(algorithm, args), make_batch(size=32), jax.random.key(0)
    adam, *rest = agent.critic.opt_state
    adam = adam._replace(**{name: jax.tree.map(lambda x, v=v: x + v, getattr(adam, name)) for name, v in MOMENTUM})
    agent = agent.replace(
        critic=agent.critic.replace(opt_state=(adam, *rest)),
        temperature=agent.temperature.replace(params={"log_alpha": np.log(np.float32(1e-3))}),
    )
    after, _ = update(agent, key, batch, 0)
    actor_key = jax.random.split(key)[1]
    actor_key = jax.random.split(actor_key)[0] if hasattr(algorithm, "diffusion") else actor_key
    gradient = jax.jit(jax.grad(algorithm.actor_loss, has_aux=True), static_argnums=1)
    of_new, of_old = (
        flat(gradient(agent.actor.params, args, x, actor_key, batch)[0])
        for x in (agent.replace(critic=after.critic), agent)
    )
    apart = np.abs(of_new - of_old).max()
    assert apart > 0.005 * np.abs(of_new).max()
    assert np.abs(10 * flat(after.actor.opt_state[0].mu) - of_new).max() < 0.02 * apart


def test_the_actor_may_learn_more_rarely():
    """Actor and temperature at every third update, from the first on; critics and targets at every one."""
    sac = importlib.import_module("sac_jax")
    args = small_args(sac, policy_frequency=3)
    agent, update, batch = make_agent(sac, args), jax.jit(partial(sac.update, args)), make_batch(size=32)
    for index in range(4):
        after, _ = update(agent, jax.random.key(index), batch, index)
        for part, due in (("critic", True), ("actor", index % 3 == 0), ("temperature", index % 3 == 0)):
            assert getattr(after, part).step == getattr(agent, part).step + due, (part, index)
        assert_trees_close(after.target_params, polyak(args, agent, after), rtol=1e-5, atol=1e-7)
        agent = after


@ALL
def test_the_deterministic_policy_by_hand(algorithm):
    """tanh of the Gaussian's mean, or of the chain of means from 0."""
    args = small_args(algorithm)
    agent, obs = make_agent(algorithm, args), make_batch().obs
    terms = algorithm.policy_terms(args, agent, obs) if hasattr(algorithm, "diffusion") else None
    if terms:
        drift, schedule = terms
        latent = jnp.zeros((B, 2))
        for k in range(args.num_denoising_steps, 0, -1):
            latent, _ = algorithm.diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k)
    else:
        latent, _ = agent.actor.apply_fn(agent.actor.params, obs)
    np.testing.assert_allclose(algorithm.deterministic_action(args, agent, obs), np.tanh(latent), rtol=1e-4, atol=1e-6)


def test_the_critics_loss_of_diffwpo_is_diffsacs():
    """Which test_diffsac.py writes out."""
    diffsac, diffwpo = (importlib.import_module(name) for name in ("diffsac_jax", "diffwpo_jax"))
    assert inspect.getsource(diffwpo.critic_loss) == inspect.getsource(diffsac.critic_loss)


# ------------------------------------------------------------------------------------------------------ training steps


@cache
def compiled_start(algorithm, args, env):
    """Compiled once, so that the chunk is too: the optimisers of agents made apart are not equal to JAX."""
    return jax.jit(jax.vmap(partial(algorithm.init_training, args, env)))


def start_training(algorithm, args, env, seeds):
    return compiled_start(algorithm, args, env)(jax.vmap(jax.random.key)(jnp.asarray(seeds)))


@pytest.fixture(scope="module")
def warmed_up():
    """SAC after a chunk of warm-up on two environments cut after 4 steps: arguments, environment, state, episodes.

    The training section is the same in all of them.
    """
    sac = importlib.import_module("sac_jax")
    settings = dict(num_envs=2, learning_starts=100, total_timesteps=200, log_frequency=100, eval_frequency=100)
    args = small_args(sac, **settings)
    env = make_env("tests.envs.test_gymnasium_env:Grid-v0", 2, env_kwargs='{"max_episode_steps": 4}')
    state, episodes, _ = sac.train_chunk(args, env, start_training(sac, args, env, [0]), jnp.int32(0))
    yield args, env, state, episodes
    env.close()


def test_buffer_holds_what_each_transition_ended_in(warmed_up):
    """Truncated steps are stored as not terminated, with the observation before the reset: they bootstrap from it."""
    _, _, state, episodes = warmed_up
    rows = jax.tree.map(lambda x: np.asarray(x[0]).reshape(-1, 2, *x.shape[2:])[:50], state.buffer)  # [T, N, ..]
    done = np.asarray(episodes.done[0])
    # This environment counts its steps in the observation, and terminates where the first action is above 0.9.
    np.testing.assert_array_equal(rows.next_obs[..., 0], rows.obs[..., 0] + 1)
    np.testing.assert_array_equal(rows.terminated, rows.action[..., 0] > 0.9)
    np.testing.assert_array_equal(done, rows.terminated | (rows.next_obs[..., 0] == 4))
    np.testing.assert_array_equal(rows.obs[1:, :, 0], np.where(done[:-1], 0, rows.next_obs[:-1, :, 0]))
    truncated = done & ~rows.terminated
    assert truncated.sum() > 5 and rows.terminated.sum() > 1
    assert np.all((rows.action >= -1) & (rows.action <= 1)) and rows.action.std() > 0.5  # uniform before learning


def test_after_the_warm_up_the_policy_acts_and_all_rows_are_learned_from(warmed_up):
    """A policy at the end of the box; rewards of 1e4 in all rows of the buffer but the first."""
    sac, (args, env, state, _) = importlib.import_module("sac_jax"), warmed_up
    state = jax.tree.map(jnp.copy, state)  # a chunk's state is donated
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 100.0 if "Dense_2" in jax.tree_util.keystr(path) and "bias" in str(path) else x,
        state.agent.actor.params,
    )
    reward = state.buffer.reward
    buffer = state.buffer.replace(reward=reward.at[0].set(jnp.where(jnp.arange(len(reward[0])) < 2, 0.0, 1e4)))
    agent = state.agent.replace(actor=state.agent.actor.replace(params=params))
    state, _, metrics = sac.train_chunk(args, env, state.replace(agent=agent, buffer=buffer), jnp.int32(100))
    action = np.asarray(state.buffer.action[0])
    assert np.abs(action[:100].mean()) < 0.3 and np.all(action[100:200] < -0.99)
    assert metrics["losses/qf_loss"][0] > 1e7


@struct.dataclass
class Witness:
    """In the agent's place: what each update was given."""

    index: jax.Array
    action: jax.Array
    count: jax.Array


def test_the_updates_of_a_step(monkeypatch):
    """Their indices go on, each has a batch of its own with the newest rows in it, and the buffer holds whole steps.

    Four environments, one update for every two of their steps, and the step from 16 to 20 after a warm-up of 8.
    """
    sac = importlib.import_module("sac_jax")  # the training section is the same in all of them
    steps = dict(total_timesteps=400, learning_starts=8, log_frequency=400, eval_frequency=400)
    args = sac.Args(num_envs=4, updates_per_step=0.5, buffer_size=22, batch_size=64, **steps)
    env = make_env("tests.jax_environments:Walk", 4)
    state = jax.jit(partial(sac.init_training, args, env))(jax.random.key(0))
    assert len(state.buffer.reward) == 20

    def update(args, seen, key, batch, index):
        at = seen.count
        action = seen.action.at[at].set(batch.action[:, 0])
        return Witness(seen.index.at[at].set(index), action, at + 1), {"x": jnp.zeros(())}

    monkeypatch.setattr(sac, "update", update)
    monkeypatch.setattr(sac, "sample_action", lambda args, agent, key, obs: (jnp.full((4, 1), 0.5), None))
    state = state.replace(agent=Witness(jnp.zeros(9, int), jnp.zeros((9, 64)), jnp.int32(0)))
    state, _ = jax.jit(partial(sac.train_step, args, env))(state, jnp.int32(16))
    seen = jax.device_get(state.agent)
    assert seen.count == 2 and seen.index[:2].tolist() == [4, 5]  # after (16 - 8) / 4 steps of two updates
    assert not np.array_equal(*seen.action[:2]) and all(0.5 in actions for actions in seen.action[:2])


def test_the_policy_acts_with_its_noise_and_every_environment_has_its_own(monkeypatch):
    """Uniform in the warm-up; then, with zero weights, tanh of N(0, exp(-3)): log std lies between -5 and 2."""
    sac = importlib.import_module("sac_jax")
    monkeypatch.setattr(sac, "update", lambda args, agent, *_: (agent, {"x": jnp.zeros(())}))  # zero they stay
    steps = dict(total_timesteps=640, learning_starts=64, log_frequency=128, eval_frequency=640)
    args = small_args(sac, num_envs=64, updates_per_step=1 / 64, **steps)
    env = make_env("tests.jax_environments:Walk", 64)
    state = start_training(sac, args, env, [0])
    actor = state.agent.actor.replace(params=jax.tree.map(jnp.zeros_like, state.agent.actor.params))
    state, *_ = sac.train_chunk(args, env, state.replace(agent=state.agent.replace(actor=actor)), jnp.int32(0))
    action = np.asarray(state.buffer.action[0, :128, 0])
    assert len(set(action)) == 128
    assert action[:64].std() == pytest.approx(3**-0.5, abs=0.1)
    assert action[64:].std() == pytest.approx(0.21, abs=0.06)


PENDULUM = dict(total_timesteps=120, learning_starts=40, log_frequency=40, eval_frequency=120, batch_size=8)


@pytest.fixture(scope="module")
def side_by_side():
    """{algorithm: runs of one agent and of two, as {seeds: [state at the start, after warm-up, after learning]}}."""
    results = {}

    def get(algorithm):
        if algorithm not in results:
            args = small_args(algorithm, num_denoising_steps=2, buffer_size=200, **PENDULUM)
            single, both = (make_env("Pendulum-v1", 1, n, '{"max_episode_steps": 15}') for n in (1, 2))
            runs = {}
            for seeds in [(1,), (2,), (1, 2), (1, 5), (1, "NaN")]:
                env = single if len(seeds) == 1 else both
                state = start_training(algorithm, args, env, [2 if s == "NaN" else s for s in seeds])
                states = [jax.device_get(key_data(state))]
                state, *_ = algorithm.train_chunk(args, env, state, jnp.int32(0))
                states.append(jax.device_get(key_data(state)))
                if "NaN" in seeds:
                    poison = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.agent.actor.params)
                    actor = state.agent.actor.replace(params=poison)
                    state = state.replace(agent=state.agent.replace(actor=actor))
                for step in (40, 80):
                    state, *_ = algorithm.train_chunk(args, env, state, jnp.int32(step))
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
            for part in ("buffer", "env_state", "key"):
                assert_trees_close(getattr(ours, part), getattr(single, part), rtol=0, atol=0)
            assert_trees_close(ours.agent, single.agent, rtol=1e-6, atol=1e-6)
    assert np.any(runs[1, 2][1].buffer.obs[0] != runs[1, 2][1].buffer.obs[1])


def test_number_of_updates(algorithm, side_by_side):
    """No update during the warm-up, then one per environment step."""
    args, runs = side_by_side(algorithm)
    for states in runs.values():
        for name, every in (("actor", args.policy_frequency), ("critic", 1), ("temperature", args.policy_frequency)):
            updates = -(-(args.total_timesteps - args.learning_starts) // every)
            parts = [getattr(state.agent, name) for state in states]
            for counts in ([part.opt_state[0].count for part in parts], [part.step for part in parts]):
                np.testing.assert_array_equal(counts[1], 0)
                np.testing.assert_array_equal(counts[2], updates)


@pytest.mark.parametrize("other", [5, "NaN"])
def test_other_agents_change_nothing(algorithm, side_by_side, other):
    """An agent's results are bit-identical whatever the other agent's seed is, and when the other turns NaN."""
    _, runs = side_by_side(algorithm)
    ours, theirs = agent_of(runs[1, 2][2], 0), agent_of(runs[1, other][2], 0)
    assert_trees_close(ours, theirs, rtol=0, atol=0)
    second = jax.tree.leaves(agent_of(runs[1, other][2], 1).agent.actor.params)
    assert np.isnan(second[0]).all() == (other == "NaN")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours.agent))


def without_rounding(x, nu):
    """Zeros for parameters whose gradient is rounding to a hundredth or more: Adam's step of 1e-3 is off by 1e-5 then.

    That of 1e-7 of an array's largest gradients, so of gradients below 1e-5 of these. As of the biases before CrossQ's
    normalisation, which undoes them where a unit is active in all rows.
    """
    size = np.sqrt(nu)
    return np.where((size > 0) & (size <= 1e-5 * size.max()), 0.0, x)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_one_update_of_agents_side_by_side(algorithm, updates, dtype, tolerance):
    """From one common state and batch, one update agrees with the single agent's, relative to each array's scale."""
    with jax.enable_x64(dtype == "float64"):
        args, update = updates(algorithm)
        agents = [make_agent(algorithm, args, dtype, seed) for seed in (0, 1)]
        batch, keys = make_batch(dtype, size=32), jax.random.split(jax.random.key(5), 2)
        # A few updates first: in Adam's first step rounding decides the sign of what has no gradient.
        agents = [update(update(agent, keys[0], batch, 0)[0], keys[1], batch, 0)[0] for agent in agents]
        stack = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(agents))
        both_update = jax.jit(jax.vmap(partial(algorithm.update, args), in_axes=(0, 0, None, None)))
        both, metrics = jax.device_get(both_update(stack, keys, batch, 0))
        worst = 0.0
        for index in range(2):
            single, single_metrics = jax.device_get(update(agents[index], keys[index], batch, 0))
            ours, theirs = learned(agent_of(both, index)), learned(single)
            assert all(x.dtype == dtype for x in jax.tree.leaves(ours))
            for of in (ours, theirs):
                of["critic"] = jax.tree.map(without_rounding, of["critic"], single.critic.opt_state[0].nu)
            differences = jax.tree.map(
                lambda x, y: float(np.max(np.abs(x - y)) / np.max(np.abs(y))),
                (ours, agent_of(metrics, index)),
                (theirs, single_metrics),
            )
            worst = max(worst, *jax.tree.leaves(differences))
        print(f"{algorithm.__name__}, {dtype}: one update side by side differs by {worst:.1e}")
        assert worst < tolerance
