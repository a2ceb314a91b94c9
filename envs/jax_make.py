"""One environment written in JAX: found by its id, checked, with its time limit."""

import contextlib
import dataclasses
import importlib
import io
import numbers
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp

from envs.interface import UserError, did_you_mean, one_line, parse_kwargs

LIBRARIES = ("playground", "brax")
NEEDS = "pip install '.[playground]'"


@dataclass(frozen=True)
class Task:
    """What is simulated, one copy.

    Attributes:
      env: has `reset(key) -> state`, `step(state, action [A]) -> state` and `action_size`; a state is a pytree with the
        attributes obs, reward and done.
      episode_length: steps of `env` after which an episode is cut, or None.
      action_repeat: steps of `env` for one action.
      state: the shapes and types of a state after a step.
    """

    env: Any
    episode_length: int | None
    action_repeat: int
    state: Any = None


def is_jax(env_id: str) -> bool:
    """Whether the id means an environment written in JAX: `playground/NAME`, `brax/NAME` or `module:Class`."""
    if env_id.startswith(tuple(f"{library}/" for library in LIBRARIES)):
        return True
    module, _, name = env_id.rpartition(":")
    with contextlib.suppress(Exception, SystemExit):  # a module that cannot be imported is reported by who needs it
        return bool(module) and hasattr(importlib.import_module(module), name) and name not in gym.registry
    return False


def make_jax(env_id: str, env_kwargs: str = "{}") -> Task:
    """The environment of an id for which `is_jax` holds, checked (see `envs.make_env` for the arguments).

    Raises:
      UserError: unknown name, a library that is missing, or an environment that the algorithms cannot use.
    """
    kwargs = parse_kwargs(env_kwargs)
    try:
        if env_id.startswith("playground/"):
            task = _playground(env_id.removeprefix("playground/"), kwargs)
        elif env_id.startswith("brax/"):
            task = _brax(env_id.removeprefix("brax/"), kwargs)
        else:
            task = _own(env_id, kwargs)
    except UserError as error:
        raise UserError(f"{env_id!r}: {error}") from None
    except Exception as error:
        raise UserError(f"cannot make environment {env_id!r}: {one_line(error)}") from error
    counts = {"action_repeat": task.action_repeat}
    counts |= {} if task.episode_length is None else {"episode_length": task.episode_length}
    for name, value in counts.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{env_id!r}: {name} must be a positive whole number, not {value!r}")
    return dataclasses.replace(task, state=check(env_id, task.env))


def _playground(name: str, kwargs: dict[str, Any]) -> Task:
    said = io.StringIO()  # that the Warp backend, which is not used, cannot be imported
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            from mujoco_playground import registry
            from mujoco_playground._src.mjx_env import MENAGERIE_PATH
    except ImportError as error:
        raise UserError(f"it needs MuJoCo Playground: {NEEDS} ({one_line(error)})") from None
    _known(name, registry.ALL_ENVS)
    if name not in registry.dm_control_suite.ALL_ENVS and not MENAGERIE_PATH.exists():
        print(f"playground/{name}: Playground downloads the models of its robots (MuJoCo Menagerie, by git)")
    config = registry.get_default_config(name)
    env = registry.load(name, config=config, config_overrides=kwargs)
    return Task(env, config.episode_length, config.action_repeat)


def _brax(name: str, kwargs: dict[str, Any]) -> Task:
    try:
        from brax import envs
    except ImportError as error:
        raise UserError(f"it needs Brax: {NEEDS} ({one_line(error)})") from None
    _known(name, tuple(envs._envs))
    kwargs = {"episode_length": 1000, "action_repeat": 1, **kwargs}
    length, repeat = kwargs.pop("episode_length"), kwargs.pop("action_repeat")
    return Task(envs.get_environment(name, **kwargs), length, repeat)


def _own(env_id: str, kwargs: dict[str, Any]) -> Task:
    module, _, name = env_id.rpartition(":")
    cls = getattr(importlib.import_module(module), name)
    if isinstance(cls, type) and issubclass(cls, gym.Env):
        raise UserError("a Gymnasium class is asked for by the id that it is registered with, as in my_module:MyEnv-v0")
    length, repeat = kwargs.pop("episode_length", None), kwargs.pop("action_repeat", 1)
    env = cls(**kwargs)
    return Task(env, getattr(env, "episode_length", None) if length is None else length, repeat)


def _known(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UserError(f"no such environment; {did_you_mean(name, names, 'there are ' + ', '.join(names))}")


def check(env_id: str, env: Any) -> Any:
    """The shapes and types of a state after a step.

    Raises UserError unless `env` is what `Task` says, with observations that the algorithms can use.
    """
    if missing := [name for name in ("reset", "step", "action_size") if not hasattr(env, name)]:
        raise UserError(f"{env_id!r} is no environment in JAX: it has no {', '.join(missing)}")
    if not isinstance(env.action_size, numbers.Integral) or env.action_size < 1:
        raise UserError(f"{env_id!r}: action_size must be a positive whole number, not {env.action_size!r}")
    try:
        begin = jax.eval_shape(env.reset, jax.random.key(0))
        then = jax.eval_shape(env.step, begin, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    except Exception as error:
        raise UserError(f"{env_id!r} cannot be reset and stepped once in JAX: {one_line(error)}") from error
    if missing := [name for name in ("obs", "reward", "done") if not hasattr(then, name)]:
        raise UserError(f"{env_id!r}: its state has no {', '.join(missing)}")
    if jax.tree.structure(begin) != jax.tree.structure(then):
        raise UserError(f"{env_id!r}: the state after a step has another structure than the one after a reset")
    for before, after in zip(jax.tree.leaves(begin), jax.tree.leaves(then), strict=True):
        if before.shape != after.shape:
            raise UserError(f"{env_id!r}: a state's array has the shape {before.shape} at first, then {after.shape}")
    if jnp.shape(then.reward) != () or jnp.shape(then.done) != ():
        raise UserError(f"{env_id!r}: reward and done must be single numbers, not {then.reward}, {then.done}")
    vector_of(env_id, then.obs)
    return then


def vector_of(env_id: str, obs: Any) -> Any:
    """The vector `[O]` in an observation: itself, or the entry "state" of a dictionary. Raises UserError."""
    if isinstance(obs, dict):
        if any("pixels" in name for name in obs):
            raise UserError(f"{env_id!r} has image observations; these algorithms need vectors")
        if "state" not in obs:
            raise UserError(f"{env_id!r} has the observations {', '.join(obs)}; of a dictionary 'state' is taken")
        obs = obs["state"]
    if obs.ndim != 1 or obs.size == 0:
        raise UserError(f"{env_id!r} has observations of shape {obs.shape}; these algorithms need vectors")
    return obs
