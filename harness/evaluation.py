"""Evaluation on separate environments, of the stochastic and the deterministic policy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import Environment, make_env
from envs.gymnasium_make import global_generators_kept
from harness.clock import jit_for_few_calls
from harness.experiment import Experiment

POLICIES = ("stochastic", "deterministic")
MAX_EPISODE_STEPS = 10_000  # episodes of an environment without a time limit are cut here
CHUNK = 100  # steps per compiled call


class Evaluator:
    """Runs `eval_episodes` episodes per agent side by side, the same start states at every call. A context manager.

    Nothing is carried from one call to the next: environments are seeded anew, keys follow from the agent's seed and
    the step, and what environments draw from global generators is put back. So evaluation never changes training.

    Args:
      sample_action: (args, agent, key, obs `[N, O]`) -> (action `[N, A]`, ..), the stochastic policy.
      deterministic_action: (args, agent, obs) -> action.
      entropy_terms: (args, agent, key, obs) -> samples of the stochastic policy's entropy (or bounds of it) by tag,
        `[N]`. Taken at the start of every compiled call, averaged over the episodes that still run.
    """

    def __init__(
        self,
        args: Experiment,
        sample_action: Callable,
        deterministic_action: Callable,
        entropy_terms: Callable | None = None,
    ):
        self.env = make_env(args.env_id, args.eval_episodes, args.num_seeds, args.env_kwargs)
        self.seeds = jnp.asarray(args.seeds)
        self.entropy_terms = entropy_terms and partial(entropy_terms, args)
        self.act = (  # in the order of POLICIES
            lambda agent, key, obs: sample_action(args, agent, key, obs)[0],
            lambda agent, key, obs: deterministic_action(args, agent, obs),
        )

    def __call__(self, agents: Any, step: int) -> dict[str, dict[str, Any]]:
        """Per policy the episodes' `return` and `length` `[S, E]`, and `metrics` by tag `[S]` (the stochastic one's).

        Leaves of `agents` are `[S, ..]`.
        """
        with global_generators_kept():
            return {policy: self.episodes(policy, agents, step) for policy in POLICIES}

    def episodes(self, policy: str, agents: Any, step: int) -> dict[str, Any]:
        """The episodes of one policy (see `__call__`)."""
        index = jnp.int32(POLICIES.index(policy))
        carry = _start(self.env, self.seeds, index, step)
        limit = self.env.max_episode_steps or MAX_EPISODE_STEPS
        entropies = []
        for _ in range(-(-limit // CHUNK)):
            if self.entropy_terms and policy == "stochastic":
                entropies.append(_measure(self.entropy_terms, agents, carry))
            carry = jax.block_until_ready(_rollout(self.env, self.act, agents, index, carry))
            if self.env.error:
                raise self.env.error
            if np.all(carry["done"]):
                break
        total = jax.tree.map(lambda *x: np.sum(x, axis=0), *entropies) if entropies else {}
        metrics = {tag: values / total["count"] for tag, values in total.items() if tag != "count"}
        return {"return": np.asarray(carry["return"]), "length": np.asarray(carry["length"]), "metrics": metrics}

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self.env.close()


@partial(jit_for_few_calls, static_argnames="entropy_terms")
def _measure(entropy_terms: Callable, agents: Any, carry: dict) -> dict:
    def one_agent(agent, c):
        key = jax.random.fold_in(c["key"], 0xE2707)
        samples = entropy_terms(agent, key, c["env"].obs) | {"count": jnp.ones(c["done"].shape)}
        return {tag: jnp.sum(~c["done"] * x) for tag, x in samples.items()}

    return jax.vmap(one_agent)(agents, carry)


@partial(jit_for_few_calls, static_argnames="env")
def _start(env: Environment, seeds: jax.Array, policy: jax.Array, step: int) -> dict:
    def one_agent(seed):
        reset_key, act_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0xE7A1))
        env_state = env.reset(reset_key)
        key = jax.random.fold_in(jax.random.fold_in(act_key, step), policy)
        zeros = jnp.zeros(env.num_envs)
        done = jnp.zeros(env.num_envs, bool)
        return {"env": env_state, "key": key, "return": zeros, "length": zeros.astype(int), "done": done}

    return jax.vmap(one_agent)(seeds)


@partial(jax.jit, static_argnames=("env", "act"))
def _rollout(env: Environment, act: tuple[Callable, ...], agents: Any, policy: jax.Array, carry: dict) -> dict:
    # One program for both policies: environments on the device take long to compile.
    def step(carry, _):
        def one_agent(agent, c):
            key, act_key = jax.random.split(c["key"])
            action = jax.lax.switch(policy, act, agent, act_key, c["env"].obs)
            env_state, time_step = env.step(c["env"], action)
            return {
                "env": env_state,
                "key": key,
                # Of each environment the first episode counts.
                "return": jnp.where(c["done"], c["return"], time_step.episode.return_),
                "length": jnp.where(c["done"], c["length"], time_step.episode.length),
                "done": c["done"] | time_step.done,
            }

        return jax.vmap(one_agent)(agents, carry), None

    return jax.lax.scan(step, carry, None, length=CHUNK)[0]
