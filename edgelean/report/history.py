"""The story of a run, read out of its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgelean.reading import Provenance
from edgelean.report.model import CutPoint, EpochPoint, ReadingPoint

Event = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """What happened over the training steps: the three tuples that a report holds."""

    epochs: tuple[EpochPoint, ...] = ()
    readings: tuple[ReadingPoint, ...] = ()
    cuts: tuple[CutPoint, ...] = ()


def from_events(events: Iterable[Event]) -> History:
    """Return the history that the events of a run tell.

    A rollback that says what the metric had become marks the last kept cut as not kept; without that, the cut was
    refused before it was made, and there is nothing to mark. After a ``resume``, what was recorded past its step
    happens again, so it is dropped.

    Parameters
    ----------
    events
        The objects of events.jsonl, in their order.
    """
    epochs: list[EpochPoint] = []
    readings: list[ReadingPoint] = []
    cuts: list[CutPoint] = []
    for event in events:
        match event["event"]:
            case "resume":
                epochs = [point for point in epochs if point.step <= event["step"]]
                readings = [point for point in readings if point.step <= event["step"]]
                cuts = [point for point in cuts if point.step <= event["step"]]
            case "epoch":
                epochs.append(EpochPoint(event["epoch"], event["step"], event["loss"], event["metric"]))
            case "reading":
                readings.append(_reading_point(event))
            case "cut":
                cuts.append(_cut_point(event))
            case "rollback" if "metric_now" in event:
                cuts = _take_back(cuts)
    return History(tuple(epochs), tuple(readings), tuple(cuts))


def _reading_point(event: Event) -> ReadingPoint:
    energy_provenance = event.get("energy_provenance")
    return ReadingPoint(
        step=event["step"],
        latency_ms=event["latency_ms"],
        latency_low_ms=event["latency_low_ms"],
        latency_high_ms=event["latency_high_ms"],
        energy_mj=event["energy_mj"],
        parameters=event["parameters"],
        macs=event["macs"],
        provenance=Provenance(event["provenance"]),
        energy_provenance=Provenance(energy_provenance) if energy_provenance else None,
    )


def _cut_point(event: Event) -> CutPoint:
    return CutPoint(
        step=event["step"],
        demand=event["demand"],
        binding=event["binding"],
        axes=tuple((cut["axis"], cut["before"], cut["after"]) for cut in event["axes"]),
        nats=event["nats"],
        metric_before=event["metric_before"],
        metric_after=event["metric_after"],
        law_error=event["law_error"],
        kept=True,
    )


def _take_back(cuts: list[CutPoint]) -> list[CutPoint]:
    last = max((index for index, cut in enumerate(cuts) if cut.kept), default=None)
    if last is None:
        return cuts
    return [*cuts[:last], replace(cuts[last], kept=False), *cuts[last + 1 :]]
