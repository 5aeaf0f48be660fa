"""Which budgets can be reached at all: said before the training, with the number."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from edgelean.bench import Bench
from edgelean.control import Observed
from edgelean.errors import InputError
from edgelean.judging import figure_of
from edgelean.profile import Profile
from edgelean.quantity import UNITS, amount, word
from edgelean.reading import Provenance, Reading

DOUBT = 3.0
"""So far a prediction of the cost model may be off."""

FAR = 10
"""So many times as far as the predicted costs of the trace and of the exported file of the full-size model are apart, a
budget has to be away for the artifact not to be read before the cutting ends; it is exported and judged at the end."""

NEAR = 0.10
"""A budget within this share of the least that can be reached is warned about: almost nothing would be left."""


@dataclass(frozen=True)
class Reach:
    """The range of one quantity: from the model at its smallest to the full-size one, in its unit.

    Attributes
    ----------
    least, low
        Of the smallest, and the lower end of its interval.
    provenance
        Of the smallest: modelled where the full-size reading is scaled by the cost model.
    """

    least: float
    low: float
    full_size: float
    provenance: Provenance


def limits_of(profile: Profile, full_size: Reading) -> dict[str, float]:
    """Return the budgets on costs, each in the unit of its quantity.

    Raises
    ------
    InputError
        If there is a budget on something that nothing here can tell.
    """
    limits: dict[str, float] = {}
    for budget in profile.budgets.costs:
        figure = figure_of(full_size, budget.quantity)
        if figure is None:
            raise InputError(
                f"profile {profile.name!r} has an {budget.quantity} budget, but nothing here can tell the "
                f"{budget.quantity}: see `edgelean doctor` for the sensors, or use --target modelled"
            )
        limits[budget.quantity] = budget.resolve(figure.value)
    return limits


def reach_of(bench: Bench, floor: int, start: Mapping[str, Observed], limits: Mapping[str, float]) -> dict[str, Reach]:
    """Return the range of each quantity that was read.

    The smallest model is built and read where the cost model, which may be off by a factor of `DOUBT`, leaves it open
    whether a budget can be reached; not where the target is that cost model, and the trace costs what the file does.

    Parameters
    ----------
    floor
        Channels, or elements of heads, that every axis keeps.
    start
        The full-size model, per quantity.
    limits
        The budgets.
    """
    keep = {name: axis.least(floor) for name, axis in bench.anatomy.axes.items()}
    least = bench.cost(keep)
    predicted = {name: seen.measured * least[name] / seen.cost for name, seen in start.items()}
    known = bench.target.provenance is Provenance.MODELLED and bench.trace_tells()
    open_ = not known and any(limits[name] < DOUBT * predicted[name] for name in limits)
    read = None
    if open_:
        # A user's model may not like to be copied, or to be cut before it learned anything: then the model decides.
        with suppress(Exception):
            read = bench.read_cut(keep)
    reach: dict[str, Reach] = {}
    for name, seen in start.items():
        figure = None if read is None else figure_of(read, name)
        if figure is None:
            reach[name] = Reach(predicted[name], predicted[name], seen.measured, Provenance.MODELLED)
        else:
            reach[name] = Reach(figure.value, figure.low, seen.measured, figure.provenance)
    return reach


def refuse_the_unreachable(reach: Mapping[str, Reach], floor: int, limits: Mapping[str, float]) -> None:
    """Compare the budgets with the model at its smallest.

    Raises
    ------
    InputError
        If budgets are below what that needs; says how much it is, of each.
    """
    short = [name for name, limit in limits.items() if limit < reach[name].low]
    if short:
        told = "; ".join(
            f"the {word(name)} budget of {amount(limits[name], UNITS[name])} is below anything that can be reached: "
            f"the model at its smallest (every axis at {floor} units) needs about "
            f"{amount(reach[name].least, UNITS[name])} ({reach[name].provenance}), at full size "
            f"{amount(reach[name].full_size, UNITS[name])}"
            for name in short
        )
        raise InputError(told)


def warnings_on(reach: Mapping[str, Reach], limits: Mapping[str, float]) -> tuple[str, ...]:
    """Return a sentence for each budget that is near the least that can be reached."""
    return tuple(
        f"The {word(name)} budget of {amount(limit, UNITS[name])} is near the edge: the model at its smallest needs "
        f"{amount(reach[name].least, UNITS[name])} ({reach[name].provenance}), and what is left of it may not be "
        "accurate."
        for name, limit in limits.items()
        if limit < reach[name].least * (1 + NEAR)
    )


def within_for_sure(seen: Mapping[str, Observed], apart: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Tell whether the exported model meets the budgets as well where its trace does.

    Parameters
    ----------
    seen
        What was read of the trace.
    apart
        How far the trace and the exported file of the full-size model were apart, per quantity.
    """
    return all(name in apart and seen[name].measured + FAR * apart[name] <= limit for name, limit in limits.items())
