"""The command ``edgelean fit``: the whole flow."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelean.errors import InputError

if TYPE_CHECKING:
    from edgelean.job import Job
    from edgelean.report.model import Report

Work = Callable[[Callable[[Mapping[str, Any]], None]], "Report"]
"""Something that fits and tells its events."""

INTERRUPTED = 130


def fit(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A built-in recipe (digits, digits-sequence, spoken-digits, smnist, scifar), a Python file, or "
            "package.module:name."
        ),
    ] = "digits",
    profile: Annotated[
        str, typer.Option(help="A profile's name (see `edgelean profiles`) or TOML file.")
    ] = "jetson-orin",
    latency: Annotated[
        str | None, typer.Option(help="Another latency budget: 2ms, 350us, or 50% of full-size.")
    ] = None,
    energy: Annotated[str | None, typer.Option(help="Another energy budget: 10mJ, or 50% of full-size.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Another budget for weights and live activations: 2MB, or 50% of full-size.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Another budget for the exported file: 300kB, or 50% of full-size.")
    ] = None,
    accuracy_loss: Annotated[
        str | None, typer.Option(help="Another budget for what the metric may lose: '2 points'.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Where candidates are measured: local, modelled or ssh://[user@]host.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, new or empty; by default under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a hyper-parameter or control knob."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go from the untrained model, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """Train a model and make it smaller while it learns, until the budgets of a profile are met."""
    chosen = _settings(settings or [])
    if epochs is not None:
        chosen["epochs"] = str(epochs)

    def asked() -> Job:
        from edgelean import job

        budgets = {"latency": latency, "energy": energy, "memory": memory, "size": size, "accuracy_loss": accuracy_loss}
        return job.ask(recipe, profile, **budgets, target=target, seed=seed, settings=chosen)

    def work() -> tuple[Path, Work]:
        from edgelean import job, pipeline

        if resume is not None:
            return resume, lambda on_event: pipeline.resume(resume, on_event=on_event)
        wanted = asked()
        folder = out or job.new_folder(wanted)
        return folder, lambda on_event: pipeline.run(wanted, folder, on_event)

    if dry_run:
        if resume is not None:
            raise InputError("--dry-run is for a run that has not begun: leave out --resume")
        raise typer.Exit(_previewed(asked(), as_json))
    raise typer.Exit(_shown(work, as_json))


def _previewed(job: Job, as_json: bool) -> int:
    """Print what a run would cut from the untrained model; return the exit code."""
    from rich.console import Console

    from edgelean.cli.foresight import print_preview
    from edgelean.cli.tables import print_json
    from edgelean.preview import preview

    found = preview(job)
    if as_json:
        print_json(found.to_json())
    else:
        print_preview(Console(), found)
    return 0 if found.feasible else 3


def _shown(work: Callable[[], tuple[Path, Work]], as_json: bool) -> int:
    """Do the work while its events are shown, then print what came of it; return the exit code."""
    from rich.console import Console

    from edgelean.cli.display import open_display
    from edgelean.cli.summary import print_summary
    from edgelean.cli.tables import print_json

    console = Console(quiet=as_json)
    folder = None
    try:
        with stopped_like_ctrl_c(), open_display(console) as display:
            folder, fit_it = work()
            report = fit_it(display.on_event)
    except KeyboardInterrupt:
        _say_goodbye(folder)
        return INTERRUPTED
    if as_json:
        print_json(report.to_json())
    else:
        print_summary(console, report, folder)
    return report.exit_code


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Let a scheduler that ends the process, or a terminal that closes, do what Ctrl-C does."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored stays so, as nohup wants it.
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: write it as KEY=VALUE")
        settings[key] = value
    return settings


def _say_goodbye(folder: Path | None) -> None:
    if folder is not None and (folder / "run.json").is_file():
        typer.echo(f"\ninterrupted; go on with: edgelean fit --resume {folder}", err=True)
    else:
        typer.echo("\ninterrupted before the training began; nothing was written", err=True)
