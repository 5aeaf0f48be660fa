"""The report of a run: report.json for programs, report.html for people."""

from __future__ import annotations

import json
from pathlib import Path

from edgelean.errors import InputError, MissingError
from edgelean.report.model import Report as Report

JSON_NAME = "report.json"
HTML_NAME = "report.html"


def write_report(report: Report, run: Path) -> None:
    """Write report.json and report.html into the folder ``run``; a reader never sees half a file."""
    _write(run / JSON_NAME, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_html(report, run)


def write_html(report: Report, run: Path) -> None:
    """Write report.html into the folder ``run``."""
    from edgelean.report.html import render

    _write(run / HTML_NAME, render(report))


def read_report(run: Path) -> Report:
    """Return the report of the run in the folder ``run``.

    Raises
    ------
    MissingError
        If there is no such folder, or it holds no report.
    InputError
        If report.json is damaged.
    """
    path = run / JSON_NAME
    if not run.is_dir():
        raise MissingError(f"{run} is not a run: there is no such folder: name the folder that `edgelean fit` wrote")
    if not path.is_file():
        unfinished = (run / "events.jsonl").is_file()
        remedy = (
            f"the run did not end: finish it with `edgelean fit --resume {run}`"
            if unfinished
            else "it is not the folder of a run: name the folder that `edgelean fit` wrote"
        )
        raise MissingError(f"{run} has no {JSON_NAME}: {remedy}")
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _write(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
