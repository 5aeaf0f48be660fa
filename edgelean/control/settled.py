"""Whether the scores have settled: do two successive score vectors put the units in the same order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgelean.errors import InputError


def agreement(previous: Mapping[str, Sequence[float]], current: Mapping[str, Sequence[float]]) -> float | None:
    """Return how alike the units of each axis were ordered twice: the mean rank correlation of a unit's axis.

    Which units of an axis go depends on their order within it, so every axis is compared on its own: across axes the
    prices differ by so much that all of them together seem settled long before.

    Parameters
    ----------
    previous, current
        Scores by the name of the axis. Axes of one unit, and those that are new or have another size, tell nothing.

    Returns
    -------
    float or None
        Up to 1; None where no axis tells anything.
    """
    told = {
        axis: rank_correlation(before, current[axis])
        for axis, before in previous.items()
        if len(before) == len(current.get(axis, ())) > 1
    }
    units = sum(len(previous[axis]) for axis in told)
    return sum(found * len(previous[axis]) for axis, found in told.items()) / units if told else None


def rank_correlation(previous: Sequence[float], current: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two score vectors; equal scores share their mean rank.

    Scores that are all equal say nothing about an order: the correlation is then 1 if both are so, else 0.

    Raises
    ------
    InputError
        When the vectors differ in length, are empty, or hold what is not a number.
    """
    if len(previous) != len(current) or not previous:
        raise InputError(f"Two score vectors of one length are needed; found {len(previous)} and {len(current)}.")
    if any(map(math.isnan, (*previous, *current))):
        raise InputError("A score is not a number. Look for a loss or an activation that is not finite.")
    first, second = _ranks(previous), _ranks(current)
    mean = (len(first) + 1) / 2
    common = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second))
    return common / spread if spread else float(first == second)


def _ranks(scores: Sequence[float]) -> list[float]:
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranks = [0.0] * len(scores)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        for position in range(start, end):
            ranks[order[position]] = (start + 1 + end) / 2
        start = end
    return ranks
