"""What the allocator may choose from, and how what it takes is mended: by what a loop has collected of the training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from edgelean import control
from edgelean.bench import Bench
from edgelean.shrink.gramians import Balanced, priced
from edgelean.shrink.scores import Score
from edgelean.surgery import Repair

FEWEST_FOR_MEANS = 32
"""Samples from which means of what a layer reads are taken."""


@dataclass(frozen=True)
class Bounds:
    """How far one cut may go.

    Attributes
    ----------
    most
        Share of the units of an axis that may go.
    width
        Channels, or elements of heads, that go together.
    floor
        Channels, or elements of heads, that every axis keeps.
    banned
        Axes that are left alone.
    """

    most: float
    width: int
    floor: int
    banned: Collection[str]


def choices(
    bench: Bench, scores: Score, turned: Mapping[str, Balanced], bounds: Bounds
) -> tuple[dict[str, tuple[int, ...]], list[control.Choice]]:
    """Return in which order the units of each axis go, and what the allocator may take.

    Parameters
    ----------
    turned
        Axes that are turned into their balanced basis first.
    """
    axes = bench.anatomy.axes
    said = {name: scores.removal_prices(axis, bench.model) for name, axis in axes.items()}
    known = {name: each for name, each in said.items() if each is not None}
    known |= priced(turned, known)
    order, found = {}, []
    for name, axis in axes.items():
        # A head is as wide as so many channels.
        width = max(1, bounds.width // axis.width)
        least = 0 if axis.kind == "blocks" else math.ceil((1 - bounds.most) * axis.size)
        floor = max(axis.least(bounds.floor), least)
        if name not in known or axis.size <= floor or name in bounds.banned:
            continue
        order[name], prices = known[name]
        found.append(control.Choice(name, axis.size, width, floor, prices))
    return order, found


def repair(bench: Bench, inputs: tuple[Tensor, ...], steps_left: int) -> Repair:
    """Return how a cut is refitted; only in its means where more steps follow than the profile says.

    Parameters
    ----------
    inputs
        Samples of the training.
    """
    if steps_left <= bench.profile.control.refit_steps:
        return Repair(inputs)
    # As many as the network was traced with are enough for means, and need no other trace.
    few = len(bench.batch[0])
    return Repair(tuple(x[-few:] for x in inputs) if few >= FEWEST_FOR_MEANS else inputs, ())
