"""How soon a policy acts as precisely as its Q asks, and how well it follows a Q that changes.

    python -m benchmarks.precision                                    # all of the SAC family, about a minute each
    python -m benchmarks.precision --algorithms sac diffsac --set head_dim=128 num_denoising_steps=4

Without environment and critics: with three action dimensions and random states of eight, Q(s, u) is
-|u - m(s)|^2 / (2 * 0.3^2), m(s) = 0.6 tanh(W s). At the temperature 0.02 the soft-optimal deviation is 0.042. The
scripts' own `update` trains with this Q in the place of the critics, for 4,000 updates: on one W, and on ten that
follow each other. The error is the root of the mean of (u - m(s))^2 over states, actions and dimensions, of the
stochastic policy.
"""

import argparse
import ast
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bandit import ALGORITHMS, learn, with_exact_critic
from benchmarks.results import label
from benchmarks.tables import markdown
from common import replay

SIZES = SimpleNamespace(observation_size=8, action_size=3)
STRETCH, STRETCHES, BATCH = 400, 10, 256


def stretch(module: Any, args: Any) -> Callable:
    """(agent, key, W `[8, 3]`) -> the agent after a stretch of updates, its error; compiled once."""

    def best(obs, weights):
        return 0.6 * jnp.tanh(obs @ weights)

    def draw_batch(key):
        obs, zeros = jax.random.normal(key, (BATCH, SIZES.observation_size)), jnp.zeros(BATCH)
        return replay.Transition(obs, jnp.zeros((BATCH, SIZES.action_size)), zeros, obs, zeros.astype(bool))

    @jax.jit
    def run(agent, key, weights):
        critics = agent.critic.apply_fn
        agent = with_exact_critic(agent, lambda obs, u: -((u - best(obs, weights)) ** 2).sum(-1) / 0.18)
        update_key, obs_key, action_key = jax.random.split(key, 3)
        agent = learn(module, args, agent, update_key, STRETCH, draw_batch)
        obs = jax.random.normal(obs_key, (4000, SIZES.observation_size))
        action, _ = module.sample_action(args, agent, action_key, obs)
        error = jnp.sqrt(jnp.mean((action - best(obs, weights)) ** 2))
        return agent.replace(critic=agent.critic.replace(apply_fn=critics)), error

    return run


def errors(name: str, changing: bool, seed: int = 1, **settings: Any) -> list[float]:
    """The error after each stretch."""
    module = ALGORITHMS[name]
    args = module.Args(gamma=0.0, alpha=0.02, autotune=False, **settings)
    key, agent_key, weights_key = jax.random.split(jax.random.key(seed), 3)
    weights = 0.5 * jax.random.normal(weights_key, (STRETCHES, SIZES.observation_size, SIZES.action_size))
    agent, run, found = module.init_agent(args, SIZES, agent_key), stretch(module, args), []
    for i, stretch_key in enumerate(jax.random.split(key, STRETCHES)):
        agent, error = run(agent, stretch_key, weights[i if changing else 0])
        found.append(float(error))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the scripts")
    options = parser.parse_args()
    settings = {name: ast.literal_eval(value) for name, value in (word.split("=") for word in options.set)}
    rows = []
    for name in options.algorithms:
        fixed, changing = (errors(name, changing, **settings) for changing in (False, True))
        follows = sum(changing[1:]) / (STRETCHES - 1)
        rows.append([label(f"{name}_jax"), *(f"{x:.3f}" for x in (fixed[0], fixed[-1], follows))])
    print(markdown(["algorithm", f"after {STRETCH} updates", f"after {STRETCH * STRETCHES}", "changing Q"], rows))


if __name__ == "__main__":
    main()
