"""The live picture of a run: a scene that every event moves on, and how the scene is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgelean.cli.display import Display, Event
from edgelean.quantity import FIELDS, UNITS
from edgelean.report import numbers

_ACCENT = "cyan"
_BAD = "red"
_WIDE = 110
# Lines of the picture that are neither cuts nor bars: the table of cuts gets what a terminal has left.
_FRAME_LINES = 13
_BUDGET, _FULL = "┃", "╿"


@dataclass(frozen=True)
class Level:
    """One quantity against its budget: the numbers of one bar. None is unknown."""

    unit: str
    value: float | None = None
    limit: float | None = None
    full_size: float | None = None
    provenance: str = ""


@dataclass(frozen=True)
class CutLine:
    """One cut as the table shows it."""

    step: int
    binding: str
    demand: float
    axes: tuple[tuple[str, int, int], ...]
    metric_before: float | None
    metric_after: float | None
    kept: bool = True


@dataclass(frozen=True)
class Scene:
    """Everything that the picture shows.

    Attributes
    ----------
    time_s
        When the last event happened, in seconds since the start of the run.
    best, loss_points
        The best metric before a cut, and what of it may be lost; None where there is no such budget.
    widths
        Units before the first cut and now, of every axis that was cut.
    news
        The last thing that is neither a cut nor a reading: what the controller waits for, a checkpoint, the end.
    """

    title: str = ""
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    time_s: float = 0.0
    loss: float | None = None
    metric: float | None = None
    metric_name: str = "metric"
    best: float | None = None
    loss_points: float | None = None
    parameters: int | None = None
    full_parameters: int | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    cuts: tuple[CutLine, ...] = ()
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    news: str = ""


def advance(scene: Scene, event: Event) -> Scene:
    """Return the scene after one event."""
    moved = replace(scene, step=max(scene.step, event["step"]), time_s=max(scene.time_s, event["time_s"]))
    change = _CHANGES.get(event["event"])
    return replace(moved, **change(moved, event)) if change else moved


def draw(scene: Scene, console: Console, seconds_since: float = 0.0) -> RenderableType:
    """Return the picture of a scene, no taller and no wider than the console.

    Parameters
    ----------
    seconds_since
        Time since the last event; the clock of the progress line goes on in between.
    """
    room = max(console.height - _FRAME_LINES - len(scene.levels), 3)
    parts: list[RenderableType] = [
        Text.assemble(("edgelean ", f"bold {_ACCENT}"), scene.title, no_wrap=True, overflow="ellipsis"),
        Text(),
        _Progress(scene, seconds_since),
        _learning(scene),
        Text(),
        *_bars(scene.levels),
        Text(),
        _cut_table(scene, room, wide=console.width >= _WIDE),
        Text(),
        _width_line(scene),
        Text(scene.news, style="dim", no_wrap=True, overflow="ellipsis"),
    ]
    return Group(*parts)


class LiveDisplay(Display):
    """The picture, kept up to date in a terminal; the last one stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._scene = Scene()
        self._last_event_s = time.monotonic()
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=4)

    def on_event(self, event: Event) -> None:
        """Take one event into the picture."""
        self._scene = advance(self._scene, event)
        self._last_event_s = time.monotonic()
        self._live.refresh()

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture on the screen and give the terminal back."""
        self._live.stop()

    def _picture(self) -> RenderableType:
        return draw(self._scene, self._console, time.monotonic() - self._last_event_s)


def _seen(event: Event, quantity: str) -> tuple[float | None, str]:
    """Return the figure of a quantity in a reading, and its provenance."""
    word = event.get(f"{quantity}_provenance") or event["provenance"]
    return event.get(FIELDS[quantity]), word


def _on_start(_: Scene, event: Event) -> dict[str, Any]:
    full = event["full_size"]
    limits = {budget["quantity"]: budget["limit"] for budget in event["budgets"]}
    shown = [name for name in FIELDS if name in limits or name in ("latency", "energy")]
    levels = {}
    for name in shown:
        value, provenance = _seen(full, name)
        levels[name] = Level(UNITS[name], value, limits.get(name), value, provenance)
    return {
        "title": f"{event['recipe']} on {event['board']} · profile {event['profile']} · seed {event['seed']}",
        "steps": event["steps"],
        "epochs": event["epochs"],
        "levels": levels,
        "loss_points": limits.get("accuracy_loss"),
        "parameters": full["parameters"],
        "full_parameters": full["parameters"],
    }


def _on_epoch(_: Scene, event: Event) -> dict[str, Any]:
    return {name: event[name] for name in ("epoch", "loss", "metric", "metric_name")}


def _on_full_size_epoch(scene: Scene, event: Event) -> dict[str, Any]:
    metric = numbers.metric_text(event["metric_name"], event["metric"])
    told = f"epoch {event['epoch']}/{scene.epochs}, {event['metric_name']} {metric}"
    return {"news": f"training the full-size model for comparison: {told}"}


def _on_reading(scene: Scene, event: Event) -> dict[str, Any]:
    levels = {}
    for name, level in scene.levels.items():
        value, provenance = _seen(event, name)
        levels[name] = replace(level, value=value, provenance=provenance)
    return {"levels": levels, "parameters": event["parameters"]}


def _on_demand(scene: Scene, event: Event) -> dict[str, Any]:
    seen = [metric for metric in (scene.best, event.get("metric")) if metric is not None]
    return {"news": event["reason"], "best": max(seen, default=None)}


def _on_cut(scene: Scene, event: Event) -> dict[str, Any]:
    axes = tuple((axis["axis"], axis["before"], axis["after"]) for axis in event["axes"])
    widths = dict(scene.widths)
    for name, before, after in axes:
        widths[name] = (widths.get(name, (before, before))[0], after)
    cut = CutLine(event["step"], event["binding"], event["demand"], axes, event["metric_before"], event["metric_after"])
    return {"cuts": (*scene.cuts, cut), "widths": widths, "parameters": event["parameters"], "news": ""}


def _on_rollback(scene: Scene, event: Event) -> dict[str, Any]:
    news = f"rolled back, {event['reason']}; the largest cut is now {numbers.percent(event['largest_cut'])}"
    last = max((index for index, cut in enumerate(scene.cuts) if cut.kept), default=None)
    if last is None or "metric_now" not in event:
        return {"news": news}
    undone = scene.cuts[last]
    widths = dict(scene.widths)
    for name, before, _ in undone.axes:
        widths[name] = (widths[name][0], before)
    cuts = (*scene.cuts[:last], replace(undone, kept=False), *scene.cuts[last + 1 :])
    return {"cuts": cuts, "widths": widths, "news": news}


def _on_verdict(scene: Scene, event: Event) -> dict[str, Any]:
    name = event["quantity"]
    level = scene.levels.get(name)
    if level is None:
        return {}
    return {"levels": {**scene.levels, name: replace(level, value=event["value"], provenance=event["provenance"])}}


_CHANGES: Mapping[str, Callable[[Scene, Event], dict[str, Any]]] = {
    "start": _on_start,
    "epoch": _on_epoch,
    "full_size_epoch": _on_full_size_epoch,
    "reading": _on_reading,
    "demand": _on_demand,
    "cut": _on_cut,
    "rollback": _on_rollback,
    "verdict": _on_verdict,
    "wait": lambda _, event: {"news": f"waiting: {event['reason']}"},
    "ending": lambda _, event: {"news": f"{event['quantity']} {event['standing']}: {event['reason']}"},
    "note": lambda _, event: {"news": event["text"]},
    "precision": lambda _, event: {"news": event["text"]},
    "rounding": lambda _, event: {"news": event["text"]},
    "checkpoint": lambda _, event: {"news": f"checkpoint: {event['path']}"},
    "end": lambda _, event: {"news": f"ended after {numbers.duration(event['seconds'])}"},
}


def _learning(scene: Scene) -> Text:
    parts: list[str | tuple[str, str]] = []
    if scene.loss is not None:
        parts += ["loss ", (numbers.number(scene.loss), "bold"), "   "]
    if scene.metric is not None:
        metric = numbers.metric_text(scene.metric_name, scene.metric)
        parts += [f"{scene.metric_name} ", (metric, "bold"), f" validation{_floor(scene)}   "]
    if scene.parameters is not None and scene.full_parameters is not None:
        parts += ["parameters ", (f"{scene.parameters:,}", "bold"), f" of {scene.full_parameters:,}"]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _floor(scene: Scene) -> str:
    """Return what the metric may not fall below, where there is a budget on what it loses."""
    if scene.loss_points is None or scene.best is None:
        return ""
    return f" (at least {numbers.metric_text(scene.metric_name, scene.best - scene.loss_points / 100)})"


def _cut_table(scene: Scene, room: int, *, wide: bool) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("cut", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("budget", no_wrap=True)
    table.add_column("demand", justify="right", no_wrap=True)
    table.add_column("axes", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(Text(scene.metric_name), justify="right", no_wrap=True)
    first = max(len(scene.cuts) - room, 0)
    for index, cut in enumerate(scene.cuts[first:], start=first + 1):
        before, after = (numbers.metric_text(scene.metric_name, m) for m in (cut.metric_before, cut.metric_after))
        move = f"{before} → {after}" if wide else after
        style = "" if cut.kept else f"{_BAD} dim"
        end = move if cut.kept else f"{move if wide else ''} rolled back".strip()
        demand = numbers.percent(cut.demand) if cut.demand else ""
        table.add_row(str(index), str(cut.step), cut.binding, demand, Text(_short_axes(cut)), end, style=style)
    return table if scene.cuts else Text("no cut yet", style="dim")


def _short_axes(cut: CutLine) -> str:
    return "  ".join(f"{name} {before}→{after}" for name, before, after in cut.axes)


def _width_line(scene: Scene) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, (before, now) in scene.widths.items():
        line.append("widths " if not line else "   ", "dim")
        line.append(f"{name} ").append(str(now), "bold").append(f"/{before}", "dim")
    return line


class _Progress:
    """The progress line: a bar, the epoch, the step and the time that is left."""

    def __init__(self, scene: Scene, seconds_since: float) -> None:
        self._scene = scene
        self._seconds_since = seconds_since

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scene = self._scene
        share = scene.step / scene.steps if scene.steps else 0.0
        words = f" epoch {scene.epoch}/{scene.epochs}  step {scene.step}/{scene.steps}"
        if 0 < share < 1:
            left = max(scene.time_s * (1 - share) / share - self._seconds_since, 0.0)
            words += f"  {numbers.duration(round(left))} left"
        width = max(options.max_width - len(words) - 1, 4)
        done = round(share * width)
        yield Text.assemble(("━" * done, _ACCENT), ("━" * (width - done), "bright_black"), words, no_wrap=True)


class _Bar:
    """One quantity as a bar against its budget, the full-size mark at its place."""

    def __init__(self, name: str, level: Level, words: str) -> None:
        self._name = name
        self._level = level
        self._words = words

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        level = self._level
        figures = [figure for figure in (level.value, level.limit, level.full_size) if figure is not None]
        if level.value is None or max(figures) <= 0:
            yield Text(f"{self._name:<8} unknown on this target", style="dim")
            return
        width = max(options.max_width - len(self._words) - 11, 8)
        cells_per_unit = (width - 1) / max(figures)
        colour = "green" if level.limit is None or level.value <= level.limit else "yellow"
        line = Text(f"{self._name:<8} ", no_wrap=True)
        marks = {
            round(cells_per_unit * figure): mark
            for figure, mark in ((level.full_size, _FULL), (level.limit, _BUDGET))
            if figure is not None
        }
        for cell in range(width):
            filled = cell <= cells_per_unit * level.value
            line.append(marks.get(cell, "━"), "bold" if cell in marks else colour if filled else "bright_black")
        yield line.append(f"  {self._words}")


def _bars(levels: Mapping[str, Level]) -> tuple[RenderableType, ...]:
    """Return the bars, all of one length, and what their marks mean."""
    figures = {name: _bar_figures(level) for name, level in levels.items()}
    longest = max(map(len, figures.values()), default=0)
    words = {name: f"{figures[name]:<{longest}}  {level.provenance:<11}" for name, level in levels.items()}
    legend = Text(f"{'':<9}{_BUDGET} budget  {_FULL} full-size", style="dim")
    return (*(_Bar(name, level, words[name]) for name, level in levels.items()), legend)


def _bar_figures(level: Level) -> str:
    if level.value is None:
        return ""
    (value, limit), unit = numbers.in_unit((level.value, level.limit), level.unit)
    return f"{value} {'no budget' if level.limit is None else f'of {limit}'} {unit}"
