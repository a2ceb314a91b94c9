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
from tests.scripts.test_diffsac import SIZES, SMALL, agent_and_batch

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
    _, (stats, _) = module.critic_loss(agent.critic.params, args, agent, key, batch)
    for critic in range(2):
        got = jax.tree.map(lambda v, critic=critic: np.asarray(v[critic]), stats["BatchNorm_0"])
        np.testing.assert_allclose(got["mean"], 0.01 * x.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["var"], 0.99 + 0.01 * x.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_no_gradient_into_the_next_value(name):
    """The gradient is that of the error against constants; the next rows act on it through the statistics alone."""
    with jax.enable_x64(True):
        module, args, agent, batch = make(name, "float64")
        key = jax.random.key(3)
        next_action, next_log_lik = module.sample_action(args, agent, key, batch.next_obs)

        def both(params):
            variables = {"params": params, "batch_stats": agent.critic.batch_stats}
            obs, action = jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, next_action])
            q, _ = agent.critic.apply_fn(variables, obs, action, True, mutable=["batch_stats"])
            return jnp.split(q, 2, axis=1)

        next_value = both(agent.critic.params)[1].min(axis=0) - agent.alpha * next_log_lik
        target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
        expected = jax.grad(lambda params: jnp.mean((both(params)[0] - target) ** 2, axis=1).sum())(agent.critic.params)
        got, _ = jax.grad(module.critic_loss, has_aux=True)(agent.critic.params, args, agent, key, batch)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), got, expected)


def test_running_statistics_converge_to_those_of_a_fixed_buffer():
    """With parameters that stay: after many batches the input's statistics are those of the buffer's rows."""
    agent = make("crossq_jax")[2]
    rng = np.random.default_rng(5)
    obs = jnp.asarray(3.0 + 2.0 * rng.normal(size=(500, 3)), jnp.float32)
    action = jnp.asarray(rng.uniform(-1, 1, (500, 2)), jnp.float32)

    @jax.jit
    def step(stats, key):
        rows = jax.random.randint(key, (64,), 0, 500)
        variables = {"params": agent.critic.params, "batch_stats": stats}
        _, new = agent.critic.apply_fn(variables, obs[rows], action[rows], True, mutable=["batch_stats"])
        return new["batch_stats"], None

    keys = jax.random.split(jax.random.key(0), 3000)
    stats, _ = jax.lax.scan(step, agent.critic.batch_stats, keys)
    x = np.concatenate([obs, action], axis=1)
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"][0], x.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"][0], x.var(axis=0), rtol=0.05)


class Nothing(nn.Module):
    """In the place of batch normalisation."""

    use_running_average: bool
    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "mean", lambda: jnp.zeros(1))
        return x


def test_without_normalisation_an_update_is_sacs_without_target_networks(monkeypatch):
    with jax.enable_x64(True):
        monkeypatch.setattr(crossq_jax.nn, "BatchNorm", Nothing)
        module, args, agent, batch = make("crossq_jax", "float64", policy_frequency=1, q_b1=0.9)
        sac_args = sac_jax.Args(hidden_dim=SMALL["hidden_dim"], alpha=0.3, policy_lr=args.policy_lr)
        sac = jax.jit(partial(sac_jax.init_agent, sac_args, SIZES))(jax.random.key(0))
        sac = sac.replace(
            actor=sac.actor.replace(params=agent.actor.params, opt_state=agent.actor.opt_state),
            critic=sac.critic.replace(
                params={"params": agent.critic.params}, opt_state=sac.critic.tx.init({"params": agent.critic.params})
            ),
            target_params={"params": agent.critic.params},
            temperature=sac.temperature.replace(params=agent.temperature.params, opt_state=agent.temperature.opt_state),
        )
        key = jax.random.key(4)
        after, metrics = module.update(args, agent, key, batch, 0)
        expected, sac_metrics = sac_jax.update(sac_args, sac, key, batch, 0)
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        jax.tree.map(close, after.critic.params, expected.critic.params["params"])
        jax.tree.map(close, after.actor.params, expected.actor.params)
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
