"""Run folders -> benchmarks/results/{exp_name}__{env_id}.csv, one file per algorithm and environment.

    python benchmarks/export.py runs/Hopper-v4__*          add or replace these runs' seeds
    python benchmarks/export.py --list                     the results as lines for run_all.sh's list

One row per seed and evaluation. Columns:

    env_id, exp_name, script, seed
    global_step            environment steps taken
    stochastic_return      mean return of the evaluation's episodes with the stochastic policy
    deterministic_return   the same with the deterministic policy
    training_return        mean return of the last 100 training episodes that ended by this step
    commit, dirty          git commit of the code, and whether tracked files were changed
    python, jax, flax, mujoco, gymnasium, device, threads
    wall_time              seconds of training and evaluation so far, without compilation, checkpoints, interruptions
    steps_per_second       over the whole run while learning, without compilation and evaluation
    arguments              every argument that differs from the script's default and is not named by a column

Exporting a seed again replaces its rows. A run of a changed tree or an unfinished run is refused unless asked for.
"""

import argparse
import ast
import csv
import json
import math
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = (
    "env_id",
    "exp_name",
    "script",
    "seed",
    "global_step",
    "stochastic_return",
    "deterministic_return",
    "training_return",
    "commit",
    "dirty",
    "python",
    "jax",
    "flax",
    "mujoco",
    "gymnasium",
    "device",
    "threads",
    "wall_time",
    "steps_per_second",
    "arguments",
)
TRAINING_EPISODES = 100
# Arguments that name a run, or say where and how it is logged: no part of what was computed.
BOOKKEEPING = {
    "env_id",
    "seed",
    "num_seeds",
    "exp_name",
    "runs_folder",
    "evaluate",
    "resume",
    "checkpoint_frequency",
    "capture_video",
    "track",
    "wandb_project_name",
    "wandb_entity",
}


class ExportError(Exception):
    """A run that cannot be exported, with the reason."""


@cache
def defaults(script: str) -> dict:
    """The fields of the script's `Args` with their defaults, in order, read without importing it.

    `script`: `sac_jax`, `sac_jax.py` or a path. Raises ExportError.
    """
    path = ROOT / (script if script.endswith(".py") else f"{script}.py")
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise ExportError(f"cannot read the script {path}: {error.strerror}") from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            return {field.target.id: ast.literal_eval(field.value) for field in fields if field.value is not None}
    raise ExportError(f"{path} has no class Args")


def parse_flags(flags: str) -> dict:
    """'--q-lr 1e-3 --no-autotune' -> {"q_lr": 0.001, "autotune": False}. Raises ExportError."""
    values, words = {}, flags.split()
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ExportError(f"{word!r} in {flags!r} is no flag")
        name = word[2:].replace("-", "_")
        if words and not words[0].startswith("--"):
            value = words.pop(0)
            try:
                values[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                values[name] = value
        elif name.startswith("no_"):
            values[name[3:]] = False
        else:
            values[name] = True
    return values


def arguments(script: str, values: dict) -> str:
    """The flags that say how `values` differ from the script's defaults, in the order of its arguments.

    Arguments that the script does not have (any more) come last, so that nothing is hidden.
    """
    known = defaults(script)
    words = []
    for name in [*known, *(name for name in values if name not in known)]:
        if name in BOOKKEEPING or name not in values or (name in known and _text(values[name]) == _text(known[name])):
            continue
        value, flag = values[name], name.replace("_", "-")
        words.append(
            (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {_text(value)}"
        )
    return " ".join(words)


def _text(value) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def state(folder: Path) -> str:
    """How the run in `folder` stands: "finished", "stopped" (a seed was, by NaN or infinity) or "unfinished"."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        wanted = json.loads((folder / "args.json").read_text())["total_timesteps"]
    except (OSError, ValueError, KeyError):
        return "unfinished"
    # A run that was to be extended and was killed still has the summary of its first end.
    if summary.get("interrupted_by") or summary.get("total_timesteps") != wanted:
        return "unfinished"
    return "stopped" if summary.get("stopped") else "finished"


def read_run(folder: Path, allow_dirty: bool = False, allow_unfinished: bool = False) -> list[dict]:
    """The rows of a run folder, as text. Raises ExportError."""
    try:
        args = json.loads((folder / "args.json").read_text())
        versions = json.loads((folder / "versions.json").read_text())
        with (folder / "scalars.csv").open() as file:
            # A line that was torn by a kill has fewer fields.
            scalars = [row for row in csv.reader(file) if len(row) == 5][1:]
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} is not a run folder: {error}") from None
    ran = [versions, *versions.get("resumed", [])]
    states = [version.get("git_dirty") for version in ran]
    if (any(states) or None in states) and not allow_dirty:
        why = "its tree had changes" if any(states) else "its commit is unknown"
        raise ExportError(f"{folder} cannot be traced to a commit ({why}); --allow-dirty exports it")
    if any("step" not in version for version in ran[1:]):
        raise ExportError(f"{folder} was resumed with other versions, and does not say from which step on")
    if (how := state(folder)) != "finished" and not allow_unfinished:
        why = "has not finished" if how == "unfinished" else "has a seed that was stopped by NaN or infinity"
        raise ExportError(f"{folder} {why}; --allow-unfinished exports what is there")
    try:
        values = {name: value for name, value in args.items() if name != "script"}
        constants = {
            "env_id": args["env_id"],
            "exp_name": args["exp_name"],
            "script": args["script"],
            "arguments": arguments(args["script"], values),
        }
        seeds = range(args["seed"], args["seed"] + args["num_seeds"])
        rows = [row for seed in seeds for row in _rows(args, [s for s in scalars if s[2] == str(seed)])]
        provenance = [_provenance(version) for version in ran]
    except (KeyError, ValueError) as error:
        raise ExportError(f"{folder} cannot be read: {type(error).__name__}: {error}") from None
    if not rows:
        raise ExportError(f"{folder} has no evaluation")
    for row in rows:
        # A checkpoint's step may be resumed from more than once: the last time counts.
        start = max(i for i, version in enumerate(ran) if version.get("step", -1) < row["global_step"])
        row.update(constants, **provenance[start])
    return [{name: str(row[name]) for name in COLUMNS} for row in rows]


def _provenance(versions: dict) -> dict:
    """The columns that say what a row was measured with, from a part of versions.json."""
    dirty = versions["git_dirty"]
    return {
        "commit": versions["git_commit"] or "",
        "dirty": "" if dirty is None else str(dirty).lower(),
        **{name: versions[name] for name in ("python", "jax", "flax", "mujoco", "gymnasium", "device", "threads")},
    }


def _rows(args: dict, scalars: list[list[str]]) -> list[dict]:
    """One seed's rows from its lines (global_step, wall_time, seed, tag, value) of scalars.csv."""
    evaluations: dict[int, dict] = {}
    episodes: list[float] = []
    seconds = learning_seconds = 0.0
    learning_steps = 0
    chunk_step, chunk_end = 0, math.nan
    for step, clock, seed, tag, value in scalars:
        step, clock, value = int(step), float(clock), float(value)
        if tag == "charts/episodic_return":
            episodes.append(value)
        elif tag == "charts/SPS":
            chunk = (step - chunk_step) / value
            if chunk_step >= args.get("learning_starts", 0):
                learning_seconds, learning_steps = learning_seconds + chunk, learning_steps + step - chunk_step
            seconds, chunk_step, chunk_end = seconds + chunk, step, clock
        elif tag == "eval/episodic_return_stochastic":
            # An evaluation follows its chunk in the same process: the difference of clocks is its duration.
            seconds += clock - chunk_end
            evaluations[step] = {
                "seed": seed,
                "global_step": step,
                "stochastic_return": f"{value:.3f}",
                "training_return": f"{_mean(episodes[-TRAINING_EPISODES:]):.3f}" if episodes else "",
                "wall_time": f"{seconds:.1f}",
            }
        elif tag == "eval/episodic_return_deterministic":
            evaluations[step]["deterministic_return"] = f"{value:.3f}"
    rate = f"{learning_steps / learning_seconds:.1f}" if learning_seconds else ""
    return [{**row, "steps_per_second": rate} for row in evaluations.values() if "deterministic_return" in row]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def file_name(exp_name: str, env_id: str) -> str:
    return f"{exp_name}__{env_id}.csv".replace("/", "-").replace(":", "-")


def read_csv(path: Path) -> list[dict]:
    """The rows of a results file, as text. Raises ExportError where the columns differ."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ExportError(f"{path} has other columns than {', '.join(COLUMNS)}")
        return list(reader)


def merge(rows: list[dict], results: Path) -> Path:
    """Writes one run's rows into its file in place of what the file has of the same seeds; returns the file.

    Raises ExportError where the file has more steps of a seed: a trial does not take the place of a result.
    """
    path = results / file_name(rows[0]["exp_name"], rows[0]["env_id"])
    rows = others(read_csv(path) if path.exists() else [], rows, path) + rows
    results.mkdir(parents=True, exist_ok=True)
    write_csv(path, COLUMNS, sorted(rows, key=lambda row: (int(row["seed"]), int(row["global_step"]))))
    return path


def others(old: list[dict], new: list[dict], path: Path) -> list[dict]:
    """The rows of `old` that are of other runs (exp_name and seed) than those of `new`, whose last rows are their ends.

    Raises ExportError where `old`, read from `path`, has more steps of a run.
    """
    steps = {(row["exp_name"], row["seed"]): int(row["global_step"]) for row in new}
    kept = []
    for row in old:
        run = row["exp_name"], row["seed"]
        if run not in steps:
            kept.append(row)
        elif int(row["global_step"]) > steps[run]:
            raise ExportError(
                f"{path} has more than the {steps[run]} steps of this run of seed {row['seed']}; to replace it,"
                " remove the file"
            )
    return kept


def write_csv(path: Path, columns: Iterable[str], rows: list[dict]) -> None:
    """Written beside and renamed into place. Floats get four decimals."""
    rows = [{name: f"{x:.4f}" if isinstance(x, float) else x for name, x in row.items()} for row in rows]
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def list_lines(results: Path = RESULTS) -> list[str]:
    """The results as lines of run_all.sh's list: name | script | flags | environments | seeds | steps.

    Seeds with other arguments than their neighbours get a line of their own.
    """
    groups: dict[tuple, dict[str, list[str]]] = {}
    for path in sorted(results.glob("*.csv")):
        for row in read_csv(path):
            flags, steps = row["arguments"], int(row["global_step"])
            words = flags.split()
            if "--total-timesteps" in words:
                at = words.index("--total-timesteps")
                steps, flags = int(words[at + 1]), " ".join(words[:at] + words[at + 2 :])
            else:
                steps = defaults(row["script"])["total_timesteps"]
            seeds = groups.setdefault((row["exp_name"], row["script"], flags, steps), {}).setdefault(row["env_id"], [])
            if row["seed"] not in seeds:
                seeds.append(row["seed"])
    lines: dict[tuple, list[str]] = {}
    for (name, script, flags, steps), envs in groups.items():
        for env_id, seeds in envs.items():
            lines.setdefault((name, f"{script}.py", flags, " ".join(seeds), steps), []).append(env_id)
    return sorted(
        f"{name} | {script} | {flags} | {' '.join(sorted(envs))} | {seeds} | {steps}"
        for (name, script, flags, seeds, steps), envs in lines.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the CSV files are")
    parser.add_argument("--allow-dirty", action="store_true", help="export runs of a changed or unknown tree")
    parser.add_argument("--allow-unfinished", action="store_true", help="export what an unfinished run has")
    parser.add_argument("--list", action="store_true", help="print the results as lines for run_all.sh's list")
    options = parser.parse_args()
    if options.list:
        try:
            print("\n".join(list_lines(options.results)))
        except ExportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    if not options.runs:
        parser.error("name at least one run folder, or --list")
    refused = 0
    for folder in options.runs:
        if folder.is_file() or folder.name == "logs":
            continue  # `runs/*` names more than run folders
        if options.results == RESULTS and "__quick_" in folder.name:
            print(f"{folder.name}: of the quick suite, left out; --results FOLDER exports it")
            continue
        if options.results == RESULTS and "TurningAgent" in folder.name:
            print(f"{folder.name}: see python -m benchmarks.turning, left out")
            continue
        try:
            rows = read_run(folder, options.allow_dirty, options.allow_unfinished)
            path = merge(rows, options.results)
            print(f"{path.name}: {len(rows)} rows from {folder.name}")
        except ExportError as error:
            refused += 1
            print(f"error: {error}", file=sys.stderr)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
