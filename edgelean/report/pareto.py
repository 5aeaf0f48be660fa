"""The page of a comparison, with the plot of what each millisecond buys."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgelean.report import numbers
from edgelean.report.compare import Comparison, columns, heading, rows
from edgelean.report.plots import _TONES, _above, _canvas, _style, _svg

_SIZE = (520.0, 300.0)


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison, which needs nothing else; equal comparisons give equal text."""
    environment = Environment(
        loader=PackageLoader("edgelean.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("comparison.html.j2").render(
        heading=heading(comparison),
        columns=columns(comparison),
        rows=rows(comparison),
        plot=Markup(draw_pareto(comparison)),
    )


def draw_pareto(comparison: Comparison) -> str:
    """Return the SVG of the metric over the latency: filled where nothing beats a model, joined by a line.

    Names are those of users, and stand in the table: the plot has their numbers.
    """
    share = 100.0 if numbers.is_share(comparison.metric_name) else 1.0
    known = [(point.latency_ms, share * point.metric, point) for point in comparison.points if point.metric is not None]
    front = sorted((latency, metric) for latency, metric, point in known if point.best)
    with _style("pareto"):
        figure, axes = _canvas(_SIZE, left=48, right=24, bottom=40, top=28)
        axes.plot(*zip(*front, strict=True) if front else ([], []), color=_TONES["accent"], linewidth=1.2)
        for latency, metric, point in known:
            fill = _TONES["accent"] if point.best else "none"
            edge = _TONES["accent"] if point.best else _TONES["muted"]
            axes.plot([latency], [metric], "o", markersize=7, markerfacecolor=fill, markeredgecolor=edge)
            words = str(point.number)
            axes.annotate(words, (latency, metric), xytext=(7, 5), textcoords="offset points", color=_TONES["ink"])
        axes.margins(0.12, 0.15)
        axes.set_xlim(left=0)
        axes.set_xlabel("latency, ms", color=_TONES["muted"], loc="left")
        unit = f"{comparison.metric_name}, %" if share == 100.0 else comparison.metric_name
        axes.text(0, 1.0, unit, transform=_above(axes, 16), color=_TONES["muted"], ha="left", va="baseline")
        return _svg(figure, "pareto")
