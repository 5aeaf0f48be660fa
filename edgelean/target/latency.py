"""Latency as statistics: intervals of a percentile, a verdict on it, and a loop that measures until both are possible.

Nothing is assumed about the shape of the distribution: how many of n samples lie under the true percentile is binomial,
whatever the samples are, and everything here follows from that. It does assume that the samples are independent;
a disturbance that lasts longer than one call makes the truth less certain than the interval says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Clock = Callable[[], float]
VerdictWord = Literal["met", "not met", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A percentile of some samples with its confidence interval, all in the unit of the samples.

    Attributes
    ----------
    value
        The smallest sample that has at least the asked share of the samples at or under it.
    low, high
        Order statistics that enclose the true percentile with the asked confidence.
    closed
        Whether there were enough samples for both ends; where not, the missing end is the extreme sample.
    """

    value: float
    low: float
    high: float
    closed: bool

    @property
    def half_width(self) -> float:
        """Half of the width of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.value if self.value > 0 else math.inf


@dataclass(frozen=True)
class Patience:
    """How long to measure.

    Attributes
    ----------
    warm_up_s
        Calls that are not counted, at least for so long, and up to three times as long until they are steady.
    least_s
        Counted calls, at least for so long: a burst of calls that agree among themselves is not yet the truth.
    cap_s
        Counted calls, at most for so long, once there are ``least_calls``.
    half_width
        The interval is narrow enough when it is the value plus or minus this share.
    least_calls
        Even the slowest model is called so often.
    """

    warm_up_s: float = 0.1
    least_s: float = 0.2
    cap_s: float = 0.8
    half_width: float = 0.03
    least_calls: int = 6


@dataclass(frozen=True)
class Timing:
    """The counted calls of one measurement.

    Attributes
    ----------
    samples_ms
        Duration of each call in ms, in the order of time.
    interval
        The asked percentile of them, in ms.
    narrow
        Whether the interval became narrow enough before the time was up.
    """

    samples_ms: tuple[float, ...]
    interval: Interval
    narrow: bool

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median: over 0.1 the machine was busy with other things."""
        low, middle, high = np.percentile(self.samples_ms, (25, 50, 75))
        return float((high - low) / middle) if middle > 0 else math.inf


def percentile_interval(samples: Sequence[float], percentile: float, confidence: float = 0.95) -> Interval:
    """Return a percentile of ``samples`` with its distribution-free confidence interval.

    Parameters
    ----------
    samples
        At least one value, in any order and unit.
    percentile
        Above 0 and below 100; 50 is the median.
    confidence
        Chance that the interval holds the true percentile, for independent samples.
    """
    ordered = sorted(samples)
    count, share = len(ordered), percentile / 100
    below = np.cumsum(_binomial(count, share))
    tail = (1 - confidence) / 2
    lower = int(np.searchsorted(below, tail))  # the true percentile lies above the lower-th smallest sample ...
    upper = int(np.searchsorted(below, 1 - tail)) + 1  # ... and under the upper-th
    return Interval(
        value=ordered[max(math.ceil(share * count - 1e-9), 1) - 1],
        low=ordered[max(lower, 1) - 1],
        high=ordered[min(upper, count) - 1],
        closed=lower >= 1 and upper <= count,
    )


def verdict(samples: Sequence[float], limit: float, percentile: float, confidence: float = 0.99) -> VerdictWord:
    """Judge whether a percentile of what ``samples`` come from is within ``limit``.

    Counts the samples over the limit. ``met``: so few would be improbable if the percentile were over the limit. ``not
    met``: so many would be improbable if it were within. Each is wrong with a chance of at most 1 - ``confidence``; in
    between the samples do not tell, and more of them are needed.

    Parameters
    ----------
    samples, limit
        In the same unit.
    percentile
        Above 0 and below 100.
    """
    over = sum(sample > limit for sample in samples)
    chances = _binomial(len(samples), 1 - percentile / 100)
    if chances[: over + 1].sum() <= 1 - confidence:
        return "met"
    if chances[over:].sum() <= 1 - confidence:
        return "not met"
    return "undecided"


def time_calls(
    call: Callable[[], object],
    percentile: float = 50,
    patience: Patience | None = None,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Warm up, then repeat ``call`` until the interval of the percentile is narrow or the time is up.

    Parameters
    ----------
    call
        One call; it returns when the work is done, not when it is queued.
    percentile
        The percentile that is asked for.
    patience
        How long to measure.
    clock
        Monotonic seconds.
    """
    patience = patience or Patience()
    _warm_up(call, patience.warm_up_s, clock)
    samples: list[float] = []
    begin_s = now_s = clock()
    look_at = patience.least_calls
    while True:
        call()
        before_s, now_s = now_s, clock()
        samples.append((now_s - before_s) * 1e3)
        out_of_time = now_s - begin_s >= patience.cap_s and len(samples) >= patience.least_calls
        if not out_of_time and (len(samples) < look_at or now_s - begin_s < patience.least_s):
            continue
        interval = percentile_interval(samples, percentile)
        narrow = interval.closed and interval.half_width <= patience.half_width
        if narrow or out_of_time:
            return Timing(tuple(samples), interval, narrow)
        look_at = math.ceil(len(samples) * 1.25)
        now_s = clock()  # the look itself is not part of the next sample


def scaled(interval: Interval, factor: float) -> Interval:
    """Return the interval in another unit, or mapped to another board."""
    return replace(interval, value=interval.value * factor, low=interval.low * factor, high=interval.high * factor)


def _warm_up(call: Callable[[], object], seconds: float, clock: Clock) -> None:
    """Call in blocks of a third of ``seconds``, until two blocks in a row agree within 5 %."""
    means: list[float] = []
    for _ in range(9):
        begin_s = clock()
        calls = 0
        while calls == 0 or clock() - begin_s < seconds / 3:
            call()
            calls += 1
        means.append((clock() - begin_s) / calls)
        if len(means) >= 3 and abs(means[-1] - means[-2]) <= 0.05 * means[-2]:
            return


def _binomial(count: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the chances of 0, 1, ... ``count`` successes in ``count`` trials; through logarithms, so no overflow."""
    k = np.arange(count)
    steps = np.log(count - k) - np.log(k + 1) + math.log(share) - math.log1p(-share)
    log_chances = count * math.log1p(-share) + np.concatenate(([0.0], np.cumsum(steps)))
    chances: np.ndarray[tuple[int], np.dtype[np.float64]] = np.exp(log_chances)
    return chances
