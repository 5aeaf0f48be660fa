"""The command ``edgelean fit``: the whole flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelean.errors import InputError

if TYPE_CHECKING:
    from edgelean.report.model import Report

INTERRUPTED = 130


def fit(
    recipe: Annotated[
        str, typer.Argument(help="A built-in recipe (digits, digits-sequence), a Python file, or package.module:name.")
    ] = "digits",
    profile: Annotated[
        str, typer.Option(help="A profile's name (see `edgelean profiles`) or TOML file.")
    ] = "jetson-orin",
    latency: Annotated[
        str | None, typer.Option(help="Another latency budget: 2ms, 350us, or 50% of full-size.")
    ] = None,
    energy: Annotated[str | None, typer.Option(help="Another energy budget: 10mJ, or 50% of full-size.")] = None,
    target: Annotated[str | None, typer.Option(help="Where candidates are measured: local or modelled.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, new or empty; by default under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a hyper-parameter of the recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """Train a model and make it smaller while it learns, until the budgets of a profile are met."""
    from rich.console import Console

    from edgelean.cli.display import open_display
    from edgelean.cli.summary import print_summary

    chosen = _settings(settings or [])
    if epochs is not None:
        chosen["epochs"] = str(epochs)
    console = Console(quiet=as_json)
    place: list[Path] = []

    def run(on_event: Callable[[Mapping[str, Any]], None]) -> Report:
        from edgelean import job, pipeline

        if resume is not None:
            place.append(resume)
            return pipeline.resume(resume, on_event=on_event)
        asked = job.ask(recipe, profile, latency=latency, energy=energy, target=target, seed=seed, settings=chosen)
        place.append(out or job.new_folder(asked))
        return pipeline.run(asked, place[0], on_event)

    try:
        with open_display(console) as display:
            report = run(display.on_event)
    except KeyboardInterrupt:
        _say_goodbye(place)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        from edgelean.cli.tables import print_json

        print_json(report.to_json())
    else:
        print_summary(console, report, place[0])
    raise typer.Exit(report.exit_code)


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: write it as KEY=VALUE")
        settings[key] = value
    return settings


def _say_goodbye(place: list[Path]) -> None:
    if place and (place[0] / "checkpoints").is_dir():
        typer.echo(f"\ninterrupted; go on with: edgelean fit --resume {place[0]}", err=True)
    else:
        typer.echo("\ninterrupted before the training began; nothing was written", err=True)
