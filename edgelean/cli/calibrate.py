"""The command ``edgelean calibrate``: a board's cost model, fitted to kernels that are measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgelean.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from edgelean.board import Board, Precision
    from edgelean.board.model import Calibration
    from edgelean.calibration import Calibrated
    from edgelean.profile import Profile
    from edgelean.target import Target

ROUNDS, QUICK_ROUNDS = 3, 2
QUICK_SHARE = 0.5


def calibrate(
    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="The board file to write; it must not exist.")],
    board: Annotated[str, typer.Option(help="What is known of the board: its name or TOML file.")] = "this-machine",
    target: Annotated[str, typer.Option(help="Where the kernels run: local or ssh://HOST.")] = "local",
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="What the kernels compute in.")] = "fp32",
    quick: Annotated[bool, typer.Option("--quick", help="Half of the kernels, and fewer readings of each.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Fit a board's cost model to a designed set of kernels, and show how it predicts networks that it has not seen."""
    from edgelean.board import load_board
    from edgelean.board.write import refuse_to_overwrite, write_board
    from edgelean.calibration import calibrate as fit_board
    from edgelean.exporter.fp16 import to_fp16

    refuse_to_overwrite(out)
    rounds = open_rounds(target, load_board(board), precision, QUICK_ROUNDS if quick else ROUNDS)
    try:
        with _progress(quiet=as_json) as on_reading:
            share = QUICK_SHARE if quick else 1.0
            found = fit_board(_board_of(rounds, board), precision, rounds, to_fp16, share, on_reading)
    finally:
        rounds[0].close()
    write_board(found.board, out, comment_of(found, target, precision))
    if as_json:
        print_json(to_json(found, out))
    else:
        print_calibration(found, precision)
        typer.echo(f"Written to {out}. Name it as the board of a profile to use it.")


def open_rounds(target: str, board: Board, precision: Precision, rounds: int) -> list[Target]:
    """Return the target once for each round; where it has a sensor, only the first round measures energy."""
    from edgelean.sensors.protocol import EnergyProtocol
    from edgelean.target import open_target
    from edgelean.target.latency import Patience
    from edgelean.target.local import LocalTarget, Routine

    short = EnergyProtocol(
        window_s=0.1,
        windows=2,
        most_windows=2,
        idle_s=0.05,
        idle_windows=2,
        longest_delay_s=0.01,
        warm_up_s=0.02,
        cool_down_s=0.0,
    )
    patience = Patience(warm_up_s=0.02, least_s=0.05, cap_s=0.15)
    routine = Routine(repeats=1, attempts=1, pause_s=0.0, rest_s=0.0, patience=patience, energy=short)
    opened = open_target(target, _profile(board, precision), board, routine=routine)
    others = replace(opened, sensor=None) if isinstance(opened, LocalTarget) else opened
    return [opened, *[others] * (rounds - 1)]


def comment_of(found: Calibrated, target: str, precision: Precision) -> str:
    """Return the head of the board file: how it was made."""
    made = found.calibration
    return (
        f"Written by: edgelean calibrate, target {target.partition('://')[0]}, {precision.upper()}.\n"
        f"The section calibration.{precision} was fitted on {made.made} to {made.fitted_on},\n"
        f"with {made.runtime}.\n"
        f"Median error {100 * made.network_error:.1f} % on {len(found.trials)} networks that it was not fitted to."
    )


def to_json(found: Calibrated, out: Path) -> dict[str, Any]:
    """Return what was found as plain JSON types."""
    return {
        "file": str(out),
        "calibration": found.calibration.model_dump(mode="json"),
        "networks": [asdict(trial) | {"error": trial.error} for trial in found.trials],
    }


def print_calibration(found: Calibrated, precision: Precision) -> None:
    """Print the parameters with their intervals, and how the networks are predicted that were not fitted to."""
    from edgelean.report import numbers

    print_parameters(f"Cost model of {found.board.title}, {precision.upper()}", found.calibration)
    print_table(
        "Networks that it was not fitted to",
        ("network", "measured", "predicted", "error"),
        [
            (
                trial.name,
                f"{numbers.number(trial.measured_ms)} ms",
                f"{numbers.number(trial.predicted_ms)} ms",
                f"{100 * trial.error:+.1f} %",
            )
            for trial in found.trials
        ],
        firm=4,
    )
    typer.echo(summary(found))


def print_parameters(title: str, calibration: Calibration) -> None:
    """Print every parameter of a calibration with its interval."""
    from edgelean.board.document import knobs_of
    from edgelean.board.model import Fitted

    print_table(
        title,
        ("parameter", "value", "unit", "95 % interval", "what it is"),
        [
            (one.key, f"{one.value.value:.3g}", one.unit, f"{one.value.low:.3g} to {one.value.high:.3g}", one.sentence)
            for one in knobs_of(calibration)
            if isinstance(one.value, Fitted)
        ],
        firm=4,
    )


def summary(found: Calibrated) -> str:
    """Return how good the cost model is, and what it knows of the energy."""
    made = found.calibration
    energy = "Energy per operation and byte was measured."
    if made.pj_per_flop is None:
        energy = "No sensor measured energy here: it stays as the board file has it."
    return (
        f"Median error {100 * made.network_error:.1f} % on these networks, rank correlation {made.network_rank:.3f}; "
        f"{100 * made.kernel_error:.1f} % on the kernels that were held out. {energy}"
    )


def _board_of(rounds: Sequence[Target], name: str) -> Board:
    """Return the board with what the target found out about it: the numbers that this machine lacks are measured."""
    from edgelean.board import load_board
    from edgelean.target.local import LocalTarget

    return rounds[0].board if isinstance(rounds[0], LocalTarget) else load_board(name)


def _profile(board: Board, precision: Precision) -> Profile:
    """Return a profile that only says what a target asks of it."""
    from edgelean.budget import Budgets, parse_budget
    from edgelean.profile import Profile

    budgets = Budgets(latency=parse_budget("latency", "100%"))
    return Profile(
        name="calibration", board=board.name, precision=precision, batch=1, targets=("onnx-fp32",), budgets=budgets
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how far the readings are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("reading kernels"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("readings", total=None)
        yield lambda done, wanted: progress.update(task, completed=done, total=wanted)
