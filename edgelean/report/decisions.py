"""Why each cut was made, and what it cost: the events of a run put together, decision by decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgelean.quantity import FIELDS, UNITS

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One budgeted quantity at a decision, each figure in its unit.

    Attributes
    ----------
    measured, low, high
        What was read, and the ends of its 95 % interval.
    predicted, target, predicted_after
        What the cost model says of the structure, what it was to cost at most, and what the cut one costs.
    measured_after
        What was read of the cut structure.
    standing
        Where the quantity stood against its budget.
    price
        Nats that a further unit would buy back; None where nothing was cut.
    """

    quantity: str
    unit: str
    measured: float
    low: float
    high: float
    predicted: float
    target: float
    budget: float
    standing: str
    predicted_after: float | None = None
    measured_after: float | None = None
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One event of the controller.

    Attributes
    ----------
    binding
        The quantity that asked; ``"tolerance"`` for a cut by the tolerance on Hankel singular values.
    demanded, aim, clamp, reason
        Share of the binding quantity's predicted cost that had to go, where its output should then be, what kept it
        from being more, and all of it in words.
    axes
        ``(axis, units before, units after)`` of what was cut; empty where nothing was.
    nats
        Loss that the cut was predicted to cost.
    reached
        False where not even all that may go at once met the demand.
    metric_before, metric_after, metric_recovered
        On the validation data before the cut, right after it, and when the network had time to recover.
    kept
        False when the cut was taken back.
    notes
        Why nothing was cut, or why a cut was taken back.
    """

    step: int
    binding: str
    demanded: float = 0.0
    aim: float | None = None
    clamp: str = ""
    reason: str = ""
    seen: tuple[Seen, ...] = ()
    axes: tuple[tuple[str, int, int], ...] = ()
    nats: float | None = None
    reached: bool = True
    metric_before: float | None = None
    metric_after: float | None = None
    metric_recovered: float | None = None
    kept: bool = True
    notes: tuple[str, ...] = ()


@dataclass
class _Story:
    """The decisions so far; the last cut waits for its recovery."""

    told: list[Decision] = field(default_factory=list)

    def change(self, place: int, **fields: Any) -> None:
        self.told[place] = replace(self.told[place], **fields)

    def last_cut(self) -> int | None:
        """Return the place of the last cut that was kept."""
        return max((i for i, each in enumerate(self.told) if each.axes and each.kept), default=None)

    def recovered(self, metric: float | None) -> None:
        """Note what the metric came back to after the last cut, unless that is known."""
        place = self.last_cut()
        if place is not None and metric is not None and self.told[place].metric_recovered is None:
            self.change(place, metric_recovered=metric)


def decisions(events: Iterable[Event]) -> tuple[Decision, ...]:
    """Return every decision of a run, in order, with what came of it.

    Parameters
    ----------
    events
        Those that count, in their order.
    """
    story, last_metric = _Story(), None
    for event in events:
        match event["event"]:
            case "demand":
                story.recovered(event["metric"])
                story.told.append(_asked(event))
            case "cut":
                _cut(story, event)
            case "reading":
                _read(story, event)
            case "wait" if story.told and story.told[-1].step == event["step"]:
                story.change(-1, notes=(*story.told[-1].notes, event["reason"]))
            case "rollback":
                _taken_back(story, event)
            case "epoch":
                last_metric = event["metric"]
    story.recovered(last_metric)
    return tuple(story.told)


def _asked(event: Event) -> Decision:
    seen = tuple(
        Seen(
            quantity=name,
            unit=UNITS[name],
            measured=one["measured"],
            low=one["low"],
            high=one["high"],
            predicted=one["cost"],
            target=event["targets"][name],
            budget=event["budgets"][name],
            standing=event["standings"][name],
        )
        for name, one in event["observed"].items()
    )
    return Decision(
        step=event["step"],
        binding=event["binding"],
        demanded=event["demand"],
        aim=event["reference"],
        clamp=event["clamp"],
        reason=event["reason"],
        seen=seen,
        metric_before=event["metric"],
    )


def _cut(story: _Story, event: Event) -> None:
    if not (story.told and story.told[-1].step == event["step"] and event["binding"] != "tolerance"):
        reason = "what the tolerance on the Hankel singular values allows"
        story.told.append(Decision(step=event["step"], binding=event["binding"], reason=reason))
    last = story.told[-1]
    predicted, prices = event.get("predicted", {}), event.get("prices", {})
    seen = [
        replace(one, predicted_after=predicted.get(one.quantity), price=prices.get(one.quantity)) for one in last.seen
    ]
    story.change(
        -1,
        seen=tuple(seen),
        axes=tuple((cut["axis"], cut["before"], cut["after"]) for cut in event["axes"]),
        nats=event["nats"],
        reached=event.get("feasible", True),
        metric_before=event["metric_before"],
        metric_after=event["metric_after"],
    )


def _read(story: _Story, event: Event) -> None:
    """Note the first reading after a cut, which is of the cut structure."""
    if not (story.told and story.told[-1].axes and story.told[-1].step == event["step"]):
        return
    seen = [
        one if one.measured_after is not None else replace(one, measured_after=event.get(FIELDS[one.quantity]))
        for one in story.told[-1].seen
    ]
    story.change(-1, seen=tuple(seen))


def _taken_back(story: _Story, event: Event) -> None:
    place = story.last_cut()
    if place is not None and "metric_now" in event:
        notes = (*story.told[place].notes, event["reason"])
        story.change(place, kept=False, metric_recovered=event["metric_now"], notes=notes)
