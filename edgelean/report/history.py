"""The story of a run, read out of its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelean.reading import Provenance
from edgelean.report.axes import Evolution, Look
from edgelean.report.model import CutPoint, EnergyPart, EpochPoint, ReadingPoint
from edgelean.shrink.certificate import Truncation

Event = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """What happened over the training steps: the three tuples that a report holds, and what a person should know."""

    epochs: tuple[EpochPoint, ...] = ()
    readings: tuple[ReadingPoint, ...] = ()
    cuts: tuple[CutPoint, ...] = ()
    notes: tuple[str, ...] = ()


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
    notes: list[str] = []
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
            case "note":
                notes.append(event["text"])
            case "rollback" if "metric_now" in event:
                cuts = _take_back(cuts)
    return History(tuple(epochs), tuple(readings), tuple(cuts), tuple(notes))


@dataclass(frozen=True)
class Spent:
    """What a training took, summed over the parts of a resumed run.

    Attributes
    ----------
    parts
        Energy by component and by how it is known; empty where nothing is known.
    """

    seconds: float
    parts: tuple[EnergyPart, ...]
    method: str

    @property
    def kwh(self) -> float | None:
        """The whole energy in kWh; None where nothing is known."""
        return sum(part.kwh for part in self.parts) if self.parts else None


def spent_on(events: Iterable[Event], chapter: str) -> Spent:
    """Return what a training took, by the name of its chapter (``"lean"``, ``"full-size"``)."""
    pieces = [event for event in events if event["event"] == "energy" and event["chapter"] == chapter]
    sums: dict[tuple[str, Any], float] = {}
    for piece in pieces:
        for name, part in piece["parts"].items():
            sums[name, part["how"]] = sums.get((name, part["how"]), 0.0) + part["kwh"]
    method = pieces[-1]["method"] if pieces else "not known"
    missed_s = sum(piece["seconds"] for piece in pieces if not piece["parts"])
    if sums and missed_s > 0:
        method += f"; {missed_s:.0f} s of the training are not in it, because nothing could be read then"
    parts = tuple(EnergyPart(name, how, kwh) for (name, how), kwh in sums.items())
    return Spent(sum(piece["seconds"] for piece in pieces), parts, method)


def evolutions(events: Iterable[Event], ranks: Callable[[int], tuple[int, ...]]) -> tuple[Evolution, ...]:
    """Return how the spectra of state space layers changed, in the order in which the layers were first seen.

    Parameters
    ----------
    events
        Those that count, in their order.
    ranks
        Tells for an order which of its Hankel singular values were recorded.
    """
    full: dict[str, int] = {}
    looks: dict[str, list[Look]] = {}
    for event in events:
        for layer, seen in event["layers"].items() if event["event"] == "spectrum" else ():
            full[layer] = seen["full"]
            looks.setdefault(layer, []).append(Look(event["step"], seen["states"], tuple(seen["sigma"])))
    return tuple(Evolution(layer, full[layer], ranks(2 * full[layer]), tuple(looks[layer])) for layer in looks)


def extrapolated(events: Sequence[Event], chapter: str, steps: int) -> Spent | None:
    """Return what a training would have taken in so many steps at its pace before the first cut; None without a cut.

    The power is taken to be that of the whole training, so every part of it is an estimate.
    """
    first = next((event for event in events if event["event"] == "cut"), None)
    if first is None:
        return None
    spent, seconds = spent_on(events, chapter), float(first["step_s"] * steps)
    scaled: dict[str, float] = {}
    for part in spent.parts:
        if part.how != "unknown" and spent.seconds > 0:
            scaled[part.component] = scaled.get(part.component, 0.0) + part.kwh * seconds / spent.seconds
    return Spent(seconds, tuple(EnergyPart(name, "estimated", kwh) for name, kwh in scaled.items()), spent.method)


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
        memory_bytes=event.get("memory_bytes"),
        size_bytes=event.get("size_bytes"),
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
        truncations=tuple(Truncation(**each) for each in event.get("truncations", ())),
    )


def _take_back(cuts: list[CutPoint]) -> list[CutPoint]:
    last = max((index for index, cut in enumerate(cuts) if cut.kept), default=None)
    if last is None:
        return cuts
    return [*cuts[:last], replace(cuts[last], kept=False), *cuts[last + 1 :]]
