"""Environments: `make_env` for a training loop, `UserError` for what a user can put right."""

from envs.gymnasium_env import GymnasiumEnv
from envs.interface import Environment, EnvState, Episode, TimeStep, UserError, one_line

__all__ = ["EnvState", "Environment", "Episode", "TimeStep", "UserError", "make_env", "one_line"]


def make_env(env_id: str, num_envs: int, num_seeds: int = 1, env_kwargs: str = "{}") -> Environment:
    """N environments for each of S agents: any registered Gymnasium id, or `module:id` to import a module first.

    Args:
      env_kwargs: keyword arguments of the environment as a JSON object.

    Raises:
      UserError: unknown id, or spaces that the algorithms cannot use.
    """
    return GymnasiumEnv(env_id, num_envs, num_seeds, env_kwargs)
