"""The plots of the report: SVG with text as text, in colours that the page decides.

Nothing a user named is drawn here; names stand in the page around the plot. So no glyph can be missing and nothing
has to be escaped.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from edgelean.report.axes import Evolution, Look, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

Tone = Literal["accent", "muted", "ink"]

# Stand-ins that nothing else would choose: after drawing, each becomes a CSS variable, so one SVG does for dark mode.
_TONES = {"ink": "#010203", "muted": "#010204", "rule": "#010205", "accent": "#010206", "bad": "#010207"}
_POINTS_PER_INCH = 72
_TREND_SIZE = (420.0, 220.0)
_SPECTRUM_SIZE = (250.0, 150.0)
_TEXT_SIZE = 11.0
_LABEL_GAP = 14.0
_SHADES = 12
_SHADES_A_DECADE = 2


@dataclass(frozen=True)
class Line:
    """One series over the training steps.

    Attributes
    ----------
    label
        What stands at the right end of the line.
    low, high
        The confidence band; empty when there is none.
    held
        Values hold until the next one (a structure), instead of being joined by straight lines (a learning curve).
    """

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    tone: Tone
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    held: bool = False


@dataclass(frozen=True)
class Mark:
    """A cut: its step, its number in the table of cuts, and whether it was kept."""

    step: int
    number: int
    kept: bool


@dataclass(frozen=True)
class Trend:
    """One quantity over the training steps.

    Attributes
    ----------
    name
        Unique on the page; it begins the ids inside the SVG.
    unit
        The unit and the provenance, above the vertical axis: ``"ms, modelled"``.
    last_step
        Where the horizontal axis ends.
    budget, budget_label
        The level that has to be reached, and what stands beside it; None where there is no budget.
    floor
        Where the vertical axis begins; None lets the values decide.
    """

    name: str
    unit: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    last_step: int
    budget: float | None = None
    budget_label: str = ""
    floor: float | None = 0.0


def draw_trend(trend: Trend) -> str:
    """Return the SVG of one quantity over the training steps, every cut marked by its number."""
    with _style(trend.name):
        figure, axes = _canvas(_TREND_SIZE, left=44, right=96, bottom=36, top=28)
        for line in trend.lines:
            _draw_line(axes, line)
        if trend.budget is not None:
            axes.axhline(trend.budget, color=_TONES["ink"], linewidth=1.0, linestyle=(0, (3, 2)))
        axes.set_xlim(0, max(trend.last_step, 1))
        _set_heights(axes, trend)
        _draw_marks(axes, trend.marks, trend.last_step)
        _label_ends(axes, trend)
        axes.set_xlabel("training step", color=_TONES["muted"], loc="left")
        axes.text(0, 1.0, trend.unit, transform=_above(axes, 16), color=_TONES["muted"], ha="left", va="baseline")
        return _svg(figure, trend.name)


def draw_spectrum(name: str, spectrum: Spectrum) -> str:
    """Return the SVG of the scores of one axis on a logarithmic scale, with the line where it was cut."""
    largest = max((score for score in spectrum.scores if math.isfinite(score)), default=1.0)
    # A score of zero has no place on a logarithmic axis: it is drawn at the bottom, far below what matters.
    bottom = largest * 1e-9 if largest > 0 else 1e-9
    heights = [max(score, bottom) if math.isfinite(score) else bottom for score in spectrum.scores]
    places = range(1, len(heights) + 1)
    kept = spectrum.kept
    with _style(name):
        figure, axes = _canvas(_SPECTRUM_SIZE, left=38, right=12, bottom=32, top=20)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda height, _: f"{height:g}")
        for part, colour in ((slice(kept), _TONES["accent"]), (slice(kept, None), _TONES["muted"])):
            axes.plot(places[part], heights[part], "o", color=colour, markersize=4.0, markeredgewidth=0.0)
        if kept < len(heights):
            edge, above = kept + 0.5, _above(axes, 6)
            axes.axvline(edge, color=_TONES["ink"], linewidth=1.0)
            axes.text(edge, 1.0, f"{kept} kept\u00a0", transform=above, ha="right", color=_TONES["accent"])
            axes.text(edge, 1.0, f"\u00a0{len(heights) - kept} cut", transform=above, ha="left", color=_TONES["muted"])
        axes.set_xlim(0, len(heights) + 1)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.set_xlabel("rank", color=_TONES["muted"], loc="left")
        return _svg(figure, name)


def draw_evolution(name: str, evolution: Evolution, marks: tuple[Mark, ...], last_step: int) -> str:
    """Return the SVG of how a spectrum changed: darker is larger, and the line is what the layer keeps.

    Each look stands for the time since the one before. Heights are states: two Hankel singular values make one.
    """
    with _style(name):
        figure, axes = _canvas(_TREND_SIZE, left=44, right=96, bottom=36, top=42)
        axes.grid(visible=False)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda height, _: f"{height:g}")
        axes.set_xlim(0, max(last_step, 1))
        axes.set_ylim(0.5 / math.sqrt(2), evolution.states)
        _draw_shades(axes, evolution)
        steps = [0, *(look.step for look in evolution.looks)]
        kept = [evolution.looks[0].states, *(look.states for look in evolution.looks)]
        axes.plot(steps, kept, color=_TONES["ink"], linewidth=1.6, drawstyle="steps-pre", clip_on=False)
        axes.text(1.02 * last_step, kept[-1], f"{kept[-1]} of {evolution.states}", va="center", color=_TONES["ink"])
        _draw_marks(axes, marks, last_step)
        _draw_key(axes)
        axes.set_xlabel("training step", color=_TONES["muted"], loc="left")
        axes.text(0, 1.0, "states", transform=_above(axes, 16), color=_TONES["muted"], ha="left", va="baseline")
        return _svg(figure, name)


def _draw_shades(axes: Axes, evolution: Evolution) -> None:
    """Draw all cells of one shade as one path: thousands of single ones would be megabytes."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners: dict[int, list[tuple[float, float]]] = {}
    for shade, (left, right), (low, high) in _cells(evolution):
        box = [(left, low), (right, low), (right, high), (left, high), (left, low)]
        corners.setdefault(shade, []).extend(box)
    for shade, points in sorted(corners.items()):
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * (len(points) // 5)
        axes.add_patch(PathPatch(Path(points, codes), **_shaded(shade)))


def _shaded(shade: int) -> dict[str, Any]:
    """Return how an area of a shade is filled, 0 the darkest. No antialiasing: it would leave seams between cells."""
    alpha = 0.06 + 0.94 * (1 - shade / (_SHADES - 1)) ** 1.3
    return {"facecolor": _TONES["accent"], "alpha": alpha, "linewidth": 0, "antialiased": False}


def _cells(evolution: Evolution) -> Iterator[tuple[int, tuple[float, float], tuple[float, float]]]:
    """Yield shade, steps from and to, and states from and to of every area of one shade, row by row."""
    largest = max((value for look in evolution.looks for value in look.sigma if math.isfinite(value)), default=0.0)
    # Half of a rank is a state; a row reaches half-way, in ratios, to the next recorded rank.
    edges = [0.5 / math.sqrt(2), *(math.sqrt(a * b) / 2 for a, b in itertools.pairwise(evolution.ranks))]
    edges.append(evolution.states)
    before = [0, *(look.step for look in evolution.looks)]
    for row, heights in enumerate(itertools.pairwise(edges)):
        shades = [_shade(look, row, largest) for look in evolution.looks]
        columns = zip(shades, itertools.pairwise(before), strict=True)
        for shade, run in itertools.groupby((each for each in columns if each[1][1] > each[1][0]), lambda c: c[0]):
            times = [times for _, times in run]
            if shade is not None:
                yield shade, (times[0][0], times[-1][1]), heights


def _shade(look: Look, row: int, largest: float) -> int | None:
    """Return the shade of a value, 0 for the largest of all; None where there is none or it is too small to show."""
    value = look.sigma[row] if row < len(look.sigma) else 0.0
    if not (math.isfinite(value) and value > 0):
        return None
    shade = math.floor(-_SHADES_A_DECADE * math.log10(value / largest) + 0.5)
    return shade if shade < _SHADES else None


def _draw_key(axes: Axes) -> None:
    """Draw the scale of the shades, from the largest value to the smallest that is shown, above the plot."""
    from matplotlib.patches import Rectangle

    left, width = 0.34, 0.03
    height = _TREND_SIZE[1] - 78
    bottom, top = 1 + 16 / height, 1 + 25 / height
    for shade in range(_SHADES):
        place = (left + width * shade, bottom)
        area = Rectangle(place, width, top - bottom, transform=axes.transAxes, clip_on=False, **_shaded(shade))
        axes.add_patch(area)
    words = f"largest to 1e-{_SHADES // _SHADES_A_DECADE} of it"
    end = left + width * _SHADES + 0.02
    axes.text(end, bottom, words, transform=axes.transAxes, color=_TONES["muted"], ha="left", va="baseline")


def _draw_line(axes: Axes, line: Line) -> None:
    shape: Literal["steps-post", "default"] = "steps-post" if line.held else "default"
    colour = _TONES[line.tone]
    width = 2.0 if line.tone == "accent" else 1.3
    axes.plot(line.steps, line.values, color=colour, linewidth=width, drawstyle=shape, solid_capstyle="round")
    if any(high > low for low, high in zip(line.low, line.high, strict=True)):
        step: Literal["post"] | None = "post" if line.held else None
        axes.fill_between(line.steps, line.low, line.high, step=step, color=colour, alpha=0.18, linewidth=0)


def _set_heights(axes: Axes, trend: Trend) -> None:
    values = [value for line in trend.lines for value in (*line.values, *line.low, *line.high)]
    values += [] if trend.budget is None else [trend.budget]
    low, high = min(values, default=0.0), max(values, default=1.0)
    floor = trend.floor if trend.floor is not None else low - 0.05 * (high - low)
    axes.set_ylim(floor, floor + 1.06 * (high - floor) if high > floor else floor + 1.0)


def _draw_marks(axes: Axes, marks: tuple[Mark, ...], last_step: int) -> None:
    room = 0.035 * last_step
    last_label = -math.inf
    for mark in marks:
        colour = _TONES["muted"] if mark.kept else _TONES["bad"]
        dashes = "solid" if mark.kept else (0, (3, 2))
        axes.axvline(mark.step, color=colour, linewidth=0.8, linestyle=dashes, alpha=0.8, zorder=0.5)
        if mark.step - last_label >= room:
            axes.text(
                mark.step, 1.0, str(mark.number), transform=_above(axes, 3), color=colour, ha="center", fontsize=9
            )
            last_label = mark.step


def _label_ends(axes: Axes, trend: Trend) -> None:
    ends = [(line.values[-1], line.label, _TONES[line.tone]) for line in trend.lines if line.values]
    if trend.budget is not None:
        ends.append((trend.budget, trend.budget_label, _TONES["ink"]))
    bottom, top = axes.get_ylim()
    height = _TREND_SIZE[1] - 64
    places = _spread([(value - bottom) / (top - bottom) * height for value, _, _ in ends], _LABEL_GAP)
    for place, (_, label, colour) in zip(places, ends, strict=True):
        axes.text(1.02, place / height, label, transform=axes.transAxes, color=colour, va="center", ha="left")


def _spread(places: list[float], gap: float) -> list[float]:
    """Move labels apart, as little as needed, so that neighbours are at least ``gap`` from each other."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for _ in range(len(places)):
        for lower, upper in itertools.pairwise(order):
            push = (gap - (moved[upper] - moved[lower])) / 2
            if push > 0:
                moved[lower] -= push
                moved[upper] += push
    return moved


def _style(name: str) -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "text.parse_math": False,
            "font.family": ["DejaVu Sans"],
            "font.size": _TEXT_SIZE,
            "text.color": _TONES["ink"],
            "axes.edgecolor": _TONES["rule"],
            "axes.unicode_minus": False,
            "xtick.color": _TONES["rule"],
            "xtick.labelcolor": _TONES["muted"],
            "ytick.color": _TONES["rule"],
            "ytick.labelcolor": _TONES["muted"],
            "xtick.labelsize": _TEXT_SIZE - 1,
            "ytick.labelsize": _TEXT_SIZE - 1,
            "path.simplify": False,
        }
    )


def _canvas(size: tuple[float, float], *, left: float, right: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    """Return an empty figure of ``size`` points whose axes leave these margins, in points."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.tick_params(which="minor", length=0, labelleft=False)
    axes.grid(axis="y", color=_TONES["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _above(axes: Axes, points: float) -> Transform:
    """Return the transform with data coordinates across, axes coordinates up, lifted by ``points``."""
    from matplotlib.transforms import ScaledTranslation

    lift = ScaledTranslation(0, points / _POINTS_PER_INCH, axes.figure.dpi_scale_trans)
    return axes.get_xaxis_transform() + lift


def _svg(figure: Figure, name: str) -> str:
    sink = BytesIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(sink.getvalue().decode(), name)


def _inline(svg: str, name: str) -> str:
    """Return what a page can hold: no prologue, no metadata, ids that no other plot has, colours as CSS variables."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>|<!--.*?-->|<g ?/>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"|font-family: [^;]*; ', "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    for tone, colour in _TONES.items():
        svg = svg.replace(colour, f"var(--{tone})")
    return re.sub(r"\n\s*", "\n", svg).strip()
