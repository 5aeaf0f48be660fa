"""The report as one HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgelean.reading import Provenance
from edgelean.report import numbers, story
from edgelean.report.axes import Evolution, Spectrum
from edgelean.report.explanation import columns, explained, trade_offs
from edgelean.report.footprint import footprint
from edgelean.report.model import EpochPoint, ReadingPoint, Report, Verdict
from edgelean.report.plots import Line, Mark, Tone, Trend, draw_evolution, draw_spectrum, draw_trend

_SPECTRA_SHOWN = 12


@dataclass(frozen=True)
class Card:
    """One verdict as the page shows it. Places are percentages of the width of the bar."""

    title: str
    figure: str
    unit: str
    budget: str
    outcome: str
    margin: str
    value_place: float
    budget_place: float
    full_place: float | None
    full_text: str
    provenance: Provenance
    words: str
    method: str


@dataclass(frozen=True)
class Plot:
    """One drawn plot with the words around it."""

    title: str
    provenance: str
    note: str
    svg: Markup


def render(report: Report) -> str:
    """Return the page of one report; equal reports give equal text."""
    environment = Environment(
        loader=PackageLoader("edgelean.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": numbers.percent,
        "number": numbers.number,
        "duration": numbers.duration,
        "unbroken": _unbroken,
    }
    return environment.get_template("template.html.j2").render(_context(report))


def _unbroken(sentence: str) -> str:
    """Keep each figure and its unit on one line."""
    return re.sub(r"(\d) (?=[%a-zA-Zµ])", "\\1\u00a0", sentence)


def _context(report: Report) -> dict[str, Any]:
    shown, hidden = _chosen_spectra(report.spectra)
    return {
        "report": report,
        "headline": story.headline(report),
        "outcome": story.outcome(report),
        "started": story.started_text(report),
        "origin": story.origin(report),
        "accuracy": (
            numbers.metric_text(report.metric_name, report.lean.accuracy),
            numbers.metric_text(report.metric_name, report.full_size.accuracy),
            numbers.metric_change(report.metric_name, report.full_size.accuracy, report.lean.accuracy),
        ),
        "cards": [_card(verdict) for verdict in report.verdicts],
        "comparison": story.comparison(report),
        "trends": _trends(report),
        "widest": max((layer.before for layer in report.layers), default=1),
        "spectra": [_spectrum_plot(index, spectrum) for index, spectrum in enumerate(shown)],
        "spectra_hidden": hidden,
        "score_units": dict.fromkeys((spectrum.kind, spectrum.unit) for spectrum in shown),
        "evolutions": [_evolution_plot(index, evolution, report) for index, evolution in enumerate(report.evolutions)],
        "truncations": story.truncations(report),
        "selective_text": story.selective_text(report),
        "provenance": story.provenances(point.provenance for point in report.readings),
        "times": story.time_shares(report),
        "overhead": story.overhead_text(report),
        "form_text": story.form_text(report),
        "form_rows": story.form_rows(report),
        "footprint": footprint(report),
        "sizes": numbers.scaled([file.bytes for file in report.bundle], "bytes"),
        "decisions": explained(report.decisions, report.metric_name),
        "front_columns": columns(report.front, report.metric_name),
        "front": trade_offs(report.front, report.metric_name),
        "metric": lambda value: numbers.metric_text(report.metric_name, value),
    }


def _card(verdict: Verdict) -> Card:
    figures = [verdict.value, verdict.limit, *([] if verdict.full_size is None else [verdict.full_size])]
    widest = max(figures)
    (value, limit, *full), unit = numbers.in_unit(figures, verdict.unit)
    return Card(
        title=story.quantity_title(verdict),
        figure=value,
        unit=unit,
        budget=f"{limit} {unit}",
        outcome=verdict.outcome,
        margin=story.margin_text(verdict),
        value_place=round(100 * max(0.0, verdict.value / widest), 2),
        budget_place=round(100 * verdict.limit / widest, 2),
        full_place=None if verdict.full_size is None else round(100 * verdict.full_size / widest, 2),
        full_text=f"{full[0]} {unit}" if full else "",
        provenance=verdict.provenance,
        words=story.in_words(verdict),
        method=verdict.method,
    )


def _trends(report: Report) -> list[Plot]:
    marks = _marks(report)
    drawn = (_latency_trend, _energy_trend, _metric_trend, _size_trend)
    return [plot for draw in drawn if (plot := draw(report, marks)) is not None]


def _marks(report: Report) -> tuple[Mark, ...]:
    return tuple(Mark(cut.step, index, cut.kept) for index, cut in enumerate(report.cuts, start=1))


def _latency_trend(report: Report, marks: tuple[Mark, ...]) -> Plot | None:
    points = _readings_to_the_end(report)
    if not points:
        return None
    word = story.provenances(point.provenance for point in points)
    line = Line(
        f"{numbers.number(points[-1].latency_ms)} lean",
        tuple(point.step for point in points),
        tuple(point.latency_ms for point in points),
        "accent",
        tuple(point.latency_low_ms for point in points),
        tuple(point.latency_high_ms for point in points),
        held=True,
    )
    trend = Trend("latency", f"ms, {word}", (line,), marks, report.steps, *_budget(report, "latency"))
    return Plot("Latency", word, "per call", Markup(draw_trend(trend)))


def _energy_trend(report: Report, marks: tuple[Mark, ...]) -> Plot | None:
    points = [(point, point.energy_mj) for point in _readings_to_the_end(report) if point.energy_mj is not None]
    if not points:
        return None
    word = story.provenances(point.energy_provenance or point.provenance for point, _ in points)
    steps, values = tuple(point.step for point, _ in points), tuple(energy for _, energy in points)
    line = Line(f"{numbers.number(values[-1])} lean", steps, values, "accent", held=True)
    trend = Trend("energy", f"mJ, {word}", (line,), marks, report.steps, *_budget(report, "energy"))
    return Plot("Energy", word, "per inference", Markup(draw_trend(trend)))


def _metric_trend(report: Report, marks: tuple[Mark, ...]) -> Plot | None:
    name = report.metric_name
    scale = 100.0 if numbers.is_share(name) else 1.0
    sides: tuple[tuple[tuple[EpochPoint, ...], str, Tone], ...] = (
        (report.full_size_history, "full-size", "muted"),
        (report.epochs_history, "lean", "accent"),
    )
    lines = []
    for history, label, tone in sides:
        points = [(point.step, point.metric) for point in history if point.metric is not None]
        if points:
            steps, values = tuple(step for step, _ in points), tuple(scale * metric for _, metric in points)
            lines.append(Line(f"{numbers.metric_text(name, points[-1][1])} {label}", steps, values, tone))
    if not lines:
        return None
    unit = "%, validation split" if scale == 100.0 else "validation split"
    trend = Trend("metric", unit, tuple(lines), marks, report.steps, floor=None)
    return Plot(name.capitalize(), "", "on the validation split", Markup(draw_trend(trend)))


def _size_trend(report: Report, marks: tuple[Mark, ...]) -> Plot | None:
    points = _readings_to_the_end(report)
    if not points:
        return None
    values = tuple(point.parameters / 1000 for point in points)
    steps = tuple(point.step for point in points)
    line = Line(f"{numbers.number(values[-1])} k lean", steps, values, "accent", held=True)
    trend = Trend("size", "thousand parameters", (line,), marks, report.steps)
    return Plot("Size", "", "parameters", Markup(draw_trend(trend)))


def _readings_to_the_end(report: Report) -> tuple[ReadingPoint, ...]:
    """Return the readings, the last one repeated at the last step: the structure stayed as it was."""
    if not report.readings or report.readings[-1].step >= report.steps:
        return report.readings
    return (*report.readings, replace(report.readings[-1], step=report.steps))


def _budget(report: Report, quantity: str) -> tuple[float | None, str]:
    for verdict in report.verdicts:
        if verdict.quantity == quantity:
            return verdict.limit, f"{numbers.number(verdict.limit)} budget"
    return None, ""


def _chosen_spectra(spectra: tuple[Spectrum, ...]) -> tuple[tuple[Spectrum, ...], int]:
    """Return the axes that lost the most, in their order, and how many others there are."""
    by_loss = sorted(spectra, key=lambda spectrum: spectrum.kept / max(len(spectrum.scores), 1))
    chosen = {spectrum.axis for spectrum in by_loss[:_SPECTRA_SHOWN]}
    shown = tuple(spectrum for spectrum in spectra if spectrum.axis in chosen)
    return shown, len(spectra) - len(shown)


def _spectrum_plot(index: int, spectrum: Spectrum) -> Plot:
    svg = Markup(draw_spectrum(f"spectrum{index}", spectrum))
    return Plot(spectrum.axis, "", spectrum.kind, svg)


def _evolution_plot(index: int, evolution: Evolution, report: Report) -> Plot:
    svg = Markup(draw_evolution(f"evolution{index}", evolution, _marks(report), report.steps))
    last = evolution.looks[-1].states
    left = {layer.name: layer.after for layer in report.layers}.get(f"{evolution.layer}.states", last)
    note = f"{left} of {evolution.states} states" if left else "went with its block"
    return Plot(evolution.layer, "", note, svg)
