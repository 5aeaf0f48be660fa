"""A run on disk: what was asked, the events, the checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgelean.errors import InputError, MissingError
from edgelean.training import durable
from edgelean.training.durable import told, write_whole
from edgelean.training.lock import NAME as LOCK
from edgelean.training.lock import Lock, refuse_in_use

ASKED, EVENTS = "run.json", "events.jsonl"

FREE_BYTES = 200_000_000
"""Space that a run should find before it starts: checkpoints, bundle and report of a small network."""


OnEvent = Callable[[Mapping[str, Any]], None]


class Run:
    """The folder of one fit.

    Parameters
    ----------
    on_event
        Shown every event as it is recorded.

    Attributes
    ----------
    folder
        Where everything of the run lies.
    part
        How often the run was interrupted before.
    """

    def __init__(self, folder: Path, on_event: OnEvent | None = None) -> None:
        self.folder = folder
        self._on_event = on_event or (lambda event: None)
        self._started = time.perf_counter()
        self._before_s = 0.0
        self._lock: Lock | None = None
        self.part = 0

    @classmethod
    def create(cls, folder: Path, asked: Mapping[str, Any], on_event: OnEvent | None = None) -> Run:
        """Make the folder of a new run, lock it, and write down what was asked.

        Raises
        ------
        InputError
            If the folder holds something already, another process uses it, it cannot be written, or the disk is
            nearly full.
        """
        occupied = InputError(f"{folder} is not empty: give another --out, or go on with that run by --resume {folder}")
        with told(folder):
            if not _is_free(folder):
                refuse_in_use(folder)  # somebody may be at work there: that is told first
                raise occupied
            _refuse_little_space(folder)
            folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, on_event)
        run._lock = Lock(folder)
        try:
            if not _is_free(folder):
                raise occupied  # somebody was faster
            write_json(folder / ASKED, asked)
        except InputError:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, folder: Path, on_event: OnEvent | None = None) -> Run:
        """Open the folder of an earlier run, to read in it.

        Raises
        ------
        MissingError
            If it is not the folder of a run.
        """
        if not (folder / ASKED).is_file():
            raise MissingError(f"{folder} is not the folder of a run: it has no {ASKED}")
        return cls(folder, on_event)

    @classmethod
    def reopen(cls, folder: Path, on_event: OnEvent | None = None) -> Run:
        """Open and lock the folder of an earlier run, to go on with it.

        Raises
        ------
        MissingError, InputError
            If it is not the folder of a run, another process uses it, or it cannot be written.
        """
        run = cls.open(folder, on_event)
        run._lock = Lock(folder)
        return run

    def close(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def asked(self) -> dict[str, Any]:
        """Return what was asked when the run began.

        Raises
        ------
        InputError
            If it cannot be read any more.
        """
        path = self.folder / ASKED
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): put it back, or start the run anew") from None
        if not isinstance(found, dict):
            raise InputError(f"{path} is not what a run begins with: put it back, or start the run anew")
        return found

    def fingerprint(self) -> str:
        """Return the SHA-256 of what was asked, by which a checkpoint knows its run."""
        return hashlib.sha256((self.folder / ASKED).read_bytes()).hexdigest()

    def seconds(self) -> float:
        """Return how long the run has taken, earlier parts of a resumed one included."""
        return self._before_s + time.perf_counter() - self._started

    def record(self, event: str, step: int, **fields: Any) -> None:
        """Append an event to ``events.jsonl`` and show it.

        Raises
        ------
        InputError
            If it cannot be written; then nothing of it is left in the file.
        """
        line = {"event": event, "step": step, "time_s": round(self.seconds(), 3), **fields}
        self._append(json.dumps(line) + "\n")
        self._on_event(line)

    def _append(self, text: str) -> None:
        path = self.folder / EVENTS
        whole = path.stat().st_size if path.exists() else 0
        with told(path):
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError:
                with suppress(OSError):  # the first failure is the one to tell
                    os.truncate(path, whole)
                raise

    def flush(self) -> None:
        """Bring the events from the memory of the system to the disk."""
        with told(self.folder / EVENTS):
            durable.flush(self.folder / EVENTS)

    def go_on(self, step: int) -> None:
        """Record that the run goes on after a step, and show again what had happened until then.

        What was recorded past the step no longer counts, and a line that a killed process left unfinished is cut off.
        Before step 0, nothing counts.
        """
        self._mend()
        lines = self._lines()
        self.part = 1 + sum(line["event"] == "resume" for line in lines)
        self._before_s = max((line["time_s"] for line in lines), default=0.0)
        earlier = counting([*lines, {"event": "resume", "step": step}])
        for event in earlier:
            if event["event"] in ("start", "reading", "cut", "rollback"):
                self._on_event(event)
        self.record("resume", step)

    def _mend(self) -> None:
        """End the events with a whole line."""
        path = self.folder / EVENTS
        content = path.read_bytes() if path.exists() else b""
        torn = content.rpartition(b"\n")[2]
        if not torn:
            return
        with told(path):
            if _parsed(torn.decode(errors="replace")) is None:
                os.truncate(path, len(content) - len(torn))
            else:
                self._append("\n")  # only the end of the line is missing

    def events(self) -> list[dict[str, Any]]:
        """Return the events that count: those past a step from which the run was resumed are left out."""
        return counting(self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / EVENTS
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return [event for line in text.splitlines() if (event := _parsed(line)) is not None]


def _is_free(folder: Path) -> bool:
    """Tell whether a run may begin in a folder: it is not there, or holds nothing but a lock that was left behind."""
    return not folder.exists() or (folder.is_dir() and all(path.name == LOCK for path in folder.iterdir()))


def _refuse_little_space(folder: Path) -> None:
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < FREE_BYTES:
        raise InputError(f"{free / 1e6:.0f} MB are free at {parent}, a run needs {FREE_BYTES / 1e6:.0f} MB")


SPENT = "energy"
"""Events that count wherever a run goes on: it was spent."""

TWIN = "full_size_epoch"
"""Events of the full-size training, which has steps and checkpoints of its own."""

LAST = ("ending", "verdict", "end")
"""Events of a run that ends; one that goes on after all has not ended."""


def counting(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that count: what happens again after a resume, or is undone by it, counts no more."""
    counted: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "resume":
            counted = [e for e in counted if _still_counts(e, event["step"])]
        if event["event"] == TWIN:
            counted = [e for e in counted if e["event"] != TWIN or e["epoch"] < event["epoch"]]
        counted.append(event)
    return counted


def _still_counts(event: Mapping[str, Any], step: int) -> bool:
    """Tell whether an event counts after the run went on from a step."""
    return event["event"] in (SPENT, TWIN) or (event["step"] <= step and event["event"] not in LAST)


def _parsed(line: str) -> dict[str, Any] | None:
    """Return the event of a line; None if it is the unfinished or damaged line of a process that was killed."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and {"event", "step", "time_s"} <= event.keys() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader never sees half of it.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    write_whole(path, json.dumps(content, indent=2) + "\n")
