"""How the control ends: where each budget stands when no step is left, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgelean.control.plant import deviation, output
from edgelean.control.readings import CONFIDENCE
from edgelean.control.state import ControllerState
from edgelean.control.track import PROVEN, REPEATED, Standing, Track

TOLERANCE = 1e-6
"""Relative: a model whose cost is this close to the smallest one is the smallest."""


@dataclass(frozen=True)
class Ending:
    """What the controller says of one budget in the end.

    Attributes
    ----------
    standing
        Met, not met, or undecided.
    reachable
        False where no cut can get there: nothing is left that saves, or the smallest model is surely above the budget.
    reason
        Why, in words.
    """

    standing: Standing
    reachable: bool
    reason: str


def endings(state: ControllerState, least: Mapping[str, float]) -> dict[str, Ending]:
    """Return what is to be said of each budget now.

    Parameters
    ----------
    state
        The controller.
    least
        Predicted cost of the model at its smallest, per quantity where it is known.
    """
    return {name: _ending(track, state, least.get(name)) for name, track in state.tracks.items()}


def out_of_reach(track: Track, least: float) -> bool:
    """Tell whether the model at its smallest is surely above a budget, as far as the readings tell by now.

    Parameters
    ----------
    least
        Predicted cost of the model at its smallest.
    """
    return output(track.plant, least) - CONFIDENCE * deviation(track.plant, least) > track.limit


def _ending(track: Track, state: ControllerState, least: float | None) -> Ending:
    if track.standing is Standing.MET:
        return Ending(Standing.MET, True, "the readings are surely within the budget")
    over = f"{100 * (track.value / track.limit - 1):+.1f} % give or take {100 * track.half / track.limit:.1f}"
    if state.exhausted or (least is not None and track.plant.cost * track.plant.cost_scale <= least * (1 + TOLERANCE)):
        standing = Standing.NOT_MET if track.value > track.limit else Standing.UNDECIDED
        return Ending(standing, False, f"nothing is left to cut that saves anything: {over} of the budget away from it")
    if track.value > track.limit and least is not None and out_of_reach(track, least):
        smallest = f"about {100 * (output(track.plant, least) / track.limit - 1):.0f} % above it"
        return Ending(Standing.NOT_MET, False, f"out of reach: the smallest model would be {smallest}, this one {over}")
    if state.given_up:
        return Ending(track.standing, True, f"the network recovers from no cut, however small: {over} of the budget")
    if track.weather:
        odd = 100 * (track.odd / track.value - 1)
        return Ending(
            Standing.UNDECIDED, True, f"the last readings were {odd:+.0f} % off those before, and did not last"
        )
    if state.cut_at is not None:
        return Ending(Standing.UNDECIDED, True, "no reading of what the last cut left has arrived")
    if track.standing is Standing.NOT_MET:
        return Ending(Standing.NOT_MET, True, f"the training ended before: {over} of the budget")
    needed = PROVEN * math.hypot(track.spread, REPEATED * track.value) / track.limit
    return Ending(
        Standing.UNDECIDED,
        True,
        f"too close to call: {over} of the budget, and only {100 * needed:.1f} % under it would be sure",
    )
