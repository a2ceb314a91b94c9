"""Runs a suite of suites.toml on this machine.

    python -m benchmarks.sweep quick                 minutes on a laptop, to see that all works
    python -m benchmarks.sweep gym --jobs 8          another suite, eight runs side by side
    python -m benchmarks.sweep gym --dry-run         only print the commands

Finished runs are skipped, unfinished ones are resumed, the others start: after an interruption call it again. A run
that fails does not stop the others; failures are named at the end, with exit status 1. A run that NaN or infinity
stopped is named as well, but not repeated. What a run prints goes to RUNS/logs.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.suites import SUITES, Job, find, jobs_of, outlook, read_suites
from envs import UserError

ROOT = Path(__file__).resolve().parent.parent
ENDED_BY_SIGNAL = (130, 143, -signal.SIGINT, -signal.SIGTERM)
WHY = {0: "exit status 0, but it is not finished", 3: "a seed was stopped by NaN or infinity"}


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, flush=True)


class Local:
    """Runs jobs as processes of this machine, each watched by a thread.

    Attributes:
      finished: the jobs that did.
      failures: which did not, and why, a line each.
      stop: the signal that ended it all, or None. Nothing is started after it.
    """

    def __init__(self, runs: Path, jobs: int):
        self.runs, self.jobs = runs, jobs
        self.finished: list[Job] = []
        self.failures: list[str] = []
        self.stop: int | None = None
        self._processes: list[subprocess.Popen] = []

    def run(self, todo: list[tuple[Job, Path | None]]) -> None:
        """Runs all jobs; with each the run folder to go on in, if there is one."""
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [signal.SIGINT, signal.SIGTERM, *([] if nohup else [signal.SIGHUP])]
        before = {number: signal.signal(number, self._signal) for number in heard}
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda item: self._run_one(*item), todo))
        for number, handler in before.items():
            signal.signal(number, handler)

    def _run_one(self, job: Job, folder: Path | None) -> None:
        if self.stop is not None:
            return
        say(f"{'resume' if folder else 'start'} {job.label}")
        log = self.runs / "logs" / f"{job.prefix.removesuffix('__')}.log"
        try:
            status = self._wait(job.command(self.runs, folder), log)
        except OSError as error:
            self._failed(f"{job.label}: cannot start: {error}")
            return
        if status == 0 and find(job, self.runs)[0] == "finished":
            self.finished.append(job)
            say(f"finished {job.label}")
        elif self.stop is not None and status in ENDED_BY_SIGNAL:
            say(f"interrupted {job.label}")
        else:
            self._failed(f"{job.label}: {WHY.get(status, f'exit status {status}')}, see {log}: {last_line(log)}")

    def _failed(self, failure: str) -> None:
        self.failures.append(failure)
        say(f"failed {failure}")

    def _wait(self, words: list[str], log: Path) -> int:
        """Runs a script to its end. Returns its exit status."""
        command = [sys.executable, *words]
        with log.open("a") as file:
            print("+", shlex.join(command), file=file, flush=True)
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={"NPROC": "1", **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        if self.stop is not None:  # it came while the process started
            self._pass_on(process)
        return process.wait()

    def _signal(self, number: int, frame) -> None:
        # A run finishes its chunk, writes a checkpoint and ends. A second signal goes to it as well.
        self.stop = number
        for process in self._processes:
            self._pass_on(process)

    def _pass_on(self, process: subprocess.Popen) -> None:
        # A run knows SIGINT and SIGTERM; a closed terminal (SIGHUP) ends it like the latter.
        process.send_signal(signal.SIGINT if self.stop == signal.SIGINT else signal.SIGTERM)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line[:200] for line in reversed(lines) if line.strip()), "")


def accelerator() -> bool:
    """Whether jax finds a GPU or TPU, asked in a process of its own so that none of its memory is held here."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() not in ("", "cpu")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line and exit status 2, as in the scripts."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def positive_number(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> int:
    """Returns the exit status: 0, 1 if any run failed, 128 + its number after a signal."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE")
    parser.add_argument("--suites", type=Path, default=SUITES, help="a list of your own in place of suites.toml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--jobs", type=positive_number, default=1, help="runs side by side")
    parser.add_argument("--steps", type=positive_number, help="environment steps in place of the listed ones")
    parser.add_argument("--vmap", choices=("auto", "0", "1"), default="auto", help="consecutive seeds in one process")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    options = parser.parse_args()
    vmap = options.vmap == "1" or (options.vmap == "auto" and accelerator())
    try:
        jobs = jobs_of(read_suites(options.suites), options.suite, vmap, options.steps)
        if not options.dry_run:
            (options.runs / "logs").mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        parser.error(str(error))
    stands = [(job, *find(job, options.runs)) for job in jobs]
    todo = [(job, folder) for job, status, folder in stands if status in ("new", "unfinished")]
    stopped = [f"{job.label}: {WHY[3]}, see {folder}" for job, status, folder in stands if status == "stopped"]
    if options.dry_run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
        print("\n".join(f"# {line}" for line in (*outlook(stands), *stopped)))
        print("\n".join(shlex.join([sys.executable, *job.command(options.runs, folder)]) for job, folder in todo))
        return 0
    say("\n".join(outlook(stands)))
    engine = Local(options.runs, options.jobs)
    engine.run(todo)
    failures = stopped + engine.failures
    summary = f"{len(engine.finished)} runs finished now, {len(failures)} failed"
    say("\n".join([summary, *(f"failed: {failure}" for failure in failures)]))
    if engine.stop is not None:
        say("interrupted; the same command goes on from here")
        return 128 + engine.stop
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
