"""Readings and budgets in, cuts out: plant, controller, allocator, guard. Pure functions of frozen values."""

from edgelean.control.allocator import Allocation, Choice, allocate, reachable
from edgelean.control.controller import (
    Demand,
    after_cut,
    all_landed,
    all_met,
    due,
    enough,
    enough_after_cut,
    exhausted,
    gate_open,
    init,
    postponed,
    rolled_back,
    step,
)
from edgelean.control.ending import Ending, endings
from edgelean.control.explain import clamp_of, prices_of, told, why
from edgelean.control.guard import Guard, recovered
from edgelean.control.plant import Plant, cost_for, deviation, identify, new_plant, output
from edgelean.control.readings import Observed, pooled
from edgelean.control.settled import agreement, rank_correlation
from edgelean.control.state import ControllerState, Settings
from edgelean.control.track import Standing, Track

__all__ = [
    "Allocation",
    "Choice",
    "ControllerState",
    "Demand",
    "Ending",
    "Guard",
    "Observed",
    "Plant",
    "Settings",
    "Standing",
    "Track",
    "after_cut",
    "agreement",
    "all_landed",
    "all_met",
    "allocate",
    "clamp_of",
    "cost_for",
    "deviation",
    "due",
    "endings",
    "enough",
    "enough_after_cut",
    "exhausted",
    "gate_open",
    "identify",
    "init",
    "new_plant",
    "output",
    "pooled",
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
