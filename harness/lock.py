"""One process trains in a run folder: the others are refused."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from envs import UserError
from harness.progress import say


def lock(folder: Path) -> int:
    """An open file that locks the folder; the kernel releases it when the process ends. Raises UserError."""
    try:
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 200).decode(errors="replace").strip()
        raise UserError(f"{str(folder)!r} is in use by {owner or 'another process'}") from None
    except OSError as error:  # a network file system may have no locks
        say(f"{str(folder)!r} cannot be locked ({error.strerror}): do not start a second process in it")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
