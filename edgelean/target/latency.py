"""Latency as statistics: intervals of a percentile, a verdict on it, and a loop that measures until both are possible.

Nothing is assumed about the shape of the distribution: how many of n samples lie under the true percentile is binomial,
whatever the samples are, and everything here follows from that. It does assume that the samples are independent;
a disturbance that lasts longer than one call makes the truth less certain than the interval says. What lasts as long
as a session, such as where its weights lie in memory, shows between repeats, and :func:`pooled` keeps it.

Samples are collected until they suffice, so the statistics are looked at again and again. A verdict that may be wrong
in one of a hundred looks would be wrong far more often in one of many looks. The verdict here is therefore a
sequential test: its error holds for all looks together, whenever and for whatever reason one stops. The interval needs
no such care: when to stop depends on its width alone, and the width says nothing about the side on which the truth
lies (Chow and Robbins 1965).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Clock = Callable[[], float]
VerdictWord = Literal["met", "not met", "undecided"]

EMPTY_CALLS = 101


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
    limit_ms
        Go on, until the time is up, while there is no verdict on this limit; None where no limit is known.
    """

    warm_up_s: float = 0.1
    least_s: float = 0.2
    cap_s: float = 0.8
    half_width: float = 0.03
    least_calls: int = 6
    limit_ms: float | None = None


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


def pooled(repeats: Sequence[Timing], percentile: float) -> Interval:
    """Return a percentile of the calls of all repeats; its interval also holds the percentile of each repeat.

    The range of six repeats holds, with 97 %, the median over all sessions that there could be; that of fewer repeats
    holds it less often (75 % for three).

    Parameters
    ----------
    repeats
        At least one, each with a session of its own.
    """
    together = percentile_interval(all_samples(repeats), percentile)
    each = [percentile_interval(repeat.samples_ms, percentile).value for repeat in repeats]
    return replace(together, low=min(together.low, *each), high=max(together.high, *each))


def all_samples(repeats: Sequence[Timing]) -> list[float]:
    """Return the samples of all repeats in ms, in the order of time."""
    return [sample for repeat in repeats for sample in repeat.samples_ms]


def disagreement(repeats: Sequence[Timing]) -> float:
    """Return how far the median of a repeat is from the median of all calls at most, as a share of it."""
    middle = percentile_interval(all_samples(repeats), 50).value
    medians = [percentile_interval(repeat.samples_ms, 50).value for repeat in repeats]
    return max(abs(median - middle) for median in medians) / middle if middle > 0 else math.inf


def verdict(samples: Sequence[float], limit: float, percentile: float, confidence: float = 0.99) -> VerdictWord:
    """Judge whether a percentile of what ``samples`` come from is within ``limit``, however often one looks.

    Counts the samples over the limit. ``met``: there are too few of them for a model whose percentile is over the
    limit. ``not met``: too many for one whose percentile is within. Each is wrong with a chance of at most 1 -
    ``confidence``, over all the looks at a growing number of samples together. In between the samples do not tell,
    and more of them are needed: at least 9 for a median, 62 for the 90th and 644 for the 99th percentile.

    Parameters
    ----------
    samples, limit
        In the same unit.
    percentile
        Above 0 and below 100.

    References
    ----------
    J. Ville: Étude critique de la notion de collectif, 1939 (a fair bet reaches 1/a times the stake with a chance of
    at most a). H. Robbins: Statistical methods related to the law of the iterated logarithm. Annals of Mathematical
    Statistics 41(5), 1970 (mixtures of likelihood ratios as tests that may stop at any time).
    """
    count, allowed = len(samples), 1 - percentile / 100
    over = sum(sample > limit for sample in samples)
    if _rarer(over, count, allowed, 1 - confidence):
        return "met"
    if _rarer(count - over, count, 1 - allowed, 1 - confidence):
        return "not met"
    return "undecided"


def _rarer(hits: int, count: int, share: float, chance: float) -> bool:
    """Tell whether hits are rarer than ``share``; wrong at any look with at most this ``chance``.

    A gambler bets that they are, evenly on every smaller share q, and wins the mean over q of the likelihood ratios of
    q and ``share``. At ``share`` and above the bet is not in his favour, so that he hardly ever gets 1 / ``chance``
    times his stake. The mean is an incomplete beta function, which is a quotient of two binomial chances.
    """
    if hits >= share * count:
        return False
    more = _binomial(count + 1, share)[hits + 1 :].sum()
    return bool(_binomial(count, share)[hits] * (count + 1) * share <= chance * more)


def time_calls(
    call: Callable[[], object],
    percentile: float = 50,
    patience: Patience | None = None,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Warm up, then repeat ``call`` until the interval of the percentile is narrow or the time is up.

    What an empty call takes on the same clock, some 0.2 us, is subtracted from each sample. What remains of Python is
    the one method call into the runtime, about 1 us.

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
    overhead_s = _overhead(clock)
    warm_up(call, patience.warm_up_s, clock)
    samples: list[float] = []
    begin_s = now_s = clock()
    look_at = patience.least_calls
    while True:
        call()
        before_s, now_s = now_s, clock()
        samples.append(max(now_s - before_s - overhead_s, 0.0) * 1e3)
        out_of_time = now_s - begin_s >= patience.cap_s and len(samples) >= patience.least_calls
        if not out_of_time and (len(samples) < look_at or now_s - begin_s < patience.least_s):
            continue
        interval = percentile_interval(samples, percentile)
        narrow = interval.closed and interval.half_width <= patience.half_width
        if out_of_time or (narrow and _decided(samples, percentile, patience.limit_ms)):
            return Timing(tuple(samples), interval, narrow)
        look_at = math.ceil(len(samples) * 1.25)
        now_s = clock()  # the look itself is not part of the next sample


def _decided(samples: Sequence[float], percentile: float, limit_ms: float | None) -> bool:
    return limit_ms is None or verdict(samples, limit_ms, percentile) != "undecided"


def _overhead(clock: Clock) -> float:
    """Return what the loop measures in s for a call that does nothing: the clock and Python themselves."""
    durations = []
    now_s = clock()
    for _ in range(EMPTY_CALLS):
        _nothing()
        before_s, now_s = now_s, clock()
        durations.append(now_s - before_s)
    return statistics.median(durations)


def _nothing() -> None:
    pass


def scaled(interval: Interval, factor: float) -> Interval:
    """Return the interval in another unit, or mapped to another board."""
    return replace(interval, value=interval.value * factor, low=interval.low * factor, high=interval.high * factor)


def warm_up(call: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> None:
    """Call in blocks of a third of ``seconds``, until two blocks in a row agree within 5 %; at most nine blocks."""
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
