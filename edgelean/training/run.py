"""A run on disk: what was asked, the events, the checkpoints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgelean.errors import InputError, MissingError

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
    """

    def __init__(self, folder: Path, on_event: OnEvent | None = None) -> None:
        self.folder = folder
        self._on_event = on_event or (lambda event: None)
        self._started = time.perf_counter()
        self._before_s = 0.0

    @classmethod
    def create(cls, folder: Path, asked: Mapping[str, Any], on_event: OnEvent | None = None) -> Run:
        """Make the folder of a new run and write down what was asked.

        Raises
        ------
        InputError
            If the folder holds something already, cannot be written, or the disk is nearly full.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: give another --out, or go on with that run by --resume {folder}")
        parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(parent).free
        if free < FREE_BYTES:
            raise InputError(f"{free / 1e6:.0f} MB are free at {parent}, a run needs {FREE_BYTES / 1e6:.0f} MB")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}") from None
        write_json(folder / "run.json", asked)
        return cls(folder, on_event)

    @classmethod
    def open(cls, folder: Path, on_event: OnEvent | None = None) -> Run:
        """Open the folder of an earlier run.

        Raises
        ------
        MissingError
            If it is not the folder of a run.
        """
        if not (folder / "run.json").is_file():
            raise MissingError(f"{folder} is not the folder of a run: it has no run.json")
        return cls(folder, on_event)

    def asked(self) -> dict[str, Any]:
        """Return what was asked when the run began."""
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def seconds(self) -> float:
        """Return how long the run has taken, earlier parts of a resumed one included."""
        return self._before_s + time.perf_counter() - self._started

    def record(self, event: str, step: int, **fields: Any) -> None:
        """Append an event to ``events.jsonl`` and show it."""
        line = {"event": event, "step": step, "time_s": round(self.seconds(), 3), **fields}
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._on_event(line)

    def resume_at(self, step: int) -> None:
        """Record that the run goes on after a step; what was recorded past it no longer counts.

        What had happened until then is shown again.
        """
        earlier = [event for event in self.events() if event["step"] <= step]
        with (self.folder / "events.jsonl").open("a") as file:
            file.write("\n")  # ends the line that a killed run may have left unfinished
        self._before_s = max((event["time_s"] for event in earlier), default=0.0)
        for event in earlier:
            if event["event"] in ("start", "reading", "cut", "rollback"):
                self._on_event(event)
        self.record("resume", step)

    def events(self) -> list[dict[str, Any]]:
        """Return the events that count: those past a step from which the run was resumed are left out."""
        path = self.folder / "events.jsonl"
        counted: list[dict[str, Any]] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing it
            if event["event"] == "resume":
                counted = [e for e in counted if e["step"] <= event["step"] and e["event"] != "end"]
            counted.append(event)
        return counted


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
