"""The energy of work that is repeated back to back, from a counter of joules or a meter of watts.

A counter is read at its own ticks, a meter is sampled while the work runs, and never while it still averages over what
ran before.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple, Union

from common import RefusedError

Window = Dict[str, float]
Sample = Tuple[float, float]
PATIENCE_S = 2.0
LOOK_S = 0.002
# A window of a counter ends at a tick at which the calls come out whole, but for this share, or gets so much longer.
EVEN, LONGER = 0.002, 1.3
GOLDEN = 0.618


class Calls:
    """Calls of some work, made one after the other, with the times at which they began and ended."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._begins: List[float] = []
        self._ends: List[float] = []

    def make(self) -> float:
        """Make one call and return when it ended."""
        self._begins.append(time.perf_counter())
        self._work()
        self._ends.append(time.perf_counter())
        return self._ends[-1]

    def position(self, second: float) -> float:
        """Return how many calls had been made at some time; one that was under way counts as its share."""
        index = bisect.bisect_right(self._begins, second) - 1
        if index < 0:
            return 0.0
        begin_s, end_s = self._begins[index], self._ends[index]
        return index + (1.0 if second >= end_s else (second - begin_s) / (end_s - begin_s))

    def typical_s(self) -> float:
        """Return how long the last calls took."""
        count = min(len(self._ends), 65)
        return (self._ends[-1] - self._begins[-count]) / count


@contextlib.contextmanager
def follow(read: Callable[[], float], period_s: float, keep: Callable[[float, float], bool]) -> Iterator[List[Sample]]:
    """Read a sensor from a second thread until the end, where its error is raised.

    A sample is kept where ``keep`` says so of the last one that was kept and the new one; the first and the last are.
    """
    done, samples = threading.Event(), [(time.perf_counter(), read())]
    failures: List[RefusedError] = []

    def look() -> None:
        try:
            while not done.wait(period_s):
                value, second = read(), time.perf_counter()
                if keep(samples[-1][1], value):
                    samples.append((second, value))
        except RefusedError as error:
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
    samples.append((time.perf_counter(), read()))


class Counter:
    """Joules that only grow."""

    def __init__(self, name: str, method: str, read_j: Callable[[], float]) -> None:
        self.name, self.method, self._read_j = name, method, read_j

    def over(self, work: Callable[[], Any], seconds: float) -> Window:
        """Repeat ``work`` between two ticks of the counter that are at least ``seconds`` apart."""
        calls = Calls(work)
        with follow(self._read_j, LOOK_S, lambda last, now: now != last) as samples:
            begin, end = self._ticks(samples, calls, seconds)
        if end[1] <= begin[1]:
            raise self._broken("ran backwards", end[1])
        made = calls.position(end[0]) - calls.position(begin[0])
        return {"joules": end[1] - begin[1], "seconds": end[0] - begin[0], "calls": made}

    def _ticks(self, samples: List[Sample], calls: Calls, seconds: float) -> Tuple[Sample, Sample]:
        """Make calls until there are two ticks between which they come out whole, or nearly."""
        seen, best, error = 1, samples[0], 1.0
        while True:
            now_s = calls.make()
            while seen < len(samples):
                begin, tick, seen = samples[1], samples[seen], seen + 1
                if tick is begin or tick[0] - begin[0] < seconds:
                    continue
                made = calls.position(tick[0]) - calls.position(begin[0])
                error, best = min((error, best), (abs(made - round(made)) / made, tick))
                if error <= EVEN or tick[0] - begin[0] > seconds * LONGER:
                    return begin, best
            if now_s - samples[-1][0] > PATIENCE_S + 2 * calls.typical_s():
                raise self._broken(f"stood still for {PATIENCE_S:g} s", samples[-1][1])

    def _broken(self, how: str, joules: float) -> RefusedError:
        return RefusedError("sensor", f"{self.name}: the energy counter {how} at {joules:.3f} J", "measure again")


class Meter:
    """Watts, sampled while the work runs, and not before everything that ran earlier is out of what it shows."""

    def __init__(self, name: str, method: str, read_w: Callable[[], float], period_s: float, settle_s: float) -> None:
        self.name, self.method = name, f"{method}, sampled every {period_s * 1e3:.0f} ms"
        self._read_w, self._period_s, self._settle_s = read_w, period_s, settle_s

    def over(self, work: Callable[[], Any], seconds: float) -> Window:
        """Repeat ``work`` until the meter sees nothing else, then for at least ``seconds`` that count."""
        calls = Calls(work)
        settled_s = calls.make() + self._settle_s
        while calls.make() < settled_s:
            pass
        with follow(self._read_w, self._out_of_step(calls.typical_s()), lambda last, now: True) as samples:
            begin_s = end_s = time.perf_counter()
            while end_s - begin_s < seconds:
                end_s = calls.make()
        joules = integral(samples, begin_s, end_s)
        if joules <= 0:
            raise RefusedError("sensor", f"{self.name}: the power read 0 W all the time", "this sensor is broken")
        made = calls.position(end_s) - calls.position(begin_s)
        return {"joules": joules, "seconds": end_s - begin_s, "calls": made}

    def _out_of_step(self, call_s: float) -> float:
        """Return a period whose samples fall at ever other parts of a call, whose power may vary inside."""
        return call_s * (self._period_s // call_s + GOLDEN) if call_s < self._period_s else self._period_s * GOLDEN


Sensor = Union[Counter, Meter]


def integral(samples: List[Sample], begin_s: float, end_s: float) -> float:
    """Return the joules between two times, by trapezoids between samples (seconds, watts) that enclose them."""
    joules = 0.0
    for (a_s, a_w), (b_s, b_w) in zip(samples, samples[1:]):
        left, right = max(a_s, begin_s), min(b_s, end_s)
        if right > left:
            slope = (b_w - a_w) / (b_s - a_s)
            joules += (right - left) * (a_w + slope * ((left + right) / 2 - a_s))
    return joules
