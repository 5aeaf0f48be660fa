"""The command ``edgelean verify``: whether a bundle is the one that was written, and as good as the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelean.verifier import ArtifactCheck

FAILED = 4


def verify(
    place: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="The folder of a run, or of a bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare the hashes of a bundle, then run its ONNX files: over the splits of a run, or its own samples."""
    from edgelean.cli.tables import print_json, print_table
    from edgelean.recheck import verify_again

    found = verify_again(place)
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(f"{found.bundle}: {found.files} files are the ones that were written")
        columns = ("file", "", "samples", "metric", "model", "file", "why")
        print_table("", columns, [_row(check) for check in found.checks], firm=6)
        for note in found.notes:
            typer.echo(note)
    raise typer.Exit(0 if found.passed else FAILED)


def _row(check: ArtifactCheck) -> tuple[str, ...]:
    from edgelean.report import numbers

    known = check.metric_name
    metrics = (check.metric_model, check.metric_artifact)
    texts = [numbers.metric_text(known, value) if known else numbers.UNKNOWN for value in metrics]
    verdict = "passed" if check.passed else "failed"
    return check.file, verdict, str(check.samples), known or "outputs", *texts, check.reason
