"""Figures as a person reads them: few digits, one unit a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgelean.quantity import STEPS, scale

UNKNOWN = "unknown"
_MOST_DECIMALS = 6
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "bytes": STEPS,
    "kWh": ((1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh")),
    "g": ((1e3, "kg"), (1.0, "g"), (1e-3, "mg")),
    "count": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "whole": ((1.0, ""),),
}


def number(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits and no exponent where that stays short."""
    if not math.isfinite(value):
        return UNKNOWN
    decimals = _decimals(value, digits)
    return f"{value:.{digits - 1}e}" if decimals > _MOST_DECIMALS else f"{value:,.{decimals}f}"


def aligned(values: Sequence[float | None], digits: int = 3) -> tuple[str, ...]:
    """Return the values with equal decimals, as many as the smallest needs; None becomes ``"unknown"``."""
    finite = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    decimals = min(_decimals(min(finite), digits), _MOST_DECIMALS) if finite else 0
    return tuple(UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}" for value in values)


def in_unit(values: Sequence[float | None], unit: str, digits: int = 3) -> tuple[tuple[str, ...], str]:
    """Return figures in ms, mJ, bytes or points with equal decimals, and the unit that they then have.

    Parameters
    ----------
    values
        Figures in `unit`; None is unknown. Bytes are told in the unit that suits the largest.
    """
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    factor, name = scale(largest, unit)
    if name == "B":
        return tuple(UNKNOWN if value is None else f"{value:,.0f}" for value in values), name
    if unit == "points":
        return tuple(UNKNOWN if value is None or not math.isfinite(value) else f"{value:.2f}" for value in values), name
    return aligned([None if value is None else value / factor for value in values], digits), name


def amounts(values: Sequence[float | None], unit: str, digits: int = 3) -> tuple[str, ...]:
    """Return figures in ms, mJ, bytes or points, each with the unit that suits them all."""
    texts, name = in_unit(values, unit, digits)
    return tuple(text if text == UNKNOWN else f"{text} {name}" for text in texts)


def against(value: float, limit: float, unit: str) -> str:
    """Return ``"0.148 ms of 0.150 ms"``, with more digits where both would read the same without being the same."""
    for digits in (3, 4, 5):
        left, right = amounts((value, limit), unit, digits)
        if left != right or value == limit:
            break
    return f"{left} of {right}"


def scaled(
    values: Sequence[float | None], unit: str, like: Sequence[float | None] | None = None, digits: int = 3
) -> tuple[str, ...]:
    """Return the values of one row in the unit that suits them (their geometric mean), each with that unit.

    Parameters
    ----------
    values
        Figures in ``unit``; None is unknown.
    unit
        ``"bytes"``, ``"kWh"``, ``"g"``, ``"count"``, or ``"whole"`` for a count that is written out.
    like
        Other figures whose unit is taken.
    digits
        Significant digits of the smallest value.
    """
    known = [math.log(value) for value in like or values if value is not None and value > 0]
    typical = math.exp(sum(known) / len(known)) if known else 0.0
    steps = _SCALES[unit]
    factor, name = next((step for step in steps if typical >= step[0]), steps[-1])
    texts = (
        tuple(UNKNOWN if value is None else f"{value:,.0f}" for value in values)
        if name in ("", "B")
        else aligned([None if value is None else value / factor for value in values], digits)
    )
    return tuple(text if text == UNKNOWN else f"{text} {name}".rstrip() for text in texts)


def percent(share: float) -> str:
    """Return a share as ``"12 %"``, with one decimal below ten and between 99 and 100."""
    points = 100 * share
    whole = points in (0, 100) or 9.95 <= abs(points) <= 99
    return f"{points:.0f} %" if whole or abs(points) > 100 else f"{points:.1f} %"


def duration(seconds: float | None) -> str:
    """Return a length of time as ``"0.42 s"``, ``"98 s"``, ``"12 min 5 s"`` or ``"3 h 12 min"``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def metric_text(name: str, value: float | None) -> str:
    """Return a metric: an accuracy as a percentage, everything else as a plain number."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{100 * value:.1f} %" if is_share(name) else number(value, 4)


def metric_change(name: str, before: float | None, after: float | None) -> str:
    """Return how a metric moved: ``"-0.2 points"`` for an accuracy, a plain difference for everything else."""
    if before is None or after is None:
        return ""
    if is_share(name):
        return f"{100 * (after - before):+.1f} points".replace("-", "−")
    return f"{after - before:+.3g}".replace("-", "−")


def is_share(name: str) -> bool:
    """Whether the metric of this name is a share between 0 and 1."""
    return "accuracy" in name.lower()


def ratio(before: float | None, after: float | None, better: str = "less") -> str:
    """Return how many times ``after`` is below ``before``, as ``"2.1× less"``; empty where one is unknown."""
    if not before or not after:
        return ""
    if abs(before / after - 1) < 0.005:
        return "same"
    return f"{before / after:.3g}× {better}" if before > after else f"{after / before:.3g}× more"


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
