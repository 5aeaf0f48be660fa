"""What a person sees while a run goes on: a picture in a terminal, one line an event everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from edgelean.quantity import FIELDS, UNITS, amount, word
from edgelean.report import numbers

if TYPE_CHECKING:
    from rich.console import Console

Event = Mapping[str, Any]


class Display(AbstractContextManager["Display"], Protocol):
    """Something that shows the events of a run as they happen; a context manager around the run."""

    def on_event(self, event: Event) -> None:
        """Show one event, as it stands in events.jsonl."""


def open_display(console: Console) -> Display:
    """Return the display that suits ``console``.

    A terminal gets the live picture; a pipe, a file or a dumb terminal gets lines. A quiet console shows nothing:
    that is how ``--json`` keeps stdout to itself.
    """
    if console.is_terminal and not console.is_dumb_terminal and not console.quiet:
        from edgelean.cli.live import LiveDisplay

        return LiveDisplay(console)
    return LineDisplay(console)


class LineDisplay(Display):
    """One line per event, in words that a script can rely on."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_event(self, event: Event) -> None:
        """Print the line of one event."""
        self._console.print(line_of(event), markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        """Nothing is open: every line is already out."""


def line_of(event: Event) -> str:
    """Return the line that tells one event: ``"step 60 cut: stem 32 -> 24; ..."``."""
    tell = _LINES.get(event["event"], _other_line)
    return " ".join(f"step {event['step']} {event['event']}: {tell(event)}".split())


def figures(event: Event) -> str:
    """Return latency and energy of a reading with their provenance: ``"0.148 ms, 0.0478 mJ (modelled)"``."""
    latency = f"{numbers.number(event['latency_ms'])} ms"
    word = event["provenance"]
    if event.get("energy_mj") is None:
        return f"{latency} ({word}), energy unknown"
    energy = f"{numbers.number(event['energy_mj'])} mJ"
    energy_word = event.get("energy_provenance") or word
    return f"{latency}, {energy} ({word})" if energy_word == word else f"{latency} ({word}), {energy} ({energy_word})"


def cut_axes(event: Event) -> str:
    """Return what a cut did to its axes: ``"stem 32 -> 24, block1 64 -> 48"``."""
    return ", ".join(f"{axis['axis']} {axis['before']} -> {axis['after']}" for axis in event["axes"])


def _start_line(event: Event) -> str:
    budgets = ", ".join(
        f"{word(budget['quantity'])} {amount(budget['limit'], budget['unit'], 3)}{_least(event, budget)}"
        for budget in event["budgets"]
    )
    return (
        f"{event['recipe']}, profile {event['profile']}, board {event['board']}, target {event['target']}, "
        f"seed {event['seed']}, {event['epochs']} epochs, {event['steps']} steps; "
        f"full-size {figures(event['full_size'])}, {event['full_size']['parameters']} parameters; budgets: {budgets}"
    )


def _least(event: Event, budget: Mapping[str, Any]) -> str:
    """Return how low the quantity of a budget can come, where that is known."""
    reach = event.get("reach", {}).get(budget["quantity"])
    return "" if reach is None else f" (down to {amount(reach['least'], budget['unit'], 3)}, {reach['provenance']})"


def _epoch_line(event: Event) -> str:
    metric = numbers.metric_text(event["metric_name"], event["metric"])
    return f"{event['epoch']}, loss {numbers.number(event['loss'])}, {event['metric_name']} {metric}"


def _energy_line(event: Event) -> str:
    (energy,) = numbers.scaled((event["kwh"],), "kWh")
    return f"{event['chapter']} training took {numbers.duration(event['seconds'])}, {energy} ({event['method']})"


def _reading_line(event: Event) -> str:
    held = "".join(
        f", {name} {amount(event[FIELDS[name]], UNITS[name], 3)} ({event[f'{name}_provenance']})"
        for name in ("memory", "size")
        if event.get(FIELDS[name]) is not None
    )
    return f"{figures(event)}, {event['parameters']} parameters{held}"


def _cut_line(event: Event) -> str:
    before, after = (_plain(event[name]) for name in ("metric_before", "metric_after"))
    bought = "".join(
        f"; a further {unit} of {word(name)} would buy {numbers.number(price * per, 2)} nats"
        for name, price in event.get("prices", {}).items()
        for per, unit in [(1e6, "MB") if UNITS[name] == "bytes" else (1.0, UNITS[name])]
        if price > 0
    )
    return f"{cut_axes(event)}; predicted {numbers.number(event['nats'], 2)} nats; metric {before} -> {after}{bought}"


def _rollback_line(event: Event) -> str:
    return f"{event['reason']}; the largest cut is now {numbers.percent(event['largest_cut'])}"


def _spectrum_line(event: Event) -> str:
    return ", ".join(f"{name} {layer['states']} of {layer['full']} states" for name, layer in event["layers"].items())


def _verdict_line(event: Event) -> str:
    figure = numbers.against(event["value"], event["limit"], event["unit"])
    return f"{word(event['quantity'])} {event['outcome']}: {figure} ({event['provenance']})"


def _end_line(event: Event) -> str:
    return f"after {numbers.duration(event['seconds'])}, exit code {event['exit_code']}"


def _other_line(event: Event) -> str:
    return ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "step", "time_s"))


def _plain(metric: float | None) -> str:
    return numbers.UNKNOWN if metric is None else numbers.number(metric)


_LINES: Mapping[str, Callable[[Event], str]] = {
    "start": _start_line,
    "epoch": _epoch_line,
    "full_size_epoch": _epoch_line,
    "energy": _energy_line,
    "resume": lambda event: "the run goes on after this step" if event["step"] >= 0 else "the run begins anew",
    "reading": _reading_line,
    "demand": lambda event: str(event["reason"]),
    "cut": _cut_line,
    "rollback": _rollback_line,
    "spectrum": _spectrum_line,
    "wait": lambda event: str(event["reason"]),
    "note": lambda event: str(event["text"]),
    "precision": lambda event: str(event["text"]),
    "rounding": lambda event: str(event["text"]),
    "checkpoint": lambda event: str(event["path"]),
    "ending": lambda event: f"{event['quantity']} {event['standing']}: {event['reason']}",
    "verdict": _verdict_line,
    "end": _end_line,
}
