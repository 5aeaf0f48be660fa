"""Decisions in words, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgelean.quantity import UNITS, amount, word
from edgelean.report import numbers
from edgelean.report.decisions import Decision, Seen
from edgelean.report.front import TradeOff

CLAMPS = {
    "largest cut": "no single cut may remove more",
    "dead band": "too little to be worth a cut",
    "reference": "it is where it should be by now",
    "read again": "too close to call, it is read again first",
}
"""What each clamp means."""


@dataclass(frozen=True)
class Explained:
    """One decision, ready to print: a title, and what was read, demanded, cut, and what it cost, each with its name."""

    title: str
    outcome: str
    parts: tuple[tuple[str, str], ...]


def explained(decisions: Iterable[Decision], metric_name: str) -> tuple[Explained, ...]:
    """Return the decisions in words; cuts are numbered as in the table of cuts."""
    told, cuts = [], 0
    for decision in decisions:
        cuts += bool(decision.axes)
        name = f"cut {cuts}" if decision.axes else "no cut"
        outcome = "" if not decision.axes else "kept" if decision.kept else "rolled back"
        told.append(Explained(f"step {decision.step}, {name}", outcome, _parts(decision, metric_name)))
    return tuple(told)


def _parts(decision: Decision, metric_name: str) -> tuple[tuple[str, str], ...]:
    parts = [("read", _read(one, decision)) for one in decision.seen]
    parts.append(("demanded", _demanded(decision)))
    if decision.axes:
        parts.append(("cut", _cut(decision)))
        parts += [("now", _now(one)) for one in decision.seen if one.measured_after is not None]
        parts.append(("cost", _cost(decision, metric_name)))
        parts += [("price", _price(one)) for one in decision.seen if one.price]
        free = [word(one.quantity) for one in decision.seen if one.price == 0]
        parts += [("", f"more of {' or '.join(free)} would buy nothing: others bind")] if free else []
    parts += [("why", note) for note in decision.notes]
    return tuple(parts)


def _read(one: Seen, decision: Decision) -> str:
    measured = numbers.against(one.measured, one.budget, one.unit)
    spread = ""
    if one.low < one.high:
        (low, high), unit = numbers.in_unit((one.low, one.high), one.unit)
        spread = f" (95 %: {low} to {high} {unit})"
    binding = ", binding" if one.quantity == decision.binding else ""
    return f"{word(one.quantity)} {measured}{spread}, {one.standing}{binding}{_model(one.measured, one.predicted, one)}"


def _model(measured: float, predicted: float | None, one: Seen) -> str:
    """Return what the cost model says, where that is not what was read."""
    if predicted is None or abs(predicted - measured) <= 0.001 * abs(measured):
        return ""
    return f"; the cost model says {numbers.amounts((predicted,), one.unit)[0]}"


def _demanded(decision: Decision) -> str:
    clamp = f"; clamp: {decision.clamp} ({CLAMPS[decision.clamp]})" if decision.clamp else ""
    return f"{decision.reason}{clamp}"


def _cut(decision: Decision) -> str:
    axes = ", ".join(f"{name} {before} → {after}" for name, before, after in decision.axes)
    short = "" if decision.reached else "; less than demanded: a cut takes so much of an axis at most, or its floor"
    return f"{axes}{short}"


def _now(one: Seen) -> str:
    after = one.measured_after or 0.0
    now, wanted = numbers.amounts((after, one.target), one.unit)
    model = _model(after, one.predicted_after, one)
    return f"{word(one.quantity)} {now}{model}; predicted, it was to be {wanted} at most"


def _cost(decision: Decision, metric_name: str) -> str:
    nats = f"predicted {numbers.number(decision.nats or 0.0, 2)} nats; "
    before, after, recovered = (
        numbers.metric_text(metric_name, metric)
        for metric in (decision.metric_before, decision.metric_after, decision.metric_recovered)
    )
    return f"{nats}{metric_name} {before} before, {after} right after, {recovered} after recovery"


def _price(one: Seen) -> str:
    share = 0.01 * one.budget
    price = one.price or 0.0
    bought = numbers.number(price * share, 2)
    rate = numbers.number(price * (1e6 if one.unit == "bytes" else 1.0), 2)
    unit = "MB" if one.unit == "bytes" else one.unit
    more = f"{word(one.quantity)}: 1 % more ({amount(share, one.unit, 2)})"
    return f"{more} would buy back {bought} nats ({rate} nats per {unit})"


def trade_offs(front: Sequence[TradeOff], metric_name: str) -> tuple[tuple[str, ...], ...]:
    """Return the rows of the front: step, metric, each cost, parameters, widths, and a remark."""
    names = list(front[0].costs) if front else []
    return tuple(
        (
            str(point.step),
            numbers.metric_text(metric_name, point.metric),
            *(amount(point.costs[name], UNITS[name]) for name in names),
            f"{point.parameters:,}",
            " ".join(f"{name} {units}" for name, units in point.widths),
            "" if point.kept else "rolled back",
        )
        for point in front
    )


def columns(front: Sequence[TradeOff], metric_name: str) -> tuple[str, ...]:
    """Return the heads of the columns of `trade_offs`."""
    return (
        "step",
        metric_name,
        *(word(name) for name in (front[0].costs if front else ())),
        "parameters",
        "widths",
        "",
    )
