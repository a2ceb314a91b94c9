"""The runs of suites.toml as jobs: what each is run with, its command, and how it stands in a folder of runs."""

import contextlib
import dataclasses
import io
import shlex
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.export import arguments, script_args
from envs import UserError, one_line
from harness import Experiment, RunFolder, cli
from harness.folder import prefix

SUITES = Path(__file__).with_name("suites.toml")
KEYS = {"name": str, "script": str, "flags": str, "envs": list, "seeds": list, "steps": int}


@dataclass(frozen=True)
class Job:
    """One process: an entry of a suite on one environment, for one seed or several consecutive ones.

    Attributes:
      script, flags: of the entry.
      args: what the script makes of them, with environment, seeds, steps and name.
    """

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
    def prefix(self) -> str:
        """How the names of its run folders begin."""
        return prefix(self.args)

    def command(self, runs: Path, resume: Path | None = None) -> list[str]:
        """The command after the interpreter, which trains anew in `runs` or goes on in the run folder `resume`."""
        if resume is not None:
            return [self.script, "--resume", str(resume)]
        args = self.args
        seeds = ["--seed", f"{args.seed}", *(["--num-seeds", f"{args.num_seeds}"] if args.num_seeds > 1 else [])]
        words = ["--env-id", args.env_id, *seeds, "--total-timesteps", f"{args.total_timesteps}"]
        return [self.script, *words, "--exp-name", args.exp_name, "--runs-folder", f"{runs}", *shlex.split(self.flags)]


def read_suites(path: Path = SUITES) -> dict[str, Any]:
    """A file of suites, by name. Raises UserError."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {one_line(error)}") from None


def entries(suites: dict[str, Any], suite: str) -> list[dict[str, Any]]:
    """The runs of a suite, after those of the suites that it includes, each with all of KEYS. Raises UserError."""
    if suite not in suites:
        raise UserError(f"no suite {suite!r}; there are {', '.join(suites)}")
    shared = {"flags": "", **suites[suite]}
    found = [entry for other in shared.pop("include", []) for entry in entries(suites, other)]
    for own in shared.pop("runs", []):
        entry = {**shared, **own}
        check(entry, suite)
        found.append(entry)
    return found


def check(entry: dict[str, Any], suite: str) -> None:
    """Raises UserError unless an entry has all of KEYS, each of the right type."""
    if {name: type(value) for name, value in entry.items()} != KEYS:
        raise UserError(f"a run of suite {suite!r} must have {', '.join(KEYS)}, and no more: {entry}")
    if {type(env_id) for env_id in entry["envs"]} != {str} or {type(seed) for seed in entry["seeds"]} != {int}:
        raise UserError(f"a run of suite {suite!r} needs names as envs and whole numbers as seeds: {entry}")


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
                jobs.append(Job(entry["script"], entry["flags"], own))
    twice = [prefix for prefix, count in Counter(job.prefix for job in jobs).items() if count > 1]
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


def find(job: Job, runs: Path) -> tuple[str, Path | None]:
    """How a job stands in a folder of runs: ("finished" | "stopped" | "unfinished", run folder) or ("new", None).

    Its run is known by the folder's name and by the arguments that it was made with.
    """
    wanted, found = arguments(job.script, dataclasses.asdict(job.args)), []
    for path in sorted(runs.glob("*")):
        if path.name.startswith(job.prefix):
            folder = RunFolder(path)
            with contextlib.suppress(UserError):  # one of an older version, or killed before it had arguments
                stored = folder.stored_args()
                if stored["script"] == Path(job.script).stem and arguments(job.script, stored) == wanted:
                    found.append((folder.status(), path))
    order = ("finished", "stopped", "unfinished")
    return min(reversed(found), key=lambda each: order.index(each[0]), default=("new", None))


def outlook(stands: list[tuple[Job, str, Path | None]]) -> list[str]:
    """What lies ahead, in lines. `stands`: jobs, each with the result of `find`."""
    count = Counter(status for _, status, _ in stands)
    left = [job.args for job, status, _ in stands if status in ("new", "unfinished")]
    steps = sum(args.total_timesteps * args.num_seeds for args in left)
    lines = [
        f"{len(left)} runs to do ({count['unfinished']} resumed), {count['finished']} already finished, "
        f"{count['stopped']} failed before; {steps:,} environment steps"
    ]
    begun = [RunFolder(folder).versions()[:1] for _, _, folder in stands if folder]
    if commits := sorted({str(first["git_commit"])[:7] for versions in begun for first in versions}):
        lines.append(f"runs already there were begun at commit {', '.join(commits)}")
    return lines
