"""The folder that the agent keeps: files by their hashes, one measurement at a time, nothing for longer than a day."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from common import RefusedError

DAY_S = 86400.0
MOST_BYTES = 2 << 30
LEAST_FREE_BYTES = 64 << 20
HASH = re.compile(r"[0-9a-f]{64}")
ENDINGS = ("onnx", "npz")
OWN = re.compile(r"(agent-)?[0-9a-f]{64}\.(onnx|npz|engine|engine\.part|pyz)|tmp\w+\.part")
LOCK = "edgelean.lock"


class Cache:
    """A folder that belongs to this user alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def at_home(cls) -> Cache:
        """Return the first folder that can be written, of ~/.cache/edgelean and one in /tmp, pruned."""
        found = []
        for folder in candidates():
            try:
                make_private(folder)
            except OSError as error:
                found.append(f"{folder}: {error.strerror}")
                continue
            cache = cls(folder)
            cache.prune()
            return cache
        raise RefusedError("folder", "; ".join(found), "give the user a folder ~/.cache or /tmp that can be written")

    def stored(self, *names: str) -> List[Path]:
        """Return the files of these names, a hash and an ending; they are looked at, a disk may have lost half of one.

        Those that are not here are refused with the kind ``absent`` and their names as the message.
        """
        files = [self._file(*name.split(".", 1)) for name in names]
        absent = [file.name for file in files if not file.is_file() or hash_of(file) != file.stem]
        if absent:
            raise RefusedError("absent", " ".join(absent), "send them first")
        for file in files:
            os.utime(str(file))
        return files

    def store(self, sha256: str, ending: str, size: int, read: Callable[[int], bytes]) -> Dict[str, Any]:
        """Keep the next ``size`` bytes of the input under their hash."""
        file = self._file(sha256, ending)
        free = shutil.disk_usage(str(self.folder)).free
        if free < size + LEAST_FREE_BYTES:
            found = f"{self.folder}: {free >> 20} MB free, wanted {(size + LEAST_FREE_BYTES) >> 20} MB"
            raise RefusedError("disk", found, "free some space on the board")
        descriptor, part = tempfile.mkstemp(suffix=".part", dir=str(self.folder))
        try:
            with os.fdopen(descriptor, "wb") as stream:
                found = copy(read, size, stream.write)
            if found != sha256:
                raise RefusedError("hash", f"what came is not {sha256}", "send it again")
            Path(part).replace(file)
        except BaseException:
            Path(part).unlink()
            raise
        return {"file": file.name}

    def clean(self, files: Optional[List[str]]) -> Dict[str, Any]:
        """Remove the files with these hashes, and the folder if only the agent is left; without a list all of it."""
        removed = []
        for file in self._files():
            if files is None or (file.stem in files and file.suffix[1:] in ENDINGS):
                remove(file)
                removed.append(file.name)
        if all(file.suffix == ".pyz" for file in self._files()):
            for file in self._files():
                remove(file)
            with contextlib.suppress(OSError):  # somebody else's file is in it
                self.folder.rmdir()
        return {"removed": removed}

    def prune(self) -> None:
        """Remove what nobody has used for a day, then the oldest files until the rest is small enough."""
        ages = sorted((time.time() - file.stat().st_mtime, file.stat().st_size, file) for file in self._files())
        total = 0
        for age_s, size, file in ages:
            total += size
            if age_s > DAY_S or total > MOST_BYTES:
                remove(file)

    @contextlib.contextmanager
    def alone(self, who: str) -> Iterator[None]:
        """Hold the board: two measurements at once would measure each other."""
        descriptor = open_lock(Path(tempfile.gettempdir()) / LOCK)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RefusedError("busy", f"busy with {holder(descriptor)}", "wait until it is done") from None
            note = json.dumps({"who": who[:100], "since": time.strftime("%H:%M:%S")})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _file(self, sha256: str, ending: str) -> Path:
        if not HASH.fullmatch(str(sha256)) or ending not in ENDINGS:
            raise RefusedError(
                "request", f"{sha256}.{ending} is no name of a stored file", "use edgelean of this version"
            )
        return self.folder / f"{sha256}.{ending}"

    def _files(self) -> List[Path]:
        """Return the files that are the agent's own, by their names."""
        return [file for file in self.folder.iterdir() if OWN.fullmatch(file.name) and file.is_file()]


def candidates() -> List[Path]:
    """Return where the folder may be, best first."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return [Path(home) / "edgelean", Path(tempfile.gettempdir()) / f"edgelean-{os.getuid()}"]


def make_private(folder: Path) -> None:
    """Make a folder that only this user may look into, and try to write in it; raises OSError where that fails."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(str(folder))
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to somebody else")
    folder.chmod(0o700)
    with tempfile.TemporaryFile(dir=str(folder)):
        pass


def remove(file: Path) -> None:
    """Remove a file that another agent may have removed in the meantime."""
    with contextlib.suppress(FileNotFoundError):
        file.unlink()


def copy(read: Callable[[int], bytes], size: int, write: Callable[[bytes], Any]) -> str:
    """Pass on exactly ``size`` bytes and return their SHA-256."""
    digest, left = hashlib.sha256(), size
    while left:
        piece = read(min(left, 1 << 20))
        if not piece:
            raise RefusedError("hash", f"{size - left} of {size} bytes came", "the connection broke: send again")
        write(piece)
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def open_lock(file: Path) -> int:
    """Open the lock that all users of the board share."""
    try:
        descriptor = os.open(str(file), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(str(file), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        os.fchmod(descriptor, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise RefusedError("folder", f"{file} is not a file", "remove it")
    return descriptor


def holder(descriptor: int) -> str:
    """Return who holds the lock and since when, as they wrote it into it."""
    try:
        note = json.loads(os.pread(descriptor, 400, 0))
        return "".join(letter for letter in f"{note['who']} since {note['since']}" if letter.isprintable())
    except (ValueError, KeyError, TypeError):
        return "another measurement"
