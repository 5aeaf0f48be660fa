"""A reading against the budgets of a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgelean.budget import Budget, Budgets
from edgelean.quantity import QUANTITIES
from edgelean.reading import Figure, Provenance, Reading
from edgelean.report.model import Outcome, Verdict
from edgelean.target.latency import verdict as binomial_verdict


def judge(
    budgets: Budgets, reading: Reading, limits: Mapping[str, float], full_size: Mapping[str, float]
) -> tuple[Verdict, ...]:
    """Return a verdict for every budget that has a limit and was read.

    Parameters
    ----------
    limits
        The budgets by their quantity, each in its unit; a share of a full-size model that nobody knows has none.
    full_size
        What the full-size model takes, by quantity, where it is known.
    """
    verdicts = []
    for budget in budgets.given:
        figure = figure_of(reading, budget.quantity)
        if figure is None or budget.quantity not in limits:
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


@dataclass(frozen=True)
class Kept:
    """What is left of the metric, on one split: of the full-size model and of the lean one, higher is better.

    Attributes
    ----------
    method
        Which model and which split each is of, in words.
    """

    full_size: float
    lean: float
    method: str

    @property
    def loss(self) -> float:
        """What was lost, in points; negative where the lean model is better."""
        return 100 * (self.full_size - (0.0 if math.isnan(self.lean) else self.lean))


def judge_loss(budget: Budget, kept: Kept) -> Verdict:
    """Return the verdict on an accuracy loss; a metric that is no number is lost altogether."""
    limit, loss = budget.resolve(math.nan), kept.loss
    return Verdict(
        quantity=budget.quantity,
        unit=budget.unit,
        limit=limit,
        limit_text=str(budget),
        value=loss,
        low=loss,
        high=loss,
        full_size=None,
        outcome="met" if loss <= limit else "not met",
        margin=1 - loss / limit,
        provenance=Provenance.MEASURED,
        method=kept.method,
        percentile=budget.percentile,
    )


def outcome(reading: Reading, quantity: str, limit: float) -> Outcome:
    """Judge one figure: a limit inside its interval is undecided, and so is what was timed amid noise.

    The interval of a latency has what differs between sessions in it, which a count of calls knows nothing of. What is
    outside is then judged by that count: see :func:`edgelean.target.latency.verdict`.

    Parameters
    ----------
    limit
        In the unit of the figure.
    """
    figure = figure_of(reading, quantity)
    timed = quantity in ("latency", "energy")
    if figure is None or (timed and reading.noise) or figure.low <= limit < figure.high:
        return "undecided"
    if quantity == "latency" and reading.samples_ms:
        return binomial_verdict(reading.samples_ms, limit, reading.percentile)
    return "met" if figure.high <= limit else "not met"


def figure_of(reading: Reading, quantity: str) -> Figure | None:
    """Return the figure that a budget on a quantity is about; a reading knows nothing of the accuracy."""
    found: Figure | None = None if quantity == "accuracy_loss" else getattr(reading, quantity)
    return found


def provenance_of(reading: Reading, quantity: str) -> Provenance:
    """Return where the figure of a quantity that was read comes from."""
    figure = figure_of(reading, quantity)
    return Provenance.MODELLED if figure is None else figure.provenance


def values_of(reading: Reading) -> dict[str, float]:
    """Return the figures that budgets are about, by quantity, each in its unit."""
    return {name: figure.value for name in QUANTITIES if (figure := figure_of(reading, name)) is not None}
