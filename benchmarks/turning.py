"""The turning agent: an environment whose optimal policy has two equal modes at every observation (arXiv 2512.02019).

    python diffsac_jax.py --env-id benchmarks.turning:TurningAgent-v0 --no-autotune --alpha 0.05 --gamma 0.9
    python -m benchmarks.turning runs/..      # shares of left, middle and right of finished runs -> turning.csv

The heading is a multiple of 45 degrees, uniform at the reset, observed as the unit vector (cos, sin). The action a in
[-1, 1] turns by 90 a degrees: with w = a^2 the reward is

    0.85 + 0.15 (1 - (1 - 4w)^2)    for w <= 1/4
    1 - ((w - 1/4) / (3/4))^2       else

so turning by 45 degrees (a = -1/2 or 1/2) gives 1, going straight on gives 0.85 and turning by 90 degrees 0. The next
heading is 45 degrees to the side that a points to (a random side at a = 0). Nothing terminates; 100 steps, then the
episode is truncated. Both sides are worth the same whatever comes later, so the best maximum-entropy policy turns left
and right equally often at every heading. The return does not tell a policy that does from one that only turns left:
`shares` counts the sides.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

NUM_HEADINGS = 8
EPISODE_STEPS = 100
SIDE = 0.25  # |a| above it turns by more than 22.5 degrees: that counts as a side, below as the middle


def reward(action: np.ndarray) -> np.ndarray:
    """Reward of an action in [-1, 1], elementwise (see the module's docstring)."""
    w = np.square(action)
    return np.where(w <= 0.25, 0.85 + 0.15 * (1 - (1 - 4 * w) ** 2), 1 - ((w - 0.25) / 0.75) ** 2)


class TurningAgent(gym.Env):
    """See the module's docstring. Observation: Box `[2]`; action: Box(-1, 1) `[1]`."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.heading = int(self.np_random.integers(NUM_HEADINGS))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        a = float(np.clip(action[0], -1.0, 1.0))
        side = np.sign(a) if a != 0 else self.np_random.choice([-1, 1])
        self.heading = int(self.heading + side) % NUM_HEADINGS
        return self._observation(), float(reward(a)), False, False, {}

    def _observation(self) -> np.ndarray:
        angle = 2 * np.pi * self.heading / NUM_HEADINGS
        return np.array([np.cos(angle), np.sin(angle)], np.float32)


if "TurningAgent-v0" not in gym.registry:  # `python -m` imports this file under two names
    gym.register("TurningAgent-v0", entry_point="benchmarks.turning:TurningAgent", max_episode_steps=EPISODE_STEPS)


# ------------------------------------------------------------------------------------------------------------ results
# What measures is imported where it is used: training imports this file for the environment alone.


def shares(obs: np.ndarray, action: np.ndarray) -> dict[int, dict[str, float]]:
    """Shares of the actions `[n, 1]` at the observations `[n, 2]`, by heading in degrees.

    left: a turn below -22.5 degrees (a < -1/4), right: above 22.5 degrees, middle: in between. A heading without
    visits has the share nan.
    """
    heading = np.rint(np.arctan2(obs[:, 1], obs[:, 0]) / (2 * np.pi) * NUM_HEADINGS).astype(int) % NUM_HEADINGS
    found = {}
    for h in range(NUM_HEADINGS):
        a = action[heading == h, 0]
        left, right = (np.mean(a < -SIDE), np.mean(a > SIDE)) if len(a) else (np.nan, np.nan)
        found[h * 360 // NUM_HEADINGS] = {
            "left": float(left),
            "middle": float(1.0 - left - right),
            "right": float(right),
        }
    return found


def rollout(act: Callable, seed: int, episodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episodes side by side: observations `[T, E, 2]`, actions `[T, E, 1]`, rewards `[T, E]`.

    `act`: (obs `[E, 2]`, key) -> actions `[E, 1]`, as `harness.load_agent` returns it.
    """
    import jax

    envs = [TurningAgent() for _ in range(episodes)]
    obs = np.stack([env.reset(seed=1000 * seed + i)[0] for i, env in enumerate(envs)])
    steps = []
    for t in range(EPISODE_STEPS):
        action = act(obs, jax.random.fold_in(jax.random.key(seed), t))
        results = [env.step(a) for env, a in zip(envs, action, strict=True)]
        steps.append((obs, action, np.array([result[1] for result in results])))
        obs = np.stack([result[0] for result in results])
    return tuple(np.stack(x) for x in zip(*steps, strict=True))


def measure(run: Path, episodes: int) -> list[dict[str, Any]]:
    """One row per seed and heading of a finished run: shares of the stochastic policy's actions.

    return is the mean over the episodes, the same in all rows of a seed. Raises UserError: no run, or one that is
    unfinished, cannot be traced to a commit, or is on another environment.
    """
    from benchmarks import export
    from envs import UserError
    from harness import load_agent

    last = {row["seed"]: row for row in export.read_run(run)}
    rows = []
    for seed, source in last.items():
        if not source["env_id"].endswith("TurningAgent-v0"):
            raise UserError(f"{run} is no run on the turning agent but on {source['env_id']}")
        obs, action, rewards = rollout(load_agent(run, int(seed)), int(seed), episodes)
        found = {"return": float(rewards.sum(axis=0).mean()), "episodes": episodes}
        for heading, by_side in shares(obs.reshape(-1, 2), action.reshape(-1, 1)).items():
            rows.append({name: source[name] for name in SOURCE} | found | {"heading": heading} | by_side)
    return rows


SOURCE = ("script", "exp_name", "seed", "global_step", "arguments", "commit", "python", "jax", "gymnasium", "device")


def main() -> int:
    """Measures the runs named on the command line; replaces the rows of the same exp_name and seed."""
    from benchmarks import export
    from benchmarks.results import read_rows
    from envs import UserError

    parser = argparse.ArgumentParser(description="Shares of left, middle and right of runs on the turning agent.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per seed")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "turning.csv", help="the CSV")
    arguments = parser.parse_args()
    refused = 0
    for run in arguments.runs:
        try:
            measured = measure(run, arguments.episodes)
            with export.alone(arguments.results.parent):
                rows = export.others(read_rows(arguments.results), measured, arguments.results) + measured
                rows.sort(key=lambda row: (row["exp_name"], int(row["seed"]), int(row["heading"])))
                export.write_csv(arguments.results, measured[0], rows)
        except UserError as error:
            refused += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        for seed, of_seed in itertools.groupby(measured, key=lambda row: row["seed"]):
            of = list(of_seed)
            side = min(min(float(row["left"]), float(row["right"])) for row in of)
            middle = max(float(row["middle"]) for row in of)
            found = f"return {float(of[0]['return']):.4f}, smallest side {side:.3f}, largest middle {middle:.3f}"
            print(f"{of[0]['exp_name']} seed {seed}: {found}")
    return 2 if refused else 0


if __name__ == "__main__":
    from harness.cli import one_line_errors

    with one_line_errors():
        sys.exit(main())
