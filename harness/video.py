"""A video of a trained agent."""

import contextlib
import importlib.util
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from envs import UserError, one_line
from envs.stage import Stage, make_stage
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
    env_kwargs: str | None = None,
) -> Path | None:
    """Records one episode of the run's first agent that was not stopped as RUN/videos/{policy}.mp4.

    Where it cannot be rendered or encoded, says so in one line and returns None.

    Args:
      start: the start state follows from this seed; default: the run's first.
      seconds: of the episode's own time, after which it is cut.
      size: width and height in pixels, for environments that take them (MuJoCo's).
      env_kwargs: in place of the run's own.
    """
    folder = RunFolder(run)
    args = folder.arguments(folder.script().Args)
    if not installed():
        print(f"no video: {NEEDS}", file=sys.stderr)
        return None
    stopped = folder.summary().get("stopped", {})
    seed = next((seed for seed in args.seeds if str(seed) not in stopped), args.seed)
    act = load_agent(run, seed, deterministic)
    path = folder.path / "videos" / f"{'deterministic' if deterministic else 'stochastic'}.mp4"
    try:
        path.parent.mkdir(exist_ok=True)
        with make_stage(args.env_id, args.env_kwargs if env_kwargs is None else env_kwargs, size) as stage:
            film(stage, act, args.seed if start is None else start, path, seconds)
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
        with make_stage(args.env_id, args.env_kwargs) as stage:
            stage.reset(seed=0)
            next(stage.frames([stage.picture()]))
    except Exception as error:
        raise UserError(f"--capture-video: {args.env_id} cannot be rendered here ({one_line(error)})") from None


def installed() -> bool:
    return importlib.util.find_spec("moviepy") is not None


def film(stage: Stage, act: Any, seed: int, path: Path, seconds: float) -> None:
    """Plays an episode and encodes its frames as they come."""
    stride = math.ceil(stage.pace / FRAMES_PER_SECOND)
    limit = int(min(stage.max_episode_steps or MAX_EPISODE_STEPS, seconds * stage.pace))

    def pictures():
        obs, done, steps = stage.reset(seed=seed), False, 0
        yield stage.picture()
        with tqdm(total=limit, unit="step", leave=False) as bar:
            while not done and steps < limit:
                obs, done = stage.step(act(obs, jax.random.fold_in(jax.random.key(0), steps)))
                steps += 1
                if steps % stride == 0:
                    yield stage.picture()
                bar.update()

    frames = stage.frames(pictures())
    first = next(frames)
    with open_writer(path, first, stage.pace / stride) as write:
        for frame in itertools.chain([first], frames):
            write(frame)


@contextlib.contextmanager
def open_writer(path: Path, frame: np.ndarray, pace: float):
    """Yields a function that appends a frame, uint8 `[height, width, 3]`, of the size of `frame`."""
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    height, width = (x // 2 * 2 for x in frame.shape[:2])  # the encoder wants even numbers
    writer = FFMPEG_VideoWriter(str(path), (width, height), pace, preset="veryfast")
    try:
        yield lambda frame: writer.write_frame(np.ascontiguousarray(frame[:height, :width]))
    finally:
        writer.close()
