"""The command ``edgelean compare``: several runs beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="The folders of two runs or more.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with the plot of metric over latency there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare runs on one board; those whose figures were taken under different conditions are refused."""
    from edgelean.cli.tables import print_json, print_table
    from edgelean.report import compare as comparing
    from edgelean.report import read_report
    from edgelean.training.run import Run

    def contender(folder: Path) -> comparing.Contender:
        report = read_report(folder)
        return comparing.Contender(str(folder), report, int(Run.open(folder).asked()["profile"]["batch"]))

    found = comparing.compare([contender(folder) for folder in runs])
    if html is not None:
        from edgelean.report.pareto import render_comparison

        html.write_text(render_comparison(found), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
        return
    print_table(comparing.heading(found), comparing.columns(found), comparing.rows(found), firm=2)
    if html is not None:
        typer.echo(f"page  {html}")
