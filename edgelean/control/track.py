"""One budgeted quantity on its way: what it is estimated to be, where it stands, where it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from edgelean.control.plant import Plant, cost_for, deviation, identify, new_plant, output

CONFIDENCE = 1.96
"""Half width of a 95 % interval in standard deviations."""

CAUTION = 1.0
"""A cut is sized for a slope so many standard deviations steeper than the expected one."""

LANDING = 0.05
"""The reference is an exponential that would leave this share of the way at the end of the window, bent to leave 0."""

PATIENCE = 3
"""An undecided budget is read again so many times before a cut settles it."""

DRIFT = 0.01
"""A measured figure has to come this share under its budget to count as met: read again some minutes later, and judged
on the artifact, it is a little different."""

ALARMS = 2
"""A met budget counts as lost after so many readings in a row that lie above it with their whole interval."""


class Standing(StrEnum):
    """Where a quantity stands against its budget, by its 95 % interval."""

    MET = "met"
    UNDECIDED = "undecided"
    NOT_MET = "not met"


@dataclass(frozen=True)
class Track:
    """One budgeted quantity.

    Attributes
    ----------
    limit
        The budget.
    start
        The output from which the reference decays.
    value, half
        Best estimate of the present output, and half the width of its 95 % interval.
    plant
        How the output answers to the predicted cost.
    standing
        Where the quantity stands against its budget.
    doubts, alarms
        Readings in a row of this structure that were undecided, and that lay above the budget with their interval.
    """

    limit: float
    start: float
    value: float
    half: float
    plant: Plant
    standing: Standing = Standing.NOT_MET
    doubts: int = 0
    alarms: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the track as plain JSON types."""
        return asdict(self) | {"plant": self.plant.to_json(), "standing": str(self.standing)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Track:
        """Return the track that `to_json` wrote."""
        made = {"plant": Plant.from_json(plain["plant"]), "standing": Standing(plain["standing"])}
        return cls(**{**plain, **made})


def new_track(limit: float, cost: float, measured: float, spread: float) -> Track:
    """Return the track of a quantity whose full-size model was read once."""
    return Track(limit, measured, measured, CONFIDENCE * spread, new_plant(cost, measured, spread))


def watch(track: Track, cost: float, measured: float, spread: float) -> Track:
    """Return the track with one more reading in it, and where it now stands.

    Readings of the same structure are averaged by the plant, so a budget that is too close to call is decided by
    reading again. A figure of the cost model (no spread) is taken as it is.
    """
    plant = identify(track.plant, cost, measured, spread)
    value, half = (output(plant, cost), CONFIDENCE * deviation(plant, cost)) if spread > 0 else (measured, 0.0)
    doubts = track.doubts if plant.cost == track.plant.cost else 0
    drift = DRIFT if half and track.standing is not Standing.MET else 0.0
    bound = track.limit * (1 - drift)
    above = value - half > bound
    alarms = track.alarms + 1 if above else 0
    kept = track.standing is Standing.MET and alarms < (ALARMS if half else 1)
    if kept or value + half <= bound:
        standing, doubts = Standing.MET, 0
    elif above:
        standing, doubts = Standing.NOT_MET, 0
    else:
        standing, doubts = Standing.UNDECIDED, doubts + 1
    return replace(track, value=value, half=half, plant=plant, standing=standing, doubts=doubts, alarms=alarms)


def reference(track: Track, margin: float, gone: float) -> float:
    """Return the output that a quantity should have when a share of the window is gone, in the unit of its budget.

    The excess over the aim, which is the budget less the margin, decays exponentially and is 0 at the end: large cuts
    early, where learning repairs them, and small ones at the landing, where an error could not be undone.
    """
    aim = track.limit * (1 - margin)
    left = (math.pow(LANDING, min(max(gone, 0.0), 1.0)) - LANDING) / (1 - LANDING)
    return aim + max(0.0, track.start - aim) * left


def target(track: Track, cost: float, wanted: float, largest_cut: float) -> float:
    """Return the predicted cost that the next structure may have at most.

    Parameters
    ----------
    track
        The quantity.
    cost
        Predicted cost of the present structure.
    wanted
        What the reference wants next.
    largest_cut
        Largest share of the cost that may go.

    Returns
    -------
    float
        `cost` itself when the budget is met, or undecided and still to be read again.
    """
    if track.standing is Standing.MET or (track.standing is Standing.UNDECIDED and track.doubts <= PATIENCE):
        return cost
    if track.standing is Standing.UNDECIDED:
        wanted = min(wanted, track.limit - track.half)
    return min(cost, max(cost_for(track.plant, wanted, CAUTION), cost * (1 - largest_cut)))
