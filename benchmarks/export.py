"""Run folders -> benchmarks/results/{exp_name}__{env_id}.csv, one file per algorithm and environment.

    python -m benchmarks.export runs/Hopper-v4__*          add or replace these runs' seeds

One row per seed and evaluation. Columns:

    env_id, exp_name, script, seed
    global_step            environment steps taken
    stochastic_return      mean return of the evaluation's episodes with the stochastic policy
    deterministic_return   the same with the deterministic policy
    training_return        mean return of the last 100 training episodes that ended by this step
    entropy                of the stochastic policy, nats: eval/entropy; empty where it was not recorded
    commit, dirty          git commit, and whether the code that ran was another: changed, or not committed
    python, jax, flax, mujoco, gymnasium, device, threads
    wall_time              seconds of training (without compilation) and evaluation (with that of the first one after
                           a start), without checkpoints and interruptions; with the last checkpoint in a run that
                           is too short for an evaluation but the one at its end
    steps_per_second       over the whole run while learning, without compilation and evaluation
    arguments              every argument that differs from the script's default and is not named by a column

Exporting a seed again replaces its rows. A run of changed code or an unfinished run is refused unless asked for.
"""

import argparse
import contextlib
import csv
import dataclasses
import fcntl
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from envs import UserError, one_line
from harness import Experiment, RunFolder
from harness.cli import one_line_errors
from harness.experiment import flag, rules
from harness.scripts import import_script

RESULTS = Path(__file__).resolve().parent / "results"
VERSIONS = ("python", "jax", "flax", "mujoco", "gymnasium", "device", "threads")
COLUMNS = (
    *("env_id", "exp_name", "script", "seed", "global_step"),
    *("stochastic_return", "deterministic_return", "training_return", "entropy"),
    *("commit", "dirty", *VERSIONS),
    *("wall_time", "steps_per_second", "arguments"),
)
TRAINING_EPISODES = 100
EVALUATED = {
    "eval/episodic_return_stochastic": "stochastic_return",
    "eval/episodic_return_deterministic": "deterministic_return",
    "eval/entropy": "entropy",
}
# By a pattern of the file's name, what is no part of RESULTS, and where it goes.
ELSEWHERE = {
    "^quick_": "of the quick suite; --results FOLDER exports it",
    "TurningAgent": "see python -m benchmarks.turning",
    "HiddenTarget": "export it with --results benchmarks/hidden_target",
}

# ---------------------------------------------------------------------------------------------------------- arguments


def script_args(script: str) -> type[Experiment]:
    """The class of a script's arguments. `script`: its name or its path. Raises UserError."""
    module = import_script(Path(script).stem)
    if Path(script).parent != Path() and Path(script).resolve() != Path(module.__file__).resolve():
        raise UserError(f"{script} is not the script of its name that Python finds, {module.__file__}: set PYTHONPATH")
    return module.Args


def defaults(script: str) -> dict[str, Any]:
    """A script's arguments with their defaults, in order. Raises UserError."""
    return {field.name: field.default for field in dataclasses.fields(script_args(script))}


def arguments(script: str, values: dict[str, Any]) -> str:
    """The flags that say how `values` differ from the script's defaults, in the order of its arguments.

    Arguments that only name a run or say where it is logged are left out. Those that the script does not have (any
    more) come last, so that nothing is hidden. Raises UserError.
    """
    known = defaults(script)
    fields = dataclasses.fields(script_args(script))
    left_out = {"script", "layout"} | {field.name for field in fields if not rules(field).get("computes", True)}
    words = []
    for name in [*known, *(name for name in values if name not in known)]:
        if name in left_out or name not in values or (name in known and _text(values[name]) == _text(known[name])):
            continue
        value = values[name]
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            several = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([flag(name), *(shlex.quote(_text(one)) for one in several)]))
    return " ".join(words)


def settings_of(words: str) -> str:
    """Of the `arguments` of a run all but its length and its evaluations."""
    return re.sub(r"--(total-timesteps|eval-frequency|eval-episodes) [0-9]+ ?", "", words).strip()


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


# --------------------------------------------------------------------------------------------------------------- rows


def read_run(path: Path, allow_dirty: bool = False, allow_unfinished: bool = False) -> list[dict[str, str]]:
    """The rows of a run folder. Raises UserError."""
    folder = RunFolder(path)
    stored, ran = folder.stored_args(), folder.versions()
    states = [version.get("git_dirty") for version in ran] or [None]
    if (any(states) or None in states) and not allow_dirty:
        files = ", ".join(sorted({name for version in ran for name in version.get("git_changes", ())}))
        why = f"not committed as it ran: {files or 'its code'}" if any(states) else "its commit is unknown"
        raise UserError(f"{path} cannot be traced to a commit ({why}); export --allow-dirty takes it")
    if (status := folder.status()) != "finished" and not allow_unfinished:
        why = "has not finished" if status == "unfinished" else "has a seed that was stopped by NaN or infinity"
        raise UserError(f"{path} {why}; export --allow-unfinished takes what is there")
    constants = {name: stored[name] for name in ("env_id", "exp_name", "script")}
    constants["arguments"] = arguments(stored["script"], stored)
    rows = []
    try:
        scalars = folder.scalars()
        for seed in range(stored["seed"], stored["seed"] + stored["num_seeds"]):
            rows += _rows(stored.get("learning_starts", 0), [row for row in scalars if row[2] == seed])
        for row in rows:
            # A checkpoint's step may be resumed from more than once: the last time counts.
            source = [version for version in ran if version["step"] < row["global_step"]][-1]
            row.update(constants, **_provenance(source))
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    if not rows:
        raise UserError(f"{path} has no evaluation")
    return [{name: str(row[name]) for name in COLUMNS} for row in rows]


def _provenance(versions: dict[str, Any]) -> dict[str, Any]:
    """The columns that say what a row was measured with, from an element of `RunFolder.versions`."""
    dirty = versions["git_dirty"]
    return {
        "commit": versions["git_commit"] or "",
        "dirty": "" if dirty is None else str(dirty).lower(),
        **{name: versions[name] for name in VERSIONS},
    }


def _rows(learning_starts: int, scalars: list[tuple]) -> list[dict[str, Any]]:
    """One seed's rows from its part of `RunFolder.scalars`."""
    evaluations: dict[int, dict] = {}
    episodes: list[float] = []
    seconds = learning_seconds = 0.0
    learning_steps = 0
    chunk_step, chunk_end = 0, math.nan
    for step, clock, seed, tag, value in scalars:
        if tag.startswith("eval/"):
            # Its first value follows the chunk in the same process: the difference of clocks is its duration.
            if step not in evaluations:
                seconds += clock - chunk_end
                evaluations[step] = {
                    "seed": seed,
                    "global_step": step,
                    "training_return": f"{fmean(episodes[-TRAINING_EPISODES:]):.3f}" if episodes else "",
                    **dict.fromkeys(("stochastic_return", "deterministic_return", "entropy"), ""),  # not finite: empty
                    "wall_time": f"{seconds:.1f}",
                }
            if tag in EVALUATED and math.isfinite(value):
                evaluations[step][EVALUATED[tag]] = f"{value:.3f}"
        elif tag == "charts/episodic_return":
            episodes.append(value)
        elif tag == "charts/SPS":
            chunk = (step - chunk_step) / value
            if chunk_step >= learning_starts:
                learning_seconds, learning_steps = learning_seconds + chunk, learning_steps + step - chunk_step
            seconds, chunk_step, chunk_end = seconds + chunk, step, clock
    rate = f"{learning_steps / learning_seconds:.1f}" if learning_seconds else ""
    returned = [row for row in evaluations.values() if row["stochastic_return"] or row["deterministic_return"]]
    return [{**row, "steps_per_second": rate} for row in returned]


# -------------------------------------------------------------------------------------------------------------- files


def file_name(exp_name: str, env_id: str) -> str:
    return f"{exp_name}__{env_id}.csv".replace("/", "-").replace(":", "-")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a results file. Raises UserError where the columns differ, or a row is cut off."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            rows = list(reader)
        except (UnicodeError, csv.Error) as error:
            raise UserError(f"{path} is damaged: {one_line(error)}") from None
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path} has other columns than {', '.join(COLUMNS)}")
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} is damaged: it has a row of another length")
    return rows


def merge(rows: list[dict[str, str]], results: Path) -> Path:
    """Writes one run's rows into its file in place of what the file has of the same seeds; returns the file.

    Raises UserError where the file has more steps of a seed, or runs with other settings: a trial does not take the
    place of a result, nor stand beside it under its name.
    """
    path = results / file_name(rows[0]["exp_name"], rows[0]["env_id"])
    with alone(results):
        rows = others(read_csv(path) if path.exists() else [], rows, path) + rows
        write_csv(path, COLUMNS, sorted(rows, key=lambda row: (int(row["seed"]), int(row["global_step"]))))
    return path


def others(old: list[dict], new: list[dict], path: Path) -> list[dict]:
    """The rows of `old` that are of other runs (exp_name and seed) than those of `new`, whose last rows are their ends.

    Raises UserError where `old`, read from `path`, has more steps of a run, or that exp_name of another script or with
    other settings.
    """
    scripts = {row["exp_name"]: row["script"] for row in new}
    settings = {row["exp_name"]: settings_of(row["arguments"]) for row in new}
    steps = {(row["exp_name"], row["seed"]): int(row["global_step"]) for row in new}
    kept = []
    for row in old:
        run = row["exp_name"], row["seed"]
        if row["script"] != scripts.get(row["exp_name"], row["script"]):
            raise UserError(
                f"{path} has runs of {row['script']}.py, this is one of {scripts[row['exp_name']]}.py: give it another"
                " exp_name in its args.json, or --results FOLDER"
            )
        if row["exp_name"] in settings and (its := settings_of(row["arguments"])) != settings[row["exp_name"]]:
            raise UserError(
                f"{path} has runs of {row['exp_name']} with {its or 'the defaults'}, these have"
                f" {settings[row['exp_name']] or 'the defaults'}: give them another exp_name in their args.json, or"
                " --results FOLDER"
            )
        if run not in steps:
            kept.append(row)
        elif int(row["global_step"]) > steps[run]:
            raise UserError(
                f"{path} has more than the {steps[run]} steps of this run of seed {row['seed']}; to replace it,"
                " remove the file"
            )
    return kept


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is in this block for the same folder: of two that change a file there, no rows are lost."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system may have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def write_csv(path: Path, columns: Iterable[str], rows: list[dict]) -> None:
    """Written beside and renamed into place. Floats get four decimals."""
    rows = [{name: f"{x:.4f}" if isinstance(x, float) else x for name, x in row.items()} for row in rows]
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


# ------------------------------------------------------------------------------------------------------------ command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the CSV files are")
    parser.add_argument("--allow-dirty", action="store_true", help="export runs of a changed or unknown tree")
    parser.add_argument("--allow-unfinished", action="store_true", help="export what an unfinished run has")
    options = parser.parse_args()
    refused = 0
    for folder in options.runs:
        if folder.is_file() or (folder.name == "logs" and not (folder / "args.json").exists()):
            continue  # `runs/*` names more than run folders
        try:
            stored = RunFolder(folder).stored_args()
            name = file_name(stored["exp_name"], stored["env_id"])
            where = [place for pattern, place in ELSEWHERE.items() if re.search(pattern, name)]
            if options.results.resolve() == RESULTS and where:
                print(f"{folder.name}: left out, {where[0]}")
                continue
            rows = read_run(folder, options.allow_dirty, options.allow_unfinished)
            path = merge(rows, options.results)
        except (UserError, OSError) as error:
            refused += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{path.name}: {len(rows)} rows from {folder.name}")
    return 2 if refused else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
