"""Operators that move elements: views, permutations, joins and parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgelean.shrink.labels import Dimension, Line, Value, plain, reshaped
from edgelean.shrink.rules.call import Call, Flow, rule, rule_for_uniform, unknown


@rule_for_uniform(
    "view", "reshape", "flatten", "_unsafe_view", "unflatten", "squeeze", "squeeze_", "unsqueeze", "ravel"
)
def _view(call: Call) -> Flow:
    x = call.arguments[0]
    if x.uniform:
        return Flow((Value(call.shapes[0], (None,) * len(call.shapes[0]), uniform=True),), "free")
    return call.result(reshaped(call.labels, x, call.shapes[0]), "free")


@rule("reshape_as", "view_as")
def _viewed_like(call: Call) -> Flow:
    """Couple what is viewed in the shape of another tensor to the units of that."""
    lines = [
        call.labels.unify(mine, theirs, "it is as wide as no units")
        for mine, theirs in zip(
            reshaped(call.labels, call.arguments[0], call.shapes[0]), call.arguments[1].labels, strict=True
        )
    ]
    return call.result(lines, "free")


@rule_for_uniform(
    "permute", "transpose", "t", "swapaxes", "swapdims", "mT", "mH", "adjoint", "numpy_T", "movedim", "moveaxis"
)
def _permute(call: Call) -> Flow:
    x = call.arguments[0]
    rank = len(x.shape)
    order = list(range(rank))
    if call.operator == "permute":
        order = [place % rank for place in call.arguments[1]]
    elif call.operator in ("transpose", "swapaxes", "swapdims"):
        a, b = (place % rank for place in call.arguments[1:3])
        order[a], order[b] = order[b], order[a]
    elif call.operator in ("movedim", "moveaxis"):
        order = _moved(rank, call.arguments[1], call.arguments[2])
    elif rank > 1:
        order = order[::-1] if call.operator == "numpy_T" else [*order[:-2], order[-1], order[-2]]
    return Flow((Value(call.shapes[0], tuple(x.labels[place] for place in order), uniform=x.uniform),), "move")


def _moved(rank: int, source: int | Sequence[int], target: int | Sequence[int]) -> list[int]:
    sources = [place % rank for place in ([source] if isinstance(source, int) else source)]
    targets = [place % rank for place in ([target] if isinstance(target, int) else target)]
    order = [place for place in range(rank) if place not in sources]
    for place, wanted in sorted(zip(sources, targets, strict=True), key=lambda pair: pair[1]):
        order.insert(wanted, place)
    return order


@rule("cat", "concat", "stack")
def _joined(call: Call) -> Flow:
    parts, rank, place = call.tensors(), len(call.shapes[0]), int(call.argument(1, 0, "dim"))
    place %= rank
    if call.operator == "stack":
        parts = [_with_one(part, place) for part in parts]
    parts = [part for part in parts if len(part.shape) == rank and part.shape[place] > 0]
    lines: list[Dimension] = list(parts[0].labels) if parts else [None] * rank
    for part in parts[1:]:
        for i in range(rank):
            if i != place:
                lines[i] = call.labels.unify(lines[i], part.labels[i], "it is joined with a dimension without units")
    if len(parts) > 1 and any(part.labels[place] is not None for part in parts):
        lines[place] = np.concatenate([_named(call, part.labels[place], part.shape[place]) for part in parts])
    return call.result(lines, "move")


def _with_one(part: Value, place: int) -> Value:
    """Return a tensor with a dimension of one element more."""
    shape, lines = part.shape, part.labels
    return Value((*shape[:place], 1, *shape[place:]), (*lines[:place], None, *lines[place:]))


def _named(call: Call, line: Dimension, size: int) -> Line:
    """Return labels for elements that have none; they stay."""
    if line is not None:
        return line
    fresh = call.labels.fresh(size)
    call.labels.freeze(fresh, "elements that are no units")
    return fresh


@rule_for_uniform("slice", "narrow", "select", "unbind", "split", "split_with_sizes", "chunk", "tensor_split",
      "unsafe_chunk", "unsafe_split")  # fmt: skip
def _parts(call: Call) -> Flow:
    """Keep the labels of a part of a dimension; equal parts of one split keep as many units as each other."""
    x = call.arguments[0]
    if x.uniform:
        return Flow(tuple(Value(shape, (None,) * len(shape), uniform=True) for shape in call.shapes), "move")
    rank = len(x.shape)
    split = call.operator not in ("slice", "narrow", "select", "unbind")
    place = int(call.argument(2 if split else 1, 0, "dim")) % rank
    line = x.labels[place]
    others = [x.labels[i] for i in range(rank) if i != place]
    if call.operator in ("select", "unbind"):
        call.labels.freeze(line, f"{call.operator} takes one of it")
        return Flow(tuple(Value(shape, tuple(others)) for shape in call.shapes), "move")
    flows, start = [], 0
    for shape in call.shapes:
        size = shape[place]
        if split:
            part = None if line is None else line[start : start + size]
        else:
            part = None if line is None else _sliced(call, line, size)
        start += size
        flows.append(Value(shape, (*others[:place], part, *others[place:])))
    if split and len({shape[place] for shape in call.shapes}) == 1:
        call.labels.tie(line, len(call.shapes))
    return Flow(tuple(flows), "move")


def _sliced(call: Call, line: Line, size: int) -> Line:
    begin = int(call.argument(2, None, "start") or 0)
    begin = max(begin + len(line), 0) if begin < 0 else min(begin, len(line))
    step = int(call.argument(4, 1, "step")) if call.operator == "slice" else 1
    return line[begin : begin + size * step : step]


@rule("pad", "constant_pad_nd", "roll")
def _touched(call: Call) -> Flow:
    """Dimensions that the operator leaves as they are keep their labels; those that it works on lose them."""
    x = call.arguments[0]
    if len(call.shapes[0]) != len(x.shape):
        return unknown(call)
    touched = [i for i, size in enumerate(call.shapes[0]) if x.shape[i] != size]
    if call.operator == "roll":
        touched = [place % len(x.shape) for place in call.argument(2, [], "dims") or range(len(x.shape))]
    for place in touched:
        call.labels.freeze(x.labels[place], f"{call.operator} works along it")
    return call.result([None if i in touched else line for i, line in enumerate(x.labels)], "move")


@rule("im2col", "col2im")
def _windows(call: Call) -> Flow:
    """Every place of a window has all the channels."""
    x, rank, end = call.arguments[0], len(call.arguments[0].shape), len(call.shapes[0])
    taps = math.prod(call.arguments[1] if call.operator == "im2col" else call.arguments[2])
    channels = x.labels[-3 if call.operator == "im2col" else -2]
    for line in x.labels[-2 if call.operator == "im2col" else -1 :]:
        call.labels.freeze(line, f"{call.operator} reads it as space")
    if channels is not None and call.operator == "im2col":
        channels = np.repeat(channels, taps)
    elif channels is not None:
        together = channels.reshape(-1, taps)
        for place in range(1, taps):
            call.labels.unify(together[:, 0], together[:, place], "")
        channels = together[:, 0]
    before = x.labels[: rank - (3 if call.operator == "im2col" else 2)]
    return call.result((*before, channels, *(None for _ in range(end - len(before) - 1))), "move")


@rule("unfold")
def _unfolded(call: Call) -> Flow:
    x, place = call.arguments[0], int(call.arguments[1]) % len(call.arguments[0].shape)
    call.labels.freeze(x.labels[place], "unfold takes windows of it")
    return call.result((*(None if i == place else line for i, line in enumerate(x.labels)), None), "move")


@rule("diag", "diag_embed")
def _diagonal_matrix(call: Call) -> Flow:
    """Make a matrix of a vector: a unit is a row and a column."""
    x, offset = call.arguments[0], call.argument(1, 0, "diagonal" if call.operator == "diag" else "offset")
    if offset or len(call.arguments) > 2 or (call.operator == "diag" and len(x.shape) > 1):
        return unknown(call)
    return call.result((*x.labels, x.labels[-1]), "move")


@rule("flip")
def _flipped(call: Call) -> Flow:
    x = call.arguments[0]
    turned = {place % len(x.shape) for place in call.arguments[1]}
    lines = [line[::-1] if line is not None and i in turned else line for i, line in enumerate(x.labels)]
    return call.result(lines, "move")


@rule_for_uniform("expand", "broadcast_to", "repeat", "tile")
def _repeated(call: Call) -> Flow:
    """One element repeated is the same in all its copies: they may go with whatever units they meet."""
    x, shape = call.arguments[0], call.shapes[0]
    if x.uniform:
        return Flow((Value(shape, (None,) * len(shape), uniform=True),), "move")
    new = len(shape) - len(x.shape)
    lines: list[Dimension] = [None] * new
    for place, line in enumerate(x.labels):
        times = shape[place + new] // x.shape[place] if x.shape[place] else 1
        if times > 1 and x.shape[place] == 1:
            call.labels.freeze(line, f"{call.operator} repeats it along a dimension")
            lines.append(call.labels.fresh(times))
            continue
        lines.append(line if line is None or times == 1 else np.tile(line, times))
    return call.result(lines, "move")


@rule("expand_as")
def _repeated_like(call: Call) -> Flow:
    """Couple what is repeated along the units of another tensor to them."""
    x, other, shape = call.arguments[0], call.arguments[1], call.shapes[0]
    new, lines = len(shape) - len(x.shape), list(other.labels)
    for place, line in enumerate(x.labels):
        if x.shape[place] == shape[place + new]:
            lines[place + new] = call.labels.unify(line, other.labels[place + new], "it is as wide as no units")
        else:
            call.labels.freeze(line, "expand_as repeats it along a dimension")
    return call.result(lines, "move")


@rule("repeat_interleave")
def _interleaved(call: Call) -> Flow:
    x, times, place = call.arguments[0], call.argument(1), call.argument(2, None, "dim")
    if not isinstance(times, int) or place is None:
        return unknown(call)
    lines = [
        np.repeat(line, times) if line is not None and i == place % len(x.shape) else line
        for i, line in enumerate(x.labels)
    ]
    return call.result(lines, "move")


@rule("glu")
def _gated(call: Call) -> Flow:
    x = call.arguments[0]
    place = int(call.argument(1, -1, "dim")) % len(x.shape)
    call.labels.tie(x.labels[place], 2)
    lines = [line[: len(line) // 2] if line is not None and i == place else line for i, line in enumerate(x.labels)]
    return call.result(lines, "pointwise")


@rule("pixel_shuffle", "pixel_unshuffle")
def _shuffled(call: Call) -> Flow:
    x, factor = call.arguments[0], int(call.arguments[1]) ** 2
    line, channels = x.labels[-3], None
    if line is not None and call.operator == "pixel_shuffle":
        together = line.reshape(-1, factor)
        for place in range(1, factor):
            call.labels.unify(together[:, 0], together[:, place], "")
        channels = together[:, 0]
    elif line is not None:
        channels = np.repeat(line, factor)
    for space in x.labels[-2:]:
        call.labels.freeze(space, f"{call.operator} reads it as space")
    return call.result((*x.labels[:-3], channels, None, None), "move")


@rule("channel_shuffle")
def _channel_shuffle(call: Call) -> Flow:
    x, groups = call.arguments[0], int(call.arguments[1])
    line = x.labels[1]
    call.labels.tie(line, groups)
    mixed = None if line is None else line.reshape(groups, -1).T.reshape(-1)
    return call.result((x.labels[0], mixed, *x.labels[2:]), "move")


@rule("index", "index_select", "gather")
def _indexed(call: Call) -> Flow:
    x = call.arguments[0]
    if call.operator == "gather":
        return _gathered(call)
    if call.operator == "index_select":
        place, indices = int(call.arguments[1]) % len(x.shape), [call.arguments[2]]
        call.labels.freeze(x.labels[place], "index_select chooses from it")
        call.labels.freeze_all(call.arguments[2], "it is an index")
        return call.result([None if i == place else line for i, line in enumerate(x.labels)], "move")
    indices = call.arguments[1]
    used = [i for i, index in enumerate(indices) if index is not None]
    for place in used:
        call.labels.freeze(x.labels[place], "index chooses from it")
    for index in indices:
        if index is not None:
            call.labels.freeze_all(index, "it is an index")
    if used != list(range(used[0], used[-1] + 1)):
        call.labels.freeze_all(x, "index chooses from several dimensions")
        return Flow((plain(call.shapes[0]),), "move")
    after = x.labels[used[-1] + 1 :]
    between = len(call.shapes[0]) - used[0] - len(after)
    return call.result((*x.labels[: used[0]], *(None for _ in range(between)), *after), "move")


def _gathered(call: Call) -> Flow:
    x, place, index = call.arguments[0], int(call.arguments[1]), call.arguments[2]
    place %= len(x.shape)
    call.labels.freeze(x.labels[place], "gather chooses from it")
    call.labels.freeze(index.labels[place], "gather chooses from it")
    lines: list[Dimension] = []
    for i, line in enumerate(x.labels):
        if i != place and x.shape[i] == index.shape[i]:
            lines.append(call.labels.unify(line, index.labels[i], "gather meets a dimension without units"))
        else:
            call.labels.freeze(line, "gather takes a part of it")
            call.labels.freeze(index.labels[i] if i != place else None, "gather takes a part along it")
            lines.append(None)
    return call.result(lines, "move")


@rule("tril", "triu", "diagonal")
def _triangle(call: Call) -> Flow:
    x = call.arguments[0]
    for line in x.labels[-2:]:
        call.labels.freeze(line, f"{call.operator} looks at places")
    if call.operator == "diagonal":
        return unknown(call)
    return Flow((Value(x.shape, (*x.labels[:-2], None, None)),), "pointwise")
