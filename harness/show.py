"""Episodes of a saved run: returns of every seed and policy, and a video.

python -m harness.show runs/RUN                       ten episodes of each policy, other start states than training's
python -m harness.show runs/RUN --video               and a video of one episode
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from envs import UserError
from envs.gymnasium_make import prefer_headless_rendering
from harness.agents import read_agents
from harness.cli import one_line_errors
from harness.evaluation import POLICIES, Evaluator
from harness.folder import RunFolder
from harness.video import record_video


@dataclass(frozen=True)
class Settings:
    run: Annotated[Path, tyro.conf.Positional]
    """a run folder"""
    episodes: int = 10
    """episodes of each of the run's agents"""
    policy: Literal["both", "stochastic", "deterministic"] = "both"
    """which policy acts"""
    seed: int | None = None
    """start states follow from this; default: those of the run's own evaluations"""
    video: bool = False
    """record one episode of the first agent as RUN/videos/POLICY.mp4"""
    seconds: float = math.inf
    """cut the video after this much of the episode's time"""
    size: tuple[int, int] | None = None
    """the video's width and height in pixels, where the environment takes them (MuJoCo's do)"""


def show(settings: Settings) -> None:
    """Prints a line per agent and policy. Raises UserError."""
    if settings.episodes < 1:
        raise UserError(f"--episodes must be positive, not {settings.episodes}")
    folder = RunFolder(settings.run)
    module = folder.script()
    stored = folder.arguments(module.Args)
    args = dataclasses.replace(stored, eval_episodes=settings.episodes)
    if settings.seed is not None:
        args = dataclasses.replace(args, seed=settings.seed)
    policies = POLICIES if settings.policy == "both" else (settings.policy,)
    with Evaluator(args, module.sample_action, module.deterministic_action) as evaluate:
        agents = read_agents(folder, module, stored, evaluate.env)
        for policy in policies:
            result = evaluate.episodes(policy, agents, stored.total_timesteps)
            for seed, returns, lengths in zip(stored.seeds, result["return"], result["length"], strict=True):
                print(
                    f"{args.env_id} seed {seed} {policy:13s} return {returns.mean():9.2f} +- {returns.std():8.2f} "
                    f"(min {returns.min():.2f}, max {returns.max():.2f}, {len(returns)} episodes, "
                    f"mean length {lengths.mean():.1f})"
                )
    if settings.video:
        deterministic = policies[-1] == "deterministic"
        record_video(settings.run, deterministic, args.seed, settings.seconds, settings.size)


if __name__ == "__main__":
    prefer_headless_rendering()
    with one_line_errors():
        show(tyro.cli(Settings, description=__doc__))
