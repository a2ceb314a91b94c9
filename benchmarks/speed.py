"""Speed of the scripts, side by side: what is compared runs in turns, so that other load on the machine meets both.

    python -m benchmarks.speed                         all rows that can be measured here
    python -m benchmarks.speed --rows updates actions  some of them
    python -m benchmarks.speed --save                  also into benchmarks/speed.csv, which the tables show

Rows:
    updates   one update of each off-policy script, as a multiple of SAC's or of its nearest kin's
    actions   one action of a trained agent's kind, from an observation in NumPy to an action in NumPy
    seeds     --num-seeds 4 against four runs one after another
    sbx       SAC's and CrossQ's steps/s against SBX's; needs --peers-python
    ppo       PPO's steps/s against CleanRL's; needs --peers-python and --cleanrl
    diffppo   DiffPPO's steps/s against PPO's

The peers are installed in an environment of their own, and measured only if named:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install sbx-rl "gymnasium[mujoco]" "mujoco<3.5" tyro tensorboard
    python -m benchmarks.speed --rows sbx ppo --peers-python /tmp/peers/bin/python --cleanrl ppo_continuous_action.py

Everything runs with one thread unless --threads says otherwise. Steps/s are those of a run while it learns, without
compilation and evaluation. A value is the median over the rounds, with the smallest and the largest.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import crossq_jax
import diffcrossq_jax
import diffsac_jax
import diffwpo_jax
import sac_jax
from benchmarks import export, peers
from benchmarks.results import read_rows
from benchmarks.rounds import (
    PPO_STEPS,
    ROOT,
    Row,
    Skip,
    in_turns,
    median,
    off_policy_flags,
    ppo_flags,
    ratios,
    steps_per_second,
)
from common import replay
from envs import make_env
from harness import provenance
from harness.cli import one_line_errors

COLUMNS = ("quantity", "value", "how", "commit", "device", "versions")

# ----------------------------------------------------------------------------------------------- SAC, and beside it


def sac_and_diffsac(one: Callable, levels: tuple[int, ...], env: Any, count: int) -> dict[str, Callable[[int], float]]:
    """`one` of SAC and of DiffSAC with each number of denoising steps, by name."""
    which = {f"DiffSAC, K = {k}": (diffsac_jax, diffsac_jax.Args(num_denoising_steps=k)) for k in levels}
    return {name: one(*own, env, count) for name, own in ({"SAC": (sac_jax, sac_jax.Args())} | which).items()}


def beside_sac(seconds: dict[str, list[float]], title: str, base: str, digits: int, how: str) -> list[Row]:
    """SAC's time, and the others' over it. `title`: a quantity, with a place for the name; `base`: SAC's in a ratio."""
    rows = [(title.format("SAC"), median([1000 * s for s in seconds["SAC"]], digits, " ms"), how)]
    for name in [name for name in seconds if name != "SAC"]:
        rows.append((f"{title.format(name)} / {base}", median(ratios(seconds[name], seconds["SAC"])), how))
    return rows


# ------------------------------------------------------------------------------------------------------------ updates


def updates(options: argparse.Namespace) -> list[Row]:
    """Seconds per update of each algorithm: a scan over updates on one random batch, in this process."""
    env = make_env(options.env_id, 1)
    measures = sac_and_diffsac(one_update, (4, 8, 16), env, options.updates)
    for name, script in (
        ("DiffWPO, K = 8", diffwpo_jax),
        ("CrossQ", crossq_jax),
        ("DiffCrossQ, K = 8", diffcrossq_jax),
    ):
        measures[name] = one_update(script, script.Args(), env, options.updates)
    env.close()
    seconds = in_turns(options.rounds, measures)
    how = f"{options.env_id}, batch 256, 2 x 256 units; {options.rounds} rounds of {options.updates} updates in turns"
    rows = beside_sac(seconds, "{} update", "SAC update", 2, how)
    for name, kin in (("DiffWPO, K = 8", "DiffSAC, K = 8"), ("DiffCrossQ, K = 8", "CrossQ")):
        title = f"{name} update / {kin.removesuffix(', K = 8')} update"
        rows.append((title, median(ratios(seconds[name], seconds[kin])), how))
    return rows


def one_update(script: Any, args: Any, env: Any, count: int) -> Callable[[int], float]:
    """A measure: seconds per update of a script, over `count` of them."""
    init, many = updates_of(script, args, env, count)
    agent = jax.jit(init)(jax.random.key(0))
    compiled = jax.jit(many).lower(agent, jax.random.key(1)).compile()

    def measure(number: int) -> float:
        begin = time.perf_counter()
        _, losses = jax.block_until_ready(compiled(agent, jax.random.key(number)))
        seconds = time.perf_counter() - begin
        assert jnp.isfinite(losses).all()
        return seconds / count

    measure(0)  # the first call of a program is slower
    return measure


def updates_of(script: Any, args: Any, env: Any, count: int) -> tuple[Callable, Callable]:
    """key -> a script's new agent, and (agent, key) -> the agent after `count` updates on a random batch, losses."""

    def init(key):
        return script.init_agent(args, env, key)

    def many(agent, key):
        obs_key, action_key, reward_key, next_key, end_key, key = jax.random.split(key, 6)
        shape = (args.batch_size, env.observation_size)
        batch = replay.Transition(
            obs=jax.random.normal(obs_key, shape),
            action=jax.random.uniform(action_key, (args.batch_size, env.action_size), minval=-1.0, maxval=1.0),
            reward=jax.random.normal(reward_key, shape[:1]),
            next_obs=jax.random.normal(next_key, shape),
            terminated=jax.random.bernoulli(end_key, 0.01, shape[:1]),
        )

        def one(agent, key_and_index):
            agent, metrics = script.update(args, agent, key_and_index[0], batch, key_and_index[1])
            return agent, metrics["losses/qf_loss"]

        return jax.lax.scan(one, agent, (jax.random.split(key, count), jnp.arange(count)))

    return init, many


# ------------------------------------------------------------------------------------------------------------ actions


def actions(options: argparse.Namespace) -> list[Row]:
    """Milliseconds per action of the stochastic policy for a single observation, as a loop of one's own asks for it."""
    env = make_env(options.env_id, 1)
    measures = sac_and_diffsac(one_action, (2, 8, 16), env, options.actions)
    env.close()
    seconds = in_turns(options.rounds, measures)
    how = f"{options.env_id}, 2 x 256 units, one observation; {options.rounds} rounds of {options.actions} in turns"
    return beside_sac(seconds, "{}, one action", "SAC's", 3, how)


def one_action(script: Any, args: Any, env: Any, count: int) -> Callable[[int], float]:
    """A measure: seconds per action of a script's new agent, over `count` of them."""
    agent = jax.jit(lambda key: script.init_agent(args, env, key))(jax.random.key(0))
    act = jax.jit(lambda obs, key: script.sample_action(args, agent, key, obs)[0])
    observations = np.random.default_rng(0).normal(size=(count, 1, env.observation_size)).astype(np.float32)
    keys = list(jax.random.split(jax.random.key(1), count))

    def measure(number: int) -> float:
        begin = time.perf_counter()
        for obs, key in zip(observations, keys, strict=True):
            action = np.asarray(act(obs, key))
        seconds = time.perf_counter() - begin
        assert np.isfinite(action).all() and action.shape == (1, env.action_size)
        return seconds / count

    measure(0)  # compiles
    return measure


# --------------------------------------------------------------------------------------------------------------- runs


def seeds(options: argparse.Namespace) -> list[Row]:
    """Seeds side by side against one after another."""
    rows, flags = [], off_policy_flags(options)
    for label, script in (("SAC", "sac_jax.py"), ("DiffSAC", "diffsac_jax.py")):
        measures = {
            f"{label} 4 seeds": lambda i: 4 * steps_per_second(options, script, *flags, "--num-seeds", "4"),
            f"{label} 1 seed": lambda i: steps_per_second(options, script, *flags, "--seed", f"{i + 1}"),
        }
        together, alone = in_turns(options.rounds, measures).values()
        quantity = f"{label} --num-seeds 4 / four runs one after another, environment steps/s"
        how = f"{options.env_id}, {options.steps} learning steps, {options.rounds} rounds in turns"
        rows.append((quantity, median(ratios(together, alone)), how))
    return rows


def diffppo(options: argparse.Namespace) -> list[Row]:
    """DiffPPO's steps/s against PPO's."""
    measures = {
        script: lambda i, script=script: steps_per_second(options, script, *ppo_flags(), "--seed", f"{i + 1}")
        for script in ("ppo_jax.py", "diffppo_jax.py")
    }
    base, ours = in_turns(options.rounds, measures).values()
    how = f"{options.env_id}, default environments, {PPO_STEPS} steps, {options.rounds} rounds in turns"
    return [
        ("diffppo_jax.py, K = 8", median(ours, 0, " steps/s"), how),
        ("diffppo_jax.py / ppo_jax.py, K = 8, steps/s", median(ratios(ours, base)), how),
    ]


ROWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "updates": updates,
    "actions": actions,
    "seeds": seeds,
    "sbx": peers.sbx,
    "ppo": peers.ppo,
    "diffppo": diffppo,
}


# --------------------------------------------------------------------------------------------------------------- main


def facts(threads: int | None = None) -> dict[str, str]:
    """Commit, device and versions of a measurement. `threads`: those that JAX was told to use, if it was."""
    commit, changed = provenance.commit_and_changes()
    model = provenance.device().removeprefix("cpu ")
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "mujoco", "gymnasium")]
    return {
        "commit": (commit or "unknown") + (" with changes" if changed else ""),
        "device": model if threads is None else f"{model}, {threads} thread{'s' if threads > 1 else ''}",
        "versions": ", ".join([f"python {platform.python_version()}", *packages]),
    }


def save(path: Path, rows: list[dict]) -> None:
    """Replaces the rows of the same quantities, keeps the others."""
    new = {row["quantity"]: row for row in rows}
    with export.alone(path.parent):
        merged = [new.pop(row["quantity"], row) for row in read_rows(path)] + list(new.values())
        export.write_csv(path, COLUMNS, merged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--env-id", default="Hopper-v4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=200, help="updates per round and algorithm")
    parser.add_argument("--actions", type=int, default=2000, help="actions per round and algorithm")
    parser.add_argument("--steps", type=int, default=5000, help="learning steps of an off-policy run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", help="interpreter of the environment that holds SBX and CleanRL's packages")
    parser.add_argument("--cleanrl", help="CleanRL's ppo_continuous_action.py")
    parser.add_argument("--save", action="store_true", help="write the rows into benchmarks/speed.csv as well")
    options = parser.parse_args()
    os.environ["NPROC"] = str(options.threads)  # read by jax when its backend starts, here and in the processes
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))  # as the processes of benchmarks.rounds
    here = facts(options.threads)
    rows = []
    for name in options.rows:
        try:
            measured = ROWS[name](options)
        except Skip as reason:
            print(f"{name}: skipped, {reason}", file=sys.stderr, flush=True)
            continue
        found = [dict(zip(COLUMNS, (*row, *here.values()), strict=True)) for row in measured]
        rows += found
        if options.save:  # at once: what follows may take hours
            save(ROOT / "benchmarks" / "speed.csv", found)
    print(f"Commit {here['commit']}; {here['device']}; {here['versions']}\n")
    print("| Quantity | Value | Measured |\n|---|---|---|")
    for row in rows:
        print(f"| {row['quantity']} | {row['value']} | {row['how']} |")
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
