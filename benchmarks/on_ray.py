"""The engine `ray`: Ray tasks, on the cluster at RAY_ADDRESS or on a Ray of this machine.

A task whose node or worker dies is tried again elsewhere; the same command goes on from the last checkpoint.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import ray

from benchmarks.work import Process, Work, python_path, signals

DEFAULTS = {"num_cpus": 1, "max_retries": 10}
LOOK = 0.5  # seconds
LEFT = "the same command goes on from here"


def task(work: Work, threads: int) -> int:
    """Runs a run to its end. Returns its exit status."""
    process = Process(work, threads, leash=True)
    try:
        while not process.has_ended():
            time.sleep(LOOK)  # Ray's cancellation is noticed between two steps of Python, not within a long one
    except BaseException:
        process.stop_and_wait()
        raise
    return process.wait()


def check(address: str) -> None:
    """Raises OSError where nothing answers at `host:port`: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


class Engine:
    """Hands tasks to Ray and waits for them.

    Args:
      jobs: tasks handed over at a time; None: all, Ray runs as many as it has room for.
      settings: options of `ray.remote`: num_cpus, num_gpus, max_retries, resources, ..

    Attributes:
      stop: the signal that ended it all, or None. Nothing is started after it.

    Raises:
      ValueError: an unknown setting.
    """

    def __init__(self, jobs: int | None, settings: dict[str, Any]):
        self.jobs, self.settings = jobs, {**DEFAULTS, **settings}
        self.stop: int | None = None
        self._running: dict[ray.ObjectRef, Work] = {}
        try:
            self._remote = ray.remote(**self.settings)(task)
        except (TypeError, ValueError) as error:
            raise ValueError(str(error).splitlines()[0]) from None

    def has_gpu(self) -> bool:
        """Whether a task gets one."""
        return bool(self.settings.get("num_gpus"))

    def run(self, works: list[Work], begin: Callable[[Work], bool], ended: Callable[[Work], None]) -> None:
        """Runs what `begin` agrees to; `ended` is told of each that has run. Raises ValueError: no Ray there."""
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            check(address)
            ray.init(
                address,
                runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
                log_to_driver=False,
                logging_level="ERROR",
                **({"include_dashboard": False} if address == "local" else {}),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray at {address}: {error}") from None
        with signals(self._signal):
            self._run(list(works), begin, ended)
        ray.shutdown()

    def _run(self, waiting: list[Work], begin: Callable[[Work], bool], ended: Callable[[Work], None]) -> None:
        threads = max(1, int(self.settings["num_cpus"]))
        while self._running or (waiting and self.stop is None):
            while waiting and self.stop is None and len(self._running) < (self.jobs or len(waiting) + 1):
                work = waiting.pop(0)
                if begin(work):
                    ref = self._remote.options(name=work.name).remote(work, threads)
                    self._running[ref] = work
                    if self.stop is not None:  # by a signal that came before it stood there
                        ray.cancel(ref)
            over, _ = ray.wait(list(self._running), timeout=1) if self._running else ([], [])
            for ref in over:
                ended(self._running.pop(ref))

    def _signal(self, number: int) -> None:
        self.stop = number
        for ref in self._running:
            ray.cancel(ref)
