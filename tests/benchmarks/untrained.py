"""Folders of runs that were not trained: with agents as they were before training, or without any."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp

import diffsac_jax
import sac_jax
from harness import RunFolder, provenance
from harness.checkpoint import Checkpoints
from harness.folder import LAYOUT
from harness.log import HEADER


def untrained_run(args: sac_jax.Args, action_size: int) -> Path:
    """Of sac_jax.py, finished; observations are of two dimensions, every return is 90."""
    folder, steps = RunFolder.create(args), args.total_timesteps
    folder.write_args(args)
    folder.add_versions(0, provenance.versions() | {"git_commit": "c" * 40, "git_dirty": False})
    tags = ("charts/SPS", "eval/episodic_return_stochastic", "eval/episodic_return_deterministic")
    rows = [f"{steps},1.0,{seed},{tag},90.0\n" for seed in args.seeds for tag in tags]
    (folder.path / "scalars.csv").write_text("".join(["global_step,wall_time,seed,tag,value\n", *rows]))
    folder.write_json("summary.json", {"total_timesteps": steps})
    sizes = SimpleNamespace(observation_size=2, action_size=action_size)
    keys = jax.random.split(jax.random.key(0), args.num_seeds)
    agents = jax.jit(jax.vmap(partial(sac_jax.init_agent, args, sizes)))(keys)
    checkpoints = Checkpoints(folder.path)
    checkpoints.save(steps, sac_jax.Training(agents, buffer=None, env_state=None, key=jnp.zeros(2)), {})
    checkpoints.wait()
    checkpoints.close()
    return folder.path


def evaluated_run(path: Path, deterministic: dict[int, list[float]], **args) -> Path:
    """A finished run of DiffSAC with evaluations of the deterministic policy by seed, and no agents."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    stored = asdict(diffsac_jax.Args(seed=min(deterministic), num_seeds=len(deterministic), total_timesteps=120_000))
    folder.write_json("args.json", stored | {"script": "diffsac_jax", "layout": LAYOUT} | args)
    folder.write_json("summary.json", {"total_timesteps": 120_000})
    folder.write_json("versions.json", {"git_commit": "fedcba9876543210", "git_dirty": False})
    tag = "eval/episodic_return_deterministic"
    rows = [f"{i},1.0,{seed},{tag},{x}\n" for seed, returns in deterministic.items() for i, x in enumerate(returns)]
    (path / "scalars.csv").write_text("".join([HEADER, *rows]))
    return path
