"""One process trains in a run folder: the others are refused."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from envs import UserError
from harness.progress import say

BEGUN = {"lock", "wandb", "wandb_token", "args.json.part"}  # left by a start that was killed before it had args.json
TRIES = 20  # within a second: who only looks whether the lock is held (`held`) holds it for a moment


def lock(folder: Path, new: bool = False) -> int:
    """An open file that locks the folder; the kernel releases it when the process ends.

    Args:
      new: the caller begins a run there.

    Raises:
      UserError: another process trains there, or has begun a run since the caller found none. `new`: the folder has
        what no run left there.
    """
    try:
        strange = {path.name for path in folder.iterdir()} - BEGUN if new else set()
        if strange and not (folder / "args.json").exists():
            raise UserError(f"{str(folder)!r} is there already and is no run: it has {min(strange)!r}")
    except OSError as error:
        raise UserError(f"cannot read {str(folder)!r}: {error.strerror}") from None
    try:
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        _take(file)
    except BlockingIOError:
        owner = os.read(file, 200).decode(errors="replace").strip()
        raise UserError(f"{str(folder)!r} is in use by {owner or 'another process'}") from None
    except OSError as error:  # a network file system may have no locks
        say(f"{str(folder)!r} cannot be locked ({error.strerror}): do not start a second process in it")
    if new and (folder / "args.json").exists():
        os.close(file)
        raise UserError(f"another process has just begun a run in {str(folder)!r}: the same command goes on with it")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def unlock(file: int, folder: Path, ours: bool) -> None:
    """Releases what `lock` returned.

    Args:
      ours: nobody else knows of the folder: it is removed where no run began in it, as memory ran out before.
    """
    with contextlib.suppress(OSError):
        if ours and {path.name for path in folder.iterdir()} == {"lock"}:
            (folder / "lock").unlink()
            folder.rmdir()
    os.close(file)


def _take(file: int) -> None:
    for _ in range(TRIES):  # and not until a time: a machine may have stood still
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(folder: Path) -> bool:
    """Whether a process trains in the folder, on this machine or another one that shares its locks."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks
        return False
    return False
