"""The quantities that can have a budget: how they are called, in which unit they are kept, how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

Quantity = Literal["latency", "energy", "memory", "size", "accuracy_loss"]
"""In the order in which they are told."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

UNITS: Mapping[str, str] = {
    "latency": "ms",
    "energy": "mJ",
    "memory": "bytes",
    "size": "bytes",
    "accuracy_loss": "points",
}
"""The one unit of each quantity inside; a point is a hundredth of the metric."""

WRITTEN: Mapping[Quantity, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "energy": {"uJ": 1e-3, "mJ": 1.0, "J": 1e3},
    "memory": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "accuracy_loss": {"points": 1.0, "point": 1.0},
}
"""The units in which each quantity may be written, each with its factor to the one inside."""

FIELDS: Mapping[str, str] = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "memory": "memory_bytes",
    "size": "size_bytes",
}
"""The field that an event of a reading has for each quantity that is read."""

EXAMPLES: Mapping[Quantity, str] = {
    "latency": '"2ms", "350us", "0.5s"',
    "energy": '"10mJ", "50uJ", "2J"',
    "memory": '"2MB", "600kB"',
    "size": '"300kB", "4MB"',
    "accuracy_loss": '"2 points", "0.5 points"',
}

STEPS: tuple[tuple[float, str], ...] = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
"""What bytes are scaled by for a person."""


def word(quantity: str) -> str:
    """Return what a person calls a quantity: ``"accuracy loss"``."""
    return quantity.replace("_", " ")


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return the factor and the name of the unit that suits a value in one of the `UNITS`."""
    if unit != "bytes":
        return 1.0, unit
    return next((step for step in STEPS if abs(value) >= step[0]), STEPS[-1])


def amount(value: float, unit: str, digits: int = 4) -> str:
    """Return a figure in one of the `UNITS` as a person reads it: ``"0.1482 ms"``, ``"218.4 kB"``."""
    if not math.isfinite(value):
        return f"{value} {unit}"
    factor, name = scale(value, unit)
    scaled = value / factor
    return f"{scaled:,.0f} {name}" if abs(scaled) >= 10**digits else f"{scaled:.{digits}g} {name}"
