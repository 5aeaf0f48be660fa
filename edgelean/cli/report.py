"""The command ``edgelean report``: show a run again."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    show: Annotated[bool, typer.Option("--open", help="Open report.html in the browser.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell every decision: what was read, demanded and cut, and what it cost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """Print what a run came to, and write its report.html anew."""
    if explain:
        _explain(run, as_json)
        return
    from edgelean.report import HTML_NAME, read_report, write_html

    found = read_report(run)
    write_html(found, run)
    if as_json:
        from edgelean.cli.tables import print_json

        print_json(found.to_json())
    else:
        from rich.console import Console

        from edgelean.cli.summary import print_summary

        print_summary(Console(), found, run)
    if show:
        page = (run / HTML_NAME).resolve()
        if not webbrowser.open(page.as_uri()):
            typer.echo(f"No browser can be started here: open {page} yourself.", err=True)


def _explain(folder: Path, as_json: bool) -> None:
    """Print the decisions of a run, also of one that goes on or was interrupted."""
    from dataclasses import asdict

    from rich.console import Console

    from edgelean.cli.summary import print_decisions
    from edgelean.cli.tables import print_json
    from edgelean.report.decisions import decisions
    from edgelean.training.run import Run

    events = Run.open(folder).events()
    found = decisions(events)
    if as_json:
        print_json([asdict(decision) for decision in found])
        return
    metric_name = next((event["metric_name"] for event in events if "metric_name" in event), "metric")
    print_decisions(Console(), found, metric_name)
