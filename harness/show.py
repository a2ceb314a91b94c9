"""Episodes of a saved run: returns of every seed and policy, and a video.

python -m harness.show runs/RUN                       ten episodes of each policy, other start states than training's
python -m harness.show runs/RUN --video               and a video of one episode
"""

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import gymnasium as gym
import jax
import tyro

from envs import UserError, one_line
from envs.gymnasium_make import action_bounds, make_gymnasium, prefer_headless_rendering
from harness.agents import load_agent, read_agents
from harness.cli import one_line_errors
from harness.evaluation import MAX_EPISODE_STEPS, POLICIES, Evaluator
from harness.folder import RunFolder


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
    """record one episode of the first agent as RUN/videos/*.mp4"""


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
    evaluator = Evaluator(args, module.sample_action, module.deterministic_action)
    agents = read_agents(folder, module, stored, evaluator.env)
    for policy in policies:
        result = evaluator.episodes(policy, agents, stored.total_timesteps)
        for seed, returns, lengths in zip(stored.seeds, result["return"], result["length"], strict=True):
            print(
                f"{args.env_id} seed {seed} {policy:13s} return {returns.mean():9.2f} +- {returns.std():8.2f} "
                f"(min {returns.min():.2f}, max {returns.max():.2f}, {len(returns)} episodes, "
                f"mean length {lengths.mean():.1f})"
            )
    evaluator.close()
    if settings.video:
        record_video(settings.run, deterministic=policies[-1] == "deterministic", start=args.seed)


def record_video(run: str | Path, deterministic: bool = True, start: int | None = None) -> Path | None:
    """Records one episode of the run's first agent as RUN/videos/*.mp4, from the start state of seed `start`.

    Where it cannot be rendered or encoded, says so in one line and returns None.
    """
    folder = RunFolder(run)
    args = folder.arguments(folder.script().Args)
    if importlib.util.find_spec("moviepy") is None:
        print("no video: it needs moviepy: pip install '.[video]'", file=sys.stderr)
        return None
    act = load_agent(run, deterministic=deterministic)
    videos = folder.path / "videos"
    try:
        env = make_gymnasium(args.env_id, args.env_kwargs, render_mode="rgb_array")
        low, high = action_bounds(env)
        name = "deterministic" if deterministic else "stochastic"
        env = gym.wrappers.RecordVideo(env, str(videos), name_prefix=name, disable_logger=True)
        obs, _ = env.reset(seed=args.seed if start is None else start)
        done, steps, key = False, 0, jax.random.key(0)
        while not done and steps < MAX_EPISODE_STEPS:
            action = 2.0 * (act(obs, jax.random.fold_in(key, steps)) - low) / (high - low) - 1.0
            obs, _, terminated, truncated, _ = env.step(action)
            done, steps = terminated or truncated, steps + 1
        env.close()
        path = max(videos.glob("*.mp4"), key=lambda p: p.stat().st_mtime)
    except Exception as error:
        print(f"no video: {args.env_id} cannot be rendered here ({one_line(error)})", file=sys.stderr)
        return None
    print(f"video: {path}")
    return path


if __name__ == "__main__":
    prefer_headless_rendering()
    with one_line_errors():
        show(tyro.cli(Settings, description=__doc__))
