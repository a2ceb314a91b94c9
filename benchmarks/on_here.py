"""The engine `here`: processes of this machine, each watched by a thread."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.work import Process, Work, signals

LEFT = "the same command goes on from here"


def accelerator() -> bool:
    """Whether jax finds a GPU or TPU, asked in a process of its own so that none of its memory is held here."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() not in ("", "cpu")


class Engine:
    """Runs `jobs` processes side by side.

    Attributes:
      stop: the signal that ended it all, or None. Nothing is started after it.

    Raises:
      ValueError: settings; it has none.
    """

    def __init__(self, jobs: int | None, settings: dict[str, Any]):
        if settings:
            raise ValueError(f"it has no settings: {', '.join(settings)}")
        self.jobs = jobs or 1
        self.stop: int | None = None
        self._processes: list[Process] = []

    def has_gpu(self) -> bool:
        return accelerator()

    def run(self, works: list[Work], begin: Callable[[Work], bool], ended: Callable[[Work], None]) -> None:
        """Runs what `begin` agrees to; `ended` is told of each that has run."""

        def run_one(work: Work) -> None:
            if self.stop is None and begin(work):
                self._run_one(work)
                ended(work)

        with signals(self._signal), ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(run_one, works))

    def _run_one(self, work: Work) -> None:
        try:
            process = Process(work)
        except OSError:  # no log: its end will say nothing, and it is a failure
            return
        self._processes.append(process)
        if self.stop is not None:  # it came while the process started
            self._pass_on(process)
        process.wait()

    def _signal(self, number: int) -> None:
        # A run finishes its chunk, writes a checkpoint and ends. A second signal goes to it as well.
        self.stop = number
        for process in self._processes:
            self._pass_on(process)

    def _pass_on(self, process: Process) -> None:
        # A run knows SIGINT and SIGTERM; a closed terminal (SIGHUP) ends it like the latter.
        process.send(signal.SIGINT if self.stop == signal.SIGINT else signal.SIGTERM)
