"""How the runs of a suite stand: a look at their folders and logs, and what there is to say about it."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.suites import Job
from benchmarks.work import Work, end_of
from envs import UserError
from harness import RunFolder, provenance
from harness.lock import held

NOT_FINITE = "a seed was stopped by NaN or infinity"
TAIL = 64 * 1024  # bytes of scalars.csv; several logs of a run


@dataclass(frozen=True)
class Stand:
    """How a run stands.

    Attributes:
      state: "waiting" (new or interrupted), "running", "finished", "failed", or "stopped" by NaN: not to be repeated.
      step: environment steps per seed that it has logged.
      speed: steps/s of a running one.
      why: it is not finished.
    """

    job: Job
    work: Work
    folder: Path
    state: str
    step: int = 0
    speed: float | None = None
    why: str = ""

    @property
    def to_do(self) -> bool:
        return self.state in ("waiting", "failed")

    @property
    def failure(self) -> str:
        return f"{self.job.label}: {self.why}"


def look(job: Job, runs: Path) -> Stand:
    """How a job stands in a folder of runs."""
    folder, log = runs / job.name, runs / "logs" / f"{job.name}.log"
    stand = Stand(job, Work(job.name, tuple(job.command(runs)), log), folder, "waiting")
    run, running = RunFolder(folder), held(folder)  # first: what ends in between has its summary by then
    try:
        status = run.status()
    except UserError:  # not begun, or killed before it had arguments
        status = "unfinished"
    rows = run.scalars(TAIL)
    step = max((row[0] for row in rows), default=0)
    if running:
        speeds = [row[4] for row in rows if row[3] == "charts/SPS"]
        return replace(stand, state="running", step=step, speed=speeds[-1] if speeds else None)
    if status == "finished":
        return replace(stand, state="finished", step=job.args.total_timesteps)
    if status == "stopped":
        return replace(stand, state="stopped", step=step, why=f"{NOT_FINITE}, see {folder}")
    exit_status, last = end_of(log)
    how = "it was killed, or could not start" if exit_status is None else f"exit status {exit_status}"
    if exit_status == 0:
        how += ", but it is not finished"
    state = "waiting" if exit_status in (None, 130, 143, -2, -15) else "failed"
    return replace(stand, state=state, step=step, why=f"{how}, see {log}: {last}")


def outlook(stands: list[Stand]) -> list[str]:
    """What lies ahead, in lines."""
    count = Counter(stand.state for stand in stands)
    left = [stand for stand in stands if stand.to_do]
    resumed = sum(stand.folder.exists() for stand in left)
    steps = sum(stand.job.args.total_timesteps * stand.job.args.num_seeds for stand in left)
    lines = [
        f"{len(left)} runs to do ({resumed} resumed), {count['finished']} already finished, "
        f"{count['stopped']} failed before; {steps:,} environment steps"
    ]
    lines += [f"{stand.job.label}: another sweep is running it" for stand in stands if stand.state == "running"]
    begun = [versions for stand in stands for versions in RunFolder(stand.folder).versions()[:1]]
    if not begun:
        return lines
    commits = sorted({str(versions["git_commit"])[:7] for versions in begun})
    lines.append(f"runs already there were begun at commit {', '.join(commits)}")
    now = provenance.commit_and_changes()[1] or {}
    if other := sorted({name for versions in begun for name in changed_since(versions, now)}):
        lines.append(
            f".. with other code than now of {', '.join(other)}: what has finished stays, the rest goes on with that of"
            " now; another --runs folder runs all anew"
        )
    return lines


def changed_since(versions: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The files whose code in no commit is another one than when a run began. `now`: of `commit_and_changes`."""
    then = provenance.digests(versions)
    there = {name: provenance.digest(name) for name in then}
    # None: not on this machine, or not known of an older run.
    edited = [name for name in then if there[name] != then[name] and None not in (there[name], then[name])]
    return edited + [name for name in now if name not in then and not Path(name).is_absolute()]


def table(stands: list[Stand]) -> str:
    """A line for every run: state, steps, speed, and why it failed. A last one counts them."""
    rows = [("run", "state", "step", "of", "steps/s", "")]
    for stand in stands:
        state = "failed" if stand.state == "stopped" else stand.state
        speed = "" if stand.speed is None else f"{stand.speed:,.0f}"
        why = stand.why if state == "failed" else ""
        rows.append((stand.job.label, state, f"{stand.step:,}", f"{stand.job.args.total_timesteps:,}", speed, why))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for label, state, *numbers, why in rows:
        cells = [label.ljust(widths[0]), state.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join([*cells, why]).rstrip())
    count = Counter(row[1] for row in rows[1:])
    states = ", ".join(f"{count[state]} {state}" for state in ("waiting", "running", "finished", "failed"))
    return "\n".join([*lines, f"{len(stands)} runs: {states}"])
