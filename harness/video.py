"""A video of a trained agent."""

import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import jax

from envs import one_line
from envs.gymnasium_make import action_bounds, make_gymnasium
from harness.agents import load_agent
from harness.evaluation import MAX_EPISODE_STEPS
from harness.folder import RunFolder


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
