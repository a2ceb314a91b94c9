"""The hidden target: an environment whose return needs a policy with several modes.

    python diffsac_jax.py --env-id benchmarks.hidden:HiddenTarget-v0 --no-autotune --alpha 0.02 --gamma 0.9
    python -m benchmarks.hidden runs/..       # actions of trained agents -> figures/hidden.png; needs ".[plot]"

Four targets in the plane of the actions, 0.6 from the origin, 90 degrees apart. An episode draws the direction theta
of the first uniformly, observed as the unit vector (cos theta, sin theta), and which of the four counts, which is not
observed. An action in [-1, 1]^2 that is closer than 0.2 to that one gives 1 and ends the episode. Any other is a miss
and gives 0; after ten misses the episode is truncated.

The observation says nothing about which target counts, so all that a policy without a memory can do is to try: one
that hits the targets with probabilities p_1 .. p_4 succeeds in 1 - mean_i (1 - p_i)^10 of the episodes (`success`), at
most 0.944, with a quarter at each. A policy that always tries the same target succeeds in a quarter of them, a uniform
one, which hits with probability 0.031, in 0.27, and the best Gaussian in 0.41 to 0.47 if it is squashed by tanh, 0.38
to 0.46 if it is clipped, by theta. That stochastic policies can be better than all deterministic ones where the state
is hidden is known since Singh, Jaakkola and Jordan (1994).
"""

import argparse
from pathlib import Path
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


def observation(theta: float) -> np.ndarray:
    """What is observed of an episode, `[2]`."""
    return np.array([np.cos(theta), np.sin(theta)], np.float32)


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
        return observation(self.theta), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        hit = bool(hits(np.asarray(action), self.theta)[self.hidden])
        return observation(self.theta), float(hit), hit, False, {}


if "HiddenTarget-v0" not in gym.registry:  # `python -m` imports this file under two names
    gym.register("HiddenTarget-v0", entry_point="benchmarks.hidden:HiddenTarget", max_episode_steps=TRIES)


# ------------------------------------------------------------------------------------------------------------- picture
# What draws is imported where it is used: training imports this file for the environment alone.


def title_of(args: dict) -> str:
    """The algorithm, and what a run of PPO has as its bonus."""
    from benchmarks.results import label

    return label(args["script"]) + (f", bonus {args['ent_coef']}" if args.get("ent_coef") else "")


def sample(run: Path, theta: float, number: int) -> tuple[str, np.ndarray]:
    """The title of a run, and actions `[number, 2]` of its first seed's stochastic policy. Raises UserError."""
    import jax

    from envs import UserError
    from harness import RunFolder, load_agent

    args = RunFolder(run).stored_args()
    if not args["env_id"].endswith("HiddenTarget-v0"):
        raise UserError(f"{run} is no run on the hidden target")
    obs = np.tile(observation(theta), (number, 1))
    return title_of(args), load_agent(run)(obs, jax.random.key(0))


def draw(samples: list[tuple[str, np.ndarray]], theta: float, path: Path) -> None:
    """The targets and, below a title, actions `[n, 2]` with the share of the episodes in which such actions succeed."""
    from matplotlib.patches import Circle

    from benchmarks.figures import grid_of

    figure, axes = grid_of(len(samples), 4, 2.4, 2.8)
    for axis, (title, action) in zip(axes, samples, strict=True):
        axis.plot(*action.T, ",", color="black", alpha=0.7)
        for place in targets(theta):
            axis.add_patch(Circle(place, RADIUS, fill=False, color="#d95f0e"))
        axis.set_title(f"{title}\nfinds {success(hits(action, theta).mean(axis=0)):.2f} here", fontsize=8)
        axis.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
        axis.tick_params(labelsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Draws the runs named on the command line."""
    from harness.cli import one_line_errors

    parser = argparse.ArgumentParser(description="Actions of runs on the hidden target.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--theta", type=float, default=0.4, help="direction of the first target, radians")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / "hidden.png")
    with one_line_errors():
        options = parser.parse_args()
        samples = [sample(run, options.theta, 2000) for run in options.runs]
        draw(samples, options.theta, options.figure)


if __name__ == "__main__":
    main()
