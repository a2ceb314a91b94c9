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
`evaluation_report` counts the sides.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

NUM_HEADINGS = 8
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

    @staticmethod
    def evaluation_report(obs: np.ndarray, action: np.ndarray) -> dict[str, dict[str, float]]:
        """Shares of the actions `[n, 1]` at the observations `[n, 2]`, for each heading that was visited.

        left: a turn below -22.5 degrees (a < -1/4), right: above 22.5 degrees, middle: in between. A heading without
        visits has the share nan.
        """
        heading = np.rint(np.arctan2(obs[:, 1], obs[:, 0]) / (2 * np.pi) * NUM_HEADINGS).astype(int) % NUM_HEADINGS
        report = {}
        for h in range(NUM_HEADINGS):
            a = action[heading == h, 0]
            left, right = (np.mean(a < -SIDE), np.mean(a > SIDE)) if len(a) else (np.nan, np.nan)
            report[f"heading_{h * 360 // NUM_HEADINGS:03d}"] = {
                "left": float(left),
                "middle": float(1.0 - left - right),
                "right": float(right),
            }
        return report


if "TurningAgent-v0" not in gym.registry:  # `python -m` imports this file under two names
    gym.register("TurningAgent-v0", entry_point="benchmarks.turning:TurningAgent", max_episode_steps=100)


# ------------------------------------------------------------------------------------------------------------ results


def measure(run: Path, episodes: int) -> list[dict[str, Any]]:
    """One row per seed and heading of a finished run: shares of the stochastic policy's actions.

    return is the mean over the episodes, the same in all rows of a seed. Raises UserError (no run), ExportError (a run
    that is unfinished or cannot be traced to a commit).
    """
    from benchmarks import export
    from common import evaluation

    source = {row["seed"]: row for row in export.read_run(run)}  # the last row of each seed
    args, module = evaluation.read_run(run)
    args = dataclasses.replace(args, eval_episodes=episodes)
    evaluator = evaluation.Evaluator(args, module.sample_action, module.deterministic_action)
    agents = evaluation.read_agents(run, args, partial(module.init_agent, args, evaluator.env))
    result = evaluator(agents, args.total_timesteps)["stochastic"]
    rows = []
    for agent, seed in enumerate(evaluator.seeds):
        run_of = {name: source[str(seed)][name] for name in SOURCE}
        found = {"return": float(result["return"][agent].mean()), "episodes": episodes}
        for heading, shares in result["report"][agent].items():
            rows.append(run_of | found | {"heading": int(heading.split("_")[1])} | shares)
    return rows


SOURCE = ("script", "exp_name", "seed", "global_step", "arguments", "commit", "python", "jax", "gymnasium", "device")


def main() -> int:
    """Measures the runs named on the command line; replaces the rows of the same exp_name and seed."""
    from benchmarks import export, plot
    from common import UserError

    parser = argparse.ArgumentParser(description="Shares of left, middle and right of runs on the turning agent.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per seed")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "turning.csv", help="the CSV")
    arguments = parser.parse_args()
    results = arguments.results
    try:
        measured = [row for run in arguments.runs for row in measure(run, arguments.episodes)]
        if not measured:
            raise UserError("none of these runs is one on the turning agent")
        kept = export.others(plot.read_rows(results), measured, results)
    except (UserError, export.ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    new = {(row["exp_name"], row["seed"]) for row in measured}
    rows = kept + measured
    rows.sort(key=lambda row: (row["exp_name"], int(row["seed"]), int(row["heading"])))
    export.write_csv(results, measured[0], rows)
    for exp_name, seed in sorted(new):
        of = [row for row in rows if (row["exp_name"], row["seed"]) == (exp_name, seed)]
        side = min(min(float(row["left"]), float(row["right"])) for row in of)
        middle = max(float(row["middle"]) for row in of)
        score = float(of[0]["return"])
        print(f"{exp_name} seed {seed}: return {score:.4f}, smallest side {side:.3f}, largest middle {middle:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
