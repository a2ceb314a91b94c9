"""The actor's loss of one denoising step: identities 8 and 9, listed in docs/correctness.md."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from common import diffusion, replay
from tests.test_exactness import DIFFUSION, load, make_args

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = SimpleNamespace(observation_size=3, action_size=2)


def random_agent(module, args, dtype):
    """An agent with random parameters, and a batch."""
    rng = np.random.default_rng(0)
    agent = jax.device_get(jax.jit(partial(module.init_agent, args, SIZES))(jax.random.key(0)))
    move = partial(jax.tree.map, lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype))
    agent = agent.replace(actor_params=move(agent.actor_params), critic_params=move(agent.critic_params))
    agent = jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, agent)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    obs, action, reward, next_obs = draw(32, 3), np.tanh(draw(32, 2)), draw(32), draw(32, 3)
    return agent, replay.Transition(obs, action, reward, next_obs, np.arange(32) % 8 == 0)


@pytest.mark.parametrize("name", DIFFUSION)
def test_identity_8_actor_loss_does_not_leak_through_the_latent(name):
    """Gradients are the same whether or not the chain behind a^k depends on the parameters."""
    module = load(name)
    args = make_args(module, hidden_dim=16, num_denoising_steps=4)
    agent, batch = random_agent(module, args, "float32")
    chain_key, loss_key = jax.random.split(jax.random.key(1))

    def loss(params, detach):
        chain = module.sample_chain(args, agent.replace(actor_params=params), chain_key, batch.next_obs)
        chain = jax.lax.stop_gradient(chain) if detach else chain
        return module.actor_loss(params, args, agent, loss_key, batch, chain)[0]

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    attached, detached = jax.device_get((grad(agent.actor_params, False), grad(agent.actor_params, True)))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), attached, detached)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(detached))


@pytest.mark.parametrize("name", DIFFUSION)
def test_an_update_at_noise_levels_of_1_is_finite(name):
    """beta_K = 1 - 1e-11, which is 1 in float32: where long training leads."""
    module = load(name)
    args = make_args(module, hidden_dim=16, num_denoising_steps=4)
    agent, batch = random_agent(module, args, "float32")
    agent.actor_params["noise_logits"][-1] = 25.0
    after, metrics = jax.device_get(jax.jit(partial(module.update, args))(agent, jax.random.key(1), batch))
    assert metrics["diffusion/beta_max"] == 1.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
    # Every level but the last, whose gradient has vanished, goes on learning.
    moved = np.abs(after.actor_params["noise_logits"] - agent.actor_params["noise_logits"])
    assert moved[:-1].min() > 1e-5


def test_identity_9_gradient_of_the_noise_levels():
    """DiffSAC's one-step loss at fixed (s, a^k, eps): automatic against central differences, in float64."""
    module = load("diffsac_jax")
    with jax.enable_x64(True):
        worst = 0.0
        for prediction in diffusion.PREDICTIONS:
            args = make_args(module, hidden_dim=16, num_denoising_steps=3, prediction=prediction)
            agent, batch = random_agent(module, args, "float64")
            chain_key, loss_key = jax.random.split(jax.random.key(1))
            chain = jax.jit(partial(module.sample_chain, args))(agent, chain_key, batch.next_obs)

            @jax.jit
            def loss(logits):
                params = {**agent.actor_params, "noise_logits": logits}
                return module.actor_loss(params, args, agent, loss_key, batch, chain)[0]

            logits, h = agent.actor_params["noise_logits"], 1e-5
            automatic = np.asarray(jax.jit(jax.grad(loss))(logits))
            numeric = np.zeros_like(automatic)
            for index in np.ndindex(logits.shape):
                step = np.zeros_like(logits)
                step[index] = h
                numeric[index] = (loss(logits + step) - loss(logits - step)) / (2 * h)
            assert np.abs(automatic).min() > 1e-6
            worst = max(worst, np.max(np.abs(automatic - numeric) / np.abs(automatic)))
        print(f"identity 9, DiffSAC: largest relative difference {worst:.1e}")
        assert worst < 1e-6
