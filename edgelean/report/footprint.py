"""What the training itself took, taken apart: by component, measured and estimated, full-size and lean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgelean.report import numbers
from edgelean.report.model import EnergyPart, Report, Side

COMPONENTS = {"cpu": "processor", "gpu": "GPU", "ram": "memory"}


@dataclass(frozen=True)
class Segment:
    """A piece of a bar: what it is, how it is known, and its width in percent."""

    title: str
    how: str
    width: float


@dataclass(frozen=True)
class Bar:
    """One side as a bar; both sides have the same scale."""

    label: str
    segments: tuple[Segment, ...]
    total: str


@dataclass(frozen=True)
class Line:
    """One line of the table: a component, or the sum of all."""

    label: str
    how: str
    full: str
    lean: str
    is_sum: bool = False


@dataclass(frozen=True)
class Footprint:
    """The section of the page about the training, ready to print."""

    sentence: str
    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]

    @property
    def has_estimates(self) -> bool:
        """Whether a part of a bar is hatched."""
        return any(segment.how == "estimated" for bar in self.bars for segment in bar.segments)


def footprint(report: Report) -> Footprint | None:
    """Return what the trainings took; None where nothing is known about it."""
    full, lean = report.full_size, report.lean
    if not full.training_parts and not lean.training_parts:
        return None
    return Footprint(_sentence(report), _bars(full, lean), _lines(full, lean))


def certainty(parts: Iterable[EnergyPart]) -> str:
    """Return how a sum of parts is known: ``"measured"``, ``"estimated"``, ``"partly estimated"``, or nothing."""
    found = {part.how for part in parts}
    if {"measured", "estimated"} <= found:
        word = "partly estimated"
    else:
        word = next((how for how in ("measured", "estimated") if how in found), "")
    return ", ".join(filter(None, (word, "without the GPU" if "unknown" in found else "")))


def _sentence(report: Report) -> str:
    full, lean = report.full_size, report.lean
    energies = numbers.scaled((full.training_kwh, lean.training_kwh), "kWh")
    grams = numbers.scaled((full.training_co2_g, lean.training_co2_g), "g")
    told = [f"Training the lean model took {energies[1]}, which is {grams[1]} of CO₂."]
    if full.training_kwh is not None:
        verb = "took" if report.full_size_history else "would have taken"
        told.append(f"At full size it {verb} {energies[0]} and {grams[0]}.")
    known = {part.how for part in lean.training_parts} - {"unknown"}
    if known == {"estimated"}:
        told.append("All of this is estimated, nothing measured.")
    elif "estimated" in known and lean.training_kwh:
        share = (_sum(lean, "estimated") or 0.0) / lean.training_kwh
        told.append(f"Of what the lean model took, {numbers.percent(share)} is estimated.")
    if any(part.how == "unknown" for part in lean.training_parts):
        told.append("Its GPU could not be read, and comes on top.")
    return " ".join(told)


def _bars(full: Side, lean: Side) -> tuple[Bar, ...]:
    sides = [(label, side) for label, side in (("full-size", full), ("lean", lean)) if side.training_kwh]
    widest = max((side.training_kwh or 0.0 for _, side in sides), default=1.0)
    texts = numbers.scaled([side.training_kwh for _, side in sides], "kWh")
    return tuple(
        Bar(label, tuple(_segment(part, widest) for part in _ordered(side.training_parts) if part.kwh > 0), text)
        for (label, side), text in zip(sides, texts, strict=True)
    )


def _segment(part: EnergyPart, widest: float) -> Segment:
    title = f"{_name(part)}, {part.how}"
    return Segment(title, part.how, round(100 * part.kwh / widest, 2))


def _lines(full: Side, lean: Side) -> tuple[Line, ...]:
    """Return a line for each component and way of knowing it, then the sums, all in one unit."""
    both = (*full.training_parts, *lean.training_parts)
    kinds = {(part.component, part.how): part for part in _ordered(both)}
    rows: list[tuple[str, str, float | None, float | None]] = [
        (_name(part), part.how, _kwh(full, part), _kwh(lean, part)) for part in kinds.values()
    ]
    if certainty(both).startswith("partly"):
        rows += [(f"all {how}", "", _sum(full, how), _sum(lean, how)) for how in ("measured", "estimated")]
    rows.append(("together", certainty(both), full.training_kwh, lean.training_kwh))
    totals = (full.training_kwh, lean.training_kwh)
    texts = iter(numbers.scaled([figure for row in rows for figure in row[2:]], "kWh", totals, 2))
    lines = [
        Line(label, how, _cell(next(texts), left, how), _cell(next(texts), right, how), is_sum=number >= len(kinds))
        for number, (label, how, left, right) in enumerate(rows)
    ]
    left_g, right_g = numbers.scaled((full.training_co2_g, lean.training_co2_g), "g")
    return (*lines, Line("CO₂", certainty(both), left_g, right_g, is_sum=True))


def _ordered(parts: Sequence[EnergyPart]) -> list[EnergyPart]:
    """Return the parts in the order of trust."""
    return sorted(parts, key=lambda part: ("measured", "estimated", "unknown").index(part.how))


def _name(part: EnergyPart) -> str:
    return COMPONENTS.get(part.component, part.component)


def _kwh(side: Side, wanted: EnergyPart) -> float | None:
    same = [part.kwh for part in side.training_parts if (part.component, part.how) == (wanted.component, wanted.how)]
    return sum(same) if same and wanted.how != "unknown" else None


def _sum(side: Side, how: str) -> float | None:
    same = [part.kwh for part in side.training_parts if part.how == how]
    return sum(same) if same else None


def _cell(text: str, figure: float | None, how: str) -> str:
    """Return a figure; what a side does not have stays empty, what could not be read is unknown."""
    return text if figure is not None or how == "unknown" else ""
