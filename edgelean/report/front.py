"""The trade-offs that a run has seen: which structure, how accurate, at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelean.quantity import FIELDS, UNITS, amount, word
from edgelean.report.numbers import metric_text

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """One structure that the network had for a while.

    Attributes
    ----------
    step
        The training step from which it had it.
    widths
        Units of each axis that was ever cut.
    metric
        The best on the validation data while the network had it, right after the cut left out.
    costs
        What was read of it, by quantity, each in its unit.
    kept
        False where the cut that led to it was taken back.
    """

    step: int
    parameters: int
    widths: tuple[tuple[str, int], ...]
    metric: float
    costs: Mapping[str, float]
    kept: bool = True

    def beats(self, other: TradeOff) -> bool:
        """Tell whether this one is nowhere worse than another, and somewhere better."""
        pairs = [(-self.metric, -other.metric), *((self.costs[name], other.costs[name]) for name in self.costs)]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    def within(self, limits: Mapping[str, float]) -> bool:
        """Tell whether it holds these budgets."""
        return all(self.costs[name] <= limit for name, limit in limits.items())


@dataclass(frozen=True)
class _Structure:
    step: int
    widths: Mapping[str, int]
    parameters: int = 0
    costs: Mapping[str, float] | None = None
    metric: float = -math.inf

    def with_metric(self, metric: float | None) -> _Structure:
        known = metric is not None and not math.isnan(metric)
        return replace(self, metric=max(self.metric, metric)) if known and metric is not None else self


def seen(events: Iterable[Event]) -> tuple[TradeOff, ...]:
    """Return every structure of which both a metric and the budgeted costs are known, in the order of the run.

    Parameters
    ----------
    events
        Those that count, in their order.
    """
    names: list[str] = []
    stack: list[_Structure] = []
    over: list[tuple[_Structure, bool]] = []
    for event in events:
        kind = event["event"]
        if kind == "start":
            names = [budget["quantity"] for budget in event["budgets"] if budget["quantity"] in FIELDS]
            stack = [_Structure(0, event["full_size"]["axes"])]
        elif not stack:
            continue
        elif kind == "reading":
            costs = {name: event.get(FIELDS[name]) for name in names}
            known = {name: cost for name, cost in costs.items() if cost is not None}
            stack[-1] = replace(stack[-1], parameters=event["parameters"], costs=known)
        elif kind in ("demand", "epoch"):
            stack[-1] = stack[-1].with_metric(event.get("metric"))
        elif kind == "cut":
            after = {axis["axis"]: axis["after"] for axis in event["axes"]}
            stack[-1] = stack[-1].with_metric(event["metric_before"])
            stack.append(_Structure(event["step"], {**stack[-1].widths, **after}))
        elif kind == "rollback" and "metric_now" in event and len(stack) > 1:
            over.append((stack.pop().with_metric(event["metric_now"]), False))
    found = [*((each, True) for each in stack), *over]
    cut = {name for each, _ in found for name, units in each.widths.items() if units != found[0][0].widths[name]}
    points = (_point(each, kept, cut) for each, kept in sorted(found, key=lambda pair: pair[0].step))
    return tuple(point for point in points if math.isfinite(point.metric) and point.costs.keys() == set(names))


def front(points: Sequence[TradeOff]) -> tuple[TradeOff, ...]:
    """Return those that no other one beats: the Pareto front."""
    return tuple(point for point in points if not any(other.beats(point) for other in points))


def nearest(
    points: Sequence[TradeOff], limits: Mapping[str, float], tolerance: float, metric_name: str
) -> tuple[str, ...]:
    """Return in words which budgets, or which accuracy, would have been feasible.

    Parameters
    ----------
    points
        Structures that were seen.
    limits
        The budgets on costs that were asked for.
    tolerance
        Drop of the metric, against the best, that is accepted.
    """
    if not points:
        return ()
    floor = max(point.metric for point in points) - tolerance
    sentences = []
    accurate = [point for point in points if point.metric >= floor]
    closest = min(accurate, key=lambda point: max(point.costs[name] / limit for name, limit in limits.items()))
    figures = ", ".join(f"{word(name)} {amount(_above(closest.costs[name]), UNITS[name])}" for name in limits)
    sentences.append(
        f"The nearest budgets that hold with {metric_name} of at least {metric_text(metric_name, floor)}: {figures} "
        f"({metric_name} {metric_text(metric_name, closest.metric)}, the structure of step {closest.step})."
    )
    lean = [point for point in points if point.within(limits)]
    if lean and not closest.within(limits):
        best = max(lean, key=lambda point: point.metric)
        sentences.append(
            f"The budgets were held at step {best.step}, with {metric_name} "
            f"{metric_text(metric_name, best.metric)}: whoever accepts that sets cut_tolerance to at least "
            f"{_above(max(point.metric for point in points) - best.metric):.3g}."
        )
    return tuple(sentences)


def _above(value: float) -> float:
    """Return the next number of three digits that is not below a value: as a budget it holds."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return math.ceil(value / step - 1e-9) * step


def _point(structure: _Structure, kept: bool, cut: Iterable[str]) -> TradeOff:
    return TradeOff(
        step=structure.step,
        parameters=structure.parameters,
        widths=tuple((name, structure.widths[name]) for name in sorted(cut)),
        metric=structure.metric,
        costs=structure.costs or {},
        kept=kept,
    )
