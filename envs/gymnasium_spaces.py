"""What a Gymnasium environment must be to be trained on, and its observations as vectors."""

from typing import Any

import gymnasium as gym
import numpy as np

from envs.interface import UserError, one_line


def check_spaces(env_id: str, env: gym.Env) -> None:
    """Raises UserError unless actions are a bounded vector of real numbers and observations can be flattened to one."""
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or actions.shape[0] == 0:
        raise UserError(f"{env_id!r} has the action space {actions}; these algorithms need a one-dimensional Box")
    if not np.issubdtype(actions.dtype, np.floating):
        raise UserError(
            f"{env_id!r} has the action space {actions}; these algorithms need real numbers, not whole ones"
        )
    if not np.all(actions.low < actions.high):
        raise UserError(f"{env_id!r} has the action space {actions}, of which a dimension has no width")
    if not np.all(np.isfinite(actions.low) & np.isfinite(actions.high)):
        raise UserError(f"{env_id!r} has the unbounded action space {actions}; give it finite bounds in a wrapper")
    with np.errstate(over="ignore"):
        if not np.all(np.isfinite((actions.high - actions.low).astype(np.float32))):
            raise UserError(f"{env_id!r} has the action space {actions}, whose width float32 cannot hold")
    for part in _parts(observations):
        if not isinstance(
            part, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
        ):
            raise UserError(f"{env_id!r} has the observation space {part}; these algorithms need vectors of one size")
        if isinstance(part, gym.spaces.Box) and part.dtype == np.uint8 and len(part.shape) >= 2:
            raise UserError(f"{env_id!r} has image observations {part.shape}; these algorithms need vectors")
    if gym.spaces.flatdim(observations) == 0:
        raise UserError(f"{env_id!r} has the observation space {observations}, which holds nothing")


def _parts(space: gym.Space) -> list[gym.Space]:
    """The spaces in a Dict or Tuple, in the order in which Gymnasium flattens them; or the space itself."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        return [part for key in _keys(space) for part in _parts(space[key])]
    return [space]


def _keys(space: gym.Space) -> list[Any]:
    return list(space.keys()) if isinstance(space, gym.spaces.Dict) else list(range(len(space)))


def flatten_observations(space: gym.Space, obs: Any, part: bool = False) -> np.ndarray:
    """An observation of `space`, or a batch of them, as float32 `[.., O]`; what is flat already stays as it is.

    Args:
      part: `space` is a part of another, whose parts are not flat.

    Raises UserError where the shape is neither.
    """
    size = gym.spaces.flatdim(space)
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and not isinstance(obs, np.ndarray):
        try:
            parts = [flatten_observations(space[key], obs[key], part=True) for key in _keys(space)]
            return np.concatenate(parts, axis=-1)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"no observation of {space}: {one_line(error)}") from None
    obs, shape = np.asarray(obs), space.shape or ()
    real = isinstance(space, gym.spaces.Box) or np.issubdtype(obs.dtype, np.floating)
    if not part and shape == () and real and obs.ndim and obs.shape[-1] == size:  # of a number, or a choice: a vector
        return obs.astype(np.float32)
    lead = obs.shape[: obs.ndim - len(shape)]
    if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and obs.shape[len(lead) :] == shape:
        if isinstance(space, gym.spaces.Box):
            return obs.reshape(*lead, size).astype(np.float32)
        rows = [gym.spaces.flatten(space, row) for row in obs.reshape(-1, *shape)]
        return np.array(rows, np.float32).reshape(*lead, size)
    if obs.ndim and obs.shape[-1] == size:
        return obs.astype(np.float32)
    raise UserError(f"an observation has the shape {shape}, or {size} numbers once flattened, not {obs.shape}")


def try_out(env_id: str, env: gym.Env) -> None:
    """One reset and one step of what `as_vectors` returned, before anything is compiled. Closes it.

    Raises UserError that names what is wrong.
    """
    try:
        obs, _ = env.reset(seed=0)
        next_obs, reward, _, _, _ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    except Exception as error:
        raise UserError(f"{env_id!r} cannot be reset with a seed and stepped once: {one_line(error)}") from error
    if np.ndim(reward) != 0:
        raise UserError(f"{env_id!r} returns rewards of shape {np.shape(reward)}, not numbers")
    for call, got in (("reset", obs), ("step", next_obs)):
        if np.shape(got) != env.observation_space.shape:
            raise UserError(f"{env_id!r}: {call}() returned an observation of shape {np.shape(got)}, not of its space")
    env.close()
