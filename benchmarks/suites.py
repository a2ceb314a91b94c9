"""The runs of suites.toml, and those of benchmarks/results, as jobs: settings, command, name of the folder."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.export import defaults, read_csv, script_args
from benchmarks.work import ROOT
from envs import UserError, one_line
from harness import Experiment, cli
from harness.experiment import rules
from harness.scripts import import_script

SUITES = Path(__file__).with_name("suites.toml")
KEYS = {"name": str, "script": str, "flags": str, "envs": list, "seeds": list, "steps": int}
OWN_FLAGS = {"--env-id", "--seed", "--num-seeds", "--total-timesteps", "--exp-name", "--runs-folder", "--run-name"}
ENGINES = ("slurm", "ray")  # tables of these names are no suites: what the engines are told


@dataclass(frozen=True)
class Job:
    """One process: an entry of a suite on one environment, for one seed or several consecutive ones.

    Attributes:
      suite: where the entry stands.
      script, flags: of the entry.
      args: what the script makes of them, with environment, seeds, steps and name.
    """

    suite: str
    script: str
    flags: str
    args: Experiment

    @property
    def seeds(self) -> str:
        return self.args.seed_range

    @property
    def label(self) -> str:
        return f"{self.args.exp_name} {self.args.env_id} seed {self.seeds}"

    @property
    def name(self) -> str:
        """The name of its run folder: environment, name of the entry, seeds, suite, and a digest of the settings.

        Other settings are another folder, whatever has changed them: the list of runs, an option or a default.
        """
        values = {
            field.name: getattr(self.args, field.name)
            for field in dataclasses.fields(self.args)
            if rules(field).get("computes", True)
        }
        text = json.dumps([Path(self.script).stem, values], sort_keys=True)
        return f"{self.args.prefix}{self.suite.replace('/', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def command(self, runs: Path) -> list[str]:
        """The command after the interpreter. It begins the run in `runs`, or goes on with it."""
        args = self.args
        seeds = ["--seed", f"{args.seed}", *(["--num-seeds", f"{args.num_seeds}"] if args.num_seeds > 1 else [])]
        words = ["--env-id", args.env_id, *seeds, "--total-timesteps", f"{args.total_timesteps}"]
        place = ["--exp-name", args.exp_name, "--runs-folder", f"{runs}", "--run-name", self.name]
        return [self.file, *words, *place, *shlex.split(self.flags)]

    @property
    def file(self) -> str:
        """The script's, by its name where it lies in the folder that runs are started in, else with its folder."""
        path = Path(os.path.abspath(import_script(Path(self.script).stem).__file__))
        return path.name if path.parent.resolve() == ROOT else str(path)


def read_suites(path: Path = SUITES) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's suites by name, and its tables for the engines. Raises UserError."""
    try:
        suites = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {one_line(error)}") from None
    if bad := [name for name, table in suites.items() if not isinstance(table, dict)]:
        raise UserError(f"cannot read {str(path)!r}: {bad[0]} is no table")
    return suites, {engine: suites.pop(engine, {}) for engine in ENGINES}


def runs_of(results: Path) -> list[dict[str, Any]]:
    """The runs that results are of, as a suite's. Defaults change: the commit of a row gives its numbers again.

    (On Playground with three seeds in one process, --vmap 1.) Raises UserError.
    """
    seeds: dict[tuple, dict[int, None]] = {}  # a dict keeps the order, and each once
    for path in sorted(results.glob("*.csv")):
        for row in read_csv(path):
            run = row["exp_name"], row["script"], row["env_id"], row["arguments"]
            seeds.setdefault(run, {})[int(row["seed"])] = None
    runs = []
    for (name, script, env_id, words), of_run in seeds.items():
        length = re.search(r"--total-timesteps (\d+) ?", words)
        steps = int(length[1]) if length else defaults(script)["total_timesteps"]
        flags = words.replace(length[0] if length else "", "").strip()
        run = {"name": name, "script": f"{script}.py", "flags": flags, "envs": [env_id]}
        runs.append({**run, "seeds": [*of_run], "steps": steps})
    if not runs:
        raise UserError(f"no results in {str(results)!r}")
    return runs


def entries(suites: dict[str, Any], suite: str, included_by: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The runs of a suite, after those of the suites that it includes, each with its `suite` and all of KEYS.

    An entry with `settings` is one for each of them. Raises UserError.
    """
    if suite not in suites:
        raise UserError(f"no suite {suite!r}; there are {', '.join(suites)}")
    if suite in included_by:
        raise UserError(f"suite {suite!r} includes itself: {' > '.join((*included_by, suite))}")
    shared = {"flags": "", "settings": {"": ""}, **suites[suite]}
    include, runs = shared.pop("include", []), shared.pop("runs", [])
    if not isinstance(include, list) or not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise UserError(f"suite {suite!r} must have a list of tables as runs, and of names as include")
    if "results" in shared:
        if not isinstance(shared["results"], str) or suites[suite].keys() - {"results", "include"}:
            raise UserError(f"suite {suite!r} must have a folder as results, and beside it no more than include")
        runs = runs_of(ROOT / shared.pop("results"))
    if not include and not runs:
        raise UserError(f"suite {suite!r} has neither runs nor include nor results")
    found = [entry for other in include for entry in entries(suites, other, (*included_by, suite))]
    for own in runs:
        entry = {**shared, **own}
        settings = entry.pop("settings")
        check(entry, settings, suite)
        for name, flags in settings.items():
            full = f"{entry['name']}_{name}" if name else entry["name"]
            found.append({**entry, "name": full, "flags": f"{entry['flags']} {flags}".strip(), "suite": suite})
    return found


def check(entry: dict[str, Any], settings: Any, suite: str) -> None:
    """Raises UserError unless an entry has all of KEYS, each of the right type."""
    if {name: type(value) for name, value in entry.items()} != KEYS:
        raise UserError(f"a run of suite {suite!r} must have {', '.join(KEYS)}, and no more: {entry}")
    if {type(env_id) for env_id in entry["envs"]} != {str} or {type(seed) for seed in entry["seeds"]} != {int}:
        raise UserError(f"a run of suite {suite!r} needs names as envs and whole numbers as seeds: {entry}")
    if not isinstance(settings, dict) or {type(flags) for flags in settings.values()} != {str}:
        raise UserError(f"the settings of suite {suite!r} must be flags by name, not {settings}")
    words = [word for flags in (entry["flags"], *settings.values()) for word in shlex.split(flags)]
    if own := sorted({word.split("=")[0].replace("_", "-") for word in words} & OWN_FLAGS):
        raise UserError(f"a run of suite {suite!r} may not have {own[0]} among its flags: the sweep gives it")


def jobs_of(suites: dict[str, Any], suite: str, vmap: bool = False, steps: int | None = None) -> list[Job]:
    """The jobs of a suite in its order.

    Args:
      vmap: an entry's seeds, where they are consecutive, are one job.
      steps: in place of the entries' own.

    Raises:
      UserError: no such suite, script or flag, or a value that the script does not take.
    """
    jobs = []
    for entry in entries(suites, suite):
        words = [*shlex.split(entry["flags"]), "--exp-name", entry["name"]]
        args = parse(entry["script"], [*words, "--total-timesteps", str(steps or entry["steps"])])
        seeds = entry["seeds"]
        blocks = [(seed, 1) for seed in seeds]
        if vmap and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
            blocks = [(seeds[0], len(seeds))]
        for env_id in entry["envs"]:
            for first, count in blocks:
                own = dataclasses.replace(args, env_id=env_id, seed=first, num_seeds=count)
                jobs.append(Job(entry["suite"], entry["script"], entry["flags"], own))
    twice = [name for name, count in Counter(job.args.prefix for job in jobs).items() if count > 1]
    if twice:
        raise UserError(f"suite {suite!r} names a run twice: {twice[0]}")
    return jobs


def parse(script: str, words: list[str]) -> Experiment:
    """A script's arguments from a command line, by its own parser. Raises UserError."""
    Args = script_args(script)
    said = io.StringIO()  # of many lines
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return cli.parse(Args, words)
        except SystemExit:
            raise UserError(f"{script} does not take {shlex.join(words)!r}; see its --help") from None
        except UserError as error:
            raise UserError(f"{script} does not take {shlex.join(words)!r}: {error}") from None
