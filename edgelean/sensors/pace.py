"""Calls of some work, made back to back or at a pace that lets a half blind sensor see all of them.

Many sensors look at a part of the time only: the instantaneous power of an A100 or H100 is the mean over the last 25 ms
of every 100 ms (arXiv 2312.02741). Work whose power varies inside a call and repeats in step with such a sensor shows
it the same part again and again: a load of 100 W and 20 W that repeats every 100 ms is read with an error of 46 %.
Random pauses make that error random; pauses of the right length make it vanish, because then the parts that are seen
lie side by side and cover a call exactly. That is what :func:`find_pace` looks for. The work pauses for a few percent
of the time, and the pauses are accounted for at the idle power (see :mod:`edgelean.sensors.protocol`).
"""

from __future__ import annotations

import math
import statistics
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

Clock = Callable[[], float]
"""A monotonic clock in seconds; ``time.perf_counter`` unless a test brings its own."""

Sleep = Callable[[float], object]
"""Waits for so many seconds; ``time.sleep`` unless a test brings its own."""

Work = Callable[[], object]
"""One call of what is measured; it returns when the work is done, not when it is queued."""

SLACK = 1.01
"""Calls may take so much longer than they did before the next block has to wait for them."""
MORE_TICKS = 4
"""A window may become longer by so many ticks where that makes it more exact."""
IDLE_ERROR = 0.1
"""Error of the energy, as a share, when all of a window is pauses: what the idle power may be wrong by."""
LENGTH_PRICE = 0.01
"""What a window that is twice as long as asked has to gain in exactness, or it is not worth its time."""
HARMONICS = 64
"""At least so many harmonics of a block are looked at, and as many as two harmonics of a call need."""
LONGEST_BLOCK = 2.0
"""A block takes at most so many ticks, or so many calls where calls are longer than a tick."""
TINY = 1e-9
NOT_QUITE = ((1.0, 1.0), (1.001, 1.0), (1.0, 0.8))
"""A tick may be longer than known, and the part that is seen shorter, by these factors."""
RECENT = 65
"""So many calls are looked at to tell how long one takes."""


@dataclass(frozen=True)
class Sight:
    """How a slow sensor looks at the power.

    Attributes
    ----------
    tick_s
        Time between two of its values; measured, because one that is wrong by a hundredth is worth little.
    seen_s
        Each value is about so long before it. Less than a tick: the sensor is blind for the rest. Known to a fifth
        is enough.
    """

    tick_s: float
    seen_s: float

    @property
    def blind(self) -> bool:
        """Whether a part of the time is in none of its values."""
        return self.seen_s < self.tick_s

    def needs_pace(self, call_s: float) -> bool:
        """Return whether calls of this length have to be paced.

        A value of a blind sensor that holds many calls is right within a fraction of one of them. A sensor that sees
        everything is only wrong where a window begins and ends, by a part of a call.
        """
        return call_s > self.seen_s / (100 if self.blind else 4)


@dataclass(frozen=True)
class Pace:
    """Blocks of back-to-back calls that begin at a fixed distance from each other.

    Attributes
    ----------
    calls
        Calls of one block.
    cycle_s
        Time from the beginning of a block to the beginning of the next.
    window_s, ticks
        A window of exactly this length, so many ticks of the sensor, shows it each part of a block equally often,
        wherever it begins.
    """

    calls: int
    cycle_s: float
    window_s: float
    ticks: int

    @property
    def least_s(self) -> float:
        """A tick that comes later than this is the last one of the window."""
        return self.window_s * (1 - 0.5 / self.ticks)


def find_pace(call_s: float, sight: Sight, seconds: float) -> Pace:
    """Return the pace at which a sensor sees calls evenly in a window of about ``seconds``.

    A window of N ticks holds M blocks, so a block takes N * tick / M. Where N and M have no common divisor, the N
    values are about N different parts of a block, at equal distances, and what they miss is the N-th harmonic of the
    load. All N and M are tried, and the smallest sum wins of: what the sensor may miss (:func:`_missed`), a tenth of
    the share of the pauses (the power in a pause is not exactly the idle power), and a price for a window that is
    longer than asked.

    Parameters
    ----------
    call_s
        How long one call takes.
    sight
        How the sensor looks.
    seconds
        The asked length of the window; it becomes longer by up to four ticks, or by what one call needs.
    """
    asked = max(math.ceil(seconds / sight.tick_s - 1e-9), 1)
    least = max(asked, math.ceil(call_s * SLACK / sight.tick_s))
    longest_s = max(LONGEST_BLOCK * sight.tick_s, LONGEST_BLOCK * call_s)
    best, lowest = Pace(1, least * sight.tick_s, least * sight.tick_s, least), math.inf
    for ticks in range(least, least + MORE_TICKS + 1):
        window_s = ticks * sight.tick_s
        blocks = np.arange(math.ceil(window_s / longest_s), int(min(window_s / (call_s * SLACK), 2 * ticks)) + 1)
        cycles_s = window_s / blocks
        calls = np.floor(cycles_s / (call_s * SLACK))
        price = _missed(cycles_s, calls, call_s, ticks, sight)
        price += IDLE_ERROR * (1 - calls * call_s / cycles_s) + LENGTH_PRICE * (ticks / asked - 1)
        i = int(np.argmin(price))
        if price[i] < lowest:
            best, lowest = Pace(int(calls[i]), float(cycles_s[i]), window_s, ticks), float(price[i])
    return best


def _missed(cycles_s: Floats, calls: Floats, call_s: float, ticks: int, sight: Sight) -> Floats:
    """Return what the sensor may miss of the power, as a share, for several lengths of a block.

    The load is blocks of calls of which each draws much and then little, at any duty, so its spectrum is that of the
    call times that of the repetition in the block. The sensor multiplies it with the spectrum of its looks: means over
    what is seen, at the ticks of the window. What is left at the harmonics of the block is taken for power. Three
    standard deviations of it count, in the mean over a few sensors that are not quite as described, because no sensor
    is.
    """
    highest = max(HARMONICS, math.ceil(2 * cycles_s.max() / call_s))
    frequency = np.arange(1, highest + 1) / cycles_s[:, None]
    load = np.minimum(1.0, 2 / (math.pi * frequency * call_s)) * _repeated(calls[:, None], frequency * call_s)
    missed = np.zeros(len(cycles_s))
    for tick, seen in NOT_QUITE:
        look = np.sinc(frequency * sight.seen_s * seen) * _repeated(ticks, frequency * sight.tick_s * tick)
        missed += 3 * np.sqrt(((load * look) ** 2).sum(axis=1) / 2) / len(NOT_QUITE)
    return missed


def _repeated(times: Floats | int, periods: Floats) -> Floats:
    """Return what is left of a sine when it is averaged over so many places, so many periods apart (Dirichlet)."""
    sine = np.abs(np.sin(math.pi * periods))
    kept = np.abs(np.sin(math.pi * times * periods)) / (times * np.maximum(sine, TINY))
    left: Floats = np.where(sine < TINY, 1.0, kept)
    return left


class Calls:
    """Makes calls of some work and remembers when each of them began and ended.

    Parameters
    ----------
    work, clock, sleep
        What is called, monotonic seconds, and how to wait where a pace asks for it.
    """

    def __init__(self, work: Work, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep) -> None:
        self._work, self._clock, self._sleep = work, clock, sleep
        # Arrays, because seconds of a tiny model are a million calls.
        self._begins, self._ends = array("d"), array("d")
        self._pace: Pace | None = None
        self._paced_from, self._paced_from_s = 0, 0.0

    def make(self) -> None:
        """Make the next call; at a pace, when it is due."""
        if self._pace is not None:
            block, inside = divmod(len(self._begins) - self._paced_from, self._pace.calls)
            early_s = self._paced_from_s + block * self._pace.cycle_s - self._clock()
            if inside == 0 and early_s > 0:
                self._sleep(early_s)
        begin_s = self._clock()
        self._work()
        self._begins.append(begin_s)
        self._ends.append(self._clock())

    def until(self, second: float) -> None:
        """Make calls until the clock shows ``second``, at least one."""
        self.make()
        while self._clock() < second:
            self.make()

    def keep(self, pace: Pace) -> None:
        """Go on at a pace, from now on."""
        self._pace, self._paced_from, self._paced_from_s = pace, len(self._begins), self._clock()

    @property
    def paced(self) -> bool:
        """Whether a pace is kept."""
        return self._pace is not None

    @property
    def last_s(self) -> float:
        """How long the last call took."""
        return self._ends[-1] - self._begins[-1]

    @property
    def typical_s(self) -> float:
        """How long a call takes: the median of the last ones."""
        recent = zip(self._begins[-RECENT:], self._ends[-RECENT:], strict=True)
        return statistics.median(end - begin for begin, end in recent)

    def position(self, second: float) -> float:
        """Return how many calls had been made at some time; one that was under way counts as its share."""
        i = bisect_right(self._begins, second) - 1
        if i < 0:
            return 0.0
        begin_s, end_s = self._begins[i], self._ends[i]
        return i + (1.0 if second >= end_s else (second - begin_s) / (end_s - begin_s))

    def busy_s(self, begin_s: float, end_s: float) -> float:
        """Return how much of the time between two moments was spent in calls."""
        first, last = max(bisect_right(self._begins, begin_s) - 1, 0), bisect_right(self._begins, end_s)
        inside = zip(self._begins[first:last], self._ends[first:last], strict=True)
        return math.fsum(max(min(end, end_s) - max(begin, begin_s), 0.0) for begin, end in inside)
