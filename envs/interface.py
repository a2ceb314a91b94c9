"""What a training loop sees of its environments, whether they run on the host or on the device.

    env.reset(key)                      -> EnvState
    env.step(env_state, action [N, A])  -> EnvState, TimeStep

N environments run side by side for one agent; under `jax.vmap` over S agents all leaves get a leading axis `[S, ..]`.
Actions lie in [-1, 1]; the environment layer rescales them to the environment's own bounds. Episodes restart by
themselves. Both functions may be called inside jit, scan and vmap. They are pure where the environment is written in
JAX; an environment on the host goes on from where it is, whatever the state says.
"""

import difflib
import json
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class UserError(Exception):
    """Something the user can put right. The scripts print it as one line and exit with status 2."""


def did_you_mean(name: str, names: Iterable[str], otherwise: str) -> str:
    """A question that names those of `names` that are nearly `name`, or `otherwise` if none is."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def one_line(error: BaseException) -> str:
    """The exception's type and message without line breaks."""
    return f"{type(error).__name__}: {error}".replace("\n", " ").strip()


def parse_kwargs(env_kwargs: str) -> dict[str, Any]:
    """The JSON object of `--env-kwargs`. Raises UserError."""
    try:
        kwargs = json.loads(env_kwargs)
    except json.JSONDecodeError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise UserError(f"--env-kwargs must be a JSON object such as '{{\"key\": 1}}', not {env_kwargs!r}")
    return kwargs


@struct.dataclass
class EnvState:
    """What the environments carry from one step to the next.

    Attributes:
      obs: `[N, O]`, to act on next.
      episode_return, episode_length: `[N]`, reward and steps of the running episodes so far.
    """

    obs: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


@struct.dataclass
class Episode:
    """What a log needs of one step, all `[N]`.

    Attributes:
      done: whether the episode ended here.
      return_, length: of the episode up to and with this step; final where it ended here.
      finite: false where an observation or the reward is NaN or infinite.
    """

    done: jax.Array
    return_: jax.Array
    length: jax.Array
    finite: jax.Array


@struct.dataclass
class TimeStep:
    """The result of one step of N environments.

    Attributes:
      obs: `[N, O]`, to act on next (after the reset where an episode ended).
      final_obs: `[N, O]`, what this transition ended in (before any reset): the next observation for learning.
      reward: `[N]`.
      terminated, truncated: bool `[N]`.
      episode: see `Episode`.
    """

    obs: jax.Array
    final_obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    episode: Episode

    @property
    def done(self) -> jax.Array:
        return self.terminated | self.truncated


class Environment(Protocol):
    """N environments for each of S agents. Hashed by identity: a static jit argument.

    Attributes:
      env_id: its name.
      num_envs: N.
      observation_size, action_size: O and A.
      action_low, action_high: the environment's own bounds, `[A]`.
      max_episode_steps: the time limit, or None.
      on_device: whether a step is a part of the compiled program; otherwise it is a call to the host.
      error: the exception that an environment raised during a step, or None. The step then returned NaN.
    """

    env_id: str
    num_envs: int
    observation_size: int
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int | None
    on_device: bool = False
    error: Exception | None = None

    def reset(self, key: jax.Array) -> EnvState:
        """New episodes, seeded from the key (consumed)."""
        ...

    def step(self, env_state: EnvState, action: jax.Array) -> tuple[EnvState, TimeStep]:
        """One step of the N environments with actions `[N, A]` in [-1, 1]."""
        ...

    def flatten(self, obs: Any) -> np.ndarray:
        """An observation of the environment, or a batch of them, as float32 `[.., O]`. Raises UserError."""
        obs = np.asarray(obs, np.float32)
        if obs.ndim == 0 or obs.shape[-1] != self.observation_size:
            raise UserError(f"observations of {self.env_id} have {self.observation_size} numbers, not {obs.shape}")
        return obs

    def to_env_units(self, action: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] `[.., A]` in the environment's own units and type, within its bounds."""
        low, high = self.action_low, self.action_high
        return np.clip((low + 0.5 * (action + 1.0) * (high - low)).astype(low.dtype), low, high)

    def save_host(self) -> dict[str, Any]:
        """What is not in EnvState, for a checkpoint, as JSON has it."""
        return {}

    def restore_host(self, saved: dict[str, Any]) -> str | None:
        """Continues from what `save_host` returned. Returns None, or why it is impossible: then `reset` must follow."""
        return None

    def try_replay(self, saved: dict[str, Any]) -> str | None:
        """Why another process could not continue from what `save_host` returned, as far as a copy here can tell."""
        return None

    def close(self) -> None:
        """Frees what the environments hold."""


def with_episode(
    env_state: EnvState,
    obs: jax.Array,
    final_obs: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
) -> tuple[EnvState, TimeStep]:
    """The result of a step (see `TimeStep`), with the episodes' returns and lengths carried on from `env_state`."""
    done = terminated | truncated
    before_and_after = jnp.isfinite(env_state.obs) & jnp.isfinite(obs) & jnp.isfinite(final_obs)
    finite = before_and_after.all(axis=-1) & jnp.isfinite(reward)
    episode = Episode(done, env_state.episode_return + reward, env_state.episode_length + 1, finite)
    going_on = {"episode_return": episode.return_ * ~done, "episode_length": episode.length * ~done}
    env_state = env_state.replace(obs=obs, **going_on)
    return env_state, TimeStep(obs, final_obs, reward, terminated, truncated, episode)


def new_episode(obs: jax.Array) -> EnvState:
    """The state after a reset to `obs` `[N, O]`."""
    return EnvState(obs, jnp.zeros(obs.shape[0]), jnp.zeros(obs.shape[0], jnp.int32))
