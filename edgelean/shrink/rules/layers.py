"""Convolutions, linear layers, embeddings, and the norms."""

from __future__ import annotations

import math
from dataclasses import replace

from edgelean.shrink.labels import Labels, Value
from edgelean.shrink.rules.call import Call, Flow, rule, sizes, unknown


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Flow:
    x, weight, bias = call.arguments[0], call.arguments[1], call.argument(2, None, "bias")
    groups = call.argument(6, 1, "groups")
    if len(x.shape) != len(weight.shape):
        return unknown(call)
    _leave_space(call, x)
    out = weight.labels[0]
    if groups == 1:
        call.labels.unify(x.labels[1], weight.labels[1], "a convolution reads a dimension without units")
    else:
        _couple_groups(call.labels, x, weight, groups)
    if isinstance(bias, Value):
        call.labels.unify(out, bias.labels[0], "the bias has no units")
    for line in weight.labels[2:]:
        call.labels.freeze(line, "kernel position")
    space = call.shapes[0][2:]
    return Flow(
        (Value(call.shapes[0], (x.labels[0], out, *(None for _ in space))),),
        "contract",
        rows=((call.shapes[0][0], x.labels[0]), *((size, None) for size in space)),
        columns=((weight.shape[0], out),),
        depth=((weight.shape[1], weight.labels[1]),),
        taps=math.prod(weight.shape[2:]),
    )


def _leave_space(call: Call, x: Value) -> None:
    for line in x.labels[2:]:
        call.labels.freeze(line, f"{call.operator} reads it as space")


def _couple_groups(labels: Labels, x: Value, weight: Value, groups: int) -> None:
    """Depthwise: an input channel and its outputs are one unit. Else: the same place in every group is one unit."""
    reason = "a grouped convolution reads a dimension without units"
    out, per_group_in, per_group_out = weight.labels[0], weight.shape[1], weight.shape[0] // groups
    if x.labels[1] is None or out is None:
        for line in (x.labels[1], out, weight.labels[1]):
            labels.freeze(line, reason)
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


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Flow:
    x, weight, bias = call.arguments[0], call.arguments[1], call.argument(2, None, "bias")
    groups = call.argument(6, 1, "groups")
    if len(x.shape) != len(weight.shape):
        return unknown(call)
    _leave_space(call, x)
    call.labels.unify(x.labels[1], weight.labels[0], "a transposed convolution reads a dimension without units")
    for line in weight.labels[2:]:
        call.labels.freeze(line, "kernel position")
    out = weight.labels[1]
    if groups > 1:
        depthwise = weight.shape[0] == groups and weight.shape[1] == 1
        if depthwise:
            call.labels.freeze(out, "depthwise convolution")
            out = weight.labels[0]
        else:
            call.labels.tie(weight.labels[0], groups)
            out = None if out is None else out[[*range(len(out))] * groups]
    if isinstance(bias, Value):
        call.labels.unify(out, bias.labels[0], "the bias has no units")
    space = x.shape[2:]
    return Flow(
        (Value(call.shapes[0], (x.labels[0], out, *(None for _ in space))),),
        "contract",
        rows=((call.shapes[0][0], x.labels[0]), *((size, None) for size in space)),
        columns=((weight.shape[1], weight.labels[1]),),
        depth=((weight.shape[0], weight.labels[0]),),
        taps=math.prod(weight.shape[2:]),
    )


@rule("linear")
def _linear(call: Call) -> Flow:
    x, weight, bias = call.arguments[0], call.arguments[1], call.argument(2)
    call.labels.unify(x.labels[-1], weight.labels[1], "a linear layer reads a dimension without units")
    if isinstance(bias, Value):
        call.labels.unify(weight.labels[0], bias.labels[0], "the bias has no units")
    return Flow(
        (Value(call.shapes[0], (*x.labels[:-1], weight.labels[0])),),
        "contract",
        rows=sizes(x, range(len(x.shape) - 1)),
        columns=sizes(weight, (0,)),
        depth=sizes(weight, (1,)),
    )


@rule("embedding")
def _embedding(call: Call) -> Flow:
    weight, indices = call.arguments[0], call.arguments[1]
    call.labels.freeze(weight.labels[0], "an embedding is looked up by its number")
    return call.result((*indices.labels, weight.labels[1]), "move")


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(call: Call) -> Flow:
    x = call.arguments[0]
    if call.operator == "instance_norm":
        _leave_space(call, x)
    for statistic in call.tensors()[1:]:
        call.labels.unify(x.labels[1], statistic.labels[0], "batch norm meets a dimension without units")
    training = call.operator == "batch_norm" and call.argument(5, False, "training")
    over = tuple(line for place, line in enumerate(x.labels) if place != 1) if training else ()
    return replace(call.result(x.labels, "pointwise"), over=over)


@rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Flow:
    """Take statistics over the units that are left; over several dimensions they are left alone."""
    x, over = call.arguments[0], len(call.arguments[1])
    for place in range(over):
        line = x.labels[len(x.shape) - over + place]
        if over > 1:
            call.labels.freeze(line, f"{call.operator} takes statistics over several dimensions")
        for parameter in call.tensors()[1:]:
            call.labels.unify(line, parameter.labels[place], f"{call.operator} meets a dimension without units")
    return replace(call.result(x.labels, "reduce"), over=(x.labels[-1],))


@rule("group_norm")
def _group_norm(call: Call) -> Flow:
    """Every group keeps as many units as the others: the same place in each group is one unit."""
    x, groups = call.arguments[0], call.arguments[1]
    _leave_space(call, x)
    call.labels.tie(x.labels[1], groups)
    for parameter in call.tensors()[1:]:
        call.labels.unify(x.labels[1], parameter.labels[0], "group_norm meets a dimension without units")
    return replace(call.result(x.labels, "reduce"), over=(x.labels[1],))


@rule("_weight_norm")
def _weight_norm(call: Call) -> Flow:
    direction, length, dim = call.arguments[0], call.arguments[1], call.argument(2, 0, "dim")
    for place in range(len(direction.shape)):
        if place == dim % len(direction.shape):
            call.labels.unify(direction.labels[place], length.labels[place], "weight norm has no units there")
    return Flow((Value(direction.shape, direction.labels),), "free")
