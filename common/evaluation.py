"""Evaluation on separate environments, of the stochastic and the deterministic policy; video; loading agents."""

import importlib
import importlib.util
import json
import os
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
      entropy: (args, agent, key, obs) -> samples of the stochastic policy's entropy (or bounds of it) by tag, `[N]`.
        Taken at the start of every compiled call, averaged over the episodes that still run.

    An environment may offer evaluation_report(obs `[n, O]`, action `[n, A]`) -> {row: {column: number}}: what its
    stochastic episodes are to be told by beside their return, actions in [-1, 1]. It is logged as eval/{row}_{column}.
    """

    def __init__(
        self, args: Any, sample_action: Callable, deterministic_action: Callable, entropy: Callable | None = None
    ):
        self.env = envs.make_env(args.env_id, args.eval_episodes, args.num_seeds, args.env_kwargs)
        self.seeds = args.seed + np.arange(args.num_seeds)
        self.entropy = entropy and partial(entropy, args)
        self.report = getattr(self.env.envs.envs[0].unwrapped, "evaluation_report", None)
        self.act = {
            "stochastic": lambda agent, key, obs: sample_action(args, agent, key, obs)[0],
            "deterministic": lambda agent, key, obs: deterministic_action(args, agent, obs),
        }

    def __call__(self, agents: Any, step: int) -> dict[str, dict[str, Any]]:
        """Per policy the episodes' `return` and `length` `[S, E]`, a `report` for each agent, `metrics` by tag `[S]`.

        Leaves of `agents` are `[S, ..]`. Report and metrics are the stochastic policy's.
        """
        return {policy: self._episodes(policy, agents, step) for policy in POLICIES}

    def _episodes(self, policy: str, agents: Any, step: int) -> dict[str, Any]:
        carry = _start(self.env, jnp.asarray(self.seeds), POLICIES.index(policy), step)
        limit = self.env.max_episode_steps or MAX_EPISODE_STEPS
        entropies, visits = [], []
        for _ in range(-(-limit // CHUNK)):
            if self.entropy and policy == "stochastic":
                entropies.append(_measure(self.entropy, agents, carry))
            carry, visit = jax.block_until_ready(_rollout(self.env, self.act[policy], agents, carry))
            if self.env.error:
                raise self.env.error
            if self.report and policy == "stochastic":
                visits.append(jax.device_get(visit))
            if np.all(carry["done"]):
                break
        reports = [self._report(visits, s) for s in range(len(self.seeds))] if visits else [{}] * len(self.seeds)
        metrics = {
            f"eval/{row}_{column}": np.array([report[row][column] for report in reports])
            for row, columns in reports[0].items()
            for column in columns
        }
        if entropies:
            total = jax.tree.map(lambda *x: np.sum(x, axis=0), *entropies)
            metrics |= {tag: values / total["count"] for tag, values in total.items() if tag != "count"}
        return {
            "return": np.asarray(carry["return"]),
            "length": np.asarray(carry["length"]),
            "report": reports,
            "metrics": metrics,
        }

    def _report(self, visits: list[tuple[np.ndarray, ...]], agent: int) -> dict[str, dict[str, float]]:
        """The environment's report on an agent's episodes. Visits: obs, action and running, each `[T, S, N, ..]`."""
        obs, action, running = (np.concatenate([visit[i][:, agent] for visit in visits]) for i in range(3))
        return self.report(obs[running], action[running])


@partial(jax.jit, static_argnames="entropy")
def _measure(entropy, agents, carry):
    def one_agent(agent, c):
        samples = entropy(agent, jax.random.fold_in(c["key"], 0xE2707), c["obs"]) | {"count": jnp.ones(c["done"].shape)}
        return {tag: jnp.sum(~c["done"] * x) for tag, x in samples.items()}

    return jax.vmap(one_agent)(agents, carry)


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
            action = act(agent, act_key, c["obs"])
            env_state, time_step = env.step(c["env"], action)
            visit = c["obs"], action, ~c["done"]
            return {
                "env": env_state,
                "obs": time_step.obs,
                "key": key,
                # Of each environment the first episode counts.
                "return": jnp.where(c["done"], c["return"], time_step.episode_return),
                "length": jnp.where(c["done"], c["length"], time_step.episode_length),
                "done": c["done"] | time_step.done,
            }, visit

        return jax.vmap(one_agent)(agents, carry)

    return jax.lax.scan(step, carry, None, length=CHUNK)


def load_agent(
    run: str | Path, seed: int | None = None, deterministic: bool = False
) -> Callable[[np.ndarray, jax.Array], np.ndarray]:
    """The trained policy of a run folder.

    Args:
      seed: which of the run's seeds (default: the first).
      deterministic: take the deterministic policy instead of a sample.

    Returns: act(obs `[O]` or `[B, O]`, key) -> action in the environment's own units, `[A]` or `[B, A]`.

    Raises:
      UserError: the folder is no run with saved agents, or has no such seed.
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
    """The agents that a run saved last, with a checkpoint or at its end; leaves `[S, ..]`. Raises UserError."""
    keys = jax.vmap(jax.random.key)(jnp.arange(args.num_seeds))
    template = jax.jit(jax.vmap(init_agent))(keys)
    path = Path(run) / "agent.msgpack"
    try:
        return serialization.from_bytes(template, path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(run)!r} has no agent.msgpack: the run has saved no agent yet") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} does not hold this run's agents: {envs.one_line(error)}") from None


def write_agents(path: Path, agents: Any) -> None:
    """Saves agents so that `read_agents` finds them. Written beside and renamed into place."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        file.write(serialization.to_bytes(jax.device_get(agents)))
        file.flush()
        os.fsync(file.fileno())
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
            for row, columns in results[policy]["report"][i].items():
                print(f"  {row:20s} " + "  ".join(f"{name} {value:.3f}" for name, value in columns.items()))
    if overrides.capture_video:
        record_video(run)


def record_video(run: str | Path, seed: int | None = None) -> Path | None:
    """Records one episode of the deterministic policy of `seed` (default: the run's first) as RUN/videos/*.mp4.

    Where it cannot be rendered or encoded, says so in one line and returns None.
    """
    args, _ = read_run(run)
    if importlib.util.find_spec("moviepy") is None:
        print("no video: it needs moviepy: pip install '.[video]'", file=sys.stderr)
        return None
    act = load_agent(run, seed, deterministic=True)
    folder = Path(run) / "videos"
    try:
        env = envs.make_gymnasium(args.env_id, args.env_kwargs, render_mode="rgb_array")
        low, high = envs.action_bounds(env)
        env = gym.wrappers.RecordVideo(env, str(folder), name_prefix="deterministic", disable_logger=True)
        obs, _ = env.reset(seed=args.seed)
        done, steps = False, 0
        while not done and steps < MAX_EPISODE_STEPS:
            action = 2.0 * (act(obs, jax.random.key(0)) - low) / (high - low) - 1.0
            obs, _, terminated, truncated, _ = env.step(action)
            done, steps = terminated or truncated, steps + 1
        env.close()
        path = max(folder.glob("*.mp4"), key=lambda p: p.stat().st_mtime)
    except Exception as error:
        print(f"no video: {args.env_id} cannot be rendered here ({envs.one_line(error)})", file=sys.stderr)
        return None
    print(f"video: {path}")
    return path
