"""The command ``edgelean measure``: latency and energy of one model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgelean.cli.tables import print_json, print_table
from edgelean.errors import InputError

if TYPE_CHECKING:
    from edgelean.measuring import Measurement
    from edgelean.reading import Figure


def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx|RUN", help="An ONNX file, or the folder of a run.")],
    profile: Annotated[
        str | None,
        typer.Option(help="A profile's name or TOML file; by default the one of the run, else this-machine."),
    ] = None,
    latency: Annotated[str | None, typer.Option(help="Another latency budget, such as 2ms.")] = None,
    energy: Annotated[str | None, typer.Option(help="Another energy budget, such as 10mJ.")] = None,
    memory: Annotated[str | None, typer.Option(help="Another memory budget, such as 2MB.")] = None,
    size: Annotated[str | None, typer.Option(help="Another budget for the size of the file, such as 300kB.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Where it is measured: local, modelled or ssh://[user@]host.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per call; by default the profile's.")] = None,
    runtime: Annotated[
        Literal["onnxruntime", "tensorrt", "torch"] | None,
        typer.Option(help="What runs it on this machine; by default what the board deploys."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME=3x224x224", help="Shape of an input that the file leaves open."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--input", help="Real inputs, .npy or .npz; by default random numbers.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Measure latency and energy of a model, and hold them against the budgets of a profile."""
    from edgelean.measuring import Wishes, measure_file

    wishes = Wishes(
        target=target,
        batch=batch,
        runtime=runtime,
        latency=latency,
        energy=energy,
        memory=memory,
        size=size,
        shapes=dict(map(_shape, shapes or [])),
        inputs=inputs,
    )
    found = measure_file(model, profile, wishes)
    if as_json:
        print_json(to_json(found))
    else:
        print_measurement(found)
    raise typer.Exit(found.exit_code)


def to_json(found: Measurement) -> dict[str, Any]:
    """Return a measurement as plain JSON types."""
    return {
        "model": found.model,
        "profile": found.profile.name,
        "board": found.board.name,
        "target": found.target,
        "reading": found.reading.to_json(),
        "percentiles": [
            {"percentile": percentile, "value": figure.value, "low": figure.low, "high": figure.high}
            for percentile, figure in found.percentiles.items()
        ],
        "verdicts": [vars(verdict) for verdict in found.verdicts],
        "unjudged": list(found.unjudged),
        "exit_code": found.exit_code,
    }


def print_measurement(found: Measurement) -> None:
    """Print what a person wants to know: the figures, where they come from, the verdicts, the conditions."""
    reading = found.reading
    figures = {f"latency, {_ordinal(reading.percentile)}": reading.latency}
    figures |= {f"latency, {_ordinal(percentile)}": figure for percentile, figure in found.percentiles.items()}
    figures = dict(sorted(figures.items()))
    if reading.energy is not None:
        figures["energy, gross"] = reading.energy
    if reading.energy_net is not None:
        figures["energy, net of idle"] = reading.energy_net
    figures |= {name: figure for name in ("memory", "size") if (figure := getattr(reading, name)) is not None}
    typer.echo(f"{found.model} on {found.board.title}, {reading.batch} per call\n")
    print_table(
        "",
        ("figure", "value", "95 % interval", "provenance"),
        [_figure_row(name, figure) for name, figure in figures.items()],
        firm=4,
    )
    if found.verdicts:
        columns = ("budget", "limit", "margin", "verdict")
        print_table(f"Budgets of the profile {found.profile.name}", columns, _verdict_rows(found), firm=4)
    notes = [(name, method) for name, method in _methods(found)] + sorted(reading.conditions.items())
    print_table("", ("", "how, and under what conditions"), notes, firm=1)
    for line in found.unjudged:
        typer.echo(f"No verdict on {line}")


def _figure_row(name: str, figure: Figure) -> tuple[str, ...]:
    from edgelean.report import numbers

    if figure.low == figure.high:
        return name, *numbers.amounts((figure.value,), figure.unit), "", str(figure.provenance)
    (value, low, high), unit = numbers.in_unit((figure.value, figure.low, figure.high), figure.unit, 4)
    return name, f"{value} {unit}", f"{low} to {high}", str(figure.provenance)


def _verdict_rows(found: Measurement) -> list[tuple[str, ...]]:
    from edgelean.report import numbers

    return [
        (
            f"{verdict.quantity}, {_ordinal(verdict.percentile)}"
            if verdict.quantity == "latency"
            else verdict.quantity,
            *numbers.amounts((verdict.limit,), verdict.unit),
            numbers.percent(verdict.margin),
            verdict.outcome,
        )
        for verdict in found.verdicts
    ]


def _methods(found: Measurement) -> list[tuple[str, str]]:
    reading = found.reading
    energies = [reading.energy] if reading.energy is not None else []
    if reading.energy_net is not None:
        energies = [reading.energy_net]
    held = [(name, figure.method) for name in ("memory", "size") if (figure := getattr(reading, name)) is not None]
    return [("latency", reading.latency.method), *(("energy", figure.method) for figure in energies), *held]


def _ordinal(percentile: float) -> str:
    return "median" if percentile == 50 else f"p{percentile:g}"


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, extents = text.rpartition("=")
    if not name or not equals or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", extents):
        raise InputError(f"--shape {text}: write it as NAME=3x224x224, with numbers above 0")
    return name, tuple(map(int, extents.split("x")))
