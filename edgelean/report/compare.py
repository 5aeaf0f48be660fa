"""Several runs beside one another: which of them nothing else beats, and why some cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgelean.errors import InputError
from edgelean.reading import COMPARED, Figure, Provenance, Reading, incomparable
from edgelean.report import numbers
from edgelean.report.model import Outcome, Report
from edgelean.report.story import outcome

OWN = ("precision",)
"""Conditions that are a property of the artifact: runs that differ in them are what one wants to compare."""


@dataclass(frozen=True)
class Contender:
    """One run: its folder as it was named, its report, and the samples per call of its profile."""

    name: str
    report: Report
    batch: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in the comparison.

    Attributes
    ----------
    number
        What stands beside it in the plot.
    name
        The run's folder; of a full-size model the runs that began with it.
    metric
        Of the exported file where that was checked, on the test split; None where nobody knows it.
    best
        Whether no other model is at least as good and as fast, and better in one of both.
    outcome
        Whether the budgets were met; None for a full-size model.
    """

    number: int
    name: str
    recipe: str
    profile: str
    precision: str
    provenance: Provenance
    metric: float | None
    latency_ms: float
    energy_mj: float | None
    parameters: int | None
    artifact_bytes: int | None
    outcome: Outcome | None
    best: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models on one board, measured in one way, by one metric."""

    board: str
    metric_name: str
    batch: int
    percentile: float
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        return asdict(self)


def compare(contenders: Sequence[Contender]) -> Comparison:
    """Put runs beside one another, and the full-size models that they began with.

    Raises
    ------
    InputError
        There are fewer than two, or two of them cannot be compared: another board, metric, batch, percentile,
        provenance, or another condition of the reading such as the power mode.
    """
    if len(contenders) < 2:
        raise InputError("a comparison needs two runs at least: name the folders that `edgelean fit` wrote")
    first = contenders[0]
    for other in contenders[1:]:
        if why := _apart(first, other):
            raise InputError(
                f"{first.name} and {other.name} cannot be compared: {why}; read both anew under one condition, with "
                "`edgelean measure RUN` or `edgelean fit`"
            )
    plain = [*map(_lean, contenders), *_full_sizes(contenders)]
    points = [Point(number=index, best=_unbeaten(each, plain), **each) for index, each in enumerate(plain, 1)]
    return Comparison(
        board=first.report.board,
        metric_name=first.report.metric_name,
        batch=first.batch,
        percentile=_percentile(first.report),
        points=tuple(points),
    )


def _apart(first: Contender, other: Contender) -> str:
    """Return why two runs cannot be compared; empty where they can."""
    before, now = _facts(first), _facts(other)
    for what, value in before.items():
        if now[what] != value:
            return f"the {what} was {value} and is now {now[what]}"
    return incomparable(_reading(first), _reading(other))


def _facts(contender: Contender) -> dict[str, Any]:
    report = contender.report
    return {
        "board": report.board,
        "metric": report.metric_name,
        "batch": contender.batch,
        "percentile": _percentile(report),
        "provenance": str(report.lean.provenance),
    }


def _percentile(report: Report) -> float:
    return next((verdict.percentile for verdict in report.verdicts if verdict.quantity == "latency"), 50.0)


def _reading(contender: Contender) -> Reading:
    """Return the reading that a report tells of, with its conditions."""
    lean = contender.report.lean
    latency_ms = lean.latency_ms or 0.0
    figure = Figure(latency_ms, latency_ms, latency_ms, "ms", lean.provenance, "")
    conditions = {key: contender.report.environment[key] for key in COMPARED if key in contender.report.environment}
    own = {key: value for key, value in conditions.items() if key not in OWN}
    return Reading(figure, None, contender.batch, _percentile(contender.report), conditions=own)


def _lean(contender: Contender) -> dict[str, Any]:
    report = contender.report
    if report.lean.latency_ms is None:
        raise InputError(f"{contender.name}: its report has no latency; fit it again with this version")
    precision = report.environment.get("precision", "")
    checked = [check for check in report.checks if check.precision == precision and check.form != "step"]
    metric = checked[0].metric_artifact if checked else report.lean.accuracy
    sides = {"metric": metric, "outcome": outcome(report), "precision": precision}
    return _told(contender.name, report, lean=True) | sides


def _full_sizes(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Return the full-size models, one a recipe, board and profile; of equal ones the first that knows its metric."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for contender in contenders:
        report = contender.report
        if report.full_size.latency_ms is None:
            continue
        key = report.recipe, report.profile
        told = _told(f"full-size {report.recipe}", report, lean=False)
        told |= {"metric": report.full_size.accuracy, "outcome": None, "precision": ""}
        if key not in found or found[key]["metric"] is None:
            found[key] = told
    return list(found.values())


def _told(name: str, report: Report, *, lean: bool) -> dict[str, Any]:
    side = report.lean if lean else report.full_size
    return {
        "name": name,
        "recipe": report.recipe,
        "profile": report.profile,
        "provenance": side.provenance,
        "latency_ms": side.latency_ms,
        "energy_mj": side.energy_mj,
        "parameters": side.parameters,
        "artifact_bytes": side.artifact_bytes,
    }


def _unbeaten(point: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether nothing is at least as good and as fast, and better in one of both."""
    if point["metric"] is None:
        return False
    here = point["metric"], -point["latency_ms"]
    there = [(other["metric"], -other["latency_ms"]) for other in others if other["metric"] is not None]
    return not any(a >= here[0] and b >= here[1] and (a, b) != here for a, b in there)


COLUMNS = ("", "run", "recipe", "profile", "{metric}", "latency", "energy", "parameters", "artifact", "budgets", "")


def columns(comparison: Comparison) -> tuple[str, ...]:
    """Return the headings of `rows`."""
    return tuple(column.format(metric=comparison.metric_name) for column in COLUMNS)


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a row of texts per model, as a person reads them."""
    points = comparison.points
    latencies = numbers.aligned([point.latency_ms for point in points])
    energies = numbers.aligned([point.energy_mj for point in points])
    sizes = numbers.scaled([point.artifact_bytes for point in points], "bytes")
    counts = numbers.scaled([point.parameters for point in points], "count")
    return [
        (
            str(point.number),
            point.name,
            point.recipe,
            " ".join(filter(None, (point.profile, point.precision))),
            numbers.metric_text(comparison.metric_name, point.metric),
            f"{latency} ms",
            energy if energy == numbers.UNKNOWN else f"{energy} mJ",
            count,
            size,
            point.outcome or "",
            "best" if point.best else "",
        )
        for point, latency, energy, count, size in zip(points, latencies, energies, counts, sizes, strict=True)
    ]


def heading(comparison: Comparison) -> str:
    """Return where the figures come from, in one line."""
    words = ", ".join(dict.fromkeys(str(point.provenance) for point in comparison.points))
    percentile = "median" if comparison.percentile == 50 else f"p{comparison.percentile:g}"
    return f"{comparison.board}, {words}, {percentile} of a batch of {comparison.batch}"
