"""A reading against the budgets of a profile."""

from __future__ import annotations

from collections.abc import Mapping

from edgelean.profile import Budgets, Quantity
from edgelean.reading import Figure, Reading
from edgelean.report.model import Outcome, Verdict
from edgelean.target.latency import verdict as binomial_verdict


def judge(
    budgets: Budgets, reading: Reading, limits: Mapping[str, float], full_size: Mapping[str, float]
) -> tuple[Verdict, ...]:
    """Return a verdict for every budget that has a limit and was read.

    Parameters
    ----------
    limits
        The budgets by their quantity, in ms and mJ; a share of a full-size model that nobody knows has none.
    full_size
        What the full-size model takes, by quantity in ms and mJ, where it is known.
    """
    verdicts = []
    for budget in (budgets.latency, budgets.energy):
        figure = None if budget is None else figure_of(reading, budget.quantity)
        if budget is None or figure is None or budget.quantity not in limits:
            continue
        limit = limits[budget.quantity]
        verdicts.append(
            Verdict(
                quantity=budget.quantity,
                unit=figure.unit,
                limit=limit,
                limit_text=f"{100 * budget.share:g} % of full-size" if budget.share is not None else str(budget),
                value=figure.value,
                low=figure.low,
                high=figure.high,
                full_size=full_size.get(budget.quantity),
                outcome=outcome(reading, budget.quantity, limit),
                margin=1 - figure.value / limit,
                provenance=figure.provenance,
                method=figure.method,
                percentile=budget.percentile,
            )
        )
    return tuple(verdicts)


def outcome(reading: Reading, quantity: Quantity, limit: float) -> Outcome:
    """Judge one figure: a limit inside its interval is undecided, and so is everything that was read amid noise.

    The interval of a latency has what differs between sessions in it, which a count of calls knows nothing of. What is
    outside is then judged by that count: see :func:`edgelean.target.latency.verdict`.

    Parameters
    ----------
    limit
        In the unit of the figure.
    """
    figure = figure_of(reading, quantity)
    if figure is None or reading.noise or figure.low <= limit < figure.high:
        return "undecided"
    if quantity == "latency" and reading.samples_ms:
        return binomial_verdict(reading.samples_ms, limit, reading.percentile)
    return "met" if figure.high <= limit else "not met"


def figure_of(reading: Reading, quantity: Quantity) -> Figure | None:
    """Return the figure that a budget on a quantity is about."""
    return reading.latency if quantity == "latency" else reading.energy


def values_of(reading: Reading) -> dict[str, float]:
    """Return the figures that budgets are about, by quantity, in ms and mJ."""
    quantities: tuple[Quantity, ...] = ("latency", "energy")
    return {name: figure.value for name in quantities if (figure := figure_of(reading, name)) is not None}
