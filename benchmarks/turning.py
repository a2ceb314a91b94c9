"""The turning agent: an environment whose optimal policy has two equal modes at every observation (arXiv 2512.02019).

    python diffsac_jax.py --env-id benchmarks.turning:TurningAgent-v0 --no-autotune --alpha 0.05 --gamma 0.9

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


gym.register("TurningAgent-v0", entry_point="benchmarks.turning:TurningAgent", max_episode_steps=100)
