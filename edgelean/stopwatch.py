"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LAW = "law"
"""The phase in which cuts are held against the law."""

OVERHEAD = ("control", LAW, "measuring", "evaluating")
"""Phases that control and measuring cost, the validations that the guard asks for included."""


class Stopwatch:
    """Seconds per phase; a phase inside another one pauses it, so the phases add up to the whole.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._running: list[str] = ["other"]
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as this phase."""
        self._settle()
        self._running.append(name)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def add(self, earlier: Mapping[str, float]) -> None:
        """Count what an earlier part of the run took, in seconds per phase."""
        for name, seconds in earlier.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds per phase so far."""
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        now = self._clock()
        self._seconds[self._running[-1]] = self._seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now
