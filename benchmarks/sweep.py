"""Runs a suite of suites.toml: on this machine, on a Slurm cluster, or on Ray.

    python -m benchmarks.sweep quick                          minutes on a laptop, to see that all works
    python -m benchmarks.sweep gym --jobs 8                   another suite, eight runs side by side
    python -m benchmarks.sweep gym --dry-run                  only print the commands
    python -m benchmarks.sweep gym --status                   how its runs stand
    python -m benchmarks.sweep gym --on slurm --set partition=cpu time=240
    python -m benchmarks.sweep gym --on ray --set num_cpus=1

--set adds to the table [slurm] or [ray] of the list of runs, and goes before it.

Every run has a folder of its own, whose name says suite, environment, algorithm, seed and settings. Finished runs are
skipped, unfinished ones are resumed, the others start: after an interruption call it again. A run that fails does not
stop the others; failures are named at the end, with exit status 1. A run that NaN or infinity stopped is named as well,
but not repeated. What a run prints goes to RUNS/logs. docs/sweeps.md has the rest.
"""

import argparse
import contextlib
import importlib
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.standing import Stand, look, outlook, table
from benchmarks.suites import ENGINES, SUITES, Job, jobs_of, read_suites
from benchmarks.work import Work
from envs import UserError
from harness.cli import one_line_errors


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, flush=True)


class Report:
    """What becomes of the runs that an engine is given; it says so as it happens.

    Attributes:
      finished: which did.
      left: which another sweep took first.
      failures: which did not finish, and why, a line each.
    """

    def __init__(self, todo: list[Stand], runs: Path, engine: Any):
        self.runs, self.engine = runs, engine
        self.jobs: dict[str, Job] = {stand.job.name: stand.job for stand in todo}
        self.finished: list[str] = []
        self.left: list[str] = []
        self.failures: list[str] = []

    def begin(self, work: Work) -> bool:
        """Whether the run is still to be done."""
        stand = look(self.jobs[work.name], self.runs)
        if stand.to_do:
            say(f"{'resume' if stand.folder.exists() else 'start'} {stand.job.label}")
        else:
            self._left(stand)
        return stand.to_do

    def ended(self, work: Work) -> None:
        stand = look(self.jobs[work.name], self.runs)
        if stand.state == "finished":
            self.finished.append(work.name)
            say(f"finished {stand.job.label}")
        elif stand.state == "running":
            self._left(stand)
        elif stand.state == "waiting" and self.engine.stop is not None:
            say(f"interrupted {stand.job.label}")
        else:
            self.failures.append(stand.failure)
            say(f"failed {stand.failure}")

    def _left(self, stand: Stand) -> None:
        self.left.append(stand.job.name)
        say(f"left {stand.job.label}: {stand.state} by another sweep")

    def summary(self, before: list[str]) -> str:
        failures = before + self.failures
        left = f", {len(self.left)} left to another sweep" if self.left else ""
        first = f"{len(self.finished)} runs finished now, {len(failures)} failed{left}"
        return "\n".join([first, *(f"failed: {failure}" for failure in failures)])


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line and exit status 2, as in the scripts."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def positive_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """`time=240` as a name and a value of TOML; what is none is a text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name, value


def parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", help="one of suites.toml")
    parser.add_argument("--suites", type=Path, default=SUITES, help="a list of your own in place of suites.toml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--on", choices=("here", *ENGINES), default="here", help="where the runs are executed")
    parser.add_argument("--jobs", type=positive_number, help="runs side by side; here one by default, else no limit")
    several = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--set", type=setting, **several, help="options of the engine")
    parser.add_argument("--steps", type=positive_number, help="environment steps in place of the listed ones")
    parser.add_argument("--vmap", choices=("auto", "0", "1"), default="auto", help="consecutive seeds in one process")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.add_argument("--status", action="store_true", help="only print how the runs stand")
    return parser


def module_of(engine: str) -> Any:
    """benchmarks/on_ENGINE.py, imported only where it is asked for. Raises UserError."""
    try:
        return importlib.import_module(f"benchmarks.on_{engine}")
    except ModuleNotFoundError as error:
        raise UserError(f"--on {engine} needs {error.name}: pip install '.[{engine}]'") from None


def as_begun(jobs: list[Job], others: list[Job], runs: Path) -> list[Job]:
    """The jobs, and of an entry's on an environment `others`, divided otherwise, where only those have begun."""

    def by_entry(jobs):
        found: dict[tuple, list[Job]] = {}
        for job in jobs:
            found.setdefault((job.suite, job.args.exp_name, job.args.env_id), []).append(job)
        return found

    def begun(jobs):
        return any((runs / job.name).exists() for job in jobs)

    found = by_entry(others)
    return [
        job
        for entry, own in by_entry(jobs).items()
        for job in (found[entry] if begun(found[entry]) and not begun(own) else own)
    ]


def main() -> int:
    """Returns the exit status: 0, 1 if any run failed, 128 + its number after a signal."""
    options = parser().parse_args()
    runs = options.runs.resolve()
    try:
        suites, settings = read_suites(options.suites)
        module = module_of(options.on)
        engine = module.Engine(options.jobs, {**settings.get(options.on, {}), **dict(options.set)})
        vmap = options.vmap == "1" or (options.vmap == "auto" and engine.has_gpu())
        jobs = jobs_of(suites, options.suite, vmap, options.steps)
        if options.vmap == "auto":  # as the runs that are there were divided, maybe on a machine of another kind
            jobs = as_begun(jobs, jobs_of(suites, options.suite, not vmap, options.steps), runs)
        stands = [look(job, runs) for job in jobs]
        if not options.dry_run and not options.status:
            (runs / "logs").mkdir(parents=True, exist_ok=True)
    except (UserError, OSError, ValueError) as error:
        parser().error(str(error))
    stopped = [stand.failure for stand in stands if stand.state == "stopped"]
    todo = [stand for stand in stands if stand.to_do]
    if options.dry_run or options.status:
        if options.status:
            print(table(stands))
        else:
            print("\n".join(f"# {line}" for line in (*outlook(stands), *stopped)))
            print("\n".join(shlex.join([sys.executable, *stand.work.words]) for stand in todo))
        return 0
    say("\n".join(outlook(stands)))
    report = Report(todo, runs, engine)
    try:
        engine.run([stand.work for stand in todo], report.begin, report.ended)
    except ValueError as error:
        parser().error(str(error).replace("\n", " "))
    say(report.summary(stopped))
    if engine.stop is not None:
        say(f"interrupted; {module.LEFT}")
        return 128 + engine.stop
    return 1 if stopped or report.failures else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
