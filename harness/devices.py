"""Where the seeds of a run are trained, and where its compiled programs are kept."""

import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from envs import Environment
from harness.clock import jit_for_few_calls, strongly_typed
from harness.experiment import Experiment
from harness.progress import say


def seed_sharding(args: Experiment, env: Environment) -> jax.sharding.NamedSharding | None:
    """Spreads the seeds evenly over as many devices as divide their number; None where one has all of them.

    XLA splits a program by its state: each device computes its own seeds, and they meet only to ask whether an episode
    has ended anywhere.
    """
    devices = jax.devices()
    most = max(n for n in range(1, len(devices) + 1) if args.num_seeds % n == 0) if env.on_device else 1
    if most < len(devices) and args.num_seeds > 1:
        why = "they share the seeds evenly" if env.on_device else f"{args.env_id} is stepped on the host"
        say(f"of {len(devices)} devices {most} used, because {why}")
    if most == 1:
        return None
    mesh = jax.sharding.Mesh(devices[:most], ("seeds",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))


def new_training(
    args: Experiment, env: Environment, init_training: Callable[[jax.Array], Any]
) -> tuple[jax.Array, Any]:
    """The seeds' keys `[S]` and the state of every seed's training before its first step, leaves `[S, ..]`.

    Args:
      init_training: key -> the state of one seed's training.
    """
    sharding = seed_sharding(args, env)
    keys = jax.device_put(jax.vmap(jax.random.key)(jnp.asarray(args.seeds)), sharding)
    state = jit_for_few_calls(jax.vmap(init_training), out_shardings=sharding)(keys)
    return keys, strongly_typed(jax.block_until_ready(state))


def keep_compiled(env: Environment) -> None:
    """Has JAX keep what it compiled for environments on the device, in the user's cache folder, for the next process.

    It does not keep programs that call the host. Off with JAX_ENABLE_COMPILATION_CACHE=0; another folder with
    JAX_COMPILATION_CACHE_DIR. A program for one CPU may not run on another: each kind has a folder.
    """
    if env.on_device and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            cpu = re.search(r"(flags|Features)\s*: .+", Path("/proc/cpuinfo").read_text()).group()
        except (OSError, AttributeError):  # not Linux; ARM calls them features
            cpu = platform.processor()
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        kind = hashlib.sha256(cpu.encode()).hexdigest()[:8]
        if not str(home).startswith("~"):  # as in a container whose user has no home
            jax.config.update("jax_compilation_cache_dir", str(home / "diffusion-maxent-rl" / kind))
