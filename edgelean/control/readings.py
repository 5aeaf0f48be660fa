"""What is read of a structure: one reading of one quantity, and several of them taken together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CONFIDENCE = 1.96
"""Half width of a 95 % interval in standard deviations."""


@dataclass(frozen=True)
class Observed:
    """One quantity of a structure: its reading, or the mean of several, and its predicted cost.

    Attributes
    ----------
    measured, low, high
        The reading and its 95 % interval, in the unit of the budget; all three equal for a modelled figure.
    cost
        Predicted cost of the structure that was read, from the board's cost model.
    stale
        The readings of this target lag, and this one is of the structure before the last cut.
    count
        Readings in the mean.
    scatter
        Sum of the squares by which they differ from the mean, each in its own standard deviations: about the count
        less one when their intervals tell the truth.
    """

    measured: float
    low: float
    high: float
    cost: float
    stale: bool = False
    count: int = 1
    scatter: float = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the reading, in its unit."""
        return max(0.0, self.high - self.low) / (2 * CONFIDENCE)


def pooled(readings: Sequence[Mapping[str, Observed]]) -> dict[str, Observed]:
    """Return the mean of several readings of one structure, quantity by quantity.

    A reading counts by its relative interval: of noisy ones, those that are low by chance have the narrower interval,
    and would draw the mean down. A modelled figure is the same each time.

    Parameters
    ----------
    readings
        At least one, all of the same quantities and the same structure.
    """
    return {name: _mean([reading[name] for reading in readings]) for name in readings[0]}


def _mean(seen: Sequence[Observed]) -> Observed:
    last = seen[-1]
    if len(seen) == 1 or any(one.spread == 0 for one in seen):
        return last
    weights = [(one.measured / one.spread) ** 2 for one in seen]
    mean = sum(weight * one.measured for weight, one in zip(weights, seen, strict=True)) / sum(weights)
    scatter = sum(weight * (one.measured / mean - 1) ** 2 for weight, one in zip(weights, seen, strict=True))
    half = CONFIDENCE * mean / math.sqrt(sum(weights))
    return replace(last, measured=mean, low=mean - half, high=mean + half, count=len(seen), scatter=scatter)
