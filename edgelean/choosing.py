"""Which precision a run computes in, where the profile leaves that open: the one that loses least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelean import control
from edgelean.bench import Bench
from edgelean.board import Precision
from edgelean.errors import InputError
from edgelean.feasibility import Reach, reach_of, refuse_the_unreachable
from edgelean.reading import Reading
from edgelean.shrink.wrappers import Ranks
from edgelean.surroundings import Surroundings
from edgelean.training.rounded import computing_in


@dataclass(frozen=True)
class Option:
    """One precision, and what the budgets would cost the model in it.

    Attributes
    ----------
    reading
        Of the present model in this precision.
    cut_nats
        Predicted loss of all cuts that the budgets still ask for in this precision.
    rounding_nats
        How much higher the validation loss is in this precision than in FP32, measured.
    metric_drop
        How much lower the validation metric is; None where nothing validates.
    reachable
        Whether the cuts would be enough.
    """

    precision: Precision
    reading: Reading
    cut_nats: float
    rounding_nats: float
    metric_drop: float | None
    reachable: bool

    @property
    def nats(self) -> float:
        """What the precision costs in all; rounding that happens to lower the loss counts as nothing."""
        return self.cut_nats + max(self.rounding_nats, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the option as plain JSON types."""
        return {
            "precision": self.precision,
            "latency_ms": self.reading.latency.value,
            "cut_nats": self.cut_nats,
            "rounding_nats": self.rounding_nats,
            "metric_drop": self.metric_drop,
            "reachable": self.reachable,
        }

    def words(self) -> str:
        """Return the option as a clause of a sentence."""
        latency = self.reading.latency
        figures = (
            f"{self.precision} takes {latency.value:.4g} {latency.unit} now, its cuts are predicted to cost "
            f"{self.cut_nats:.3g} nats, its rounding costs {self.rounding_nats:.3g}"
        )
        return figures if self.reachable else f"{figures} and does not reach the budgets"


def reach_in_some_precision(
    bench: Bench,
    around: Surroundings,
    floor: int,
    start: Mapping[str, control.Observed],
    limits: Mapping[str, float],
    ranks: Ranks,
) -> dict[str, Reach]:
    """Return what can be reached in the lowest precision that the model may have and the board tells of.

    See `edgelean.feasibility.reach_of`.

    Raises
    ------
    InputError
        They are missed, or there is a choice and nothing to choose by.
    """

    def reached() -> dict[str, Reach]:
        reach = ranks.first(lambda: reach_of(bench, floor, start, limits))
        refuse_the_unreachable(reach, floor, limits)
        return reach

    among = bench.profile.precisions
    if len(among) < 2:
        return reached()
    if around.loss is None:
        raise InputError(
            "which precision loses least is told by the validation loss, which only `edgelean fit` has: give one "
            "precision in the profile"
        )
    for precision in reversed(among):
        bench.compute_in(precision)
        try:
            reach = reached()
            break
        except InputError:  # too much, or the board does not tell how fast it is in this precision
            if precision == among[0]:
                raise
    bench.compute_in(among[0])
    return reach


def in_any_precision(reading: Reading) -> Reading:
    """Return a reading that may be compared with one in another precision."""
    return replace(reading, conditions={key: of for key, of in reading.conditions.items() if key != "precision"})


def choose(
    bench: Bench,
    around: Surroundings,
    limits: Mapping[str, float],
    enter: Callable[[Precision], Sequence[control.Choice]],
) -> tuple[Option, dict[str, Any]]:
    """Return the precision that loses least within the budgets, and the event that tells it; see `options_of`."""
    options = options_of(bench, around, limits, enter)
    best = chosen(options, bench.profile.accuracy.cut_tolerance)
    text = f"{best.precision} is chosen: {'; '.join(option.words() for option in options)}"
    return best, {
        "precision": best.precision,
        "options": [option.to_json() for option in options],
        "text": text,
    }


def options_of(
    bench: Bench,
    around: Surroundings,
    limits: Mapping[str, float],
    enter: Callable[[Precision], Sequence[control.Choice]],
) -> list[Option]:
    """Return what each precision costs that the profile leaves open, without those that the board does not tell of.

    Parameters
    ----------
    limits
        The budgets in ms and mJ.
    enter
        Lets the bench compute in a precision, and returns what can be cut then, down to the floors.
    """
    measured = {precision: _validated(around, precision) for precision in bench.profile.precisions}
    exact_loss, exact_metric = measured.get("fp32") or _validated(around, "fp32")
    options = []
    for precision, (loss, metric) in measured.items():
        try:
            choices = enter(precision)
            reading = bench.read()
            cut_nats, reachable = _cuts(bench, reading, choices, limits)
        except InputError:  # a rate of the board is not known
            continue
        drop = None if metric is None or exact_metric is None else exact_metric - metric
        options.append(Option(precision, reading, cut_nats, loss - exact_loss, drop, reachable))
    return options


def _validated(around: Surroundings, precision: Precision) -> tuple[float, float | None]:
    """Return the validation loss and metric of the model as it computes in a precision."""
    if around.loss is None:
        return math.nan, None
    with around.stopwatch.phase("evaluating"), computing_in(precision):
        return around.loss(), None if around.validate is None else around.validate()


def _cuts(
    bench: Bench, reading: Reading, choices: Sequence[control.Choice], limits: Mapping[str, float]
) -> tuple[float, bool]:
    """Return what all cuts are predicted to lose that the budgets ask for, and whether they would be enough."""
    aim, seen = 1 - bench.profile.control.margin, bench.observed(reading)
    targets = {name: aim * limit * seen[name].cost / seen[name].measured for name, limit in limits.items()}
    allocation = control.allocate(choices, bench.cost, targets)
    return allocation.nats, allocation.feasible


def chosen(options: Sequence[Option], tolerance: float) -> Option:
    """Return the option with the fewest nats among those that reach the budgets; the first of equal ones.

    An option whose metric falls by more than a cut may cost is taken only if all do.

    Parameters
    ----------
    options
        From the highest precision to the lowest.
    tolerance
        Largest drop of the metric.
    """

    def rank(option: Option) -> tuple[bool, bool, float]:
        nats = option.nats if math.isfinite(option.nats) else math.inf
        return not option.reachable, (option.metric_drop or 0.0) > tolerance, nats

    return min(options, key=rank)
