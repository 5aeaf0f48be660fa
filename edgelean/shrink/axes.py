"""Axes: sets of tensor dimensions that have to be cut together, found from the labels of a traced model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgelean.nn import Selective, StateSpace
from edgelean.nn.attention import freed
from edgelean.shrink.attributes import Attribute
from edgelean.shrink.blocks import Block
from edgelean.shrink.bypass import Detour
from edgelean.shrink.lines import Length, lengths_along
from edgelean.shrink.parts import Parts, cut_apart, in_vain, outside_of, renamed, traced
from edgelean.shrink.structure import Structure, joined, structure_of
from edgelean.shrink.trace import Trace, trace
from edgelean.shrink.untraceable import UntraceableError

Slot = tuple[str, int]
"""A dimension of a parameter or buffer: its name in the model, and which dimension."""


@dataclass(frozen=True)
class Axis:
    """Tensor dimensions whose units live and die together.

    Attributes
    ----------
    name
        The module that makes the units; the same for every trace of one model.
    kind
        ``"channels"``: any unit can go. ``"states"``: of a state space layer, cut by balanced truncation.
        ``"blocks"``: one residual branch, which goes as a whole or not at all.
    size
        How many units there are.
    slots
        For every dimension the elements of each unit, ``[size, elements per unit]``.
    readers
        The modules that read the units, each with the dimension of its weight; for states the layer itself.
    width
        Elements that a unit has where it is made: 1 for a channel, the places within it for a head.
    numbers
        Numbers in the model's code that may have to shrink along with it.
    attributes
        Those that have to.
    detours
        The modules that are replaced when a block goes, in the order of execution; none for all others.
    free
        Whether the basis of its units is free: what writes them and what reads them can be turned against each other.
    """

    name: str
    kind: Literal["channels", "states", "blocks"]
    size: int
    slots: Mapping[Slot, NDArray[np.int64]]
    readers: tuple[tuple[str, Slot], ...] = ()
    width: int = 1
    numbers: Mapping[Attribute, Length] = field(default_factory=dict)
    attributes: tuple[Attribute, ...] = ()
    free: bool = False
    detours: tuple[Detour, ...] = ()

    def least(self, elements: int) -> int:
        """Return the fewest units that may stay where so many elements have to; of a block, none.

        Of heads, and of places within them, two: with one head the next trace could not tell them apart.
        """
        fewest = 1 if self.width == 1 else 2
        return 0 if self.kind == "blocks" else min(self.size, max(fewest, elements // self.width))

    def module(self) -> str:
        """Return the path of the module whose output (or whose states) the units are."""
        return self.name.removesuffix(".states")


@dataclass(frozen=True)
class Refusal:
    """Dimensions that are left alone, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Anatomy:
    """A model taken apart: what can be cut, what cannot, and what each operator costs for any widths.

    Attributes
    ----------
    axes
        By name, in the order of execution.
    refused
        What is left alone.
    structure
        Sizes of operators and tensors as functions of the number of units kept on each axis.
    statistics
        The axes over which some operator takes statistics: their law needs the masked graph.
    parts
        The modules that were traced where the model cannot be traced whole, else None.
    blocks
        Residual branches. They become axes when it is proved how they can be taken out.
    found
        The trace that all this is from.
    linear
        The axes that meet nothing but linear operators: their basis may be free.
    """

    axes: Mapping[str, Axis]
    refused: tuple[Refusal, ...]
    structure: Structure
    statistics: frozenset[str] = frozenset()
    blocks: tuple[Block, ...] = ()
    found: Trace | None = field(default=None, compare=False, repr=False)
    parts: Parts | None = None
    linear: frozenset[str] = frozenset()


def dissect(model: nn.Module, example: tuple[Tensor, ...], parts: Parts | None = None) -> Anatomy:
    """Trace a model, or where that fails those of its modules that can be traced, and find its axes.

    Parameters
    ----------
    model
        Left as it is, but for nn.MultiheadAttention, which becomes a subclass that can lose heads.
    example
        Inputs with the batch size that costs are asked for.
    parts
        Of an earlier anatomy of the model: it is taken apart in the same way.

    Raises
    ------
    UntraceableError
        If the model cannot be traced, nor a module in it that has an axis inside.
    """
    freed(model)
    if parts is not None:
        return _joined(model, example, parts, {path: traced(model, path, call) for path, call in parts.calls.items()})
    try:
        return _taken_apart(trace(model, example), model)
    except UntraceableError as error:
        found = _joined(model, example, *cut_apart(model, example, error.reason))
        if not found.axes:
            raise in_vain(model, error.reason) from error
        return found


def _taken_apart(found: Trace, model: nn.Module) -> Anatomy:
    axes, refused = _axes(found, model)
    roots = {int(root): (axis.name, axis.size) for axis, members in axes for root in members}
    statistics = frozenset(roots[atom][0] for atom in found.over() if atom in roots)
    units = {int(root): (axis.name, place) for axis, members in axes for place, root in enumerate(members)}
    lengths = lengths_along(model, found, units)
    by_name = {axis.name: replace(axis, numbers=lengths.get(axis.name, {})) for axis, _ in axes}
    bent = {roots[atom][0] for atom in found.bent() if atom in roots}
    linear = frozenset(name for name, axis in by_name.items() if axis.kind == "channels") - bent
    return Anatomy(by_name, refused, structure_of(found, roots), statistics, found.blocks(), found, linear=linear)


def _joined(model: nn.Module, example: tuple[Tensor, ...], parts: Parts, traces: Mapping[str, Trace]) -> Anatomy:
    """Return the anatomies of the parts of a model as one; tensors outside of them keep their size."""
    axes: dict[str, Axis] = {}
    refused = [Refusal(path, why) for path, why in parts.refused.items()]
    structures: dict[str, Structure] = {}
    statistics: set[str] = set()
    for path, call in parts.calls.items():
        found = _taken_apart(traces[path], call)
        axes |= renamed(found.axes, path)
        refused += renamed(found.refused, path)
        structures[path] = found.structure
        statistics |= renamed(found.statistics, path)
    pieces = [renamed(structure.pieces(frozenset()), path) for path, structure in structures.items()]
    full = {
        name: units for path, structure in structures.items() for name, units in renamed(structure.full, path).items()
    }
    structure = joined(pieces, full, dict(outside_of(model, parts)), len(example[0]))
    return Anatomy(axes, tuple(refused), structure, frozenset(statistics), parts=parts)


def _axes(found: Trace, model: nn.Module) -> tuple[list[tuple[Axis, list[int]]], tuple[Refusal, ...]]:
    frozen = found.labels.frozen()
    groups: dict[tuple[tuple[Slot, int], ...], list[int]] = defaultdict(list)
    reasons: dict[str, str] = {}
    elements, reading = _elements(found), set(found.reads)
    for atom, places in elements.items():
        why = frozen.get(atom) or _whole(found, places)
        if why is None and len(places) > 1:
            groups[tuple((slot, len(indices)) for slot, indices in places.items())].append(atom)
        elif why not in (None, "kernel position"):
            slot = next(iter(places))
            reasons.setdefault(f"{slot[0]}[{slot[1]}]", str(why))
    axes: list[tuple[Axis, list[int]]] = []
    names: Counter[str] = Counter()
    for signature, members in groups.items():
        slots = {slot: np.array([elements[atom][slot] for atom in members]) for slot, _ in signature}
        name, kind, width = _name(slots, model, found)
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}.{names[name]}"
        readers = _readers(slots, model, reading)
        axes.append((Axis(unique, kind, len(members), slots, readers, width), members))
    return axes, tuple(Refusal(what, why) for what, why in reasons.items())


def _whole(found: Trace, places: Mapping[Slot, list[int]]) -> str | None:
    """Return why a unit cannot go that would take a whole tensor with it."""
    for (name, dim), indices in places.items():
        if len(indices) == found.tensors[name].shape[dim]:
            return "nothing would be left"
    return None


def _elements(found: Trace) -> dict[int, dict[Slot, list[int]]]:
    """Return for every unit the elements of each dimension that go with it."""
    elements: dict[int, dict[Slot, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value in found.tensors.items():
        for dim, line in enumerate(value.labels):
            for index, label in enumerate([] if line is None else line.tolist()):
                for atom in found.labels.atoms(label):
                    elements[atom][name, dim].append(index)
    return elements


def _layer_of(
    slots: Mapping[Slot, NDArray[np.int64]], model: nn.Module
) -> tuple[str, Slot, Literal["channels", "states"]] | None:
    """Return the path of the layer whose states some dimensions are, one of them, and what kind of units that makes.

    Dimensions that go through parameters of other layers as well cannot be truncated in one of them.
    """
    for owner in dict.fromkeys(name.rpartition(".")[0] for name, _ in slots):
        layer = model.get_submodule(owner)
        within = f"{owner}." if owner else ""
        if isinstance(layer, StateSpace):
            if set(slots) == {(within + name, dim) for name, dim in layer.state_dimensions.items()}:
                return owner, next(iter(slots)), "states"
        elif isinstance(layer, Selective):
            slot = within + layer.selected_by[0], layer.selected_by[1]
            if slot in slots:
                return owner, slot, "channels"
    return None


def _readers(
    slots: Mapping[Slot, NDArray[np.int64]], model: nn.Module, reading: set[Slot]
) -> tuple[tuple[str, Slot], ...]:
    layer = _layer_of(slots, model)
    if layer is not None:
        return (layer[:2],)
    return tuple((slot[0].rpartition(".")[0], slot) for slot in slots if slot in reading)


def _name(
    slots: Mapping[Slot, NDArray[np.int64]], model: nn.Module, found: Trace
) -> tuple[str, Literal["channels", "states"], int]:
    """Return the name of an axis, its kind, and how many elements a unit has where it is made."""
    layer = _layer_of(slots, model)
    if layer is not None:
        owner, _, kind = layer
        return f"{owner}.states" if kind == "states" else f"{owner}.selected", kind, 1
    made = [slot for slot in slots if slot[1] == 0 and slot[0].endswith("weight")]
    matrices = [slot for slot in made if len(found.tensors[slot[0]].shape) > 1]
    first = (matrices or made or list(slots))[0]
    return first[0].rpartition(".")[0] + _suffix(slots[first]), "channels", slots[first].shape[1]


def _suffix(elements: NDArray[np.int64]) -> str:
    """Return what units with several elements side by side are called."""
    if elements.shape[1] == 1:
        return ""
    return ".heads" if (np.diff(elements, axis=1) == 1).all() else ""
