"""The command line. Importing it is cheap: every command imports what it needs when it runs."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

import edgelean
from edgelean.cli import boards, profiles
from edgelean.cli.axes import axes
from edgelean.cli.calibrate import calibrate
from edgelean.cli.compare import compare
from edgelean.cli.doctor import doctor
from edgelean.cli.export import export
from edgelean.cli.fit import fit
from edgelean.cli.measure import measure
from edgelean.cli.report import report
from edgelean.cli.verify import verify
from edgelean.errors import EdgeleanError

FAILED = 2

app = typer.Typer(
    help="Train a PyTorch model and make it smaller while it learns, until it fits its budgets on the hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(fit)
app.command()(measure)
app.command()(calibrate)
app.add_typer(profiles.app, name="profiles")
app.add_typer(boards.app, name="boards")
app.command()(axes)
app.command()(export)
app.command()(verify)
app.command()(report)
app.command()(compare)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(edgelean.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; whatever is wrong with the input becomes one message and an exit code."""
    try:
        app()
    except EdgeleanError as error:
        # What a stage of the run adds, such as how to go on, is in the notes.
        sys.exit(_complain("\n".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code))
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(_complain(f"{error.filename or 'a file'} cannot be written: {error.strerror}", FAILED))


def _complain(message: str, code: int) -> int:
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    return code
