"""The hidden target: an environment whose return needs a policy with several modes.

    python diffsac_jax.py --env-id benchmarks.hidden:HiddenTarget-v0 --no-autotune --alpha 0.02 --gamma 0.9

Four targets in the plane of the actions, 0.6 from the origin, 90 degrees apart. An episode draws the direction theta
of the first uniformly, observed as the unit vector (cos theta, sin theta), and which of the four counts, which is not
observed. An action in [-1, 1]^2 that is closer than 0.2 to that one gives 1 and ends the episode. Any other gives 0;
after ten the episode is truncated.

The observation never changes and tells nothing, so all that a policy without a memory can do is to try: one that hits
the targets with probabilities p_1 .. p_4 succeeds in 1 - mean_i (1 - p_i)^10 of the episodes (`success`), at most
0.944, with a quarter at each. A policy that always tries the same target succeeds in a quarter of them, a uniform one,
which hits with probability 0.031, in 0.27, and the best squashed Gaussian in 0.41 to 0.48, by theta. That stochastic
policies are better than all deterministic ones where the state is hidden is known since Singh, Jaakkola and Jordan
(1994).
"""

from typing import Any

import gymnasium as gym
import numpy as np

NUM_TARGETS = 4
TRIES = 10
DISTANCE = 0.6
RADIUS = 0.2


def targets(theta: float) -> np.ndarray:
    """The four targets `[4, 2]` in the order of their angles, the first at `theta` (radians)."""
    angle = theta + 2 * np.pi * np.arange(NUM_TARGETS) / NUM_TARGETS
    return DISTANCE * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def hits(action: np.ndarray, theta: float) -> np.ndarray:
    """Whether actions `[.., 2]` are closer than RADIUS to each of the targets, `[.., 4]`."""
    return np.linalg.norm(action[..., None, :] - targets(theta), axis=-1) < RADIUS


def success(p: np.ndarray) -> float:
    """Share of the episodes that succeed where each action hits the targets with probabilities `p` `[4]`."""
    return float(np.mean(1 - (1 - np.asarray(p)) ** TRIES))


class HiddenTarget(gym.Env):
    """See the module's docstring. Observation: Box `[2]`; action: Box(-1, 1) `[2]`."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.theta = float(self.np_random.uniform(0, 2 * np.pi))
        self.hidden = int(self.np_random.integers(NUM_TARGETS))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        hit = bool(hits(np.asarray(action), self.theta)[self.hidden])
        return self._observation(), float(hit), hit, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([np.cos(self.theta), np.sin(self.theta)], np.float32)


if "HiddenTarget-v0" not in gym.registry:
    gym.register("HiddenTarget-v0", entry_point="benchmarks.hidden:HiddenTarget", max_episode_steps=TRIES)
