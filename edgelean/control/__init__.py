"""Readings and budgets in, cuts out: plant, controller, allocator, guard. Pure functions of frozen values."""

from edgelean.control.allocator import Allocation, Choice, allocate, reachable
from edgelean.control.controller import (
    ControllerState,
    Demand,
    Observed,
    Settings,
    all_met,
    due,
    gate_open,
    init,
    postponed,
    rolled_back,
    step,
)
from edgelean.control.explain import clamp_of, prices_of, told, why
from edgelean.control.guard import Guard, recovered
from edgelean.control.plant import Plant, cost_for, deviation, identify, new_plant, output
from edgelean.control.settled import agreement, rank_correlation
from edgelean.control.track import Standing, Track

__all__ = [
    "Allocation",
    "Choice",
    "ControllerState",
    "Demand",
    "Guard",
    "Observed",
    "Plant",
    "Settings",
    "Standing",
    "Track",
    "agreement",
    "all_met",
    "allocate",
    "clamp_of",
    "cost_for",
    "deviation",
    "due",
    "gate_open",
    "identify",
    "init",
    "new_plant",
    "output",
    "postponed",
    "prices_of",
    "rank_correlation",
    "reachable",
    "recovered",
    "rolled_back",
    "step",
    "told",
    "why",
]
