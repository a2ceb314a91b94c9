"""The trained agents of a run folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import Environment, UserError, make_env
from harness.checkpoint import Checkpoints
from harness.experiment import Experiment
from harness.folder import RunFolder
from harness.guard import finite


def load_agent(
    run: str | Path, seed: int | None = None, deterministic: bool = False
) -> Callable[[np.ndarray, jax.Array], np.ndarray]:
    """The trained policy of a run folder.

    Args:
      seed: which of the run's seeds (default: the first).
      deterministic: take the deterministic policy instead of a sample.

    Returns: act(obs, key) -> action in the environment's own units and type, `[A]` or `[B, A]`; obs is an observation
    of the environment, flattened to `[O]` or as it is, or a batch of them (of a dictionary one of arrays).

    Raises:
      UserError: the folder is no run with saved agents, has no such seed, or that seed's parameters are not finite.
    """
    folder = RunFolder(run)
    module = folder.script()
    args = folder.arguments(module.Args)
    env = make_env(args.env_id, 1, 1, args.env_kwargs)
    env.close()  # its spaces are needed
    agents = read_agents(folder, module, args, env)
    if seed is not None and seed not in args.seeds:
        raise UserError(f"{str(run)!r} has the seeds {args.seeds[0]} to {args.seeds[-1]}, not {seed}")
    index = 0 if seed is None else seed - args.seed
    if not finite(agents)[index]:
        raise UserError(f"seed {args.seeds[index]} of {str(run)!r} was stopped: its parameters are not finite")
    agent = jax.tree.map(lambda x: x[index], agents)

    @jax.jit
    def batched(obs, key):
        if deterministic:
            return module.deterministic_action(args, agent, obs)
        return module.sample_action(args, agent, key, obs)[0]

    def act(obs: np.ndarray, key: jax.Array) -> np.ndarray:
        obs = env.flatten(obs)
        action = np.asarray(batched(obs.reshape(-1, env.observation_size), key))
        return env.to_env_units(action).reshape(*obs.shape[:-1], env.action_size)

    return act


def read_agents(folder: RunFolder, module: Any, args: Experiment, env: Environment) -> Any:
    """The agents of a run's last intact checkpoint, leaves `[S, ..]`. Raises UserError.

    Args:
      module, args: of `folder`: the script that made it, and its arguments.
      env: any environments with the run's sizes.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(args.seeds))
    shapes = jax.eval_shape(jax.vmap(partial(module.init_agent, args, env)), keys)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    checkpoints = Checkpoints(folder.path)
    try:
        return checkpoints.restore_agents(template)
    finally:
        checkpoints.close()
