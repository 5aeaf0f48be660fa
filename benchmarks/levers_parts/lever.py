"""The rows of the table: each changes one thing of the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SHARES = (0.5, 0.25)
"""Multiply-accumulates that are left, of those of the full size."""


@dataclass(frozen=True)
class Lever:
    """One way to come by a small network.

    Attributes
    ----------
    kind
        ``full``: nothing is cut. ``small``: trained from the beginning at the structure that another row ended with.
    like
        That row.
    score
        What orders the units.
    widths
        Chosen by the allocator, or the same share of every axis.
    refit
        Whether readers make up for what went.
    cuts
        When, in shares of all steps; each cut leaves the same share of the multiply-accumulates.
    most, least
        Share of an axis that one cut may take, and share of its full size that always stays.
    exponent
        Of the prices of units, before the allocator sees them: below 1 the axes are treated more alike.
    taught
        For so long after a cut, in shares of all steps, the network before it teaches the one after it.
    rewarmed
        For so long after a cut, in shares of all steps, the learning rate rises from zero to where it was.
    momentum
        The state of the optimizer after a cut.
    """

    name: str
    kind: Literal["full", "small", "shrunk"] = "shrunk"
    like: str = ""
    score: str = "energy"
    widths: Literal["allocated", "uniform"] = "allocated"
    refit: bool = True
    cuts: tuple[float, ...] = (0.15, 0.30)
    most: float = 0.5
    least: float = 0.0
    exponent: float = 1.0
    taught: float = 0.0
    rewarmed: float = 0.0
    momentum: Literal["sliced", "dropped"] = "sliced"


def evenly(count: int, first: float, last: float) -> tuple[float, ...]:
    """Return the times of so many cuts."""
    return tuple(first + (last - first) * index / (count - 1) for index in range(count))


FULL = Lever("full size", "full")
BASE = Lever("base")
SCRATCH = Lever("small from scratch", "small", like=BASE.name)
UNIFORM = replace(BASE, name="uniform widths", widths="uniform")
SCRATCH_UNIFORM = Lever("small from scratch, uniform", "small", like=UNIFORM.name)
EIGHT = replace(BASE, name="8 cuts, 5 to 50 %", cuts=evenly(8, 0.05, 0.50))
DEFAULT = replace(EIGHT, name="the default: 8 cuts, 5 to 50 %, no refit", refit=False)
"""What edgelean does today; the base stays what it was when the first levers were tried."""

LATE = replace(BASE, name="late: 55 and 75 %", cuts=(0.55, 0.75))

LEVERS = (
    FULL,
    BASE,
    SCRATCH,
    DEFAULT,
    replace(BASE, name="random units", score="random"),
    UNIFORM,
    SCRATCH_UNIFORM,
    replace(BASE, name="no axis below 40 %", least=0.4),
    replace(BASE, name="roots of the prices", exponent=0.5),
    LATE,
    replace(BASE, name="1 cut at 30 %", cuts=(0.30,), most=1.0),
    replace(BASE, name="6 cuts, 5 to 30 %", cuts=evenly(6, 0.05, 0.30)),
    replace(BASE, name="no refit", refit=False),
    replace(BASE, name="distillation to the end", taught=1.0),
    replace(BASE, name="learning rate re-warmed", rewarmed=0.03),
    EIGHT,
    replace(UNIFORM, name="uniform widths, random units", score="random"),
    replace(BASE, name="12 cuts, 2.5 to 30 %", cuts=evenly(12, 0.025, 0.30)),
    replace(BASE, name="distillation for 10 %", taught=0.1),
    replace(LATE, name="late, no refit", refit=False),
    replace(LATE, name="late, distillation to the end", taught=1.0),
    replace(BASE, name="momentum dropped", momentum="dropped"),
    replace(BASE, name="magnitude", score="magnitude"),
    replace(BASE, name="taylor", score="taylor"),
    replace(BASE, name="activation", score="activation"),
    replace(BASE, name="batch norm scale", score="batch_norm"),
)
"""The most telling first: what is there when time runs out can be used."""

QUICK, QUICK_SHARES = (FULL.name, BASE.name, SCRATCH.name, DEFAULT.name), (0.25,)
"""What goals are about, in four trainings."""
