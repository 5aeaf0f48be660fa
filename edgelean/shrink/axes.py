"""Axes: sets of tensor dimensions that have to be cut together, found from the labels of a traced model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgelean.nn import LRU
from edgelean.shrink.structure import Structure, structure_of
from edgelean.shrink.trace import Trace, trace

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
        ``"channels"``: any unit can go. ``"states"``: of a linear recurrent unit, cut by balanced truncation.
    size
        How many units there are.
    slots
        For every dimension the elements of each unit, ``[size, elements per unit]``.
    """

    name: str
    kind: Literal["channels", "states"]
    size: int
    slots: Mapping[Slot, NDArray[np.int64]]

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
    norms
        For each module whose output goes through batch norm, and nowhere else, the module of that norm.
    """

    axes: Mapping[str, Axis]
    refused: tuple[Refusal, ...]
    structure: Structure
    norms: Mapping[str, str]


def dissect(model: nn.Module, example: tuple[Tensor, ...]) -> Anatomy:
    """Trace a model and find its axes.

    Parameters
    ----------
    model
        Left as it is.
    example
        Inputs with the batch size that costs are asked for.

    Raises
    ------
    InputError
        If the model cannot be traced.
    """
    found = trace(model, example)
    axes, refused = _axes(found, model)
    roots = {int(root): (axis.name, axis.size) for axis, members in axes for root in members}
    return Anatomy({axis.name: axis for axis, _ in axes}, refused, structure_of(found, roots), _norms(found))


def _norms(found: Trace) -> dict[str, str]:
    readers = Counter(name for step in found.steps for name in step.inputs)
    writers = {step.name: step for step in found.steps if step.flow.kind == "contract"}
    norms = {}
    for step in found.steps:
        writer = writers.get(step.inputs[0]) if step.inputs and "batch_norm" in step.operator else None
        if writer is not None and readers[writer.name] == 1:
            owner = {name.rpartition(".")[0] for name in (found.names.get(i, "") for i in writer.inputs) if name}
            norm = {name.rpartition(".")[0] for name in (found.names.get(i, "") for i in step.inputs) if name}
            if len(owner) == len(norm) == 1:
                norms[owner.pop()] = norm.pop()
    return norms


def _axes(found: Trace, model: nn.Module) -> tuple[list[tuple[Axis, list[int]]], tuple[Refusal, ...]]:
    elements = _elements(found)
    groups: dict[tuple[tuple[Slot, int], ...], list[int]] = defaultdict(list)
    reasons: dict[str, str] = {}
    for root, places in elements.items():
        why = found.labels.frozen(root)
        if why is None and len(places) > 1:
            groups[tuple((slot, len(indices)) for slot, indices in places.items())].append(root)
        elif why not in (None, "kernel position"):
            slot = next(iter(places))
            reasons.setdefault(f"{slot[0]}[{slot[1]}]", str(why))
    axes = []
    for signature, members in groups.items():
        slots = {slot: np.array([elements[root][slot] for root in members]) for slot, _ in signature}
        name, kind = _name([slot for slot, _ in signature], model)
        axes.append((Axis(name, kind, len(members), slots), members))
    return axes, tuple(Refusal(what, why) for what, why in reasons.items())


def _elements(found: Trace) -> dict[int, dict[Slot, list[int]]]:
    """Return for every unit (a root label) the elements of each dimension that belong to it."""
    elements: dict[int, dict[Slot, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value in found.tensors.items():
        for dim, labels in enumerate(value.labels):
            if labels is None:
                continue
            for index, root in enumerate(found.labels.roots(labels).tolist()):
                elements[root][name, dim].append(index)
    return elements


def _name(slots: Sequence[Slot], model: nn.Module) -> tuple[str, Literal["channels", "states"]]:
    for name, _ in slots:
        owner = name.rpartition(".")[0]
        if isinstance(model.get_submodule(owner), LRU) and name.endswith("nu_log"):
            return f"{owner}.states", "states"
    producers = [name for name, dim in slots if dim == 0 and name.endswith("weight")] or [slots[0][0]]
    return producers[0].rpartition(".")[0], "channels"
