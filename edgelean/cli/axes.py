"""The command ``edgelean axes``: what can be cut out of a model, and what cannot, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelean.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from edgelean.shrink.axes import Anatomy, Axis
    from edgelean.shrink.parts import Parts

SHOWN = 3
"""So many coupled tensors, or modules of a block, stand in a cell of the table; all of them are in the JSON."""


def axes(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A built-in recipe (digits, digits-sequence, spoken-digits, smnist, scifar), a Python file, or "
            "package.module:name."
        ),
    ] = "digits",
    protect: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A module that keeps its size, such as head or layers.*.attn; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show the axes of a recipe's model: their units, what is coupled, and what is left alone and why."""
    anatomy, share = _anatomy(recipe, protect or [])
    if as_json:
        print_json(_as_json(anatomy, share))
        return
    rows = [_row(axis) for axis in anatomy.axes.values()]
    print_table(f"{len(rows)} axes", ("axis", "units", "each", "what goes with a unit", "code"), rows, firm=3)
    if anatomy.refused:
        print_table("Left alone", ("what", "why"), [(r.what, r.why) for r in anatomy.refused], firm=1)
    if anatomy.parts is not None:
        print_table("Traced in parts", ("part", "inputs that it is called with"), _part_rows(anatomy.parts), firm=1)
        typer.echo(f"torch.export cannot trace the model whole: {anatomy.parts.reason.message()}\n")
    left = f"{100 * share:.0f} % of the parameters are left, and every block"
    typer.echo(f"With half of all units {left}. Every axis was tried.")


def _anatomy(spec: str, protect: list[str]) -> tuple[Anatomy, float]:
    """Return the proved axes of a recipe's model, and the share of its parameters that half of all units needs."""
    import torch

    from edgelean.bench import PROBE_SAMPLES
    from edgelean.recipe import checked, load_recipe
    from edgelean.shrink.axes import dissect
    from edgelean.shrink.inputs import checked_inputs
    from edgelean.shrink.protect import protected
    from edgelean.shrink.prove import prove
    from edgelean.training.trainer import prepare

    session = prepare(checked(load_recipe(spec)), 0, torch.device("cpu"))
    example = checked_inputs(session.model, next(iter(session.loaders.validation))[0][:PROBE_SAMPLES])
    found = protected(dissect(session.model, example), session.model, (*session.recipe.protect, *protect))
    anatomy = prove(session.model, found, example).applied(found)
    half = {name: -(-axis.size // 2) for name, axis in anatomy.axes.items()}
    return anatomy, anatomy.structure.parameters(half) / anatomy.structure.parameters({})


def _row(axis: Axis) -> tuple[str, ...]:
    coupled = [f"{tensor}[{dim}]" for tensor, dim in axis.slots] + [detour.path for detour in axis.detours]
    more = f" and {len(coupled) - SHOWN} more" if len(coupled) > SHOWN else ""
    follows = ", ".join(dict.fromkeys(attribute.name for attribute in axis.attributes))
    channel = f"{axis.width} wide" if axis.width > 1 else "1"
    unit = {"states": "state", "blocks": "block"}.get(axis.kind, channel)
    unit += ", free basis" if axis.free else ""
    return axis.name, str(axis.size), unit, ", ".join(coupled[:SHOWN]) + more, follows


def _part_rows(parts: Parts) -> list[tuple[str, str]]:
    return [(path, ", ".join(str(list(x.shape)) for x in call.inputs())) for path, call in parts.calls.items()]


def _as_json(anatomy: Anatomy, share: float) -> dict[str, Any]:
    return {
        "axes": [
            {
                "name": axis.name,
                "kind": axis.kind,
                "units": axis.size,
                "width": axis.width,
                "coupled": [
                    {"tensor": tensor, "dim": dim, "elements": elements.shape[1]}
                    for (tensor, dim), elements in axis.slots.items()
                ],
                "modules": [detour.to_json() for detour in axis.detours],
                "read_by": [path for path, _ in axis.readers],
                "free_basis": axis.free,
                "code": [attribute.key() for attribute in axis.attributes],
            }
            for axis in anatomy.axes.values()
        ],
        "left_alone": [{"what": refusal.what, "why": refusal.why} for refusal in anatomy.refused],
        "parts": None if anatomy.parts is None else list(anatomy.parts.calls),
        "why_in_parts": None if anatomy.parts is None else anatomy.parts.reason.words(),
        "parameters_left_at_half": share,
    }
