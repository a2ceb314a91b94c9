"""Episodes of a saved run: returns of every seed and policy, and a video.

  python -m harness.show runs/RUN             ten episodes of each policy, other start states than training's
  python -m harness.show runs/RUN --video     and a video of one episode

Docs: docs/runs.md
"""

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from envs import UserError
from envs.gymnasium_make import prefer_headless_rendering
from envs.interface import parse_kwargs
from harness.agents import read_agents
from harness.cli import one_line_errors
from harness.devices import keep_compiled
from harness.evaluation import POLICIES, Evaluator
from harness.folder import RunFolder
from harness.guard import finite
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
    """seed of the start states; default: those of the run's own evaluations"""
    env_kwargs: str = "{}"
    """keyword arguments of the environment, a JSON object: over those that the run was trained with"""
    video: bool = False
    """record one episode of the first agent as RUN/videos/POLICY.mp4"""
    seconds: float = math.inf
    """cut the video after this much of the episode's time"""
    size: tuple[int, int] | None = None
    """the video's width and height in pixels, where the environment takes them (MuJoCo's do)"""


def show(settings: Settings) -> None:
    """Prints a line per agent and policy. Raises UserError, and SystemExit with 1 where no video can be made."""
    if settings.episodes < 1:
        raise UserError(f"--episodes must be positive, not {settings.episodes}")
    folder = RunFolder(settings.run)
    module = folder.script()
    stored = folder.arguments(module.Args)
    env_kwargs = json.dumps(parse_kwargs(stored.env_kwargs) | parse_kwargs(settings.env_kwargs))
    args = dataclasses.replace(stored, eval_episodes=settings.episodes, env_kwargs=env_kwargs)
    if settings.seed is not None:
        args = dataclasses.replace(args, seed=settings.seed)
    policies = POLICIES if settings.policy == "both" else (settings.policy,)
    if not settings.seconds > 0:
        raise UserError(f"--seconds must be positive, not {settings.seconds}")
    if settings.size is not None and min(settings.size) < 1:
        raise UserError(f"--size must be positive, not {' '.join(map(str, settings.size))}")
    with Evaluator(args, module.sample_action, module.deterministic_action) as evaluate:
        keep_compiled(evaluate.env)
        agents = read_agents(folder, module, stored, evaluate.env)
        stopped = [seed for seed, ok in zip(stored.seeds, finite(agents), strict=True) if not ok]
        for seed in stopped:
            print(f"{args.env_id} seed {seed} was stopped: its parameters are not finite")
        for policy in policies:
            result = evaluate.episodes(policy, agents, stored.total_timesteps)
            for seed, returns, lengths in zip(stored.seeds, result["return"], result["length"], strict=True):
                if seed not in stopped:
                    print(
                        f"{args.env_id} seed {seed} {policy:13s} return {returns.mean():9.2f} +- {returns.std():8.2f} "
                        f"(min {returns.min():.2f}, max {returns.max():.2f}, {len(returns)} episodes, "
                        f"mean length {lengths.mean():.1f})"
                    )
    if settings.video:
        deterministic = policies[-1] == "deterministic"
        if not record_video(settings.run, deterministic, args.seed, settings.seconds, settings.size, env_kwargs):
            sys.exit(1)


if __name__ == "__main__":
    prefer_headless_rendering()
    with one_line_errors():
        show(tyro.cli(Settings, description=__doc__))
