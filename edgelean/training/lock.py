"""One process at a time works on a run: a lock that the system takes away from a process that has died."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from edgelean.errors import InputError
from edgelean.training.durable import told

NAME = "run.lock"


class Lock:
    """The lock on a run folder, held from its making to `release`, or to the death of the process.

    A record lock of POSIX: the processes that a loader starts do not inherit it, so it never outlives the one that
    trains. It holds between machines on file systems that have locks, as NFS does; where there are none, on a file
    system or on Windows, nothing is locked. It does not hold between two threads of one process.

    Raises
    ------
    InputError
        If a living process holds it, with its number and machine; or if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        with told(path):
            self._file = path.open("a+", encoding="utf-8")
        if not _taken(self._file, exclusive=True):
            refusal = _refusal(folder, self._file)
            self._file.close()
            raise refusal
        with told(path):
            self._file.truncate(0)
            self._file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def release(self) -> None:
        """Let others in. The file stays: to remove it would let in two who wait for it."""
        self._file.close()


def refuse_in_use(folder: Path) -> None:
    """Do nothing, unless a living process works on the run in a folder.

    Raises
    ------
    InputError
        With the number of the process and its machine.
    """
    path = folder / NAME
    if path.is_file() and os.access(path, os.R_OK):
        with path.open(encoding="utf-8") as file:
            if not _taken(file, exclusive=False):
                raise _refusal(folder, file)


def _refusal(folder: Path, file: IO[str]) -> InputError:
    file.seek(0)
    holder = file.read().strip()
    by = f"process {holder}" if holder else "another process"
    return InputError(f"{folder} is in use by {by}: wait until that is done, or stop it (it can be resumed then)")


def _taken(file: IO[str], *, exclusive: bool) -> bool:
    """Take the lock for good or, not exclusive, as a reader; return whether nobody else has it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # this file system has no locks
    return True
