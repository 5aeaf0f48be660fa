"""How labels flow through each ATen operator; what is not listed here is left alone and named in the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgelean.shrink.labels import Dimension, Labels, Value, reshaped

Kind = Literal["contract", "pointwise", "reduce", "move", "free"]
Extent = tuple[tuple[int, Dimension], ...]
"""Dimensions whose sizes multiply, each with the labels that may be cut out of it."""


@dataclass(frozen=True)
class Flow:
    """What one operator does: its outputs, how it is launched, and the sizes of its contraction if it has one.

    Attributes
    ----------
    rows, columns, depth
        Output positions, output channels, and input channels of one group.
    taps
        Positions of the kernel.
    """

    outputs: tuple[Value, ...]
    kind: Kind
    rows: Extent = ()
    columns: Extent = ()
    depth: Extent = ()
    taps: int = 1
    unknown: bool = False


@dataclass(frozen=True)
class Call:
    """One operator of the graph: its arguments (tensors as values) by position, and the shapes that it returns."""

    labels: Labels
    operator: str
    arguments: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]

    def tensors(self) -> list[Value]:
        """Return every tensor among the arguments, lists of tensors included."""
        flat: list[Value] = []
        for argument in self.arguments:
            if isinstance(argument, Value):
                flat.append(argument)
            elif isinstance(argument, (list, tuple)):
                flat.extend(item for item in argument if isinstance(item, Value))
        return flat

    def argument(self, index: int, default: Any = None) -> Any:
        """Return an argument by position, or the operator's default."""
        return self.arguments[index] if index < len(self.arguments) else default


Rule = Callable[[Call], Flow]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators by their names without overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def unknown(call: Call) -> Flow:
    """Leave alone whatever meets an operator without a rule."""
    for value in call.tensors():
        call.labels.freeze_all(value, f"{call.operator} has no rule")
    return Flow(tuple(Value(shape, (None,) * len(shape)) for shape in call.shapes), "reduce", unknown=True)


def _with_labels(call: Call, labels: Sequence[Dimension], kind: Kind) -> Flow:
    return Flow((Value(call.shapes[0], tuple(labels)),), kind)


@rule(
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu", "silu",
    "silu_", "mish", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardswish", "hardswish_", "hardsigmoid", "softplus",
    "exp", "expm1", "log", "sqrt", "rsqrt", "square", "reciprocal", "abs", "neg", "cos", "sin", "erf", "pow",
    "clamp", "clamp_min", "clamp_max", "add", "add_", "sub", "rsub", "mul", "mul_", "div", "div_",
    "maximum", "minimum", "where", "to", "_to_copy", "type_as",
)  # fmt: skip
def _pointwise(call: Call) -> Flow:
    rank = len(call.shapes[0])
    labels: list[Dimension] = [None] * rank
    for place in range(rank):
        sides = [
            (value.shape[place - rank], value.labels[place - rank])
            for value in call.tensors()
            if len(value.shape) >= rank - place
        ]
        wide = [dimension for size, dimension in sides if size == call.shapes[0][place]]
        for size, dimension in sides:
            if size != call.shapes[0][place]:
                call.labels.freeze(dimension, f"{call.operator} repeats it along a dimension")
        labels[place] = wide[0]
        for other in wide[1:]:
            labels[place] = call.labels.unify(labels[place], other, f"{call.operator} meets a dimension without units")
    return _with_labels(call, labels, "pointwise")


@rule(
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "lift_fresh_copy",
)
def _unchanged(call: Call) -> Flow:
    return _with_labels(call, call.tensors()[0].labels, "free")


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Flow:
    x, weight, bias = call.arguments[0], call.arguments[1], call.argument(2)
    groups = call.argument(6, 1)
    out = weight.labels[0]
    if groups == 1:
        call.labels.unify(x.labels[1], weight.labels[1], "a convolution reads a dimension without units")
    else:
        _couple_groups(call.labels, x, weight, groups)
    if isinstance(bias, Value):
        call.labels.unify(out, bias.labels[0], "the bias has no units")
    for labels in weight.labels[2:]:
        call.labels.freeze(labels, "kernel position")
    space = call.shapes[0][2:]
    return Flow(
        (Value(call.shapes[0], (None, out, *(None for _ in space))),),
        "contract",
        rows=((call.shapes[0][0], None), *((size, None) for size in space)),
        columns=((weight.shape[0], out),),
        depth=((weight.shape[1], weight.labels[1]),),
        taps=math.prod(weight.shape[2:]),
    )


def _couple_groups(labels: Labels, x: Value, weight: Value, groups: int) -> None:
    """Depthwise: an input channel and its outputs are one unit. Else: the same place in every group is one unit."""
    reason = "a grouped convolution reads a dimension without units"
    out, per_group_in, per_group_out = weight.labels[0], weight.shape[1], weight.shape[0] // groups
    if x.labels[1] is None or out is None:
        labels.freeze(x.labels[1], reason)
        labels.freeze(out, reason)
        return
    entering = x.labels[1].reshape(groups, per_group_in)
    leaving = out.reshape(groups, per_group_out)
    if per_group_in == 1:
        labels.freeze(weight.labels[1], "depthwise convolution")
        for place in range(per_group_out):
            labels.unify(entering[:, 0], leaving[:, place], reason)
        return
    for group in range(groups):
        labels.unify(weight.labels[1], entering[group], reason)
        labels.unify(leaving[0], leaving[group], reason)


@rule("linear")
def _linear(call: Call) -> Flow:
    x, weight, bias = call.arguments[0], call.arguments[1], call.argument(2)
    call.labels.unify(x.labels[-1], weight.labels[1], "a linear layer reads a dimension without units")
    if isinstance(bias, Value):
        call.labels.unify(weight.labels[0], bias.labels[0], "the bias has no units")
    return Flow(
        (Value(call.shapes[0], (*x.labels[:-1], weight.labels[0])),),
        "contract",
        rows=tuple(zip(x.shape[:-1], x.labels[:-1], strict=True)),
        columns=((weight.shape[0], weight.labels[0]),),
        depth=((weight.shape[1], weight.labels[1]),),
    )


@rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> Flow:
    a, b = call.arguments[0], call.arguments[1]
    if len(a.shape) < 2 or len(b.shape) < 2:
        return unknown(call)
    call.labels.unify(a.labels[-1], b.labels[-2], "a product sums over a dimension without units")
    stacks = call.shapes[0][:-2]
    for value in (a, b):
        for labels in value.labels[:-2]:
            call.labels.freeze(labels, "a stack of products")
    return Flow(
        (Value(call.shapes[0], (*(None for _ in stacks), a.labels[-2], b.labels[-1])),),
        "contract",
        rows=(*((size, None) for size in stacks), (a.shape[-2], a.labels[-2])),
        columns=((b.shape[-1], b.labels[-1]),),
        depth=((a.shape[-1], a.labels[-1]),),
    )


@rule("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Flow:
    x = call.arguments[0]
    for statistic in call.tensors()[1:]:
        call.labels.unify(x.labels[1], statistic.labels[0], "batch norm meets a dimension without units")
    return _with_labels(call, x.labels, "pointwise")


@rule("layer_norm", "group_norm", "softmax", "log_softmax", "_softmax", "rms_norm")
def _statistic(call: Call) -> Flow:
    """Statistics over units change when units go: they stay."""
    x = call.arguments[0]
    over: Sequence[int] = range(1, len(x.shape))
    if call.operator in ("layer_norm", "rms_norm"):
        over = range(len(x.shape) - len(call.arguments[1]), len(x.shape))
    elif "softmax" in call.operator:
        over = (int(call.arguments[1]),)
    for place in over:
        call.labels.freeze(x.labels[place], f"{call.operator} takes statistics over it")
    for parameter in call.tensors()[1:]:
        call.labels.freeze_all(parameter, f"{call.operator} takes statistics over it")
    return _with_labels(call, x.labels, "reduce")


@rule("mean", "sum", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
      "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d")  # fmt: skip
def _reduction(call: Call) -> Flow:
    x = call.arguments[0]
    rank = len(x.shape)
    if "pool" in call.operator:
        space = call.operator[-2]
        kept: list[Dimension] = list(x.labels)
        for place in range(rank - int(space), rank):
            call.labels.freeze(x.labels[place], f"{call.operator} pools over it")
            kept[place] = None
        return Flow(tuple(Value(shape, tuple(kept)) for shape in call.shapes), "reduce")
    named = call.argument(1)
    over = range(rank) if named is None or named == [] else [named] if isinstance(named, int) else named
    places = {place % rank for place in over}
    for place in places:
        call.labels.freeze(x.labels[place], f"{call.operator} reduces over it")
    if len(call.shapes[0]) == rank:
        return _with_labels(call, [None if i in places else x.labels[i] for i in range(rank)], "reduce")
    return _with_labels(call, [x.labels[i] for i in range(rank) if i not in places], "reduce")


@rule("view", "reshape", "flatten", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", "view_as")
def _view(call: Call) -> Flow:
    return _with_labels(call, reshaped(call.labels, call.arguments[0], call.shapes[0]), "free")


@rule("permute", "transpose", "t", "movedim", "mT", "numpy_T")
def _permute(call: Call) -> Flow:
    x = call.arguments[0]
    rank = len(x.shape)
    order = list(range(rank))
    if call.operator == "permute":
        order = [place % rank for place in call.arguments[1]]
    elif call.operator == "transpose":
        a, b = (place % rank for place in call.arguments[1:3])
        order[a], order[b] = order[b], order[a]
    elif call.operator in ("t", "mT", "numpy_T"):
        order[-2:] = order[-2:][::-1]
    else:
        return unknown(call)
    return _with_labels(call, [x.labels[place] for place in order], "move")


@rule("cat", "concat", "stack")
def _joined(call: Call) -> Flow:
    parts: list[Value] = call.tensors()
    rank = len(call.shapes[0])
    place = int(call.argument(1, 0)) % rank
    if call.operator == "stack":
        parts = [
            Value((*p.shape[:place], 1, *p.shape[place:]), (*p.labels[:place], None, *p.labels[place:])) for p in parts
        ]
    labels: list[Dimension] = list(parts[0].labels)
    for part in parts[1:]:
        for i in range(rank):
            if i != place:
                labels[i] = call.labels.unify(labels[i], part.labels[i], "it is joined with a dimension without units")
    lines = [part.labels[place] for part in parts]
    known = [line for line in lines if line is not None]
    labels[place] = None
    if len(known) == len(lines):
        labels[place] = np.concatenate(known)
    else:
        for line in known:
            call.labels.freeze(line, "it is joined with elements that are no units")
    return _with_labels(call, labels, "move")


@rule(
    "slice",
    "select",
    "split",
    "split_with_sizes",
    "chunk",
    "pad",
    "constant_pad_nd",
    "narrow",
    "flip",
    "expand",
    "unbind",
)
def _along_others(call: Call) -> Flow:
    """Dimensions that the operator leaves as they are keep their labels; the one it works on loses them."""
    x = call.arguments[0]
    removed = int(call.argument(1, 0)) % len(x.shape) if call.operator in ("select", "unbind") else None
    flows = []
    before = [i for i in range(len(x.shape)) if i != removed]
    for shape in call.shapes:
        offset = len(shape) - len(before)
        touched = [i for i, place in enumerate(before) if x.shape[place] != shape[i + offset]]
        flows.append([None] * offset + [None if i in touched else x.labels[p] for i, p in enumerate(before)])
        for i in touched:
            call.labels.freeze(x.labels[before[i]], f"{call.operator} takes a part of it")
    if removed is not None:
        call.labels.freeze(x.labels[removed], f"{call.operator} takes one of it")
    if call.operator == "flip":
        for place in call.arguments[1]:
            call.labels.freeze(x.labels[place], "flip reorders it")
    return Flow(tuple(Value(s, tuple(f)) for s, f in zip(call.shapes, flows, strict=True)), "move")
