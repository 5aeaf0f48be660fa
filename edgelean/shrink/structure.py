"""Sizes of operators and tensors as functions of how many units each axis keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from edgelean.board.cost import Detail, Node, Operator, convolution_form, fuse, unfused, views
from edgelean.board.memory import Held, alive, launches
from edgelean.board.model import Form
from edgelean.shrink.labels import Dimension, Labels, Value
from edgelean.shrink.rules import Extent
from edgelean.shrink.shorten import followed, read_by, shortened
from edgelean.shrink.trace import Step, Trace

Size = tuple[tuple[float, tuple[str, ...]], ...]
"""A number of elements: a sum of terms, each a factor times the units of some axes (none for a fixed part)."""

Product = tuple[float, tuple[Size, ...]]
"""A fixed number times sizes that depend on the axes."""

Sum = tuple[float, tuple[Product, ...]]
"""A fixed number plus products that depend on the axes."""

Same = tuple[str, str]
"""Two tensors of the graph of which the first is the same as the second."""

EXPONENTIALS: Mapping[str, float] = {
    **dict.fromkeys(("celu", "cos", "elu", "elu_", "exp", "expm1", "hardswish", "hardswish_", "log", "pow"), 1.0),
    **dict.fromkeys(("rsqrt", "selu", "sigmoid", "sigmoid_", "silu", "silu_", "sin", "softplus", "sqrt", "tanh"), 1.0),
    **dict.fromkeys(("erf", "gelu", "mish"), 3.0),
}
"""Pointwise operators that take about so many exponentials an element; all others take a few instructions."""

NORMS = {"layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "_softmax"}
"""Reductions that also compute every element anew, which takes about as long as an exponential."""


@dataclass(frozen=True)
class Contraction:
    """What a convolution or a matrix product computes, each a product of sizes.

    Attributes
    ----------
    taps
        Kernel positions, a factor of the arithmetic.
    """

    form: Form
    rows: Product
    columns: Product
    depth: Product
    stacks: Product
    taps: int


@dataclass(frozen=True)
class Group:
    """Operators that are launched as one: what they compute and which tensors they move.

    Attributes
    ----------
    contraction
        None for all but convolutions and matrix products.
    moved, weights
        Elements of the tensors that are read and written, and of those that are the same in every call.
    passes, light, heavy
        See :class:`edgelean.board.cost.Detail`.
    """

    name: str
    kind: str
    contraction: Contraction | None
    moved: Sum
    weights: Sum
    passes: int
    light: Sum
    heavy: Sum


class Pieces(NamedTuple):
    """What a model launches and stores, and the activations that are held together, of which the most count."""

    groups: tuple[Group, ...]
    tensors: tuple[tuple[Size, ...], ...]
    alive: tuple[Sum, ...]


@dataclass(frozen=True)
class Structure:
    """What a model costs to store and to run, for any number of units kept.

    Attributes
    ----------
    full
        Units of each axis as traced.
    pieces
        What is launched and stored when some tensors of the graph are the same as others.
    ties
        By the name of an axis that goes together with another, that other one.
    blocks
        By the name of a block, a tensor of the graph and the one that it is the same as when the block is gone.
    """

    full: Mapping[str, int]
    pieces: Callable[[frozenset[Same]], Pieces]
    batch: int
    ties: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, Same] = field(default_factory=dict)

    def tied(self, ties: Mapping[str, str]) -> Structure:
        """Return the structure in which some axes shrink as others do."""
        return replace(self, ties=ties)

    def with_blocks(self, blocks: Mapping[str, Same]) -> Structure:
        """Return the structure in which some blocks can go."""
        return replace(self, blocks=blocks, full={**self.full, **dict.fromkeys(blocks, 1)})

    def operators(self, keep: Mapping[str, int]) -> tuple[Operator, ...]:
        """Return the launched operators of the model that keeps so many units of each axis."""
        units = self._units(keep)
        return tuple(_operator(group, units) for group in self._left(keep).groups)

    def macs(self, keep: Mapping[str, int]) -> int:
        """Return the multiply-accumulates of one inference (one sample)."""
        return round(sum(operator.flops for operator in self.operators(keep)) / 2 / self.batch)

    def parameters(self, keep: Mapping[str, int]) -> int:
        """Return the number of elements of all parameters and buffers that the graph reads."""
        units = self._units(keep)
        return round(_sum(_total(self._left(keep).tensors), units))

    def held(self, keep: Mapping[str, int]) -> Held:
        """Return what is held while one batch runs: all that is stored, and the most activations at once."""
        units, left = self._units(keep), self._left(keep)
        most = max((_sum(together, units) for together in left.alive), default=0.0)
        return Held(_sum(_total(left.tensors), units), most)

    def _left(self, keep: Mapping[str, int]) -> Pieces:
        return self.pieces(frozenset(same for name, same in self.blocks.items() if keep.get(name) == 0))

    def _units(self, keep: Mapping[str, int]) -> dict[str, float]:
        units: dict[str, float] = {**self.full, **keep}
        for axis, first in self.ties.items():
            units[axis] = units[first] * self.full[axis] / self.full[first]
        return units


def structure_of(found: Trace, roots: Mapping[int, tuple[str, int]]) -> Structure:
    """Turn a trace into sizes.

    Parameters
    ----------
    roots
        For every removable unit (a root label) the axis it belongs to, and how many units that has.
    """
    batch = next((value.shape[0] for value in found.values.values() if not value.constant and value.shape), 1)
    return Structure(dict(roots.values()), _Shortened(found, _Sizes(found.labels, roots)).pieces, batch)


class _Shortened:
    """The graph with and without its blocks; what was worked out once is kept."""

    def __init__(self, found: Trace, sizes: _Sizes) -> None:
        self._steps, self._outputs, self._idle = found.steps, found.outputs, found.idle
        self._names, self._tensors, self._sizes = found.names, found.tensors, sizes
        self._values = dict(found.values)
        for step in found.steps:
            self._values.setdefault(step.name, step.flow.outputs[0])
        self._made = {step.name: step.flow.outputs for step in found.steps}
        self._groups: dict[tuple[tuple[str, tuple[str, ...]], ...], Group] = {}
        self._pieces: dict[frozenset[Same], Pieces] = {}

    def pieces(self, same: frozenset[Same]) -> Pieces:
        if same not in self._pieces:
            steps = shortened(self._steps, self._outputs, {**self._idle, **dict(same)})
            nodes = [_node(step) for step in steps]
            groups = tuple(self._group([steps[i] for i in members]) for members in fuse(nodes))
            outputs = {followed(dict(same), name) for name in self._outputs}
            self._pieces[same] = Pieces(groups, self._stored(steps), self._alive(nodes, outputs))
        return self._pieces[same]

    def _group(self, steps: list[Step]) -> Group:
        key = tuple((step.name, step.inputs) for step in steps)
        if key not in self._groups:
            self._groups[key] = _group(steps, self._values, self._sizes)
        return self._groups[key]

    def _alive(self, nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Sum, ...]:
        """Return the sizes of the activations that are held together, for every moment that may be the worst."""
        order, viewed = launches(nodes), views(nodes)
        changing = {name for name, value in self._values.items() if not value.constant}
        made = {node.output for node in nodes}
        given = {name for launch in order for name in launch.reads if name not in made} & changing
        sets = alive(order, given, {viewed.get(name, name) for name in outputs})
        return tuple(_total(size for name in sorted(each & changing) for size in self._sizes_of(name)) for each in sets)

    def _sizes_of(self, name: str) -> list[tuple[Size, ...]]:
        """Return the sizes of what an operator makes, or of an input."""
        return [self._sizes.of_value(value) for value in self._made.get(name, (self._values[name],))]

    def _stored(self, steps: Sequence[Step]) -> tuple[tuple[Size, ...], ...]:
        read = {self._names.get(name) for name in read_by(steps) | self._outputs}
        return tuple(self._sizes.of_value(value) for name, value in self._tensors.items() if name in read)


def joined(pieces: Sequence[Pieces], full: Mapping[str, int], others: Mapping[str, Tensor], batch: int) -> Structure:
    """Return what the parts of one model launch and store as one structure; blocks stay.

    Parameters
    ----------
    pieces
        With names of axes that differ.
    full
        Units of each axis as traced.
    others
        Tensors of the model that are in none of them; they only take space.
    batch
        Samples of the inputs of the whole model.
    """
    groups = tuple(group for each in pieces for group in each.groups)
    outside = tuple((_fixed(tensor.numel()),) for tensor in others.values())
    together = tuple(moment for each in pieces for moment in each.alive)
    whole = Pieces(groups, (*outside, *(tensor for each in pieces for tensor in each.tensors)), together)
    return Structure(full, lambda same: whole, batch)


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
    read = dict.fromkeys(name for step in steps for name in step.inputs if name not in inside and name in values)
    moved = [sizes.of_value(values[name]) for name in read]
    moved.extend(sizes.of_value(out) for out in steps[-1].flow.outputs)
    first = steps[0]
    weights = [sizes.of_value(values[name]) for name in read if values[name].constant]
    passes, light, heavy = _work(steps, values, sizes)
    return Group(
        first.name,
        "unknown" if first.flow.unknown else first.flow.kind,
        _contraction(first, values, sizes) if first.flow.kind == "contract" else None,
        _total(moved),
        _total(weights),
        passes,
        light,
        heavy,
    )


def _contraction(step: Step, values: Mapping[str, Value], sizes: _Sizes) -> Contraction:
    flow = step.flow
    form: Form = "product"
    stacks: Extent = ()
    left, right = (values[name] for name in step.read[:2]) if len(step.read) > 1 else (values[step.read[0]],) * 2
    if step.operator.startswith("conv"):
        transposed = "transpose" in step.operator
        groups = (flow.outputs[0] if transposed else left).shape[1] // right.shape[1]
        form = convolution_form(groups, left.shape[1] // groups, len(right.shape) - 2, transposed)
        stacks = ((left.shape[1], left.labels[1]),) if form == "depthwise" else ((groups, None),)
    elif not (left.constant or right.constant):
        stacks = flow.rows[:-1]
    rows, columns, depth, stacked = (
        _reduced(sizes.of_extent(extent)) for extent in (flow.rows, flow.columns, flow.depth, stacks)
    )
    return Contraction(form, rows, columns, depth, stacked, flow.taps)


def _work(steps: Sequence[Step], values: Mapping[str, Value], sizes: _Sizes) -> tuple[int, Sum, Sum]:
    """Return the pointwise passes of a group, and the elements that are computed lightly and with exponentials."""
    constants = {name for step in steps for name in step.inputs if name in values and values[name].constant}
    exponentials = [EXPONENTIALS.get(step.operator, 0.0) for step in steps]
    results = [sizes.of_value(step.flow.outputs[0]) for step in steps]
    passes = unfused([_node(step) for step in steps], exponentials, constants)
    light = [results[place] for place, each in passes if not each]
    if _has_loose_bias(steps[0]):
        light.append(results[0])
    heavy = [(_fixed(each), *results[place]) for place, each in passes if each]
    count = len(light) + len(heavy)
    heavy.extend(result for step, result in zip(steps, results, strict=True) if step.operator in NORMS)
    return count, _total(light), _total(heavy)


def _has_loose_bias(step: Step) -> bool:
    """Tell whether a bias is added to a stack of products, which only a product of two dimensions takes in."""
    return step.operator == "linear" and len(step.inputs) > 2 and len(step.flow.outputs[0].shape) > 2


def _node(step: Step) -> Node:
    return Node(step.name, step.flow.kind, step.inputs, step.name)


def _fixed(number: float) -> Size:
    return ((number, ()),)


def _operator(group: Group, units: Mapping[str, float]) -> Operator:
    elements, weights = _sum(group.moved, units), _sum(group.weights, units)
    light, heavy = _sum(group.light, units), _sum(group.heavy, units)
    computed = group.contraction
    if computed is None:
        detail = Detail(None, 1.0, weights, group.passes, light, heavy)
        return Operator(group.name, group.kind, 0.0, elements, detail=detail)
    rows, columns, depth, stacks = (
        _product(product, units) for product in (computed.rows, computed.columns, computed.depth, computed.stacks)
    )
    detail = Detail(computed.form, stacks, weights, group.passes, light, heavy)
    flops = 2 * rows * columns * depth * computed.taps
    return Operator(group.name, group.kind, flops, elements, rows, columns, depth, detail)


def _total(extents: Iterable[tuple[Size, ...]]) -> Sum:
    """Return the sum of products of sizes, its fixed products added up."""
    products = [_reduced(extent) for extent in extents]
    return sum(factor for factor, sizes in products if not sizes), tuple(one for one in products if one[1])


def _reduced(extent: tuple[Size, ...]) -> Product:
    """Return a product of sizes, its fixed sizes multiplied."""
    fixed = [size for size in extent if not any(axes for _, axes in size)]
    number = math.prod(sum(factor for factor, _ in size) for size in fixed)
    return number, tuple(size for size in extent if any(axes for _, axes in size))


def _sum(total: Sum, units: Mapping[str, float]) -> float:
    fixed, products = total
    return fixed + sum(_product(product, units) for product in products)


def _product(product: Product, units: Mapping[str, float]) -> float:
    result, sizes = product
    for terms in sizes:
        size = 0.0
        for factor, axes in terms:
            for axis in axes:
                factor *= units[axis]
            size += factor
        result *= size
    return result
