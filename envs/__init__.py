"""Environments: `make_env` for a training loop, `UserError` for errors that the user can fix."""

from envs.gymnasium_env import GymnasiumEnv
from envs.interface import Environment, EnvState, Episode, TimeStep, UserError, one_line
from envs.jax_env import JaxEnv
from envs.jax_make import is_jax

__all__ = ["EnvState", "Environment", "Episode", "TimeStep", "UserError", "make_env", "one_line"]


def make_env(env_id: str, num_envs: int, num_seeds: int = 1, env_kwargs: str = "{}") -> Environment:
    """N environments for each of S agents.

    Args:
      env_id: any registered Gymnasium id, or `module:id` to import a module first. On the device: `playground/NAME`
        (MuJoCo Playground), `brax/NAME`, or `module:Class` for your own class (docs/environments.md).
      env_kwargs: keyword arguments of the environment as a JSON object; for Playground its configuration's overrides.
        Of an environment in JAX also `episode_length` and `action_repeat`.

    Raises:
      UserError: unknown id, or spaces that the algorithms cannot use.
    """
    kind = JaxEnv if is_jax(env_id) else GymnasiumEnv
    return kind(env_id, num_envs, num_seeds, env_kwargs)
