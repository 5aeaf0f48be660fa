"""How the fast commands print: a table for a person, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

PIPE_COLUMNS = 160
"""Width of a table that no terminal shows."""


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], firm: int) -> None:
    """Print rows of plain text under a title; the first ``firm`` columns are never broken or shortened."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index < firm, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table, "")


def print_json(value: Any) -> None:
    """Print a value of plain JSON types, and nothing else."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
