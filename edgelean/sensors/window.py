"""From what a sensor can tell, a counter or a power, to the joules of back-to-back work.

Two kinds of hardware exist and both answer one question here, :meth:`Sensor.over`: a counter of joules (NVML, RAPL)
is read at its own ticks, a meter of watts (Jetson rails, older GPUs) is sampled while the work runs. The work pauses
inside a window only for a sensor that would otherwise not see all of it (:mod:`edgelean.sensors.pace`).
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Protocol

from edgelean.errors import DeviceError
from edgelean.sensors.pace import MORE_TICKS, Calls, Clock, Pace, Sight, Sleep, Work, find_pace

__all__ = [
    "Clock",
    "CounterSensor",
    "Energy",
    "PowerSensor",
    "Sensor",
    "SensorError",
    "Sight",
    "Sleep",
    "Watch",
    "Work",
    "integrate",
    "watch_in_thread",
]

Sample = tuple[float, float]
"""Seconds, and what a sensor showed then: joules or watts."""

Watch = Callable[[Callable[[], float], Clock, float], AbstractContextManager[deque[Sample]]]
"""Reads a sensor every so many seconds while something else goes on; its samples grow meanwhile."""

LONGER = 1.3
"""A window on a counter may become so much longer than asked, or by a few ticks, until its calls come out even."""
EVEN = 0.002
"""A window that holds whole calls but for this share is even enough."""
SHORT_S = 0.0025
"""Between calls that are shorter than this the counter is read in time to see its tick; longer ones need a watch."""
LOOK_S = 0.002
"""How often a counter is looked at while a longer call goes on."""
LOOKS_PER_TICK = 50
"""How often a meter is looked at between two of its values, so that each weighs what it should."""
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Energy:
    """What calls of some work took from the sensor.

    Attributes
    ----------
    joules, seconds
        Energy and length of the window; gross, so whatever else drew power through the sensor is in it.
    calls
        Calls of the work inside the window; one that the end of the window cuts counts as its share.
    method
        How it was read, in words that can stand in a report.
    paused_s
        For so long the work paused inside the window, because the sensor needed it; what the pauses took is in
        ``joules``. 0 where the calls were back to back.
    """

    joules: float
    seconds: float
    calls: float
    method: str
    paused_s: float = 0.0

    @property
    def watts(self) -> float:
        """Mean power over the window, in W."""
        return self.joules / self.seconds

    @property
    def joules_per_call(self) -> float:
        """Energy of one call, in J, pauses included; :func:`edgelean.sensors.protocol.per_call` takes them out."""
        return self.joules / self.calls


class Sensor(Protocol):
    """Reads the energy of work that is repeated back to back."""

    @property
    def name(self) -> str:
        """``"nvml"``, ``"hwmon"``, ``"rapl"``, ``"replay"``."""
        ...

    @property
    def method(self) -> str:
        """What is read and how, in words that can stand in a report."""
        ...

    def over(self, work: Work, seconds: float) -> Energy:
        """Repeat ``work`` for at least ``seconds`` and return the energy that it took.

        Raises
        ------
        DeviceError
            The sensor failed, stood still or ran backwards; the message names it and what to do.
        """
        ...


class SensorError(DeviceError):
    """A sensor is not there, or may not be read.

    Attributes
    ----------
    detail, remedy
        What was found, and what a person can do about it.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail}: {remedy}")
        self.detail = detail
        self.remedy = remedy


@contextmanager
def watch_in_thread(read: Callable[[], float], clock: Clock, period_s: float) -> Iterator[deque[Sample]]:
    """Read a sensor every ``period_s`` from a second thread, once at the beginning and once at the end at least.

    A reading that fails is the last one, and not a number; its error is raised when the watch ends.
    """
    done = Event()
    samples: deque[Sample] = deque()

    def follow() -> None:
        due_s = time.perf_counter()
        try:
            while not done.is_set():
                samples.append((clock(), read()))
                due_s = max(due_s + period_s, time.perf_counter())
                done.wait(due_s - time.perf_counter())
            samples.append((clock(), read()))
        except BaseException:
            samples.append((clock(), math.nan))
            raise

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(follow)
        try:
            yield samples
        finally:
            done.set()
            following.result()


class _BackwardsError(DeviceError):
    """A counter showed less than before."""


@dataclass(frozen=True)
class CounterSensor:
    """A counter that only grows, read at the moments when it ticks.

    A window between two ticks holds exactly the energy between them. Begun and ended anywhere, a window of one second
    on a counter that ticks every 100 ms is wrong by up to 7 %. The last tick is one at which the calls come out even,
    so that the power may vary inside a call.

    Attributes
    ----------
    name, method
        As in :class:`Sensor`.
    read_j
        The counter, in J.
    clock, sleep
        Monotonic seconds, and how to wait.
    patience_s
        A counter that stands still for so long while work is being done is broken.
    sight
        Where the counter is known to add up a power that is blind for a part of the time: how it looks. The calls are
        then paced, and the window is wrong by what the sensor is wrong by. A counter that is blind and is not known
        to be is as wrong as its power: ticks alone do not cure that.
    watch
        How to look at the counter while a call goes on.
    """

    name: str
    method: str
    read_j: Callable[[], float]
    clock: Clock = time.perf_counter
    patience_s: float = 1.0
    sight: Sight | None = None
    sleep: Sleep = time.sleep
    watch: Watch = watch_in_thread

    def over(self, work: Work, seconds: float) -> Energy:
        """Return the energy between two ticks that are at least ``seconds`` apart.

        A window in which the counter ran backwards is thrown away, and measured once more.
        """
        try:
            return self._between_ticks(work, seconds)
        except _BackwardsError:
            return self._between_ticks(work, seconds)

    def _between_ticks(self, work: Work, seconds: float) -> Energy:
        calls = Calls(work, self.clock, self.sleep)
        calls.make()
        pace = self._set_pace(calls, seconds)
        with closing(self._ticks(calls)) as ticks:
            begin = next(ticks)
        # The last tick may not pass unseen while a call is made.
        calls.until(begin[0] + (pace.least_s - pace.cycle_s if pace else seconds - calls.typical_s))
        with closing(self._ticks(calls)) as ticks:
            end = _paced_tick(ticks, begin, pace) if pace else _even_tick(ticks, begin, calls, seconds)
        if end[1] < begin[1]:
            raise self._backwards(begin[1], end[1])
        return _energy(calls, end[1] - begin[1], begin[0], end[0], self.method)

    def _set_pace(self, calls: Calls, seconds: float) -> Pace | None:
        """Let the calls keep the pace that the sight of the counter needs, and let it take hold."""
        if self.sight is None:
            return None
        calls.until(self.clock() + self.sight.tick_s)
        if not self.sight.needs_pace(calls.typical_s):
            return None
        return _keep_pace(calls, self.sight, seconds, self.clock)

    def _ticks(self, calls: Calls) -> Generator[Sample]:
        """Work on and yield the moments at which the counter moves, with what it shows then."""
        with closing(self._samples(calls)) as samples:
            second, now_j = next(samples)
            moved_s, before_j = second, now_j
            while second - moved_s <= self.patience_s and not math.isnan(now_j):
                second, now_j = next(samples)
                if now_j > before_j:
                    yield second, now_j
                    moved_s, before_j = second, now_j
                elif now_j < before_j:
                    raise self._backwards(before_j, now_j)
        # A reading that failed has raised its error by now.
        raise DeviceError(
            f"{self.name}: {self.method}: stood still at {now_j:.3f} J for {second - moved_s:.1f} s of work: this "
            "sensor is broken, `edgelean doctor` shows whether there is another one"
        )

    def _samples(self, calls: Calls) -> Generator[Sample]:
        """Work on and yield what the counter shows meanwhile: between short calls, and during long ones."""
        if not calls.paced and calls.last_s <= SHORT_S:
            while True:
                joules = self.read_j()
                yield self.clock(), joules
                calls.make()
        with self.watch(self.read_j, self.clock, LOOK_S) as seen:
            while True:
                calls.make()
                while seen:
                    yield seen.popleft()

    def _backwards(self, before_j: float, now_j: float) -> _BackwardsError:
        return _BackwardsError(
            f"{self.name}: {self.method}: ran backwards, from {before_j:.3f} J to {now_j:.3f} J: its driver was "
            "restarted in the middle of a measurement, measure again"
        )


@dataclass(frozen=True)
class PowerSensor:
    """A meter of watts, sampled from a second thread while the work runs in this one.

    Attributes
    ----------
    name, method
        As in :class:`Sensor`.
    read_w
        The power now, in W.
    clock, sleep
        Monotonic seconds, and how to wait.
    period_s
        Time between two samples of a meter that shows the power of this moment.
    settle_s
        The time over which the meter averages, and that it takes to rise. The work runs for so long before the window
        opens: a sample shows what ran until so long ago, and that was another model.
    sight
        Where the meter has values of its own every so often: how it looks. It is then sampled as often as that
        needs, and the calls are paced where it would not see all of them.
    watch
        How to sample while the work runs.
    """

    name: str
    method: str
    read_w: Callable[[], float]
    clock: Clock = time.perf_counter
    period_s: float = 0.02
    settle_s: float = 0.0
    sight: Sight | None = None
    sleep: Sleep = time.sleep
    watch: Watch = watch_in_thread

    def over(self, work: Work, seconds: float) -> Energy:
        """Return the integral of the power over calls that take at least ``seconds``."""
        calls = Calls(work, self.clock, self.sleep)
        calls.until(self.clock() + self.settle_s)
        pace = None
        if self.sight is not None and self.sight.needs_pace(calls.typical_s):
            pace = _keep_pace(calls, self.sight, seconds, self.clock)
        with self.watch(self.read_w, self.clock, self._period_s(calls.typical_s)) as samples:
            begin_s = self.clock()
            calls.until(begin_s + (pace.window_s if pace else seconds))
            end_s = begin_s + pace.window_s if pace else self.clock()
        joules = integrate(self._checked(samples), begin_s, end_s)
        return _energy(calls, joules, begin_s, end_s, self.method)

    def _period_s(self, call_s: float) -> float:
        """Return the time between two samples: never in step with calls whose power may vary inside.

        The part of a call at which a sample falls moves on by the golden ratio, which spreads any number of samples
        evenly over a call.
        """
        if self.sight is not None:
            return self.sight.tick_s / LOOKS_PER_TICK
        if call_s < self.period_s:
            return call_s * (math.floor(self.period_s / call_s) + GOLDEN)
        return call_s / (math.floor(call_s / self.period_s) + GOLDEN)

    def _checked(self, samples: Sequence[Sample]) -> list[Sample]:
        """Leave out readings of nothing, which a meter that is asked too often may give; a few of them, no more."""
        good = [(second, watts) for second, watts in samples if 0 < watts < math.inf]
        if len(good) * 2 <= len(samples):
            bad = next(watts for _, watts in samples if not 0 < watts < math.inf)
            raise DeviceError(
                f"{self.name}: {self.method}: read {bad:g} W {len(samples) - len(good)} times out of {len(samples)} "
                "while there was work: this sensor is broken, `edgelean doctor` shows whether there is another one"
            )
        return good


def _keep_pace(calls: Calls, sight: Sight, seconds: float, clock: Clock) -> Pace:
    """Let the calls keep the pace that a sensor needs, until nothing from before is in what it shows."""
    pace = find_pace(calls.typical_s, sight, seconds)
    calls.keep(pace)
    calls.until(clock() + sight.tick_s + sight.seen_s)
    return pace


def _energy(calls: Calls, joules: float, begin_s: float, end_s: float, method: str) -> Energy:
    """Return the energy of a window that calls were made in."""
    made = calls.position(end_s) - calls.position(begin_s)
    paused_s = end_s - begin_s - calls.busy_s(begin_s, end_s) if calls.paced else 0.0
    return Energy(joules, end_s - begin_s, made, method, paused_s)


def _even_tick(ticks: Iterator[Sample], begin: Sample, calls: Calls, seconds: float) -> Sample:
    """Return the first tick at which the calls come out even, or of the ticks in reach the most even one."""
    found: list[tuple[float, Sample]] = []
    for tick in ticks:
        if tick[0] - begin[0] < seconds:
            continue
        made = calls.position(tick[0]) - calls.position(begin[0])
        found.append((abs(made - round(made)) / made, tick))
        if found[-1][0] <= EVEN or (tick[0] - begin[0] > seconds * LONGER and len(found) > MORE_TICKS):
            break
    return min(found)[1]


def _paced_tick(ticks: Iterator[Sample], begin: Sample, pace: Pace) -> Sample:
    """Return the tick that ends a window of paced calls."""
    return next(tick for tick in ticks if tick[0] - begin[0] > pace.least_s)


def integrate(samples: Sequence[Sample], begin_s: float, end_s: float) -> float:
    """Return the energy in J between two times from samples of power, by the trapezoidal rule.

    Parameters
    ----------
    samples
        Pairs of seconds and watts in the order of time, at least one; before the first and after the last the power
        is taken to be constant.
    begin_s, end_s
        The window.
    """
    first, last = bisect_right(samples, (begin_s, math.inf)), bisect_left(samples, (end_s, -math.inf))
    path = [(begin_s, _power_at(samples, begin_s)), *samples[first:last], (end_s, _power_at(samples, end_s))]
    return math.fsum((b_s - a_s) * (a_w + b_w) / 2 for (a_s, a_w), (b_s, b_w) in pairwise(path))


def _power_at(samples: Sequence[Sample], second: float) -> float:
    """Interpolate the power in W at one time."""
    after = bisect_right(samples, (second, math.inf))
    if after == 0 or after == len(samples):
        return samples[min(after, len(samples) - 1)][1]
    (a_s, a_w), (b_s, b_w) = samples[after - 1], samples[after]
    return a_w + (b_w - a_w) * (second - a_s) / (b_s - a_s)
