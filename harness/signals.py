"""Signals for a loop whose chunks are compiled: they are noted at once and obeyed after the chunk."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """SIGINT and SIGTERM end the run after the chunk, a SIGINT after it leaves at once, SIGUSR1 asks for a checkpoint.

    While a compiled chunk runs, the main thread reaches no signal handler. A thread reads the signals instead.

    Attributes:
      stop: the signal that ends the run, or None.
      checkpoint: whether a checkpoint was asked for.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.stop: signal.Signals | None = None
        self.checkpoint = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Explicitly, because a shell without job control starts background processes with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, lambda *_: None)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def remove(self) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _listen(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number == signal.SIGUSR1:
                self.checkpoint = True
                self.say("SIGUSR1: a checkpoint after this chunk")
            elif number in (signal.SIGINT, signal.SIGTERM):
                if number == signal.SIGINT and self.stop:
                    os._exit(130)
                self.stop = self.stop or signal.Signals(number)
                self.say(f"{self.stop.name}: ends after this chunk with a checkpoint (Ctrl-C again: at once)")
