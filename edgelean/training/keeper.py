"""When checkpoints are written: after every epoch, and every few minutes within a long one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgelean.training.checkpoint import Checkpoint, drop_old, flush, save
from edgelean.training.trainer import Place

EVERY_S = 300.0
"""So much of a long epoch is lost at most."""

SHARE = 0.01
"""Share of the training that checkpoints within an epoch may take, and the waiting for the disk as much again."""


class Keeper:
    """Keeps the checkpoints of one training.

    A process that is killed loses nothing that it has written. A power cut loses what the system still had in memory;
    so now and then the last checkpoint is brought to the disk, and stays until the next one is.

    Parameters
    ----------
    folder
        Of the checkpoints.
    pack
        Gives what a training needs to go on from a place.
    before_flush
        Called before a checkpoint is brought to the disk: what it relies on goes first.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        pack: Callable[[Place], Checkpoint],
        before_flush: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._folder, self._pack, self._before_flush, self._clock = folder, pack, before_flush, clock
        self._saved_s, self._cost_s = clock(), 0.0
        self._flushed: Path | None = None
        self._flush_due_s = clock()

    def __call__(self, place: Place) -> None:
        """Write a checkpoint, if it is time for one."""
        begun_s = self._clock()
        if place.batch and begun_s - self._saved_s < max(EVERY_S, self._cost_s / SHARE):
            return
        path = save(self._folder, name_of(place), self._pack(place))
        self._saved_s = self._clock()
        self._cost_s = self._saved_s - begun_s
        if self._saved_s >= self._flush_due_s:
            self._before_flush()
            flush(path)
            self._flushed, done_s = path, self._clock()
            self._flush_due_s = done_s + (done_s - self._saved_s) / SHARE
        drop_old(self._folder, () if self._flushed is None else (self._flushed,))


def name_of(place: Place) -> str:
    """Return the name of the checkpoint at a place; later ones sort after earlier ones."""
    return f"{place.epoch:06}" + (f"-{place.batch:08}" if place.batch else "")
