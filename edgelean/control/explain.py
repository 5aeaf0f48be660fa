"""What a demand rests on, as an event tells it: what was read and predicted, and which clamp held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgelean.control.allocator import Allocation
from edgelean.control.controller import Demand
from edgelean.control.readings import Observed
from edgelean.control.state import ControllerState
from edgelean.control.track import Standing


def clamp_of(demand: Demand, state: ControllerState) -> str:
    """Return what kept a demand from asking for more; empty where nothing did.

    Parameters
    ----------
    demand
        What was demanded.
    state
        The controller after the demand.

    Returns
    -------
    str
        ``"largest cut"``; of a demand for nothing ``"read again"`` (too close to call), ``"dead band"`` (too little to
        be worth a cut), or ``"reference"`` (the output is where it should be by now).
    """
    if demand.fraction > 0:
        return "largest cut" if demand.fraction >= state.clamps.largest_cut * (1 - 1e-9) else ""
    standings = set(demand.standings.values())
    if standings == {Standing.MET}:
        return ""
    if Standing.UNDECIDED in standings:
        return "read again"
    return "dead band" if demand.reference < state.tracks[demand.binding].value else "reference"


def told(demand: Demand, seen: Mapping[str, Observed], state: ControllerState) -> dict[str, Any]:
    """Return a demand as the fields of an event, with what was read of each quantity and which clamp held."""
    return {
        **demand.to_json(),
        "clamp": clamp_of(demand, state),
        "observed": {name: asdict(one) for name, one in seen.items() if name in state.tracks},
        "budgets": {name: track.limit for name, track in state.tracks.items()},
    }


def prices_of(prices: Mapping[str, float], seen: Mapping[str, Observed]) -> dict[str, float]:
    """Return in nats per unit of the reading what an allocator's prices say in nats per unit of predicted cost."""
    return {name: price * seen[name].cost / seen[name].measured for name, price in prices.items()}


def why(demand: Demand, allocation: Allocation, seen: Mapping[str, Observed]) -> dict[str, Any]:
    """Return what led to a cut as the fields of an event."""
    return {
        "demand": demand.fraction,
        "binding": demand.binding,
        "targets": demand.targets,
        "predicted_before": allocation.cost_before,
        "prices": prices_of(allocation.prices, seen),
        "feasible": allocation.feasible,
    }
