"""Operators that write elements into places of a tensor."""

from __future__ import annotations

from edgelean.shrink.labels import Dimension, Value
from edgelean.shrink.rules.call import Call, Flow, rule, unknown

WIDTHS = "scattering meets a dimension without units"


@rule("scatter", "scatter_add", "scatter_reduce")
def _scattered(call: Call) -> Flow:
    """Along the dimension that the index chooses from everything stays; along the others all three are one."""
    x, place, index = call.arguments[0], int(call.arguments[1]) % len(call.shapes[0]), call.arguments[2]
    given = call.argument(3, None, "src")
    others = [index, given] if isinstance(given, Value) and given.shape else [index]
    lines: list[Dimension] = []
    for i, line in enumerate(x.labels):
        if i != place and all(other.shape[i] == x.shape[i] for other in others):
            for other in others:
                line = call.labels.unify(line, other.labels[i], WIDTHS)
            lines.append(line)
            continue
        for other in (x, *others):
            call.labels.freeze(other.labels[i], f"{call.operator} chooses from it")
        lines.append(None)
    return call.result(lines, "move")


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def _indexed_write(call: Call) -> Flow:
    """Whole slices go to places along one dimension, which stays."""
    x, place, given = call.arguments[0], int(call.arguments[1]) % len(call.shapes[0]), call.argument(3, None, "source")
    call.labels.freeze_all(call.arguments[2], "it is an index")
    lines: list[Dimension] = list(x.labels)
    for i, line in enumerate(x.labels):
        if i == place:
            call.labels.freeze(line, f"{call.operator} chooses from it")
            lines[i] = None
        elif isinstance(given, Value) and given.shape:
            lines[i] = call.labels.unify(line, given.labels[i], WIDTHS)
    if isinstance(given, Value) and given.shape:
        call.labels.freeze(given.labels[place], f"{call.operator} chooses from it")
    return call.result(lines, "move")


@rule("index_put")
def _put(call: Call) -> Flow:
    """Dimensions that are indexed stay; those behind them are those of the values."""
    x, indices, given = call.arguments[:3]
    used = [i for i, index in enumerate(indices) if index is not None]
    if used != list(range(used[-1] + 1)):
        return unknown(call)
    for place in used:
        call.labels.freeze(x.labels[place], "index_put chooses from it")
    for index in indices:
        if index is not None:
            call.labels.freeze_all(index, "it is an index")
    lines = [None if i in used else line for i, line in enumerate(x.labels)]
    for back in range(1, len(given.shape) + 1):
        if back <= len(x.shape) - len(used) and given.shape[-back] == x.shape[-back]:
            lines[-back] = call.labels.unify(lines[-back], given.labels[-back], WIDTHS)
        else:
            call.labels.freeze(given.labels[-back], "index_put repeats it, or chooses from it")
    return call.result(lines, "move")


@rule("slice_scatter", "select_scatter")
def _part_written(call: Call) -> Flow:
    """Write as many units as the part has that they take the place of."""
    x, part, place = call.arguments[0], call.arguments[1], int(call.argument(2, 0, "dim")) % len(call.shapes[0])
    lines: list[Dimension] = list(x.labels)
    others = list(part.labels)
    if call.operator == "select_scatter":
        call.labels.freeze(lines[place], "select_scatter takes one of it")
        others.insert(place, None)
    elif lines[place] is not None:
        line = lines[place]
        assert line is not None
        begin, step = int(call.argument(3, None, "start") or 0), int(call.argument(5, 1, "step"))
        begin = max(begin + len(line), 0) if begin < 0 else begin
        covered = line[begin : begin + part.shape[place] * step : step]
        call.labels.unify(covered, others[place], WIDTHS)
    else:
        call.labels.freeze(others[place], WIDTHS)
    for i, line in enumerate(x.labels):
        if i != place:
            lines[i] = call.labels.unify(line, others[i], WIDTHS)
    return call.result(lines, "move")
