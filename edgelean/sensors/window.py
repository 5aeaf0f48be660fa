"""From what a sensor can tell, a counter or a power, to the joules of back-to-back work.

Two kinds of hardware exist and both answer one question here, :meth:`Sensor.over`: a counter of joules (NVML, RAPL)
is read at its own ticks, a meter of watts (Jetson rails, older GPUs) is sampled while the work runs. The work never
pauses inside a window, so that the phase of a slow sensor cannot line up with idle gaps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Protocol

from edgelean.errors import DeviceError

Clock = Callable[[], float]
"""A monotonic clock in seconds; ``time.perf_counter`` unless a test brings its own."""

Work = Callable[[], object]
"""One call of what is measured; it returns when the work is done, not when it is queued."""


@dataclass(frozen=True)
class Energy:
    """What back-to-back calls of some work took from the sensor.

    Attributes
    ----------
    joules, seconds
        Energy and length of the window; gross, so whatever else drew power through the sensor is in it.
    calls
        Calls of the work inside the window.
    method
        How it was read, in words that can stand in a report.
    """

    joules: float
    seconds: float
    calls: int
    method: str

    @property
    def watts(self) -> float:
        """Mean power over the window, in W."""
        return self.joules / self.seconds

    @property
    def joules_per_call(self) -> float:
        """Energy of one call, in J."""
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


@dataclass(frozen=True)
class CounterSensor:
    """A counter that only grows, read at the moments when it ticks.

    A window between two ticks holds exactly the energy between them. Begun and ended anywhere, a window of one second
    on a counter that ticks every 100 ms is wrong by up to 7 %; between ticks, by the length of one call of the work.

    Attributes
    ----------
    name, method
        As in :class:`Sensor`.
    read_j
        The counter, in J.
    clock
        Monotonic seconds.
    patience_s
        A counter that stands still for so long while work is being done is broken.
    """

    name: str
    method: str
    read_j: Callable[[], float]
    clock: Clock = time.perf_counter
    patience_s: float = 1.0

    def over(self, work: Work, seconds: float) -> Energy:
        """Return the energy between two ticks that are at least ``seconds`` apart."""
        begin_j, begin_s, _ = self._until_tick(work)
        calls = 0
        while self.clock() - begin_s < seconds:
            work()
            calls += 1
        end_j, end_s, more = self._until_tick(work)
        return Energy(end_j - begin_j, end_s - begin_s, calls + more, self.method)

    def _until_tick(self, work: Work) -> tuple[float, float, int]:
        """Work on until the counter moves; return its value, the time, and the calls it took."""
        before = self.read_j()
        patient_until = self.clock() + self.patience_s
        calls = 0
        while True:
            work()
            calls += 1
            now, now_s = self.read_j(), self.clock()
            if now > before:
                return now, now_s, calls
            if now < before:
                raise DeviceError(
                    f"{self.name}: the energy counter ran backwards, from {before:.3f} J to {now:.3f} J: its driver "
                    "was restarted in the middle of a measurement, measure again"
                )
            if now_s > patient_until:
                raise DeviceError(
                    f"{self.name}: the energy counter stood still at {now:.3f} J for {self.patience_s:g} s of work: "
                    "this sensor is broken"
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
    clock
        Monotonic seconds.
    period_s
        Time between two samples.
    """

    name: str
    method: str
    read_w: Callable[[], float]
    clock: Clock = time.perf_counter
    period_s: float = 0.02

    def over(self, work: Work, seconds: float) -> Energy:
        """Return the integral of the power over calls that take at least ``seconds``."""
        done = Event()
        calls = 0
        with ThreadPoolExecutor(max_workers=1) as pool:
            following = pool.submit(self._follow, done)
            try:
                begin_s = self.clock()
                while self.clock() - begin_s < seconds:
                    work()
                    calls += 1
                end_s = self.clock()
            finally:
                done.set()
            samples = following.result()
        joules = integrate(samples, begin_s, end_s)
        if joules <= 0:
            raise DeviceError(f"{self.name}: the power read 0 W all the time: this sensor is broken")
        return Energy(joules, end_s - begin_s, calls, self.method)

    def _follow(self, done: Event) -> list[tuple[float, float]]:
        """Sample until ``done``, and once more after it, so that the samples enclose the work."""
        samples = [(self.clock(), self.read_w())]
        while not done.wait(self.period_s):
            samples.append((self.clock(), self.read_w()))
        samples.append((self.clock(), self.read_w()))
        return samples


def integrate(samples: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Return the energy in J between two times from samples of power, by the trapezoidal rule.

    Parameters
    ----------
    samples
        Pairs of seconds and watts in the order of time, at least one; before the first and after the last the power
        is taken to be constant.
    begin_s, end_s
        The window.
    """
    inside = [(second, watt) for second, watt in samples if begin_s < second < end_s]
    path = [(begin_s, _power_at(samples, begin_s)), *inside, (end_s, _power_at(samples, end_s))]
    return math.fsum((b_s - a_s) * (a_w + b_w) / 2 for (a_s, a_w), (b_s, b_w) in pairwise(path))


def _power_at(samples: Sequence[tuple[float, float]], second: float) -> float:
    """Interpolate the power in W at one time."""
    before = [sample for sample in samples if sample[0] <= second]
    after = [sample for sample in samples if sample[0] > second]
    if not before or not after:
        return (before[-1:] or after)[0][1]
    (a_s, a_w), (b_s, b_w) = before[-1], after[0]
    return a_w + (b_w - a_w) * (second - a_s) / (b_s - a_s)
