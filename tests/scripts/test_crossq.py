"""Identity 13: CrossQ's joint batch, its statistics, and SAC without target networks as its limit."""

import importlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossq_jax
import sac_jax
from tests.agents import largest_difference, random_agent
from tests.scripts.test_diffsac import SMALL, agent_and_batch

MODULES = ["crossq_jax", "diffcrossq_jax"]


def make(name, dtype="float32", **settings):
    module = importlib.import_module(name)
    fields = module.Args.__dataclass_fields__
    args = module.Args(**{k: v for k, v in {**SMALL, "alpha": 0.3, **settings}.items() if k in fields})
    return module, args, *agent_and_batch(module, args, dtype)


@pytest.mark.parametrize("name", MODULES)
def test_both_halves_of_the_joint_batch_share_the_statistics(name):
    """The input's running mean and variance move towards those of (s, a) and (s', a') together."""
    module, args, agent, batch = make(name)
    key = jax.random.key(3)
    next_action, _ = module.sample_action(args, agent, key, batch.next_obs)
    x = np.concatenate(
        [np.concatenate([batch.obs, batch.next_obs]), np.concatenate([batch.action, next_action])], axis=1
    )
    _, (stats, _) = jax.jit(module.critic_loss, static_argnums=1)(agent.critic.params, args, agent, key, batch)
    for critic in range(2):
        got = jax.tree.map(lambda v, critic=critic: np.asarray(v[critic]), stats["BatchNorm_0"])
        print(f"identity 13, {name}: mean of the batch {np.abs(100 * got['mean'] - x.mean(axis=0)).max():.1e} apart")
        np.testing.assert_allclose(got["mean"], 0.01 * x.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["var"], 0.99 + 0.01 * x.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_no_gradient_into_the_next_value(name):
    """The gradient is that of the error against constants; the next rows act on it through the statistics alone."""
    with jax.enable_x64(True):
        module, args, agent, batch = make(name, "float64")
        key = jax.random.key(3)
        next_action, next_log_lik = jax.jit(module.sample_action, static_argnums=0)(args, agent, key, batch.next_obs)

        def both(params):
            variables = {"params": params, "batch_stats": agent.critic.batch_stats}
            obs, action = jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, next_action])
            q, _ = agent.critic.apply_fn(variables, obs, action, True, mutable=["batch_stats"])
            return jnp.split(q, 2, axis=1)

        next_value = both(agent.critic.params)[1].min(axis=0) - agent.alpha * next_log_lik
        target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
        error = jax.jit(jax.grad(lambda params: jnp.mean((both(params)[0] - target) ** 2, axis=1).sum()))
        expected = error(agent.critic.params)
        gradient = jax.jit(jax.grad(module.critic_loss, has_aux=True), static_argnums=1)
        got, _ = gradient(agent.critic.params, args, agent, key, batch)
        print(f"identity 13, {name}: the critics' gradients differ by {largest_difference(got, expected):.1e}")
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), got, expected)


def test_running_statistics_converge_to_those_of_a_fixed_buffer():
    """With parameters that stay: after many batches the observations' statistics are those of the buffer's rows."""
    module, args, agent, batch = make("crossq_jax")
    rng = np.random.default_rng(5)
    obs = jnp.asarray(3.0 + 2.0 * rng.normal(size=(500, 3)), jnp.float32)

    @jax.jit
    def step(stats, key):
        rows = jax.random.randint(key, (2, len(batch.reward)), 0, 500)
        now = agent.replace(critic=agent.critic.replace(batch_stats=stats))
        drawn = batch.replace(obs=obs[rows[0]], next_obs=obs[rows[1]])
        return module.critic_loss(agent.critic.params, args, now, key, drawn)[1][0], None

    keys = jax.random.split(jax.random.key(0), 3000)
    stats, _ = jax.lax.scan(step, agent.critic.batch_stats, keys)
    mean, var = (stats["BatchNorm_0"][name][0][:3] for name in ("mean", "var"))
    print(f"identity 13: running mean {np.abs(mean - obs.mean(axis=0)).max():.3f} off", end=", ")
    print(f"variance {np.abs(var / obs.var(axis=0) - 1).max():.1%}")
    np.testing.assert_allclose(mean, obs.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(var, obs.var(axis=0), rtol=0.1)


def q_by_hand(agent, obs, action, running):
    """Both critics in float64, `[2, B]`, normalised by the running statistics or by the batch's."""
    params, stats = jax.tree.map(lambda x: np.asarray(x, np.float64), (agent.critic.params, agent.critic.batch_stats))
    both = []
    for c in range(2):
        x = np.concatenate([obs, action], axis=1, dtype=np.float64)
        for i in range(3):
            norm = f"BatchNorm_{i}"
            mean, var = (stats[norm]["mean"][c], stats[norm]["var"][c]) if running else (x.mean(axis=0), x.var(axis=0))
            x = (x - mean) / np.sqrt(var + 1e-3) * params[norm]["scale"][c] + params[norm]["bias"][c]
            x = x @ params[f"Dense_{i}"]["kernel"][c] + params[f"Dense_{i}"]["bias"][c]
            x = np.maximum(x, 0) if i < 2 else x
        both.append(x[:, 0])
    return np.stack(both)


def with_statistics(agent):
    """Running statistics away from 0 and 1."""
    rng = np.random.default_rng(6)
    stats = jax.tree.map(lambda x: np.float32(rng.uniform(0.5, 2.0, x.shape)), agent.critic.batch_stats)
    return agent.replace(critic=agent.critic.replace(batch_stats=stats))


@pytest.mark.parametrize("name", MODULES)
def test_the_actors_loss_by_hand(name):
    """alpha log pi, or alpha l, less the smaller Q with the running statistics."""
    module, args, agent, batch = make(name)
    agent, key = with_statistics(agent), jax.random.key(3)
    action, log_prob = module.sample_action(args, agent, key, batch.obs)
    expected = np.mean(0.3 * np.asarray(log_prob) - q_by_hand(agent, batch.obs, action, True).min(axis=0))
    loss, _ = module.actor_loss(agent.actor.params, args, agent, key, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_observations_far_from_zero_are_normalised(name):
    """Their variance as E[x^2] - E[x]^2 would be 0 in float32, or anything."""
    _, _, agent, batch = make(name)
    obs = np.float32(1000.0 + 0.1 * np.random.default_rng(7).normal(size=batch.obs.shape))
    variables = {"params": agent.critic.params, "batch_stats": agent.critic.batch_stats}
    q, _ = agent.critic.apply_fn(variables, obs, batch.action, True, mutable=["batch_stats"])
    np.testing.assert_allclose(q, q_by_hand(agent, obs, batch.action, False), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", MODULES)
def test_adams_b1(name):
    """0.5 for the critics: after the first step the first moment is half of the gradient."""
    _, args, agent, _ = make(name)
    gradient = jax.tree.map(jnp.ones_like, agent.critic.params)
    _, (moments, *_) = agent.critic.tx.update(gradient, agent.critic.tx.init(agent.critic.params))
    assert all(np.all(np.asarray(mu) == 0.5) for mu in jax.tree.leaves(moments.mu)) and args.q_b1 == 0.5


class Nothing(nn.Module):
    """In the place of batch normalisation."""

    use_running_average: bool
    momentum: float
    epsilon: float
    use_fast_variance: bool

    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "mean", lambda: jnp.zeros(1))
        return x


def test_without_normalisation_an_update_is_sacs_without_target_networks(monkeypatch):
    with jax.enable_x64(True):
        monkeypatch.setattr(crossq_jax.nn, "BatchNorm", Nothing)
        module, args, agent, batch = make("crossq_jax", "float64", policy_frequency=1, q_b1=0.9)
        sac_args = sac_jax.Args(hidden_dim=SMALL["hidden_dim"], alpha=0.3, policy_lr=args.policy_lr)
        sac = random_agent(sac_jax, sac_args, dtype="float64")
        sac = sac.replace(
            actor=sac.actor.replace(params=agent.actor.params, opt_state=agent.actor.opt_state),
            critic=sac.critic.replace(
                params={"params": agent.critic.params}, opt_state=sac.critic.tx.init({"params": agent.critic.params})
            ),
            target_params={"params": agent.critic.params},
            temperature=sac.temperature.replace(params=agent.temperature.params, opt_state=agent.temperature.opt_state),
        )
        key = jax.random.key(4)
        after, metrics = jax.jit(partial(module.update, args))(agent, key, batch, 0)
        expected, sac_metrics = jax.jit(partial(sac_jax.update, sac_args))(sac, key, batch, 0)
        critics = after.critic.params, expected.critic.params["params"]
        # Adam's first step has the gradient's sign alone: its moments have the rest.
        moments = after.critic.opt_state[0].mu, expected.critic.opt_state[0].mu["params"]
        for what, both in {"critics": critics, "their gradients": moments}.items():
            print(f"identity 13, an update as SAC's: {what} differ by {largest_difference(*both):.1e}")
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        jax.tree.map(close, *critics)
        jax.tree.map(close, *moments)
        jax.tree.map(close, after.actor.params, expected.actor.params)
        jax.tree.map(close, after.actor.opt_state[0].mu, expected.actor.opt_state[0].mu)
        jax.tree.map(close, after.temperature.params, expected.temperature.params)
        for tag in sac_metrics:
            close(metrics[tag], sac_metrics[tag])


@pytest.mark.parametrize("name", MODULES)
def test_actor_and_temperature_move_every_third_update_with_the_running_statistics(name):
    module, args, agent, batch = make(name)
    update = jax.jit(partial(module.update, args))
    for index in range(4):
        after, metrics = update(agent, jax.random.key(index), batch, index)
        moved = not np.array_equal(after.temperature.params["log_alpha"], agent.temperature.params["log_alpha"])
        assert moved == (index % 3 == 0) == bool(np.isfinite(metrics["losses/actor_loss"]))
        assert not np.array_equal(
            after.critic.batch_stats["BatchNorm_1"]["mean"], agent.critic.batch_stats["BatchNorm_1"]["mean"]
        )
        assert int(after.critic.step) == int(agent.critic.step) + 1
        agent = after
