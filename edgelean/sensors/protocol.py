"""One way to come to the energy of a call, from any sensor: what a laboratory would do, and no more than it needs.

Warm up until the power is steady, read the idle power in the same process (a GPU with a context alive draws more than
one without), then read windows of back-to-back calls with random pauses between them, so that no window stands in the
same relation to the ticks of the sensor as the one before, until the interval of their mean is narrow.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from edgelean.errors import DeviceError, InputError
from edgelean.sensors.chain import SensorChain
from edgelean.sensors.window import Clock, Energy, Sensor, Sleep, Work

STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % of Student's distribution, for 1, 2, ... 10 degrees of freedom."""
NORMAL = 1.959964
NAP_S = 0.002
"""How long one call of doing nothing is; shorter than a counter needs to be watched from another thread."""
STEADY = 0.02
"""Two powers in a row that differ by no more than this share end the warm-up."""
PATIENCE = 3
"""The warm-up takes at most so many times as long as asked."""
REST_S = 1.0
"""Between work and the first idle window, at most: clocks stay up for a while."""
COOLING_LOOK_S = 0.25
UNMOVED = 1e-9
"""Idle and busy power that agree to this share are one and the same reading."""


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EnergyProtocol:
    """How to measure the energy of a call; the defaults are for a reading in a loop, a few seconds long.

    Attributes
    ----------
    window_s
        Length of one window, at least.
    windows, most_windows
        How many windows there are at least, and at most while the interval is too wide.
    half_width
        The interval is narrow when it is the mean plus or minus this share.
    idle_s, idle_windows
        The idle power is read for so long altogether, in so many windows; 0 s: not, and there is no net energy.
    longest_delay_s
        Before each window nothing is done for a random time up to this: one tick of a slow sensor.
    warm_up_s
        Calls that are not counted, at least for so long, and at most three times as long until the power is steady.
    cool_down_s
        Before each window, wait at most so long until the temperature is back.
    warmer_c
        Back is what is at most so much warmer than before the first window.
    """

    window_s: float = 0.25
    windows: int = 4
    most_windows: int = 10
    half_width: float = 0.03
    idle_s: float = 0.5
    idle_windows: int = 4
    longest_delay_s: float = 0.1
    warm_up_s: float = 0.1
    cool_down_s: float = 30.0
    warmer_c: float = 3.0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not 2 <= self.windows <= self.most_windows or self.idle_windows < 2:
            raise InputError(
                f"an interval needs at least two windows: wanted 2 <= windows <= most_windows and idle_windows >= 2, "
                f"found windows {self.windows}, most_windows {self.most_windows}, idle_windows {self.idle_windows}"
            )
        if not (self.window_s > 0 and self.half_width > 0 and self.idle_s >= 0 and self.longest_delay_s >= 0):
            raise InputError(
                f"wanted window_s and half_width above 0, idle_s and longest_delay_s not below 0, found window_s "
                f"{self.window_s:g}, half_width {self.half_width:g}, idle_s {self.idle_s:g}, longest_delay_s "
                f"{self.longest_delay_s:g}"
            )


LABORATORY = EnergyProtocol(window_s=2.0, idle_s=4.0, warm_up_s=2.0)
"""For a figure that is published: half a minute, and windows in which a slow rise no longer counts."""


@dataclass(frozen=True)
class EnergyPerCall:
    """What one call of some work takes.

    Attributes
    ----------
    gross_mj
        Everything that the sensor saw while the work ran, in mJ per call of it; divide by the batch for an inference.
    net_mj
        The same less the idle power times the time; None where the idle power was not measured. Its interval
        contains what is not known of the idle power.
    idle_w
        The idle power in W.
    windows
        How many windows there were.
    narrow
        Whether the interval of the gross energy closed before the windows were used up.
    method
        How all this was read, in words that can stand in a report.
    """

    gross_mj: Estimate
    net_mj: Estimate | None
    idle_w: float | None
    windows: int
    narrow: bool
    method: str


def per_call(
    windows: Sequence[Energy], idle_w: Estimate | float | None, half_width: float = EnergyProtocol.half_width
) -> EnergyPerCall:
    """Return mean and interval of the energy per call from windows that were already read.

    Parameters
    ----------
    windows
        At least one. One alone has no interval: value, low and high are the same, and it is not narrow.
    idle_w
        The idle power in W, with its interval where it is known, or None.
    half_width
        The interval is narrow when it is the mean plus or minus this share.

    Raises
    ------
    InputError
        There is no window, or the work paused in one and the idle power is not known, which its pauses took.
    """
    if not windows:
        raise InputError("the energy of a call needs at least one window, found none")
    idle = Estimate(idle_w, idle_w, idle_w) if isinstance(idle_w, (int, float)) else idle_w
    if idle is None and any(window.paused_s > 0 for window in windows):
        raise InputError("the work paused inside a window, because the sensor needed it: measure the idle power too")
    # A pause takes the idle power; so do the seconds of the calls, where the energy is to be net of it.
    gross = _less_idle(windows, [window.paused_s for window in windows], idle)
    net = _less_idle(windows, [window.seconds for window in windows], idle) if idle is not None else None
    narrow = len(windows) > 1 and gross.high - gross.low <= 2 * half_width * gross.value
    method = _in_words(windows, idle)
    return EnergyPerCall(gross, net, None if idle is None else idle.value, len(windows), narrow, method)


def measure_energy(
    sensor: Sensor,
    work: Work,
    protocol: EnergyProtocol | None = None,
    *,
    idle_w: Estimate | None = None,
    temperature_c: Callable[[], float] | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
    random: Callable[[], float] | None = None,
) -> EnergyPerCall:
    """Measure the energy of one call of ``work``, in mJ.

    A chain of sensors that loses one in the middle begins again with the next: two sensors are not averaged.

    Parameters
    ----------
    sensor, work, protocol
        What reads; what is read, which returns when it is done, not when it is queued; how long and how often.
    idle_w
        What :func:`measure_idle` returned for this sensor; it is then not measured again.
    temperature_c
        The temperature of the device in degrees Celsius, where it should cool down between windows.
    clock, sleep, random
        Monotonic seconds, how to wait, and numbers from 0 up to 1, by default the same in every measurement.

    Raises
    ------
    DeviceError
        The sensor failed, or read exactly the same power whether there was work or not.
    """
    bench = _Bench(sensor, protocol or EnergyProtocol(), temperature_c, clock, sleep, random or Random(0).random)
    while True:
        method = sensor.method
        try:
            result = bench.measure(work, idle_w)
        except _UnmovedError as error:
            if not isinstance(sensor, SensorChain):
                raise
            sensor.leave(error)
        else:
            if sensor.method == method:
                return result
        idle_w = None  # it belongs to the sensor before


def measure_idle(
    sensor: Sensor,
    protocol: EnergyProtocol | None = None,
    *,
    sleep: Sleep = time.sleep,
    random: Callable[[], float] | None = None,
) -> Estimate:
    """Return the power in W while this process does nothing, with its interval.

    Call the work once before, so that a context is alive and the model is resident: they draw power too.
    """
    protocol = protocol or EnergyProtocol()
    random = random or Random(0).random
    sleep(min(REST_S, protocol.idle_s))
    watts = []
    for _ in range(protocol.idle_windows):
        sleep(random() * protocol.longest_delay_s)
        watts.append(sensor.over(lambda: sleep(NAP_S), protocol.idle_s / protocol.idle_windows).watts)
    return _mean(watts)


class _UnmovedError(DeviceError):
    """A sensor shows the same power whatever is done."""


@dataclass(frozen=True)
class _Bench:
    """A sensor and all that a measurement waits for and looks at."""

    sensor: Sensor
    protocol: EnergyProtocol
    temperature_c: Callable[[], float] | None
    clock: Clock
    sleep: Sleep
    random: Callable[[], float]

    def measure(self, work: Work, idle_w: Estimate | None) -> EnergyPerCall:
        """Warm up, read the idle power if it is wanted and not known, and then the windows."""
        work()
        idle = idle_w
        if idle is None and self.protocol.idle_s > 0:
            idle = measure_idle(self.sensor, self.protocol, sleep=self.sleep, random=self.random)
        self._warm_up(work)
        windows: list[Energy] = []
        first_c = self.temperature_c() if self.temperature_c else 0.0
        cooled_s = 0.0
        while True:
            cooled_s += self._cool_down(first_c)
            windows.append(self._window(work))
            if idle is None and windows[0].paused_s > 0:
                default = replace(self.protocol, idle_s=EnergyProtocol.idle_s)
                idle = measure_idle(self.sensor, default, sleep=self.sleep, random=self.random)
            if len(windows) < self.protocol.windows:
                continue
            result = per_call(windows, idle, self.protocol.half_width)
            if result.narrow or len(windows) >= self.protocol.most_windows:
                break
        if self.protocol.idle_s > 0:
            self._refuse_unmoved(windows, idle)
        return replace(result, method=result.method + self._heat_in_words(first_c, cooled_s))

    def _window(self, work: Work) -> Energy:
        self.sleep(self.random() * self.protocol.longest_delay_s)
        return self.sensor.over(work, self.protocol.window_s)

    def _warm_up(self, work: Work) -> None:
        """Work until two powers in a row agree."""
        begin_s, before_w = self.clock(), math.inf
        while True:
            now_w = self.sensor.over(work, max(self.protocol.warm_up_s / PATIENCE, NAP_S)).watts
            spent_s = self.clock() - begin_s
            steady = abs(now_w - before_w) <= STEADY * now_w
            if (steady and spent_s >= self.protocol.warm_up_s) or spent_s >= PATIENCE * self.protocol.warm_up_s:
                return
            before_w = now_w

    def _cool_down(self, first_c: float) -> float:
        """Wait until the device is about as cold as before the first window; return for how long, in s."""
        waited_s = 0.0
        while (
            self.temperature_c is not None
            and waited_s < self.protocol.cool_down_s
            and self.temperature_c() > first_c + self.protocol.warmer_c
        ):
            self.sleep(COOLING_LOOK_S)
            waited_s += COOLING_LOOK_S
        return waited_s

    def _refuse_unmoved(self, windows: Sequence[Energy], idle: Estimate | None) -> None:
        """Raise where the work made no difference at all: such a sensor does not look at what is measured."""
        if idle is None or any(abs(window.watts / idle.value - 1) > UNMOVED for window in windows):
            return
        raise _UnmovedError(
            f"{self.sensor.name}: {self.sensor.method}: read the same {idle.value:.3f} W with work and without: it "
            "stands still or looks at another device, `edgelean doctor` shows whether there is another sensor"
        )

    def _heat_in_words(self, first_c: float, cooled_s: float) -> str:
        if self.temperature_c is None:
            return ""
        words = f"; {first_c:.0f} C before the first of them, {self.temperature_c():.0f} C after the last"
        return words + (f", {cooled_s:.0f} s of cooling down between them" if cooled_s > 0 else "")


def _less_idle(windows: Sequence[Energy], idle_s: Sequence[float], idle: Estimate | None) -> Estimate:
    """Return the energy per call in mJ, of each window less its seconds at the idle power, as a mean with interval."""
    watts = idle.value if idle is not None else 0.0
    pairs = list(zip(windows, idle_s, strict=True))
    mean = _mean([(window.joules - watts * seconds) / window.calls * 1e3 for window, seconds in pairs])
    if idle is None:
        return mean
    # The error of the idle power is the same in all windows, so more of them do not make it smaller.
    each_s = statistics.fmean(seconds / window.calls for window, seconds in pairs)
    reach = math.hypot((mean.high - mean.low) / 2, (idle.high - idle.low) / 2 * each_s * 1e3)
    return Estimate(mean.value, mean.value - reach, mean.value + reach)


def _mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % interval for independent values of a normal distribution (Student's)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, mean, mean)
    reach = _student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach)


def _student_t(freedom: int) -> float:
    """Return the two-sided 95 % point of Student's distribution.

    From ten degrees of freedom on by the series of Cornish and Fisher (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _in_words(windows: Sequence[Energy], idle: Estimate | None) -> str:
    """Return how the windows were read."""
    seconds = statistics.fmean(window.seconds for window in windows)
    words = [windows[-1].method]
    if len(windows) == 1:
        words.append(f"one window of {seconds:.2f} s, so no interval")
    else:
        words.append(f"{len(windows)} windows of {seconds:.2f} s with random delays between them")
    paused = sum(window.paused_s for window in windows) / sum(window.seconds for window in windows)
    if paused > 0:
        words.append(f"{100 * paused:.1f} % of them pauses that this sensor needs, at the idle power")
    if idle is not None:
        words.append(f"idle power {idle.value:.3g} W")
    return "; ".join(words)
