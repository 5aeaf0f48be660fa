"""Writing so that neither a kill nor a power cut leaves half a file, and so that a full disk is told in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelean.errors import InputError

PART = ".part"
"""Suffix of what is not complete yet."""

REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a message.

    Raises
    ------
    InputError
        What could not be written, why, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise in_words(path, error) from None


def in_words(path: Path | str, error: OSError) -> InputError:
    """Return the message that tells of a failure to write ``path``."""
    remedy = REMEDIES.get(error.errno or 0, "look at the disk")
    return InputError(f"{path} cannot be written: {error.strerror or error}; {remedy}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is the old one or the new one at any moment, and on the disk when this returns.

    Raises
    ------
    InputError
        If it cannot be written; the old file is untouched.
    """
    unfinished = path.with_name(path.name + PART)
    with told(path):
        try:
            unfinished.write_text(text, encoding="utf-8")
            flush(unfinished)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)  # half a file would only take the space that is missing
            raise
        flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, from the memory of the system to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # there a folder cannot be opened, and needs not be
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
