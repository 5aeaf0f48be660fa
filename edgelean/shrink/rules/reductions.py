"""Sums, means, pools and whatever else takes many elements together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgelean.shrink.labels import Dimension, Value, plain
from edgelean.shrink.rules.call import RULES, Call, Flow, rule

REDUCTIONS = ("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "prod", "logsumexp",
              "max", "min", "std_mean", "var_mean")  # fmt: skip
"""Operators that take many elements together, however many there are."""


def reduced_dims(operator: str, arguments: Sequence[Any], named: Mapping[str, Any], rank: int) -> set[int]:
    """Return the dimensions that a reduction runs over."""
    place = 2 if "norm" in operator else 1
    given = arguments[place] if len(arguments) > place else named.get("dim")
    if given is not None and not isinstance(given, (int, list, tuple)):
        return set()  # the larger of two tensors, not of one
    over = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    return {dim % rank for dim in over}


@rule(*REDUCTIONS)
def _reduction(call: Call) -> Flow:
    """Over units it takes those that are left."""
    x = call.arguments[0]
    rank = len(x.shape)
    if isinstance(call.argument(1, None, "other"), Value):
        return RULES["maximum"](call)
    places = reduced_dims(call.operator, call.arguments, call.named, rank)
    over = tuple(x.labels[place] for place in places)
    if len(call.shapes[0]) == rank:
        lines = [None if i in places else x.labels[i] for i in range(rank)]
    else:
        lines = [x.labels[i] for i in range(rank) if i not in places]
    # Where the largest one is, is a number among those that are left.
    outputs = tuple(Value(shape, tuple(lines)) for shape in call.shapes)
    return Flow(outputs, "reduce", over=over)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp")
def _along(call: Call) -> Flow:
    x = call.arguments[0]
    call.labels.freeze(x.labels[int(call.argument(1, -1, "dim"))], f"{call.operator} runs over it")
    return call.result(x.labels, "reduce")


PLACES = {"median": 1, "any": 1, "all": 1, "argmax": 1, "argmin": 1, "argsort": 1, "sort": 1,
          "diff": 2, "topk": 2, "kthvalue": 2}  # fmt: skip
"""Operators that compare elements, and which argument says along what dimension."""


@rule(*PLACES)
def _chosen(call: Call) -> Flow:
    """Leave alone what is compared: the place of an element says nothing about those that are left."""
    x, place = call.arguments[0], call.argument(PLACES[call.operator], None, "dim")
    if place is None and call.operator in ("topk", "sort", "argsort", "diff", "kthvalue"):
        place = -1
    rank, reason = len(x.shape), f"{call.operator} compares its elements"
    if not isinstance(place, int):
        call.labels.freeze_all(x, reason)
        return Flow(tuple(plain(shape) for shape in call.shapes), "reduce")
    call.labels.freeze(x.labels[place], reason)
    lines = [None if i == place % rank else line for i, line in enumerate(x.labels)]
    left = [line for i, line in enumerate(lines) if i != place % rank]
    return Flow(tuple(Value(s, tuple(lines if len(s) == rank else left)) for s in call.shapes), "reduce")


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact3d", "reflection_pad3d", "replication_pad3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d",
)  # fmt: skip
def _over_space(call: Call) -> Flow:
    x = call.arguments[0]
    space = next((int(letter) for letter in call.operator.replace("_aa", "") if letter.isdigit()), 2)
    lines: list[Dimension] = list(x.labels)
    for place in range(len(x.shape) - space, len(x.shape)):
        call.labels.freeze(x.labels[place], f"{call.operator} reads it as space")
        lines[place] = None
    return Flow(tuple(Value(shape, tuple(lines)) for shape in call.shapes), "reduce")
