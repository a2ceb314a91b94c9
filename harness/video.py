"""A video of a trained agent."""

import contextlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from envs import UserError, one_line
from envs.gymnasium_make import action_bounds, make_gymnasium
from harness.agents import load_agent
from harness.evaluation import MAX_EPISODE_STEPS
from harness.experiment import Experiment
from harness.folder import RunFolder

NEEDS = "it needs moviepy: pip install '.[video]'"
FRAMES_PER_SECOND = 30  # at most: an environment of 125 steps per second is drawn at every fifth


def record_video(
    run: str | Path,
    deterministic: bool = True,
    start: int | None = None,
    seconds: float = math.inf,
    size: tuple[int, int] | None = None,
) -> Path | None:
    """Records one episode of the run's first agent as RUN/videos/{policy}.mp4.

    Where it cannot be rendered or encoded, says so in one line and returns None.

    Args:
      start: the start state follows from this seed; default: the run's first.
      seconds: of the episode's own time, after which it is cut.
      size: width and height in pixels, for environments with these arguments (MuJoCo's).
    """
    folder = RunFolder(run)
    args = folder.arguments(folder.script().Args)
    if not installed():
        print(f"no video: {NEEDS}", file=sys.stderr)
        return None
    act = load_agent(run, deterministic=deterministic)
    path = folder.path / "videos" / f"{'deterministic' if deterministic else 'stochastic'}.mp4"
    more = {"width": size[0], "height": size[1]} if size else {}
    try:
        path.parent.mkdir(exist_ok=True)
        with contextlib.closing(make_gymnasium(args.env_id, args.env_kwargs, render_mode="rgb_array", **more)) as env:
            play(env, act, args.seed if start is None else start, path, seconds)
    except Exception as error:
        print(f"no video: {args.env_id} cannot be rendered here ({one_line(error)})", file=sys.stderr)
        return None
    print(f"video: {path}")
    return path


def check_video(args: Experiment) -> None:
    """Raises UserError where --capture-video is asked for and an environment cannot be drawn here, before it trains."""
    if not args.capture_video:
        return
    if not installed():
        raise UserError(f"--capture-video: {NEEDS}")
    try:
        with contextlib.closing(make_gymnasium(args.env_id, args.env_kwargs, render_mode="rgb_array")) as env:
            env.reset(seed=0)
            env.render()
    except Exception as error:
        raise UserError(f"--capture-video: {args.env_id} cannot be rendered here ({one_line(error)})") from None


def installed() -> bool:
    return importlib.util.find_spec("moviepy") is not None


def play(env: Any, act: Any, seed: int, path: Path, seconds: float) -> None:
    """Plays an episode and encodes its frames as they come."""
    low, high = action_bounds(env)
    pace = env.metadata.get("render_fps") or FRAMES_PER_SECOND
    stride = math.ceil(pace / FRAMES_PER_SECOND)
    limit = int(min(env.spec.max_episode_steps or MAX_EPISODE_STEPS, seconds * pace))
    obs, _ = env.reset(seed=seed)
    with open_writer(path, env.render(), pace / stride) as write, tqdm(total=limit, unit="step", leave=False) as bar:
        done, steps = False, 0
        while not done and steps < limit:
            action = 2.0 * (act(obs, jax.random.fold_in(jax.random.key(0), steps)) - low) / (high - low) - 1.0
            obs, _, terminated, truncated, _ = env.step(action)
            done, steps = terminated or truncated, steps + 1
            if steps % stride == 0:
                write(env.render())
            bar.update()


@contextlib.contextmanager
def open_writer(path: Path, frame: np.ndarray, pace: float):
    """Yields a function that appends a frame, uint8 `[height, width, 3]`; the first is `frame`."""
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    height, width = (x // 2 * 2 for x in frame.shape[:2])  # the encoder wants even numbers
    writer = FFMPEG_VideoWriter(str(path), (width, height), pace, preset="veryfast")

    def write(frame: np.ndarray) -> None:
        writer.write_frame(np.ascontiguousarray(frame[:height, :width]))

    try:
        write(frame)
        yield write
    finally:
        writer.close()
