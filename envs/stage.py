"""One environment that is looked at, a step at a time: `make_stage`."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import gymnasium as gym
import jax
import numpy as np

from envs.gymnasium_make import make_gymnasium
from envs.jax_env import JaxEnv
from envs.jax_make import is_jax

STEPS_PER_SECOND = 30.0  # of an environment that does not say


class Stage(Protocol):
    """An environment with its drawing.

    Attributes:
      pace: steps per second of the environment's own time.
      max_episode_steps: the time limit, or None.
    """

    pace: float
    max_episode_steps: int | None

    def reset(self, seed: int) -> Any:
        """Begins an episode. Returns the observation, as the environment has it."""
        ...

    def step(self, action: np.ndarray) -> tuple[Any, bool]:
        """One step with an action `[A]` in the environment's units. Returns the observation and whether it ended."""
        ...

    def picture(self) -> Any:
        """What `frames` needs to draw the environment as it is now."""
        ...

    def frames(self, pictures: Iterable[Any]) -> Iterator[np.ndarray]:
        """The pictures drawn, uint8 `[height, width, 3]`, each as soon as the environment's way of drawing allows."""
        ...

    def close(self) -> None: ...


@contextlib.contextmanager
def make_stage(env_id: str, env_kwargs: str, size: tuple[int, int] | None = None) -> Iterator[Stage]:
    """The environment of an id (see `envs.make_env`) with its drawing, `size` wide and high in pixels where it can be.

    Raises UserError, or whatever an environment's drawing raises.
    """
    stage = JaxStage(env_id, env_kwargs, size) if is_jax(env_id) else GymnasiumStage(env_id, env_kwargs, size)
    try:
        yield stage
    finally:
        stage.close()


class GymnasiumStage(Stage):
    """Draws each picture at once. `size` becomes the arguments width and height, which MuJoCo's environments have."""

    def __init__(self, env_id: str, env_kwargs: str, size: tuple[int, int] | None):
        more = {"width": size[0], "height": size[1]} if size else {}
        self.env: gym.Env = make_gymnasium(env_id, env_kwargs, render_mode="rgb_array", **more)
        follow(self.env.unwrapped)
        self.pace = self.env.metadata.get("render_fps") or STEPS_PER_SECOND
        self.max_episode_steps = self.env.spec.max_episode_steps

    def reset(self, seed: int) -> Any:
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> tuple[Any, bool]:
        obs, _, terminated, truncated, _ = self.env.step(action)
        return obs, terminated or truncated

    def picture(self) -> np.ndarray:
        return self.env.render()

    def frames(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        yield from pictures

    def close(self) -> None:
        self.env.close()


def follow(env: Any) -> None:
    """Draws a MuJoCo environment of Gymnasium from its model's camera "track", unless another was asked for.

    Gymnasium 1.4 leaves that camera for one at rest, and the agent walks out of the picture.
    """
    renderer = getattr(env, "mujoco_renderer", None)
    asked = getattr(env, "camera_id", None) is not None or getattr(env, "camera_name", None) is not None
    if renderer is not None and renderer.camera_id == -1 and not asked:
        cameras = [env.model.camera(i).name for i in range(env.model.ncam)]
        renderer.camera_id = cameras.index("track") if "track" in cameras else -1


def first_camera(env: Any) -> dict[str, int]:
    """The same for Playground: `camera` of its render, the model's first as in the DeepMind Control suite."""
    model = getattr(env, "mj_model", None)
    takes_one = "camera" in inspect.signature(env.render).parameters
    return {"camera": 0} if takes_one and model is not None and model.ncam else {}


class JaxStage(Stage):
    """Draws a whole episode at its end, by the environment's `render(states, height, width)`, as Playground's and
    Brax's have it."""

    def __init__(self, env_id: str, env_kwargs: str, size: tuple[int, int] | None):
        self.env = JaxEnv(env_id, 1, 1, env_kwargs)
        self.task = self.env.task
        if not hasattr(self.task.env, "render"):
            raise AttributeError(f"{type(self.task.env).__name__} has no render")
        self.size = size or (640, 480)
        seconds = getattr(self.task.env, "dt", 1.0 / STEPS_PER_SECOND) * self.task.action_repeat
        self.pace = 1.0 / float(seconds)
        self.max_episode_steps = self.env.max_episode_steps
        self._reset, self._step = jax.jit(self.env.reset), jax.jit(self.env.step)

    def reset(self, seed: int) -> np.ndarray:
        self._state = self._reset(jax.random.key(seed))
        return np.asarray(self._state.obs[0])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        state, time_step = self._step(self._state, action[None])
        if not time_step.done[0]:  # else it is the next episode's already: the pose before the end is drawn once more
            self._state = state
        return np.asarray(time_step.final_obs[0]), bool(time_step.done[0])

    def picture(self) -> Any:
        state = jax.device_get(self.env.inner_state(self._state, 0))
        return state.pipeline_state if hasattr(state, "pipeline_state") else state  # Brax draws this part of it

    def frames(self, pictures: Iterable[Any]) -> Iterator[np.ndarray]:
        width, height = self.size
        yield from self.task.env.render([*pictures], height=height, width=width, **first_camera(self.task.env))

    def close(self) -> None:
        self.env.close()
