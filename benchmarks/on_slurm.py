"""The engine `slurm`: job arrays, through submitit.

Before the time limit Slurm sends SIGUSR1, at a pre-emption SIGTERM. The run then ends with a checkpoint, its job is put
back into the queue, and the same command goes on from there.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # submitit reads it when it is imported
import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from benchmarks.work import ROOT, Process, Work, signals

DEFAULTS = {"time": 240, "cpus_per_task": 1, "signal_delay_s": 120, "job_name": "sweep"}  # time: minutes
ARRAY_SIZE = 1000  # jobs in an array; Slurm's own limit is 1001 unless configured
REQUEUES = 100  # time limits that a run may reach
LOOK, ASK = 1, 20  # seconds between looks at files, and between questions to Slurm
LEFT = "the jobs stay with Slurm: squeue --me shows them, the sweep's --status the runs"


class Task:
    """What a job runs. submitit calls `checkpoint` at SIGUSR1, and puts what it returns into the queue."""

    def __init__(self, work: Work, threads: int):
        self.work, self.threads = work, threads
        self.process: Process | None = None

    def __call__(self) -> int:
        signal.signal(signal.SIGTERM, self._terminated)
        self.process = Process(self.work, self.threads)
        status = self.process.wait()
        if status == 128 + signal.SIGTERM and _state(submitit.JobEnvironment().job_id) == "RUNNING":
            signal.raise_signal(signal.SIGUSR1)  # it was pre-empted; a cancelled job is no longer RUNNING
        return status

    def checkpoint(self) -> DelayedSubmission:
        if self.process is not None:
            self.process.stop_and_wait()
        return DelayedSubmission(Task(self.work, self.threads))

    def _terminated(self, number: int, frame: Any) -> None:
        if self.process is not None:
            self.process.send(signal.SIGTERM)


def _state(job_id: str) -> str:
    """The state of a job, or of one job of an array: `12_3`."""
    command = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


class Engine:
    """Submits job arrays and waits until Slurm has run them.

    Args:
      jobs: run side by side at most; None: as many as there is room for.
      settings: parameters of sbatch as submitit has them, and `array_size`.

    Attributes:
      stop: the signal that ended the waiting, or None.

    Raises:
      ValueError: an unknown setting, or no Slurm.
    """

    def __init__(self, jobs: int | None, settings: dict[str, Any]):
        self.settings = {**DEFAULTS, **settings}
        self.array_size = self.settings.pop("array_size", ARRAY_SIZE)
        if jobs is not None:
            self.settings["array_parallelism"] = jobs
        whole = {"time": self.settings["time"], "array_size": self.array_size}
        if bad := [name for name, value in whole.items() if type(value) is not int or value < 1]:
            raise ValueError(f"{bad[0]} must be a whole number above 0, not {whole[bad[0]]!r}")
        self.settings["additional_parameters"] = {"requeue": True, **self.settings.get("additional_parameters", {})}
        exports = {
            "SUBMITIT_PREEMPT_SIGNAL": os.environ["SUBMITIT_PREEMPT_SIGNAL"],
            "SRUN_CPUS_PER_TASK": self.settings["cpus_per_task"],  # srun does not inherit it
        }
        own = [f"cd {shlex.quote(str(ROOT))}", *(f"export {name}={value}" for name, value in exports.items())]
        self.settings["setup"] = [*own, *self.settings.get("setup", [])]
        self.stop: int | None = None
        self._executor(ROOT)  # raises what is wrong with the settings

    def has_gpu(self) -> bool:
        """Whether a job gets one."""
        return "gpu" in str(self.settings.get("gres")) or any(name.startswith("gpus_per") for name in self.settings)

    def _executor(self, folder) -> submitit.SlurmExecutor:
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
            executor.update_parameters(**self.settings)
        except (RuntimeError, ValueError) as error:
            raise ValueError(str(error).splitlines()[0]) from None
        return executor

    def run(self, works: list[Work], begin: Callable[[Work], bool], ended: Callable[[Work], None]) -> None:
        """Submits what `begin` agrees to; `ended` is told of each that has run. Raises ValueError: Slurm refuses it."""
        queue: dict[Work, submitit.SlurmJob] = {}
        with signals(self._signal):
            for first in range(0, len(works), self.array_size):
                array = [work for work in works[first : first + self.array_size] if self.stop is None and begin(work)]
                queue.update(zip(array, self._submit(array) if array else [], strict=True))
            self._wait(queue, ended)

    def _submit(self, works: list[Work]) -> list[submitit.SlurmJob]:
        executor = self._executor(works[0].log.parent / "slurm")
        try:
            with executor.batch():
                return [executor.submit(Task(work, self.settings["cpus_per_task"])) for work in works]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = [line.strip("'\" ") for line in str(error).splitlines() if line.strip()]
            raise ValueError(f"cannot submit: {said[-1] if said else repr(error)}") from None

    def _wait(self, queue: dict[Work, submitit.SlurmJob], ended: Callable[[Work], None]) -> None:
        asked = time.monotonic()
        while queue and self.stop is None:
            time.sleep(LOOK)
            left = set(queue)
            if time.monotonic() - asked > ASK:
                asked, known = time.monotonic(), _in_queue(queue.values())
                left = {work for work in queue if known is None or queue[work].job_id in known}
            # A job that ended by itself leaves a result; one that was cancelled or killed is only gone from the queue.
            for work in [work for work in queue if work not in left or queue[work].paths.result_pickle.exists()]:
                del queue[work]
                ended(work)

    def _signal(self, number: int) -> None:
        self.stop = number


def _in_queue(jobs) -> set[str] | None:
    """The ids of those jobs that wait or run; None where Slurm does not answer. sacct would need accounting."""
    ids = ",".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    command = ["squeue", "--noheader", "--array", f"--jobs={ids}", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return set(done.stdout.split())
