"""How far the allocator is from the optimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgelean.control import Choice, allocate
from edgelean.testing.plants import Chain

Array = NDArray[np.float64]

HALVINGS = 60
"""Of the interval of the multiplier."""


@dataclass(frozen=True)
class Gap:
    """Nats of the allocator, and the fewest that are possible, or a bound below them."""

    nats: float
    least: float

    @property
    def share(self) -> float:
        """By how much more the allocator gives up."""
        return self.nats / self.least - 1 if self.least > 0 else 0.0


def exhaustive(seed: int, share: float, *, both: bool) -> Gap:
    """Compare with trying everything: four axes, one budget or two."""
    plant = Chain(seed, share=1.0, axes=4, quantities=("latency", "energy") if both else ("latency",))
    targets = {name: share * cost for name, cost in plant.costs(plant.whole).items()}
    choices = plant.choices(plant.whole)
    found = allocate(choices, plant.costs, targets)
    grid = np.meshgrid(*(_kept(choice) for choice in choices), indexing="ij")
    nats = sum(
        _prices(choice).reshape([-1 if axis == other else 1 for other in range(len(choices))])
        for axis, choice in enumerate(choices)
    )
    widths: list[Array] = [np.array(4.0), *grid, np.array(10.0)]
    holds = np.ones(grid[0].shape, dtype=bool)
    for name, target in targets.items():
        cost: Array = np.zeros(())
        for work, (a, b) in zip(plant.work[name], pairwise(widths), strict=True):
            cost = cost + work * (a * b / 4096 + 0.05)
        holds &= cost <= target * (1 + 1e-9)
    return Gap(found.nats, float(np.where(holds, nats, math.inf).min()))


def bounded(seed: int, share: float, axes: int) -> Gap:
    """Compare with the Lagrangian bound on one budget: no allocation gives up less.

    For any multiplier, the least of nats + multiplier * (cost - target) over all allocations is such a bound. A chain
    couples neighbours only, so dynamic programming finds that least exactly.
    """
    plant = Chain(seed, share=1.0, axes=axes, quantities=("latency",))
    target = share * plant.costs(plant.whole)["latency"]
    choices = plant.choices(plant.whole)
    found = allocate(choices, plant.costs, {"latency": target})
    low, high, best = 0.0, 1.0, 0.0
    while _least(plant, choices, target, high)[1] > target:
        high *= 2
    for _ in range(HALVINGS):
        multiplier = (low + high) / 2
        bound, cost = _least(plant, choices, target, multiplier)
        best = max(best, bound)
        low, high = (multiplier, high) if cost > target else (low, multiplier)
    return Gap(found.nats, best)


def _least(plant: Chain, choices: Sequence[Choice], target: float, multiplier: float) -> tuple[float, float]:
    """Return the least of the Lagrangian, and the cost of the allocation that gives it."""
    work = plant.work["latency"]
    kept = [np.array([4.0]), *(_kept(choice) for choice in choices), np.array([10.0])]
    nats = [np.zeros(1), *(_prices(choice) for choice in choices), np.zeros(1)]
    values, costs = np.zeros(1), np.zeros(1)
    for each, (a, b), price in zip(work, pairwise(kept), nats[1:], strict=True):
        edge = each * (np.outer(a, b) / 4096 + 0.05)
        total = values[:, None] + multiplier * edge
        chosen = total.argmin(axis=0)
        columns = np.arange(len(b))
        values = total[chosen, columns] + price
        costs = costs[chosen] + edge[chosen, columns]
    return float(values[0] - multiplier * target), float(costs[0])


def _kept(choice: Choice) -> Array:
    return np.array(choice.levels, dtype=np.float64)


def _prices(choice: Choice) -> Array:
    return np.array([choice.prices[choice.size - kept] for kept in choice.levels])


def mean(gaps: Sequence[Gap]) -> float:
    """Return the mean share by which the allocator gives up more."""
    return sum(gap.share for gap in gaps) / len(gaps)


def summary(gaps: Sequence[Gap]) -> Mapping[str, float]:
    """Return mean and largest gap, and the share of instances with none."""
    exact = sum(gap.share <= 1e-9 for gap in gaps) / len(gaps)
    return {"mean": mean(gaps), "largest": max(gap.share for gap in gaps), "exact": exact}
