"""The commands ``edgelean profiles``: what a model may cost, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgelean.cli.tables import print_json, print_table
from edgelean.quantity import QUANTITIES, word

if TYPE_CHECKING:
    from edgelean.board.document import Knob
    from edgelean.budget import Budget
    from edgelean.profile import Profile

app = typer.Typer(help="Budgets: what a model may cost, and on which board.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.callback(invoke_without_command=True)
def profiles(context: typer.Context) -> None:
    """List the profiles when no command is given."""
    if context.invoked_subcommand is None:
        list_profiles()


@app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """List the profiles of the shelf."""
    from edgelean.profile import load_profile, profile_names

    found = [load_profile(name) for name in profile_names()]
    if as_json:
        print_json([profile.model_dump(mode="json") for profile in found])
        return
    used = [name for name in QUANTITIES if any(getattr(profile.budgets, name) for profile in found)]
    columns = ("profile", "board", "precision", "batch", *map(word, used))
    print_table("Profiles", columns, [_row(profile, used) for profile in found], firm=len(columns))
    typer.echo("Everything that one sets: edgelean profiles show NAME")
    typer.echo("One of your own:          edgelean profiles new --help")


@app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="A profile of the shelf, or the path of a profile file.")],
    as_json: Json = False,
) -> None:
    """Show everything that a profile sets, with its unit and what it means."""
    from edgelean.board.document import knobs_of
    from edgelean.profile import load_profile

    profile = load_profile(name)
    if as_json:
        print_json(profile.model_dump(mode="json"))
        return
    rows = [(knob.key, _text(knob.value), knob.unit, knob.sentence) for knob in knobs_of(profile)]
    print_table(f"{profile.name}: {profile.title}", ("key", "value", "unit", "what it means"), rows, firm=1)


@app.command("check")
def check_profile(file: Annotated[str, typer.Argument(help="The path of a profile file, or a name.")]) -> None:
    """Check a profile: print OK, or say what is wrong and exit with 2."""
    from edgelean.profile import load_profile

    profile = load_profile(file)
    budgets = " and ".join(f"{word(budget.quantity)} {_text(budget)}" for budget in profile.budgets.given)
    typer.echo(f"OK: {file} asks for {budgets} on the board {profile.board}")


@app.command("new")
def new_profile(
    name: Annotated[str, typer.Argument(help="Name of the profile, and of the file unless --out is given.")],
    board: Annotated[str, typer.Option(help="A board of the shelf, or the path of a board file.")],
    latency: Annotated[str | None, typer.Option(help='Such as "2ms", or "50%" of the full-size model.')] = None,
    energy: Annotated[str | None, typer.Option(help='Per inference, such as "10mJ" or "50%".')] = None,
    memory: Annotated[str | None, typer.Option(help='Weights and live activations, such as "2MB" or "50%".')] = None,
    size: Annotated[str | None, typer.Option(help='The exported file, such as "300kB" or "50%".')] = None,
    accuracy_loss: Annotated[str | None, typer.Option(help='What the metric may lose, such as "2 points".')] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option(help="Left out: fp16 on a GPU, fp32 on a CPU.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per call.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where to write it; left out: NAME.toml in this folder.")] = None,
) -> None:
    """Write a profile of one's own, with a comment for everything that can be set."""
    from edgelean.board import load_board
    from edgelean.board.document import is_path
    from edgelean.budget import Budgets, parse_budget
    from edgelean.errors import InputError
    from edgelean.profile import Profile, target_names

    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{name!r} cannot be the name of a profile: use letters, digits, '-', '_' and '.'")
    texts = dict(zip(QUANTITIES, (latency, energy, memory, size, accuracy_loss), strict=True))
    if not any(texts[name] for name in QUANTITIES if name != "accuracy_loss"):
        raise InputError(
            "a profile needs a budget: give --latency 2ms, --energy 10mJ, --memory 2MB, --size 300kB, or several"
        )
    hardware = load_board(board)
    chosen = precision or ("fp16" if hardware.kind == "gpu" else "fp32")
    wanted = ["onnx-fp32", f"onnx-{chosen}", *([f"tensorrt-{chosen}"] if hardware.kind == "gpu" else [])]
    profile = Profile(
        name=name,
        title=f"{hardware.title}, batch {batch}",
        board=str(Path(board).resolve()) if is_path(board) else board,
        precision=chosen,
        batch=batch,
        budgets=Budgets.model_validate({name: parse_budget(name, text) for name, text in texts.items() if text}),
        targets=tuple(target for target in dict.fromkeys(wanted) if target in target_names()),
    )
    path = out or Path(f"{name}.toml")
    _write_new(path, _toml(profile))
    typer.echo(f"wrote {path}; use it with: edgelean fit --profile {path}")


def _row(profile: Profile, quantities: Iterable[str]) -> tuple[str, ...]:
    budgets = (_text(getattr(profile.budgets, name)) for name in quantities)
    return profile.name, profile.board, profile.precision, str(profile.batch), *budgets


def _text(value: Any) -> str:
    from edgelean.budget import Budget

    if value is None:
        return "-"
    if isinstance(value, Budget):
        return f"{value}" + ("" if value.percentile == 50 else f" (percentile {value.percentile:g})")
    if isinstance(value, tuple):
        return ", ".join(_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_new(path: Path, text: str) -> None:
    from edgelean.errors import InputError

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} exists already and is left as it is: choose another name, or --out FILE") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _toml(profile: Profile) -> str:
    """Return the text of a profile file: what is set, and as comments what could be."""
    from edgelean.board.document import knobs_of

    carbon = [knob for knob in knobs_of(profile) if knob.key in ("country", "carbon_g_per_kwh")]
    lines = [
        "# What a model may cost, and where. Check it after a change: edgelean profiles check FILE",
        "",
        f"title = {_literal(profile.title)}",
        f"board = {_literal(profile.board)}",
        f"precision = {_literal(profile.precision)}",
        "# Samples per call; the latency is that of a whole batch.",
        f"batch = {profile.batch}",
        "# What is exported.",
        f"targets = {_literal(profile.targets)}",
        *(_comment(knob) for knob in carbon),
        "",
        "[budgets]",
        '# The median latency of a batch. A tail is bounded with { limit = "2ms", percentile = 99 }.',
        _budget("latency", profile.budgets.latency),
        "# The mean energy of one inference, that is of one sample.",
        _budget("energy", profile.budgets.energy),
        "# Weights and live activations of a batch; the exported file; what the metric may lose.",
        _budget("memory", profile.budgets.memory),
        _budget("size", profile.budgets.size),
        _budget("accuracy_loss", profile.budgets.accuracy_loss, "2 points"),
    ]
    for section in ("control", "accuracy", "measuring"):
        lines += ["", f"[{section}]", *(_comment(knob) for knob in knobs_of(getattr(profile, section)))]
    return "\n".join(lines) + "\n"


def _budget(quantity: str, budget: Budget | None, example: str = "50%") -> str:
    return f'# {quantity} = "{example}"' if budget is None else f'{quantity} = "{budget}"'


def _comment(knob: Knob) -> str:
    value = "..." if knob.value is None else _literal(knob.value)
    unit = f"{knob.unit}: " if knob.unit else ""
    return f"# {knob.key} = {value}  # {unit}{knob.sentence}"


def _literal(value: Any) -> str:
    """Return a text, number or list as TOML, which writes them as JSON does."""
    return json.dumps(value, ensure_ascii=False)
