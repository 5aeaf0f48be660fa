"""The end of a run on the console: the verdicts, full-size against lean, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgelean.quantity import word
from edgelean.report import HTML_NAME, numbers, story

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from edgelean.report import Report
    from edgelean.report.decisions import Decision

_STYLES = {"met": "bold green", "not met": "bold red", "undecided": "bold yellow"}


def print_summary(console: Console, report: Report, run: Path) -> None:
    """Print what a person has to know about the run in the folder ``run``, within the width of the console."""
    from rich.text import Text

    console.print()
    console.print(Text(story.headline(report), style=_STYLES[story.outcome(report)]))
    console.print(Text(story.origin(report), style="dim"))
    console.print()
    if report.verdicts:
        console.print(_verdict_table(report))
        console.print()
    if report.nearest:
        for sentence in report.nearest:
            console.print(Text(sentence))
        console.print(_front_table(report))
        console.print()
    console.print(_comparison_table(report))
    console.print()
    for text in (*report.caveats, *_check_lines(report), story.overhead_text(report)):
        console.print(Text(text))
    console.print(Text(f"report  {run / HTML_NAME}"), soft_wrap=True)
    if report.bundle:
        console.print(Text(f"bundle  {run / 'bundle'}"), soft_wrap=True)


def _verdict_table(report: Report) -> Table:
    from rich.text import Text

    table = _table()
    for name in ("budget", "value", "limit", "full-size", "margin", "verdict", "provenance"):
        table.add_column(name, justify="right" if name in ("value", "limit", "full-size", "margin") else "left")
    for verdict in report.verdicts:
        table.add_row(
            word(verdict.quantity),
            *numbers.amounts((verdict.value, verdict.limit, verdict.full_size), verdict.unit),
            numbers.percent(verdict.margin),
            Text(verdict.outcome, style=_STYLES[verdict.outcome]),
            str(verdict.provenance),
        )
    return table


def print_decisions(console: Console, decisions: Sequence[Decision], metric_name: str) -> None:
    """Print what was read, demanded and cut at each event, and what it cost."""
    from rich.padding import Padding
    from rich.text import Text

    from edgelean.report.explanation import explained

    for each in explained(decisions, metric_name):
        outcome = f", {each.outcome}" if each.outcome else ""
        console.print(Text(f"{each.title}{outcome}", style="bold red" if each.outcome == "rolled back" else "bold"))
        table = _table()
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, text in each.parts:
            table.add_row(name, Text(text))
        table.show_header = False
        console.print(Padding(table, (0, 0, 1, 2)))
    if not decisions:
        console.print(Text("The controller has not decided anything yet: no event was due."))


def _front_table(report: Report) -> Table:
    from rich.text import Text

    from edgelean.report.explanation import columns, trade_offs

    table = _table()
    for name in columns(report.front, report.metric_name):
        table.add_column(name, justify="left" if name in ("widths", "") else "right")
    for row in trade_offs(report.front, report.metric_name):
        table.add_row(*map(Text, row))
    return table


def _comparison_table(report: Report) -> Table:
    from rich.text import Text

    table = _table()
    table.add_column("")
    for name in ("full-size", "lean", "change"):
        table.add_column(name, justify="right")
    for row in story.comparison(report):
        label = f"{row.label}, {row.provenance}" if row.provenance else row.label
        table.add_row(Text(label), row.full, Text(row.lean, style="bold"), row.change)
    return table


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), header_style="dim")


def _check_lines(report: Report) -> list[str]:
    lines = [f"{check.file} {'passed' if check.passed else 'failed'}: {check.reason}" for check in report.checks]
    engine = "TensorRT engine built" if report.engine.built else "TensorRT engine not built"
    forms = [story.form_text(report)] if report.forms else []
    return [*lines, *forms, f"{engine}: {report.engine.text}"]
