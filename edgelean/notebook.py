"""What an attached loop writes down: its events and, where it was given a folder, a run like that of `edgelean fit`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgelean
from edgelean.assemble import Materials, conclude
from edgelean.chapters import LEAN, Account, begin
from edgelean.delivery import Delivery
from edgelean.errors import InputError
from edgelean.job import About
from edgelean.loop import ClosedLoop
from edgelean.report.model import Report
from edgelean.stopwatch import Stopwatch
from edgelean.training.run import OnEvent, Run
from edgelean.verifier import Evidence


class Notebook:
    """Keeps the events of an attached loop.

    The folder is made before the first step, not before: until then the loop may be told to go on with an earlier run.

    Parameters
    ----------
    folder
        Of the run; None where events are only kept in memory.
    on_event
        Shown every event as it happens.

    Attributes
    ----------
    events
        Everything that happened so far.
    """

    def __init__(self, folder: Path | None, about: About, stopwatch: Stopwatch, on_event: OnEvent | None) -> None:
        self._folder, self._about, self._stopwatch = folder, about, stopwatch
        self._on_event = on_event or (lambda event: None)
        self._watching = ExitStack()
        self._run: Run | None = None
        self.events: list[dict[str, Any]] = []

    def record(self, event: str, step: int, **fields: Any) -> None:
        """Take an event."""
        told = {"event": event, "step": step, **fields}
        self.events.append(told)
        if self._run is not None:
            self._run.record(event, step, **fields)
        self._on_event(told)

    def begin(self, loop: ClosedLoop) -> None:
        """Make the folder of a new run, and write down what has happened so far.

        Raises
        ------
        InputError
            If it holds a run already, or cannot be written.
        """
        if self._folder is None:
            return
        if (self._folder / "run.json").exists():
            raise InputError(
                f"{self._folder} holds an earlier run: load_state_dict goes on with it, another folder starts anew"
            )
        profile = self._about.profile.model_dump(mode="json")
        asked = {"edgelean": edgelean.__version__, "started": self._about.started, "profile": profile}
        self._run = Run.create(self._folder, {**asked, "recipe": None, "settings": {}, "seed": self._about.seed})
        begin(self._run, self._about, loop)
        for told in self.events:
            self._run.record(**told)
        self._watch()

    def go_on(self, step: int, loop: ClosedLoop) -> None:
        """Go on with the run in the folder after so many steps; with a new one where there is none."""
        if self._folder is None or not (self._folder / "run.json").exists():
            self.begin(loop)
        else:
            self._run = Run.reopen(self._folder)
            self._run.go_on(step)
            self._watch()
        self.events.append({"event": "resume", "step": step})

    def _watch(self) -> None:
        if self._run is not None:
            self._watching.enter_context(self._stopwatch.phase("training"))
            self._watching.enter_context(Account(LEAN, self._run, self._stopwatch, {}))

    def close(self) -> None:
        """End the training: what it used is written down."""
        self._watching.close()

    def bundle(self) -> Path | None:
        """Return where the bundle of the run belongs; None where there is no run."""
        return None if self._folder is None else self._folder / "bundle"

    def conclude(self, loop: ClosedLoop, found: Evidence, delivery: Delivery) -> Report | None:
        """Write the report of the run; None where there is no run."""
        if self._run is None:
            return None
        epochs = sum(event["event"] == "epoch" for event in self._run.events())
        about = replace(self._about, metric_name=found.metric_name, epochs=epochs)
        metric = found.metric_of_model()
        with closing(self._run):
            return conclude(Materials(about, metric, loop, None, delivery, self._run, self._stopwatch))


def check_folder(folder: Path | None) -> None:
    """Look whether a run can be made in a folder, or is there.

    Raises
    ------
    InputError
        If it holds something else.
    """
    if folder is None or not folder.exists() or (folder / "run.json").is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and is no run: give another folder for the run")
