"""The commands ``edgelean boards``: what is known about the hardware."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelean.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from edgelean.board import Board, Fact

app = typer.Typer(help="Hardware that edgelean knows: its rates, its power, its sensor.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.callback(invoke_without_command=True)
def boards(context: typer.Context) -> None:
    """List the boards when no command is given."""
    if context.invoked_subcommand is None:
        list_boards()


@app.command("list")
def list_boards(as_json: Json = False) -> None:
    """List the boards of the shelf."""
    from edgelean.board import board_names, load_board

    found = [load_board(name) for name in board_names()]
    if as_json:
        print_json([board.model_dump(mode="json") for board in found])
        return
    columns = ("board", "FP16\nTFLOP/s", "\nGB/s", "\nmax W", "\nsensor", "\nguesses", "\nunknown")
    print_table("Boards", columns, [_row(board) for board in found], firm=len(columns))
    typer.echo("Every number with its source: edgelean boards show NAME")


@app.command("show")
def show_board(
    name: Annotated[str, typer.Argument(help="A board of the shelf, or the path of a board file.")],
    as_json: Json = False,
) -> None:
    """Show every number of one board with its confidence and its source."""
    from edgelean.board import load_board

    board = load_board(name)
    if as_json:
        print_json(board.model_dump(mode="json"))
        return
    _print_board(board)


@app.command("probe")
def probe_board(
    target: Annotated[str, typer.Argument(help="local, or ssh://[user@]host[:port].")] = "local",
    out: Annotated[Path | None, typer.Option("--out", help="Write a board file, which a profile can name.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a live device what it is: which board, its memory, power modes, idle power, rails and sensors."""
    from edgelean.board.write import refuse_to_overwrite, write_board
    from edgelean.target.describe import probe_device
    from edgelean.target.probe import probe_this_machine

    if out is not None:
        refuse_to_overwrite(out)
    device, board = probe_device(target, out.stem if out else "probed", lambda words: typer.echo(words, err=True))
    if target == "local" and board.kind == "cpu":
        board = probe_this_machine(board)
    if out is not None:
        write_board(board, out, f"Read off {device.words} by `edgelean boards probe {target}`.")
    if as_json:
        print_json({"board": board.model_dump(mode="json"), "sensors": [asdict(found) for found in device.sensors]})
        return
    _print_board(board)
    rows = [("yes" if f.usable else "no", f.name, f.detail, f.remedy) for f in device.sensors]
    print_table("Sensors", ("", "sensor", "found", "how to get it"), rows, firm=2)
    missing = ", ".join(key for key, fact in board.facts().items() if fact.value is None)
    if missing:
        typer.echo(f"Not known: {missing}. `edgelean calibrate --target {target}` measures what the cost model needs.")
    if out is None:
        typer.echo(f"To keep it: edgelean boards probe {target} --out my-board.toml")
    else:
        typer.echo(f'Written: {out}. In a profile beside it: board = "{out.name}"')


def _print_board(board: Board) -> None:
    """Print every number of a board with its confidence and its source."""
    from edgelean.board.document import knobs_of
    from edgelean.cli.calibrate import print_parameters

    facts = board.facts()
    units = {knob.key: knob.unit for knob in knobs_of(board)}
    print_table(
        f"{board.name}: {board.title}",
        ("number", "value", "unit", "confidence", "source"),
        [(key, _value(fact), units[key], fact.confidence or "", fact.source) for key, fact in facts.items()],
        firm=4,
    )
    print_table("", ("also", "", "source"), _also(board), firm=1)
    for precision, made in board.calibration:
        if made is not None:
            error = f"off by {made.network_error:.1%} on networks not fitted to"
            print_parameters(f"Calibration, {precision}: {made.made}, {made.runtime}, {made.fitted_on}; {error}", made)


def _row(board: Board) -> tuple[str, ...]:
    facts = board.facts().values()
    return (
        board.name,
        _value(board.compute.fp16_tflops),
        _value(board.memory.bandwidth_gb_s),
        _value(board.power.max_w),
        board.sensors.backend,
        str(sum(fact.confidence == "guess" for fact in facts)),
        str(sum(fact.value is None for fact in facts)),
    )


def _value(fact: Fact) -> str:
    return "?" if fact.value is None else f"{fact.value:g}"


def _also(board: Board) -> list[tuple[str, str, str]]:
    align, power, sensors = board.alignment, board.power, board.sensors
    rails = sensors.total_rail or ""
    if sensors.sum_rails:
        rails += (" or " if rails else "") + " + ".join(sensors.sum_rails)
    rows = [
        (
            "channel alignment",
            f"FP32 {align.fp32}, FP16 {align.fp16}, INT8 {align.int8}",
            f"{align.source} ({align.confidence})",
        ),
        ("power sensor", f"{sensors.backend} {rails}".strip(), ""),
    ]
    if power.modes:
        modes = (
            f"{mode.id} {mode.name}" + (f" ({mode.gpu_mhz:g} MHz)" if mode.gpu_mhz else "") for mode in power.modes
        )
        rows.append(("power modes", ", ".join(modes), power.modes_source))
    software = ((key.replace("_", " "), value) for key, value in board.software if value)
    rows.extend((key, str(value), "") for key, value in software)
    return rows
