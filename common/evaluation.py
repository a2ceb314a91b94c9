"""Evaluation on separate environments, of the stochastic and the deterministic policy; video; loading agents."""

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from common import UserError, envs

POLICIES = ("stochastic", "deterministic")
MAX_EPISODE_STEPS = 10_000  # episodes of an environment without a time limit are cut here
CHUNK = 100  # steps per compiled call


class Evaluator:
    """Runs `eval_episodes` episodes per agent side by side, the same start states at every call.

    Nothing is carried from one call to the next: environments are seeded anew, keys follow from the agent's seed and
    the step. So evaluation never changes training.

    Args:
      sample_action: (args, agent, key, obs `[N, O]`) -> (action `[N, A]`, ..), the stochastic policy.
      deterministic_action: (args, agent, obs) -> action.
    """

    def __init__(self, args: Any, sample_action: Callable, deterministic_action: Callable):
        self.env = envs.make_env(args.env_id, args.eval_episodes, args.num_seeds, args.env_kwargs)
        self.seeds = args.seed + np.arange(args.num_seeds)
        self.act = {
            "stochastic": lambda agent, key, obs: sample_action(args, agent, key, obs)[0],
            "deterministic": lambda agent, key, obs: deterministic_action(args, agent, obs),
        }

    def __call__(self, agents: Any, step: int) -> dict[str, dict[str, np.ndarray]]:
        """Per policy the episodes' `return` and `length`, each `[S, E]`. Leaves of `agents` are `[S, ..]`."""
        return {policy: self._episodes(policy, agents, step) for policy in POLICIES}

    def _episodes(self, policy: str, agents: Any, step: int) -> dict[str, np.ndarray]:
        carry = _start(self.env, jnp.asarray(self.seeds), POLICIES.index(policy), step)
        limit = self.env.max_episode_steps or MAX_EPISODE_STEPS
        for _ in range(-(-limit // CHUNK)):
            carry = _rollout(self.env, self.act[policy], agents, carry)
            if self.env.error:
                raise self.env.error
            if np.all(carry["done"]):
                break
        return {"return": np.asarray(carry["return"]), "length": np.asarray(carry["length"])}


@partial(jax.jit, static_argnames="env")
def _start(env, seeds, policy_index, step):
    def one_agent(seed):
        reset_key, act_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0xE7A1))
        env_state, obs = env.reset(reset_key)
        key = jax.random.fold_in(jax.random.fold_in(act_key, step), policy_index)
        zeros = jnp.zeros(env.num_envs)
        done = jnp.zeros(env.num_envs, bool)
        return {"env": env_state, "obs": obs, "key": key, "return": zeros, "length": zeros.astype(int), "done": done}

    return jax.vmap(one_agent)(seeds)


@partial(jax.jit, static_argnames=("env", "act"))
def _rollout(env, act, agents, carry):
    def step(carry, _):
        def one_agent(agent, c):
            key, act_key = jax.random.split(c["key"])
            env_state, time_step = env.step(c["env"], act(agent, act_key, c["obs"]))
            return {
                "env": env_state,
                "obs": time_step.obs,
                "key": key,
                # Of each environment the first episode counts.
                "return": jnp.where(c["done"], c["return"], time_step.episode_return),
                "length": jnp.where(c["done"], c["length"], time_step.episode_length),
                "done": c["done"] | time_step.done,
            }

        return jax.vmap(one_agent)(agents, carry), None

    return jax.lax.scan(step, carry, None, length=CHUNK)[0]


def load_agent(
    run: str | Path, seed: int | None = None, deterministic: bool = False
) -> Callable[[np.ndarray, jax.Array], np.ndarray]:
    """The trained policy of a run folder.

    Args:
      seed: which of the run's seeds (default: the first).
      deterministic: take the deterministic policy instead of a sample.

    Returns: act(obs `[O]` or `[B, O]`, key) -> action in the environment's own units, `[A]` or `[B, A]`.

    Raises:
      UserError: the folder is no finished run, or has no such seed.
    """
    args, module = read_run(run)
    env = envs.make_env(args.env_id, 1, 1, args.env_kwargs)
    agents = read_agents(run, args, partial(module.init_agent, args, env))
    index = 0 if seed is None else seed - args.seed
    if not 0 <= index < args.num_seeds:
        raise UserError(f"{run} has the seeds {args.seed} to {args.seed + args.num_seeds - 1}, not {seed}")
    agent = jax.tree.map(lambda x: x[index], agents)

    @jax.jit
    def batched(obs, key):
        if deterministic:
            return module.deterministic_action(args, agent, obs)
        return module.sample_action(args, agent, key, obs)[0]

    def act(obs, key):
        obs = np.asarray(obs, np.float32)
        action = np.asarray(batched(obs.reshape(-1, env.observation_size), key))
        action = env.action_low + 0.5 * (action + 1.0) * (env.action_high - env.action_low)
        return action.reshape(*obs.shape[:-1], -1).astype(np.float32)

    return act


def read_run(run: str | Path) -> tuple[Any, Any]:
    """The arguments stored in a run folder and the algorithm's module. Raises UserError."""
    path = Path(run) / "args.json"
    try:
        stored = json.loads(path.read_text())
        module = importlib.import_module(stored.pop("script"))
        return module.Args(**stored), module
    except FileNotFoundError:
        raise UserError(f"{str(run)!r} is not a run folder: it has no args.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{str(path)!r} is not the args.json of a run: {envs.one_line(error)}") from None


def read_agents(run: str | Path, args: Any, init_agent: Callable) -> Any:
    """The agents saved at the end of a run; leaves `[S, ..]`. Raises UserError."""
    keys = jax.vmap(jax.random.key)(jnp.arange(args.num_seeds))
    template = jax.jit(jax.vmap(init_agent))(keys)
    path = Path(run) / "agent.msgpack"
    try:
        return serialization.from_bytes(template, path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(run)!r} has no agent.msgpack: the run has not finished") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} does not hold this run's agents: {envs.one_line(error)}") from None


def write_agents(path: Path, agents: Any) -> None:
    """Saves agents so that `read_agents` finds them. Written beside and renamed into place."""
    beside = path.with_suffix(".part")
    beside.write_bytes(serialization.to_bytes(jax.device_get(agents)))
    beside.replace(path)


def evaluate_run(init_agent, sample_action, deterministic_action, run, args, overrides):
    """`--evaluate RUN`: prints the episodes of every seed and policy. `overrides`: the command line's arguments."""
    evaluator = Evaluator(args, sample_action, deterministic_action)
    agents = read_agents(run, args, partial(init_agent, args, evaluator.env))
    results = evaluator(agents, args.total_timesteps)
    for policy in POLICIES:
        for i, seed in enumerate(evaluator.seeds):
            returns, lengths = results[policy]["return"][i], results[policy]["length"][i]
            print(
                f"{args.env_id} seed {seed} {policy:13s} return {returns.mean():9.2f} +- {returns.std():8.2f} "
                f"(min {returns.min():.2f}, max {returns.max():.2f}, {len(returns)} episodes, "
                f"mean length {lengths.mean():.1f})"
            )
    if overrides.capture_video:
        record_video(run)


def record_video(run: str | Path, seed: int | None = None) -> Path | None:
    """Records one episode of the deterministic policy as RUN/videos/*.mp4.

    Where it cannot be rendered, says so in one line and returns None.
    """
    args, _ = read_run(run)
    act = load_agent(run, seed, deterministic=True)
    folder = Path(run) / "videos"
    try:
        env = envs.make_gymnasium(args.env_id, args.env_kwargs, render_mode="rgb_array")
        env = gym.wrappers.RecordVideo(env, str(folder), name_prefix="deterministic", disable_logger=True)
        obs, _ = env.reset(seed=args.seed)
        low, high = env.unwrapped.action_space.low, env.unwrapped.action_space.high
        done = False
        while not done:
            action = 2.0 * (act(obs, jax.random.key(0)) - low) / (high - low) - 1.0
            obs, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
        env.close()
        path = max(folder.glob("*.mp4"), key=lambda p: p.stat().st_mtime)
    except Exception as error:
        print(f"no video: {args.env_id} cannot be rendered here ({envs.one_line(error)})", file=sys.stderr)
        return None
    print(f"video: {path}")
    return path
