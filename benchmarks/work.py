"""One run of a sweep as a process, on whatever machine an engine takes it to. Imports nothing but Python's own.

Its log gets the command, what the run prints, and at the end `+ exit status N`.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Starts a command that the kernel kills once the process that waits for it is gone (1: PR_SET_PDEATHSIG; Linux only).
LEASH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""
END = re.compile(r"\+ exit status (-?\d+)")


def python_path() -> str:
    """PYTHONPATH with this checkout, in which a script or a worker that lies elsewhere would not look by itself."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@dataclass(frozen=True)
class Work:
    """What an engine needs to know of a run.

    Attributes:
      name: of its folder.
      words: the command after the interpreter; it begins the run or goes on with it.
      log: the file that it prints to.
    """

    name: str
    words: tuple[str, ...]
    log: Path


class Process:
    """A run that was started here.

    Args:
      threads: of the run, unless NPROC says otherwise.
      leash: the run must not outlive this process, which may be killed: it would hold the lock of its folder.

    Raises:
      OSError: the log cannot be written.
    """

    def __init__(self, work: Work, threads: int = 1, leash: bool = False):
        command = [sys.executable, *work.words]
        self._log = work.log.open("a")
        self._process: subprocess.Popen | None = None
        self._say(f"+ {shlex.join(command)}")
        try:
            # A session of its own: Ctrl-C reaches the sweep alone, which passes it on once.
            self._process = subprocess.Popen(
                [sys.executable, "-c", LEASH, *command] if leash else command,
                cwd=ROOT,
                env={"NPROC": str(threads), **os.environ, "PYTHONPATH": python_path()},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._say(f"error: cannot start: {error}")

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self) -> int:
        """Waits for the end. Returns the exit status."""
        status = 127 if self._process is None else self._process.wait()
        with contextlib.suppress(OSError):  # a full disk: the log will say nothing of the end, which is a failure
            self._say(f"+ exit status {status}")
            self._log.close()
        return status

    def send(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop_and_wait(self) -> None:
        """Ends the run with a checkpoint. Also for a signal handler that interrupts `wait`: the process stays there."""
        self.send(signal.SIGTERM)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _say(self, line: str) -> None:
        print(line, file=self._log, flush=True)


@contextlib.contextmanager
def signals(obey: Callable[[int], None]) -> Iterator[None]:
    """Calls `obey` with every SIGINT, SIGTERM and SIGHUP meanwhile; under nohup not with SIGHUP."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = [signal.SIGINT, signal.SIGTERM, *([] if nohup else [signal.SIGHUP])]
    before = {number: signal.signal(number, lambda number, _: obey(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_of(log: Path) -> tuple[int | None, str]:
    """The exit status that a log ends with, None where the run goes on or was killed; and the run's last line."""
    if not log.exists():
        return None, ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 8192, 0))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ended = END.fullmatch(lines[-1]) if lines else None
    said = [line for line in lines if not line.startswith("+ ")]
    return int(ended[1]) if ended else None, said[-1][:200] if said else ""
