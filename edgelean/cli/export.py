"""The command ``edgelean export``: a finished run in further formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that ended.")],
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="TARGET", help="One of export/targets, or a TOML file; may be repeated."),
    ],
    target: Annotated[
        str | None, typer.Option(help="Where the budgets are judged: local, modelled or ssh://[user@]host.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """Export the lean model of a run once more, verify and judge it; bundle and report of the run are replaced."""
    from edgelean.cli.fit import Work, _shown

    def work() -> tuple[Path, Work]:
        from edgelean import pipeline

        return run, lambda on_event: pipeline.export(run, to, target=target, on_event=on_event)

    raise typer.Exit(_shown(work, as_json))
