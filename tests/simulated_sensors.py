"""A machine that is only a clock and a power, and the sensors that real machines have in front of it.

The clock moves when the machine works or waits, so thousands of windows take seconds. What the sensors show is computed
from the exact energy, the way their hardware does: at ticks, over a part of the time, or averaged over a second.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgelean.sensors.window import CounterSensor, PowerSensor, Sight

Steps = Sequence[tuple[float, float]]
"""One call: seconds and watts, one after the other."""

TICK_S, SEEN_S, AVERAGED_S = 0.1, 0.025, 1.0


class Machine:
    """A clock, the power that is drawn, and threads that look at sensors meanwhile.

    Parameters
    ----------
    before_w
        What was drawn all the time before 0 s: another model.
    idle_w
        What is drawn while it waits.
    seed
        Of the small irregularities that every machine has.
    jitter
        Calls differ in length by this share (standard deviation); 0 for none.
    """

    def __init__(self, before_w: float = 150.0, idle_w: float = 12.0, seed: int = 0, jitter: float = 0.0) -> None:
        self.now_s = 0.0
        self.worked_j, self.calls = 0.0, 0
        self._before_w, self._idle_w, self._jitter = before_w, idle_w, jitter
        self._random = random.Random(seed)
        self._times, self._joules, self._watts = [0.0], [0.0], [idle_w]
        self._watches: list[_Follower] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.draw(self._idle_w, seconds)

    def work(self, steps: Steps) -> Callable[[], None]:
        """Return a call that goes through steps of power."""

        def call() -> None:
            stretch = self._random.gauss(1.0, self._jitter) if self._jitter else 1.0
            for seconds, watts in steps:
                self.draw(watts, seconds * stretch)
                self.worked_j += watts * seconds * stretch
            self.calls += 1

        return call

    def draw(self, watts: float, seconds: float) -> None:
        """Draw a power for a while; what looks at sensors in the meantime does so at its times."""
        end_s = self.now_s + seconds
        self._append(watts)
        while True:
            due = [watch for watch in self._watches if watch.due_s <= end_s]
            if not due:
                break
            first = min(due, key=lambda watch: watch.due_s)
            self.now_s = max(self.now_s, first.due_s)
            first.look(self)
        self.now_s = end_s

    def energy_j(self, second: float) -> float:
        """Return the exact energy from 0 s to a moment that is over."""
        if second <= 0:
            return self._before_w * second
        i = bisect_right(self._times, second) - 1
        return self._joules[i] + self._watts[i] * (second - self._times[i])

    def mean_w(self, begin_s: float, end_s: float) -> float:
        return (self.energy_j(end_s) - self.energy_j(begin_s)) / (end_s - begin_s)

    @contextmanager
    def watch(
        self, read: Callable[[], float], clock: Callable[[], float], period_s: float
    ) -> Iterator[deque[tuple[float, float]]]:
        """Do what a second thread would: read now, every so often, and at the end, never quite on time."""
        follower = _Follower(read, period_s, self.now_s, self.now_s, deque())
        follower.look(self)
        self._watches.append(follower)
        try:
            yield follower.samples
        finally:
            self._watches.remove(follower)
            follower.look(self)

    def late_s(self, seconds: float) -> float:
        """Return by how much a thread is late that should wake up every so often."""
        return self._random.uniform(0.0, 0.1 * seconds)

    def _append(self, watts: float) -> None:
        if self.now_s == self._times[-1]:
            self._watts[-1] = watts
            return
        self._joules.append(self._joules[-1] + self._watts[-1] * (self.now_s - self._times[-1]))
        self._times.append(self.now_s)
        self._watts.append(watts)


@dataclass
class _Follower:
    """One thread that reads a sensor."""

    read: Callable[[], float]
    period_s: float
    due_s: float
    wanted_s: float
    samples: deque[tuple[float, float]]

    def look(self, machine: Machine) -> None:
        self.samples.append((machine.now_s, self.read()))
        self.wanted_s += self.period_s
        self.due_s = self.wanted_s + machine.late_s(self.period_s)


def last_tick_s(machine: Machine, phase_s: float) -> float:
    """Return when a sensor with ticks every 100 ms ticked last."""
    return math.floor((machine.now_s - phase_s) / TICK_S + 1e-9) * TICK_S + phase_s


def ticking_counter(machine: Machine, phase_s: float = 0.0) -> CounterSensor:
    """A counter of all energy that shows it every 100 ms."""

    def read_j() -> float:
        return 1e4 + machine.energy_j(last_tick_s(machine, phase_s))

    return CounterSensor(
        "simulated", "a counter with ticks of 100 ms", read_j, machine.clock, sleep=machine.sleep, watch=machine.watch
    )


def blind_counter(machine: Machine, phase_s: float = 0.0, *, known: bool = True) -> CounterSensor:
    """A counter that adds up the last 25 ms of every 100 ms, four times each; ``known``: and edgelean knows it."""
    shown = [1e4]

    def read_j() -> float:
        first = -10
        for tick in range(first + len(shown), math.floor((machine.now_s - phase_s) / TICK_S + 1e-9) + 1):
            end_s = phase_s + tick * TICK_S
            shown.append(shown[-1] + machine.mean_w(end_s - SEEN_S, end_s) * TICK_S)
        return shown[-1]

    return CounterSensor(
        "simulated",
        "a counter of a quarter of the time",
        read_j,
        machine.clock,
        sight=Sight(TICK_S, SEEN_S) if known else None,
        sleep=machine.sleep,
        watch=machine.watch,
    )


def meter(machine: Machine, phase_s: float, seen_s: float, settle_s: float) -> PowerSensor:
    """A meter whose value is the mean over the last ``seen_s``, renewed every 100 ms."""

    def read_w() -> float:
        tick_s = last_tick_s(machine, phase_s)
        return machine.mean_w(tick_s - seen_s, tick_s)

    return PowerSensor(
        "simulated",
        f"a meter of the last {1e3 * seen_s:g} ms of every 100 ms",
        read_w,
        machine.clock,
        settle_s=settle_s,
        sight=Sight(TICK_S, seen_s),
        sleep=machine.sleep,
        watch=machine.watch,
    )


def blind_meter(machine: Machine, phase_s: float = 0.0) -> PowerSensor:
    """The instantaneous power of an A100 or H100: the last 25 ms of every 100 ms."""
    return meter(machine, phase_s, SEEN_S, settle_s=0.2)


def averaging_meter(machine: Machine, phase_s: float = 0.0) -> PowerSensor:
    """The averaged power of NVML: the last second, renewed every 100 ms."""
    return meter(machine, phase_s, AVERAGED_S, settle_s=1.1)


def on_off(period_s: float, duty: float = 0.6, high_w: float = 100.0, low_w: float = 20.0) -> Steps:
    """A call that draws much and then little."""
    return ((duty * period_s, high_w), ((1 - duty) * period_s, low_w))
