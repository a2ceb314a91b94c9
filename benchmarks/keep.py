"""Small copies of run folders: what an agent acts with and how it was evaluated, without what it was trained with.

    python -m benchmarks.keep runs/RUN benchmarks/agents/diffsac_walker2d
    python -m benchmarks.keep runs/Walker2d-v4__diffsac_jax__* benchmarks/agents/diffsac_walker2d

Of several runs, which are to differ in their seeds only, the median one is kept: neither the best nor the last.
`harness.show` and `load_agent` take the copy as they take the run; it cannot be resumed. Critics, targets and
optimisers are there as zeros, which take no room: an agent of Hopper-v4 has 0.4 MB, its run 13.
"""

import argparse
import csv
import itertools
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint

from envs import UserError, make_env
from harness import RunFolder
from harness.agents import read_agents
from harness.checkpoint import newest_intact
from harness.cli import one_line_errors
from harness.log import HEADER
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


def score(run: Path) -> float:
    """Of the deterministic policy (`harness.record.run_score`), the mean over the run's seeds. Raises UserError."""
    returns: dict[int, list[float]] = {}
    for _, _, seed, tag, value in finished(run).scalars():
        if tag == "eval/episodic_return_deterministic":
            returns.setdefault(seed, []).append(value)
    if not returns:
        raise UserError(f"{str(run)!r} was never evaluated")
    return statistics.mean(map(run_score, returns.values()))


def median(runs: list[Path]) -> Path:
    """The run with the median score, the lower of two in the middle. Raises UserError: not their seeds alone differ."""
    stored = [finished(run).stored_args() for run in runs]
    for (run, args), (other, others) in itertools.combinations(zip(runs, stored, strict=True), 2):
        unlike = {name for name in args.keys() | others.keys() if args.get(name) != others.get(name)}
        if wrong := sorted(unlike - {"seed", "run_name", "runs_folder"}):
            raise UserError(f"{str(run)!r} and {str(other)!r} differ in {', '.join(wrong)}")
        if "seed" not in unlike:
            raise UserError(f"{str(run)!r} and {str(other)!r} have the same seed")
    return runs[0] if len(runs) == 1 else sorted(runs, key=score)[(len(runs) - 1) // 2]


def keep(run: Path, place: Path) -> None:
    """Writes the small copy of a run. Raises UserError: the run is not finished, or the place is taken."""
    folder = finished(run)
    module = folder.script()
    args = folder.arguments(module.Args)
    env = make_env(args.env_id, 1, 1, args.env_kwargs)
    env.close()  # its sizes are needed
    newest, damaged = newest_intact(folder.path / "checkpoints", print)
    if damaged:
        raise UserError(f"the last checkpoint of {str(run)!r} is damaged")
    agents = read_agents(folder, module, args, env)
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
        for name in ("versions.json", "summary.json"):
            shutil.copy(folder.path / name, copy)
        # Where it was trained, and whose account saw it, is nobody's business.
        own = {name: getattr(type(args)(), name) for name in ("runs_folder", "wandb_entity")}
        RunFolder(copy).write_json("args.json", {**folder.stored_args(), **own})
        with (copy / "scalars.csv").open("w") as file:
            file.write(HEADER)
            evaluations = [row for row in folder.scalars() if row[3].startswith("eval/")]
            csv.writer(file, lineterminator="\n").writerows(evaluations)
        checkpoint = copy / "checkpoints" / newest.name
        checkpoint.mkdir(parents=True)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(checkpoint / "agent", small)
        for unused in ("_sharding", "array_metadatas", "commit_success.txt"):  # how arrays lay on devices, and where
            path = checkpoint / "agent" / unused
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        seal(checkpoint)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(copy, place)
        except FileExistsError:
            raise UserError(f"{str(place)!r} is there already") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="a finished run, or one for each seed")
    parser.add_argument("place", type=Path, help="the folder to make")
    arguments = parser.parse_args()
    with one_line_errors():
        run = median(arguments.runs)
        keep(run, arguments.place)
        print(f"{run} is kept in {arguments.place}")


if __name__ == "__main__":
    main()
