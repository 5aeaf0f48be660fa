"""Sizes of operators and tensors as functions of how many units each axis keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from edgelean.board.cost import Node, Operator, fuse
from edgelean.shrink.labels import Dimension, Labels, Value
from edgelean.shrink.rules import Extent
from edgelean.shrink.trace import Step, Trace

Size = tuple[tuple[float, tuple[str, ...]], ...]
"""A number of elements: a sum of terms, each a factor times the units of some axes (none for a fixed part)."""


@dataclass(frozen=True)
class Group:
    """Operators that are launched as one: what they compute and which tensors they move.

    Attributes
    ----------
    contraction
        Rows, columns and depth, each a product of sizes; None for everything else.
    taps
        Kernel positions, a factor of the arithmetic.
    """

    name: str
    kind: str
    contraction: tuple[tuple[Size, ...], tuple[Size, ...], tuple[Size, ...]] | None
    taps: int
    moved: tuple[tuple[Size, ...], ...]


@dataclass(frozen=True)
class Structure:
    """What a model costs to store and to run, for any number of units kept.

    Attributes
    ----------
    full
        Units of each axis as traced.
    """

    full: Mapping[str, int]
    groups: tuple[Group, ...]
    tensors: Mapping[str, tuple[Size, ...]]
    batch: int

    def operators(self, keep: Mapping[str, int]) -> tuple[Operator, ...]:
        """Return the launched operators of the model that keeps so many units of each axis."""
        return tuple(_operator(group, {**self.full, **keep}) for group in self.groups)

    def macs(self, keep: Mapping[str, int]) -> int:
        """Return the multiply-accumulates of one inference (one sample)."""
        return round(sum(operator.flops for operator in self.operators(keep)) / 2 / self.batch)

    def parameters(self, keep: Mapping[str, int]) -> int:
        """Return the number of elements of all parameters and buffers that the graph reads."""
        units = {**self.full, **keep}
        return round(sum(_product(extent, units) for extent in self.tensors.values()))


def structure_of(found: Trace, roots: Mapping[int, tuple[str, int]]) -> Structure:
    """Turn a trace into sizes.

    Parameters
    ----------
    roots
        For every removable unit (a root label) the axis it belongs to, and how many units that has.
    """
    steps = found.steps
    nodes = [Node(step.name, step.flow.kind, step.inputs, step.name) for step in steps]
    sizes = _Sizes(found.labels, roots)
    values = dict(found.values)
    for step in steps:
        values.setdefault(step.name, step.flow.outputs[0])
    groups = tuple(_group([steps[i] for i in members], values, sizes) for members in fuse(nodes))
    tensors = {name: sizes.of_value(value) for name, value in found.tensors.items()}
    batch = next((value.shape[0] for value in found.values.values() if not value.constant and value.shape), 1)
    return Structure(dict(roots.values()), groups, tensors, batch)


class _Sizes:
    def __init__(self, labels: Labels, roots: Mapping[int, tuple[str, int]]) -> None:
        self._labels, self._roots = labels, roots
        self._known: dict[tuple[int, ...], Size] = {}

    def of(self, size: int, line: Dimension) -> Size:
        """Return a dimension as a sum of terms, each of them so many elements per unit of some axes."""
        if line is None:
            return ((float(size), ()),)
        key = tuple(line.tolist())
        if key not in self._known:
            counts = Counter(tuple(sorted(self._axes(label))) for label in key)
            self._known[key] = tuple(
                (count / math.prod(units for _, units in axes), tuple(name for name, _ in axes))
                for axes, count in counts.items()
            )
        return self._known[key]

    def _axes(self, label: int) -> set[tuple[str, int]]:
        return {self._roots[atom] for atom in self._labels.atoms(label) if atom in self._roots}

    def of_extent(self, extent: Extent) -> tuple[Size, ...]:
        return tuple(self.of(size, labels) for size, labels in extent)

    def of_value(self, value: Value) -> tuple[Size, ...]:
        return self.of_extent(tuple(zip(value.shape, value.labels, strict=True)))


def _group(steps: list[Step], values: Mapping[str, Value], sizes: _Sizes) -> Group:
    inside = {step.name for step in steps}
    read = dict.fromkeys(name for step in steps for name in step.inputs if name not in inside)
    moved = [sizes.of_value(values[name]) for name in read if name in values]
    moved.extend(sizes.of_value(out) for out in steps[-1].flow.outputs)
    flow = steps[0].flow
    contraction = None
    if flow.kind == "contract":
        contraction = (sizes.of_extent(flow.rows), sizes.of_extent(flow.columns), sizes.of_extent(flow.depth))
    kind = "unknown" if flow.unknown else flow.kind
    return Group(steps[0].name, kind, contraction, flow.taps, tuple(moved))


def _operator(group: Group, units: Mapping[str, int]) -> Operator:
    elements = sum(_product(extent, units) for extent in group.moved)
    if group.contraction is None:
        return Operator(group.name, group.kind, 0.0, elements)
    rows, columns, depth = (_product(extent, units) for extent in group.contraction)
    return Operator(group.name, group.kind, 2 * rows * columns * depth * group.taps, elements, rows, columns, depth)


def _product(extent: tuple[Size, ...], units: Mapping[str, int]) -> float:
    product = 1.0
    for terms in extent:
        size = 0.0
        for factor, axes in terms:
            for axis in axes:
                factor *= units[axis]
            size += factor
        product *= size
    return product
