"""The smallest script: all that the harness asks of one, and next to nothing to learn or to compile.

The policy is a linear layer that learns to predict the last reward.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training.train_state import TrainState

from common.seeds import vmap_seeds
from envs import EnvState, make_env
from harness import Evaluator, Experiment, Run, cli


@dataclass(frozen=True)
class Args(Experiment):
    log_frequency: int = Experiment.changeable(50)
    learning_rate: float = 0.01
    learning_starts: int = 0
    memory: int = 1
    """numbers in the state that stand for a replay buffer"""


@struct.dataclass
class Training:
    agent: TrainState
    env_state: EnvState
    key: jax.Array
    memory: jax.Array


def init_agent(args: Args, env: Any, key: jax.Array) -> TrainState:
    params = {"weights": jax.random.normal(key, (env.observation_size, env.action_size))}
    return TrainState.create(apply_fn=None, params=params, tx=optax.sgd(args.learning_rate))


def init_training(args: Args, env: Any, key: jax.Array) -> Training:
    agent_key, env_key, memory_key, key = jax.random.split(key, 4)
    agent = init_agent(args, env, agent_key)
    return Training(agent, env.reset(env_key), key, jax.random.uniform(memory_key, (args.memory,)))


def sample_action(args: Args, agent: TrainState, key: jax.Array, obs: jax.Array) -> tuple[jax.Array, None]:
    mean = deterministic_action(args, agent, obs)
    return jnp.clip(mean + 0.1 * jax.random.normal(key, mean.shape), -1.0, 1.0), None


def deterministic_action(args: Args, agent: TrainState, obs: jax.Array) -> jax.Array:
    return jnp.tanh(obs @ agent.params["weights"])


def entropy_terms(args: Args, agent: TrainState, key: jax.Array, obs: jax.Array) -> dict[str, jax.Array]:
    return {"eval/entropy": jnp.full(obs.shape[:-1], 0.5)}


def train_step(args: Args, env: Any, state: Training, step: jax.Array) -> tuple[Training, tuple[Any, dict]]:
    key, action_key = jax.random.split(state.key)
    obs = state.env_state.obs
    action, _ = sample_action(args, state.agent, action_key, obs)
    env_state, time_step = env.step(state.env_state, action)

    def loss(params):
        return jnp.mean((obs @ params["weights"] - time_step.reward[:, None]) ** 2)

    value, grads = jax.value_and_grad(loss)(state.agent.params)
    grads = jax.tree.map(lambda x: x * (step >= args.learning_starts), grads)
    agent = state.agent.apply_gradients(grads=grads)
    return Training(agent, env_state, key, state.memory), (time_step.episode, {"losses/loss": value})


@partial(jax.jit, static_argnames=("args", "env"), donate_argnames="state")
def train_chunk(args: Args, env: Any, state: Training, step: int) -> tuple[Training, Any, dict[str, jax.Array]]:
    steps = step + args.num_envs * jnp.arange(args.log_frequency // args.num_envs)

    def one_seed(state):
        state, (episodes, metrics) = jax.lax.scan(partial(train_step, args, env), state, steps)
        return state, episodes, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    return vmap_seeds(one_seed)(state)


def train(args: Args) -> None:
    env = make_env(args.env_id, args.num_envs, args.num_seeds, args.env_kwargs)
    with Run(args, env) as run, Evaluator(args, sample_action, deterministic_action, entropy_terms) as evaluate:
        state = run.start(partial(init_training, args, env))
        while run.goes_on():
            state, episodes, metrics = train_chunk(args, env, state, run.step)
            run.log(state, episodes, metrics)
            if run.due(args.eval_frequency):
                run.log_evaluation(evaluate(state.agent, run.step))
            run.save_if_due(state)
        run.finish(state, evaluate)


if __name__ == "__main__":
    cli.run(Args, train)
