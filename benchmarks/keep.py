"""Small copies of run folders: what an agent acts with and how it was evaluated, without what it was trained with.

    python -m benchmarks.keep runs/RUN my_agent
    python -m benchmarks.keep runs/Walker2d-v4__diffsac_jax__* benchmarks/agents/diffsac_walker2d

Of all the seeds in the runs, which are to be of one command, the one is kept whose deterministic policy has the median
score: neither the best nor the last.
`harness.show` and `load_agent` take the copy as they take a run; it cannot be resumed. Critics, targets and
optimisers are there as zeros, which take no room: an agent of Hopper-v4 has 0.4 MB, its run 13.
"""

import argparse
import csv
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint

from benchmarks.export import arguments
from envs import UserError, make_env, one_line
from harness import RunFolder
from harness.agents import read_agents
from harness.checkpoint import newest_intact
from harness.cli import one_line_errors
from harness.log import HEADER
from harness.provenance import digests
from harness.record import run_score
from harness.seal import seal

ACTS = ("actor.params", "networks.params.actor", "obs_stats")


def only_what_acts(agents: Any) -> Any:
    """The agents with zeros for all that no action depends on."""

    def keep(path: tuple, x: jax.Array) -> jax.Array:
        return x if jax.tree_util.keystr(path, simple=True, separator=".").startswith(ACTS) else jnp.zeros_like(x)

    return jax.tree_util.tree_map_with_path(keep, agents)


def finished(run: Path) -> RunFolder:
    """Raises UserError: there is no such run, or it is not finished."""
    folder = RunFolder(run)
    if folder.status() != "finished":
        raise UserError(f"{str(run)!r} is not finished: {folder.status()}")
    return folder


def scores(run: Path) -> dict[int, float]:
    """Of the deterministic policy, by seed (`harness.record.run_score`). Raises UserError."""
    returns: dict[int, dict[int, float]] = {}
    for step, _, seed, tag, value in finished(run).scalars():
        if tag == "eval/episodic_return_deterministic":
            returns.setdefault(seed, {})[step] = value
    if not returns:
        raise UserError(f"{str(run)!r} was never evaluated")
    return {seed: run_score([*by_step.values()]) for seed, by_step in returns.items()}


def command(run: Path) -> str:
    """What a run was started with, but for its seeds and names. Raises UserError."""
    stored = finished(run).stored_args()
    return f"{stored['script']}.py --env-id {stored['env_id']} {arguments(stored['script'], stored)}".strip()


def median(runs: list[Path]) -> tuple[Path, int]:
    """The run and the seed with the median score, the lower of two in the middle.

    Raises UserError: a seed is there twice, or the runs are not of one command. Their commits may differ.
    """
    by_seed: dict[int, tuple[float, Path]] = {}
    first = command(runs[0])
    for run in runs:
        if (own := command(run)) != first:
            raise UserError(f"{str(run)!r} and {str(runs[0])!r} are of two commands: {own}; {first}")
        for seed, score in scores(run).items():
            if seed in by_seed:
                raise UserError(f"{str(by_seed[seed][1])!r} and {str(run)!r} both have the seed {seed}")
            by_seed[seed] = score, run
    seed = sorted(by_seed, key=lambda seed: by_seed[seed][0])[(len(by_seed) - 1) // 2]
    return by_seed[seed][1], seed


def without_folders(versions: dict[str, Any]) -> dict[str, Any]:
    """What a run ran with; changed files that are in no commit without their folders."""
    names: dict[str, str | None] = {}
    for path, digest in digests(versions).items():
        name = Path(path).name if Path(path).is_absolute() else path
        count = sum(other.split(" (")[0] == name for other in names)  # two packages have an __init__.py each
        names[f"{name} ({count + 1})" if count else name] = digest
    return {**versions, **({"git_changes": names} if names else {})}


def keep(run: Path, seed: int, place: Path) -> None:
    """Writes the small copy of a run's seed. Raises UserError: the run is not finished, or the place is taken."""
    folder = finished(run)
    if os.path.lexists(place):
        raise UserError(f"{str(place)!r} is there already: the last argument is the folder to make")
    module = folder.script()
    args = folder.arguments(module.Args)
    env = make_env(args.env_id, 1, 1, args.env_kwargs)
    env.close()  # its sizes are needed
    newest, damaged = newest_intact(folder.path / "checkpoints", print)
    if damaged:
        raise UserError(f"the last checkpoint of {str(run)!r} is damaged")
    agents = read_agents(folder, module, args, env)
    agents = jax.tree.map(lambda x: x[seed - args.seed :][:1], agents)
    small = only_what_acts(agents)
    obs = jax.random.normal(jax.random.key(0), (64, env.observation_size))

    @jax.jit
    @jax.vmap
    def actions(agent):
        sample, _ = module.sample_action(args, agent, jax.random.key(1), obs)
        return sample, module.deterministic_action(args, agent, obs)

    if not all(map(np.array_equal, actions(small), actions(agents))):
        raise UserError(f"an agent of {module.__name__}.py acts with more than {', '.join(ACTS)}")

    with tempfile.TemporaryDirectory() as beside:
        copy = Path(beside) / "copy"
        copy.mkdir()
        # Where it was trained, and whose account saw it, is nobody's business.
        for ran in folder.versions():
            RunFolder(copy).add_versions(ran.pop("step"), without_folders(ran))
        names = ("runs_folder", "run_name", "wandb_project_name", "wandb_entity")
        own = {name: getattr(type(args)(), name) for name in names}
        RunFolder(copy).write_json("args.json", {**folder.stored_args(), **own, "seed": seed, "num_seeds": 1})
        summary = folder.summary()
        returns = {str(seed): summary["episodic_return"][str(seed)]}
        RunFolder(copy).write_json("summary.json", {**summary, "episodic_return": returns})
        with (copy / "scalars.csv").open("w") as file:
            file.write(HEADER)
            evaluations = [row for row in folder.scalars() if row[2] == seed and row[3].startswith("eval/")]
            csv.writer(file, lineterminator="\n").writerows(evaluations)
        checkpoint = copy / "checkpoints" / newest.name
        checkpoint.mkdir(parents=True)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(checkpoint / "agent", small)
        for unused in ("_sharding", "array_metadatas", "commit_success.txt"):  # how arrays lay on devices, and where
            path = checkpoint / "agent" / unused
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        seal(checkpoint)
        try:
            shutil.copytree(copy, place)
        except OSError as error:
            if not isinstance(error, FileExistsError):  # made by somebody else meanwhile
                shutil.rmtree(place, ignore_errors=True)  # what there is of ours
            raise UserError(f"{str(place)!r} cannot be made: {one_line(error)}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="a finished run; of several seeds the median")
    parser.add_argument("place", type=Path, help="the folder to make")
    with one_line_errors():
        options = parser.parse_args()
        try:
            run, seed = median(options.runs)
            keep(run, seed, options.place)
        except (OSError, ValueError, LookupError) as error:  # damaged files of a run, a full disk
            raise UserError(f"nothing is kept: {one_line(error)}") from None
        print(f"seed {seed} of {run} is kept in {options.place}")


if __name__ == "__main__":
    main()
