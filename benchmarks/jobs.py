"""The scheduler behind run_all.sh, which holds the list of runs and says how to call it.

It knows a run by its folder, {env_id}__{exp_name}__{seeds}__*, whose args.json has the listed arguments: finished runs
are skipped, interrupted ones are resumed, all others start anew.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import export  # noqa: E402

# Environment steps per second on Hopper-v4, one environment or the script's default number of them, one thread of a
# server CPU: for the estimate of the time only. Diffusion scripts: a + b K seconds per step, as (a, b).
SECONDS_PER_STEP = {
    "sac_jax": (1 / 250, 0.0),
    "diffsac_jax": (1 / 185, 1 / 6700),
    "diffwpo_jax": (1 / 140, 1 / 5000),
    "ppo_jax": (1 / 5000, 0.0),
    "diffppo_jax": (1 / 5000, 1 / 40000),
}
REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """One process: the seeds first .. first + count - 1 of a line of the list on one environment."""

    name: str
    script: str
    flags: str
    env_id: str
    first_seed: int
    num_seeds: int
    steps: int

    @property
    def seeds(self) -> str:
        last = self.first_seed + self.num_seeds - 1
        return f"{self.first_seed}" if self.num_seeds == 1 else f"{self.first_seed}-{last}"

    @property
    def folder_prefix(self) -> str:
        return f"{self.env_id}__{self.name}__{self.seeds}__".replace("/", "-").replace(":", "-")

    @property
    def label(self) -> str:
        return f"{self.name} {self.env_id} seed {self.seeds}"

    @property
    def arguments(self) -> str:
        """As `export.arguments` writes those of a run."""
        return export.arguments(self.script, {**export.parse_flags(self.flags), "total_timesteps": self.steps})

    @property
    def seconds(self) -> float:
        """What the run is expected to take on one core."""
        values = export.defaults(self.script) | export.parse_flags(self.flags)
        fixed, per_denoising_step = SECONDS_PER_STEP.get(Path(self.script).stem, (1 / 100, 0.0))
        return self.steps * self.num_seeds * (fixed + per_denoising_step * values.get("num_denoising_steps", 0))

    def command(self, runs: str, resume: Path | None = None) -> list[str]:
        """The command after the interpreter."""
        if resume is not None:
            return [self.script, "--resume", str(resume)]
        seeds = ["--seed", str(self.first_seed)]
        if self.num_seeds > 1:
            seeds += ["--num-seeds", str(self.num_seeds)]
        words = ["--env-id", self.env_id, *seeds, "--total-timesteps", str(self.steps), "--exp-name", self.name]
        return [self.script, *words, "--runs-folder", runs, *self.flags.split()]


class ListError(Exception):
    """A list of runs that cannot be read, or has no such suite."""


def read_list(text: str, suite: str, vmap: bool = False, steps: int | None = None) -> list[Job]:
    """The jobs of a suite in the list's order; `vmap`: consecutive seeds are one job. Raises ListError."""
    suites: dict[str, list[str]] = {}
    current = None
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        if line.startswith("suite "):
            current = suites.setdefault(line.removeprefix("suite ").strip(), [])
        elif current is None:
            raise ListError(f"the list begins with {line!r}: a suite must come first")
        elif line.startswith("+"):
            if (other := line[1:].strip()) not in suites:
                raise ListError(f"no suite {other!r} above the line {line!r}")
            current += suites[other]
        else:
            current.append(line)
    if suite not in suites:
        raise ListError(f"no suite {suite!r} in the list; there are {', '.join(suites)}")
    jobs = []
    for line in suites[suite]:
        cells = [cell.strip() for cell in line.split("|")]
        try:
            name, script, flags, env_ids, seeds, listed = cells
            seeds = [int(seed) for seed in seeds.split()]
            listed = int(listed)
            if not seeds or not env_ids.split():
                raise ValueError
            export.defaults(script), export.parse_flags(flags)
        except ValueError:
            raise ListError(f"not 'name | script | flags | environments | seeds | steps': {line!r}") from None
        except export.ExportError as error:
            # A script of a suite may be missing from a checkout: its runs fail, the others go on.
            if not str(error).startswith("cannot read"):
                raise ListError(str(error)) from None
        blocks = [(seed, 1) for seed in seeds]
        if vmap and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
            blocks = [(seeds[0], len(seeds))]
        for env_id in env_ids.split():
            jobs += [Job(name, script, flags, env_id, first, count, steps or listed) for first, count in blocks]
    if len({(job.name, job.env_id, job.seeds) for job in jobs}) < len(jobs):
        raise ListError(f"suite {suite!r} names a run twice")
    return jobs


def find(job: Job, runs: Path) -> tuple[str, Path | None]:
    """How the job stands: ("finished" | "stopped" | "unfinished", folder) or ("new", None)."""
    found = []
    for folder in sorted(runs.glob(f"{job.folder_prefix}*")) if runs.is_dir() else []:
        try:
            args = json.loads((folder / "args.json").read_text())
            script = args.pop("script")
            same = Path(job.script).stem == Path(script).stem and export.arguments(job.script, args) == job.arguments
        except (OSError, ValueError, KeyError, export.ExportError):
            continue
        if same:
            found.append((export.state(folder), folder))
    for wanted in ("finished", "stopped", "unfinished"):
        for state, folder in reversed(found):
            if state == wanted and (state != "unfinished" or "resume" in export.defaults(job.script)):
                return state, folder
    return "new", None


def commit_of(folder: Path) -> str:
    """The commit that a run was begun at, short."""
    try:
        return (json.loads((folder / "versions.json").read_text())["git_commit"] or "unknown")[:7]
    except (OSError, ValueError, KeyError):
        return "unknown"


def progress(job: Job, runs: Path, since: float) -> float:
    """The share of its steps that a running job has done, from the last line of its newest scalars.csv."""
    try:
        newest = [path for path in runs.glob(f"{job.folder_prefix}*/scalars.csv") if path.stat().st_mtime >= since]
        if not newest:
            return 0.0
        with max(newest, key=lambda path: path.stat().st_mtime).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:  # the folder may be deleted at any moment
        return 0.0
    for line in reversed(lines):
        step = line.split(",")[0]
        if line.count(",") == 4 and step.isdigit():
            return min(int(step) / job.steps, 1.0)
    return 0.0


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, flush=True)


class Scheduler:
    """Runs jobs side by side; see `run`."""

    def __init__(self, jobs: list[Job], options: argparse.Namespace):
        self.options, self.runs = options, Path(options.runs)
        self.waiting: list[tuple[Job, Path | None]] = []
        self.running: dict[Job, tuple[subprocess.Popen, float, float]] = {}
        self.failures: list[str] = []
        self.commits: set[str] = set()  # of the runs that are not begun anew
        self.finished, self.skipped, self.seconds_done, self.seconds_begun = 0, 0, 0.0, 0.0
        self.interrupted: int | None = None
        for job in jobs:
            state, folder = self._find(job)
            if folder is not None:
                self.commits.add(commit_of(folder))
            if state == "finished":
                self.skipped += 1
            elif state == "stopped":
                self.failures.append(f"{job.label}: a seed was stopped by NaN or infinity, see {folder}")
            else:
                self.waiting.append((job, folder))
        self.seconds_total = sum(self._seconds(job) for job, _ in self.waiting)
        self.seconds_begun = sum(self._seconds(job) * self._share_done(job, folder) for job, folder in self.waiting)

    def _find(self, job: Job) -> tuple[str, Path | None]:
        try:
            return find(job, self.runs)
        except export.ExportError:
            return "new", None

    def _seconds(self, job: Job) -> float:
        try:
            return job.seconds
        except export.ExportError:
            return 0.0

    def _share_done(self, job: Job, folder: Path | None) -> float:
        return progress(job, self.runs, 0.0) if folder else 0.0

    def estimate(self) -> list[str]:
        """What is about to happen, in lines."""
        resumed = sum(folder is not None for _, folder in self.waiting)
        steps = sum(job.steps * job.num_seeds for job, _ in self.waiting)
        left = self.seconds_total - self.seconds_begun
        longest = max((self._seconds(job) for job, _ in self.waiting), default=0.0)
        minutes = max(left / self.options.jobs, min(longest, left)) / 60
        duration = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.0f} minutes"
        lines = [
            f"{len(self.waiting)} runs to do ({resumed} resumed), {self.skipped} already finished, "
            f"{len(self.failures)} failed before",
            f"{steps:,} environment steps, about {duration} with JOBS={self.options.jobs} "
            f"(at the speed measured on one core of a server CPU on Hopper-v4)",
        ]
        if self.commits:
            lines.append(f"runs already there were begun at commit {', '.join(sorted(self.commits))}")
        return lines

    def run(self) -> int:
        """Runs all jobs; returns the exit status: 0, 1 if any failed, 128 + its number after a signal."""
        for line in self.estimate():
            say(line)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self._stop)
        try:
            (self.runs / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"error: cannot write to {str(self.runs)!r}: {error.strerror}", file=sys.stderr)
            return 2
        begin = next_report = time.time()
        next_report += self.options.report
        while self.running or (self.waiting and self.interrupted is None):
            while self.waiting and len(self.running) < self.options.jobs and self.interrupted is None:
                self._start(*self.waiting.pop(0))
            for job in [job for job, (process, _, _) in self.running.items() if process.poll() is not None]:
                self._ended(job)
            if time.time() >= next_report:
                next_report = time.time() + self.options.report
                say(self._report(begin))
            time.sleep(0.1)
        say(f"{self.finished} runs finished now, {self.skipped} before, {len(self.failures)} failed")
        for failure in self.failures:
            say(f"failed: {failure}")
        if self.interrupted is not None:
            say("interrupted; the same command goes on from here")
            return 128 + self.interrupted
        return 1 if self.failures else 0

    def _stop(self, number: int, frame) -> None:
        # The runs finish their chunk, write a checkpoint and end. A second signal of the user's goes to them as well.
        self.interrupted = number
        for process, _, _ in self.running.values():
            process.send_signal(self._signal_of_a_run())
        say(f"signal {number}: waiting for {len(self.running)} runs to write their checkpoints")

    def _signal_of_a_run(self) -> int:
        """A run knows SIGINT and SIGTERM; a closed terminal (SIGHUP) ends it in the same way."""
        return signal.SIGINT if self.interrupted == signal.SIGINT else signal.SIGTERM

    def _log_path(self, job: Job) -> Path:
        return self.runs / "logs" / f"{job.folder_prefix.removesuffix('__')}.log"

    def _start(self, job: Job, folder: Path | None) -> None:
        command = [sys.executable, *job.command(self.options.runs, folder)]
        say(f"{'resume' if folder else 'start'} {job.label}")
        share = self._share_done(job, folder)
        try:
            with self._log_path(job).open("a") as log:
                log.write(f"+ {' '.join(command)}\n")
                log.flush()
                # A process group of its own: Ctrl-C reaches the scheduler alone, which passes it on once.
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={"NPROC": "1", **os.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self.failures.append(f"{job.label}: cannot start: {error}")
            say(f"failed {self.failures[-1]}")
            return
        self.running[job] = (process, time.time(), share)
        if self.interrupted is not None:  # the signal came between the check and here
            process.send_signal(self._signal_of_a_run())

    def _ended(self, job: Job) -> None:
        process, _, share = self.running.pop(job)
        status, where = process.returncode, self._log_path(job)
        self.seconds_done += self._seconds(job) * (1.0 - share)
        if status == 0 and self._find(job)[0] == "finished":
            self.finished += 1
            say(f"finished {job.label}")
        elif self.interrupted is not None and status in (130, 143, -signal.SIGTERM, -signal.SIGINT):
            say(f"interrupted {job.label}")
        else:
            reason = {3: "a seed was stopped by NaN or infinity", 0: "exit status 0, but the run is not complete"}.get(
                status, f"exit status {status}"
            )
            try:
                last = [line for line in where.read_text(errors="replace").splitlines() if line.strip()][-1:]
            except OSError:
                last = []
            self.failures.append(f"{job.label}: {reason}, see {where}: {' '.join(last)[:200]}")
            say(f"failed {self.failures[-1]}")

    def _report(self, begin: float) -> str:
        shares = {job: progress(job, self.runs, started) for job, (_, started, _) in self.running.items()}
        here = sum(self._seconds(job) * max(shares[job] - done, 0.0) for job, (_, _, done) in self.running.items())
        done, total = self.seconds_done + here, self.seconds_total - self.seconds_begun
        elapsed = time.time() - begin
        left = datetime.timedelta(seconds=round(elapsed * (total - done) / done)) if done > 0 else "unknown time"
        running = ", ".join(f"{job.label} {100 * share:.0f} %" for job, share in shares.items())
        return (
            f"{100 * done / total if total else 100:.0f} % of all work, {left} left; {self.finished} finished, "
            f"{len(self.waiting)} waiting, {len(self.failures)} failed; running: {running or 'none'}"
        )


def accelerator() -> bool:
    """Whether jax finds a GPU or TPU, asked in a process of its own so that none of its memory is held here."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() not in ("", "cpu")


class Parser(argparse.ArgumentParser):
    """One line and exit status 2 for a bad setting, as the scripts do it."""

    def error(self, message: str):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "positive whole number"  # for argparse's message


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--list", required=True, help="the list of runs, as text")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--jobs", type=positive, default=1)
    parser.add_argument("--steps", type=positive)
    parser.add_argument("--vmap", choices=("auto", "0", "1"), default="auto")
    parser.add_argument("--report", type=float, default=REPORT_SECONDS, help="seconds between lines of progress")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    options.runs = str(Path(options.runs))
    vmap = options.vmap == "1" or (options.vmap == "auto" and not options.dry_run and accelerator())
    try:
        jobs = read_list(options.list, options.suite, vmap, options.steps)
    except ListError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scheduler = Scheduler(jobs, options)
    if options.dry_run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
        for line in scheduler.estimate():
            print(f"# {line}")
        for failure in scheduler.failures:
            print(f"# failed: {failure}")
        for job, folder in scheduler.waiting:
            print(f"{os.path.relpath(sys.executable)} {' '.join(job.command(options.runs, folder))}")
        return 0
    return scheduler.run()


if __name__ == "__main__":
    sys.exit(main())
