"""The plant: how the measured output of a budgeted quantity answers to the predicted cost of a structure.

The model is a line, ``measured = a * cost + b + noise``, one per quantity, identified online by recursive least
squares [1]_. A run gives about ten readings, of different structures and of unequal quality. So old readings are not
forgotten by one exponential factor but additively [2]_: whenever the structure moves the line may turn a little about
the last reading, and between any two readings its height may drift a little. With that a figure of the cost model is
believed at once, noisy readings of one structure are averaged, and what was learned about the slope is kept.

References
----------
.. [1] K. J. Åström, B. Wittenmark, *Adaptive Control*, 2nd ed., 1995, chapters 2 and 7.
.. [2] L. Ljung, T. Söderström, *Theory and Practice of Recursive Identification*, 1983, chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgelean.errors import InputError

GAIN_DOUBT = 0.5
"""Standard deviation of the first slope: the cost model may be wrong by half before anything was seen of it."""

TURN = 0.3
"""Standard deviation by which the slope changes from one structure to the next: other axes give, other errors."""

DRIFT = 0.005
"""Standard deviation of the output from one reading to the next, as a share of it (clocks, temperature)."""

FINEST = 1e-4
"""No reading is believed to be better than this share of its value."""

LEAST_ELASTICITY, MOST_ELASTICITY = 0.5, 5.0
"""One per cent less cost is taken to give between so many per cent less output. A slope near zero, a trick of noise,
would ask for an endless cut; where it is real, the output falls short of what was asked and the next cut closes in."""

SHARPEST_TURN = 0.45
"""The same for how far a cut may go: a few steps of one axis turn the line more than many of all axes."""

UNSEEN = 0.01
"""Standard deviation, as a share of the output, of what no interval knows of: it is no surprise."""

HALVINGS = 24
"""Of the interval in which the furthest cut is looked for."""

MOST_DOUBT = 1.0
"""Cap of the standard deviation of the slope, so that a long quiet time does not make it forget everything."""


@dataclass(frozen=True)
class Plant:
    """A line through the readings of one quantity, and how sure it is.

    Attributes
    ----------
    cost_scale, output_scale
        Predicted cost and measured output of the first structure; everything below is in these units.
    gain, offset
        The line ``output / output_scale = gain * cost / cost_scale + offset``.
    covariance
        Of the gain, of gain with offset, of the offset.
    cost
        Normalised cost of the structure that was read last.
    readings
        How many readings are in it.
    """

    cost_scale: float
    output_scale: float
    gain: float
    offset: float
    covariance: tuple[float, float, float]
    cost: float
    readings: int

    def saw_last(self, cost: float) -> bool:
        """Tell whether the structure of a predicted cost is the one that was read last."""
        return cost / self.cost_scale == self.cost

    def to_json(self) -> dict[str, Any]:
        """Return the plant as plain JSON types."""
        return asdict(self) | {"covariance": list(self.covariance)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Plant:
        """Return the plant that `to_json` wrote."""
        gain, mixed, offset = plain["covariance"]
        return cls(**{**plain, "covariance": (gain, mixed, offset)})


def new_plant(cost: float, measured: float, spread: float = 0.0) -> Plant:
    """Return the plant after one reading: the output is proportional to the cost, with a doubtful slope.

    Parameters
    ----------
    cost
        Predicted cost of the first structure, above 0, in any unit.
    measured
        Its measured output, above 0, in the unit of the budget.
    spread
        Standard deviation of the measured output; 0 for a figure of the cost model.

    Raises
    ------
    InputError
        When the cost or the output is not a finite number above 0.
    """
    _check(cost, measured, spread)
    doubt = GAIN_DOUBT**2
    return Plant(cost, measured, 1.0, 0.0, (doubt, -doubt, doubt + _noise(1.0, spread / measured)), 1.0, 1)


def identify(plant: Plant, cost: float, measured: float, spread: float = 0.0) -> Plant:
    """Return the plant after one more reading.

    Parameters
    ----------
    plant
        What was known before.
    cost, measured, spread
        Predicted cost, measured output and its standard deviation, as in `new_plant`.

    Raises
    ------
    InputError
        When the cost or the output is not a finite number above 0.
    """
    _check(cost, measured, spread)
    c, y = cost / plant.cost_scale, measured / plant.output_scale
    p_aa, p_ab, p_bb = _forget(plant, c, y)
    k_a, k_b = p_aa * c + p_ab, p_ab * c + p_bb
    surprise = y - plant.gain * c - plant.offset
    likely = max(plant.gain * c + plant.offset, FINEST)
    # A noisy reading that is low by chance has a narrow interval: its share counts, not its width.
    expected = k_a * c + k_b + _noise(likely, spread / measured * likely)
    gain, offset = plant.gain + k_a / expected * surprise, plant.offset + k_b / expected * surprise
    covariance = (p_aa - k_a * k_a / expected, p_ab - k_a * k_b / expected, p_bb - k_b * k_b / expected)
    here = max(gain * c + offset, 0.0)
    # A clamped slope turns about the point just read, which stays the best guess of where we are.
    gain = min(max(gain, LEAST_ELASTICITY * here / c), MOST_ELASTICITY * here / c)
    return replace(plant, gain=gain, offset=here - gain * c, covariance=covariance, cost=c, readings=plant.readings + 1)


def output(plant: Plant, cost: float) -> float:
    """Return the expected output of a structure, in the unit of the budget, never below 0."""
    return max(0.0, plant.gain * cost / plant.cost_scale + plant.offset) * plant.output_scale


def deviation(plant: Plant, cost: float) -> float:
    """Return the standard deviation of `output`, in the unit of the budget."""
    p_aa, p_ab, p_bb = plant.covariance
    c = cost / plant.cost_scale
    return math.sqrt(max(0.0, p_aa * c * c + 2 * p_ab * c + p_bb)) * plant.output_scale


def cost_for(plant: Plant, wanted: float, caution: float = 0.0) -> float:
    """Return the predicted cost at which the plant gives an output, never below 0: the inverse of `output`.

    Parameters
    ----------
    plant
        The plant, at the structure that was read last.
    wanted
        The output, in the unit of the budget.
    caution
        So many standard deviations steeper is the slope taken from the last structure on: the less is known about it,
        the smaller the step. 0 gives the plain inverse.
    """
    here = plant.gain * plant.cost + plant.offset
    slope = plant.gain + caution * math.sqrt(max(0.0, plant.covariance[0]))
    if slope <= 0:
        return plant.cost * plant.cost_scale
    return max(0.0, plant.cost - (here - wanted / plant.output_scale) / slope) * plant.cost_scale


def surprise(plant: Plant, cost: float, measured: float, spread: float) -> float:
    """Return the normalised innovation of a reading: by how many standard deviations it is above what was expected.

    Both what the plant did not know and the spread of the reading count; under a line that holds it is normal, and
    beyond 3 in one reading of 400.
    """
    y = measured / plant.output_scale
    p_aa, p_ab, p_bb = _forget(plant, cost / plant.cost_scale, y)
    c = cost / plant.cost_scale
    expected = plant.gain * c + plant.offset
    noise = _noise(expected, spread / measured * expected) + (UNSEEN * expected) ** 2
    return (y - expected) / math.sqrt(max(0.0, p_aa * c * c + 2 * p_ab * c + p_bb) + noise)


def anchored(plant: Plant, cost: float, measured: float, spread: float) -> Plant:
    """Return the plant with its whole line scaled so that a structure gives what was read of it.

    A clock that falls, or a board that throttles, makes all structures slower by one factor; what was learned about
    the shape of the line stays.
    """
    c, (p_aa, p_ab, p_bb) = cost / plant.cost_scale, plant.covariance
    here = max(plant.gain * c + plant.offset, FINEST)
    scale = measured / here
    known = p_aa * c * c + 2 * p_ab * c + p_bb
    more = max(0.0, _noise(here, spread / scale) - known)
    return replace(plant, output_scale=scale, covariance=(p_aa, p_ab, p_bb + more), cost=c)


def furthest(plant: Plant, lowest: float, sureness: float) -> float:
    """Return the least predicted cost whose output is surely not below a bound; the present cost where none is.

    Parameters
    ----------
    plant
        The plant, at the structure that was read last.
    lowest
        The bound, in the unit of the budget.
    sureness
        So many standard deviations of the output, with the turn of the line at a cut in it, lie above the bound.
    """
    p_aa, p_ab, p_bb = plant.covariance
    bound, there = lowest / plant.output_scale, plant.cost
    far, near = 0.0, plant.cost
    for _ in range(HALVINGS):
        there = (far + near) / 2
        turned = (SHARPEST_TURN * (plant.cost - there)) ** 2
        variance = p_aa * there * there + 2 * p_ab * there + p_bb + turned
        if plant.gain * there + plant.offset - sureness * math.sqrt(max(0.0, variance)) >= bound:
            near = there
        else:
            far = there
    return near * plant.cost_scale


def _forget(plant: Plant, c: float, y: float) -> tuple[float, float, float]:
    """Return the covariance before a reading at cost `c`: turned about the last one if the structure moved, drifted."""
    p_aa, p_ab, p_bb = plant.covariance
    if c != plant.cost:
        turn = max(0.0, min(TURN**2, MOST_DOUBT**2 - p_aa))
        p_aa, p_ab, p_bb = p_aa + turn, p_ab - turn * plant.cost, p_bb + turn * plant.cost**2
    return p_aa, p_ab, p_bb + (DRIFT * y) ** 2


def _noise(y: float, spread: float) -> float:
    return max(spread, FINEST * y) ** 2


def _check(cost: float, measured: float, spread: float) -> None:
    for name, value in (("predicted cost", cost), ("measured output", measured)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"A reading needs a {name} that is a number above 0; found {value}. Check the target.")
    if not (math.isfinite(spread) and spread >= 0):
        raise InputError(f"The spread of a reading must be 0 or more; found {spread}. Check the target.")
