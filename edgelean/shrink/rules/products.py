"""Matrix products, einsum and attention."""

from __future__ import annotations

import string

import numpy as np

from edgelean.shrink.labels import Dimension, Value
from edgelean.shrink.rules.call import Call, Flow, rule, sizes, unknown

SUMMED = "a product sums over a dimension without units"


@rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> Flow:
    return _product(call, call.arguments[0], call.arguments[1])


@rule("addmm", "baddbmm", "addbmm")
def _added_product(call: Call) -> Flow:
    if call.operator == "addbmm":
        return unknown(call)
    flow = _product(call, call.arguments[1], call.arguments[2])
    added, out = call.arguments[0], flow.outputs[0]
    for place in range(1, len(added.shape) + 1):
        if added.shape[-place] == out.shape[-place]:
            call.labels.unify(out.labels[-place], added.labels[-place], "what is added has no units")
    return flow


def _product(call: Call, a: Value, b: Value) -> Flow:
    if len(a.shape) < 2 or len(b.shape) < 2:
        return _with_vector(call, a, b)
    call.labels.unify(a.labels[-1], b.labels[-2], SUMMED)
    rank = len(call.shapes[0])
    stack = [_met(call, [a, b], place, rank) for place in range(rank - 2)]
    lines = (*stack, a.labels[-2], b.labels[-1])
    return Flow(
        (Value(call.shapes[0], lines),),
        "contract",
        rows=(*zip(call.shapes[0][:-2], stack, strict=True), *sizes(a, (-2,))),
        columns=sizes(b, (-1,)),
        depth=sizes(a, (-1,)),
    )


@rule("_grouped_mm", "grouped_mm_fallback")
def _by_expert(call: Call) -> Flow:
    """Rows are sorted by expert, and each expert's rows are multiplied with its own matrix."""
    rows, weight = call.arguments[:2]
    if len(rows.shape) != 2 or len(weight.shape) != 3:
        return unknown(call)
    call.labels.unify(rows.labels[1], weight.labels[1], SUMMED)
    call.labels.freeze(weight.labels[0], "experts are chosen by their number")
    for ends in call.tensors()[2:]:
        call.labels.freeze_all(ends, "it says which rows are whose")
    return Flow(
        (Value(call.shapes[0], (rows.labels[0], weight.labels[2])),),
        "contract",
        rows=sizes(rows, (0,)),
        columns=sizes(weight, (2,)),
        depth=sizes(rows, (1,)),
    )


@rule("mv", "dot", "vdot", "inner")
def _vector_product(call: Call) -> Flow:
    a, b = call.arguments[:2]
    return unknown(call) if call.operator == "inner" and len(a.shape) > 1 < len(b.shape) else _with_vector(call, a, b)


def _with_vector(call: Call, a: Value, b: Value) -> Flow:
    call.labels.unify(a.labels[-1], b.labels[max(len(b.shape) - 2, 0)], SUMMED)
    lines = (*a.labels[:-1], *(b.labels[:-2] if len(b.shape) > 1 else ()), *(b.labels[-1:] if len(b.shape) > 1 else ()))
    return call.result(lines, "reduce")


@rule("cosine_similarity", "pairwise_distance", "cdist")
def _compared(call: Call) -> Flow:
    """Compare vectors of the same units: a unit that is zero in both adds nothing."""
    a, b = call.arguments[:2]
    if call.operator == "cdist":
        call.labels.unify(a.labels[-1], b.labels[-1], SUMMED)
        rank = len(call.shapes[0])
        stack = [_met(call, [a, b], place, rank) for place in range(rank - 2)]
        return call.result((*stack, a.labels[-2], b.labels[-2]), "reduce")
    rank = max(len(a.shape), len(b.shape))
    place = int(call.argument(2, 1, "dim")) % rank if call.operator == "cosine_similarity" else rank - 1
    lines: list[Dimension] = []
    for back in range(rank, 0, -1):
        known = [v for v in (a, b) if len(v.shape) >= back]
        wide = [v.labels[-back] for v in known if v.shape[-back] == max(v.shape[-back] for v in known)]
        line = wide[0]
        for other in wide[1:]:
            line = call.labels.unify(line, other, SUMMED)
        lines.append(line)
    kept = lines[:place] + [None] * (len(call.shapes[0]) - rank + 1) + lines[place + 1 :]
    return call.result(kept, "reduce")


@rule("bilinear")
def _bilinear(call: Call) -> Flow:
    a, b, weight, bias = call.arguments[0], call.arguments[1], call.arguments[2], call.argument(3)
    call.labels.unify(a.labels[-1], weight.labels[1], SUMMED)
    call.labels.unify(b.labels[-1], weight.labels[2], SUMMED)
    if isinstance(bias, Value):
        call.labels.unify(weight.labels[0], bias.labels[0], "the bias has no units")
    stack = [call.labels.unify(*pair, SUMMED) for pair in zip(a.labels[:-1], b.labels[:-1], strict=True)]
    return call.result((*stack, weight.labels[0]), "reduce")


@rule("outer", "ger")
def _outer(call: Call) -> Flow:
    a, b = call.arguments[:2]
    return call.result((a.labels[0], b.labels[0]), "pointwise")


def _met(call: Call, values: list[Value], place: int, rank: int) -> Dimension:
    """Return the labels of a stacking dimension of several tensors, of which some may be repeated along it."""
    size = call.shapes[0][place]
    known = [v for v in values if len(v.shape) >= rank - place and v.shape[place - rank] == size]
    line = known[0].labels[place - rank] if known else None
    for value in known[1:]:
        line = call.labels.unify(line, value.labels[place - rank], f"{call.operator} meets a dimension without units")
    return line


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return one letter for every dimension of each operand and of the result; dots stand for the last of others."""
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    others = "".join(letter for letter in string.ascii_letters if letter not in equation)
    free = [rank - len(term.replace("...", "")) if "." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    everywhere = others[: max(free)]
    if not arrow:
        output = "..." * ("." in inputs) + "".join(x for x in sorted(set(inputs) - {",", "."}) if inputs.count(x) == 1)
    named = [
        term.replace("...", everywhere[len(everywhere) - count :]) for term, count in zip(terms, free, strict=True)
    ]
    return named, output.replace("...", everywhere)


@rule("einsum")
def _einsum(call: Call) -> Flow:
    """Dimensions of one letter are one."""
    operands = call.tensors()
    terms, output = _letters(str(call.arguments[0]).replace(" ", ""), [len(value.shape) for value in operands])
    if any(len(set(term)) != len(term) for term in terms):
        return unknown(call)
    lines: dict[str, Dimension] = {}
    extent: dict[str, int] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, size, line in zip(term, value.shape, value.labels, strict=True):
            if extent.get(letter, size) != size:
                call.labels.freeze(lines[letter] if size == 1 else line, "einsum repeats it along a dimension")
                call.labels.freeze(line if size == 1 else lines[letter], "einsum repeats along it")
                size, line = max((size, line), (extent[letter], lines[letter]), key=lambda pair: pair[0])
            elif letter in lines:
                line = call.labels.unify(lines[letter], line, SUMMED)
            lines[letter], extent[letter] = line, size
    last = set(terms[-1])
    columns = [letter for letter in output if letter in last and letter not in terms[0]]
    summed = [letter for letter in extent if letter not in output]
    rows = [letter for letter in output if letter not in columns]
    return Flow(
        (Value(call.shapes[0], tuple(lines[letter] for letter in output)),),
        "contract" if len(terms) == 2 else "reduce",
        rows=tuple((extent[letter], lines[letter]) for letter in rows),
        columns=tuple((extent[letter], lines[letter]) for letter in columns),
        depth=tuple((extent[letter], lines[letter]) for letter in summed),
    )


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Flow:
    """Heads go together in queries, keys and values; several heads of queries may share one of keys."""
    query, key, value = call.arguments[:3]
    mask = call.argument(3, None, "attn_mask")
    labels, shape = call.labels, call.shapes[0]
    rank = len(shape)
    if call.argument(6, None, "scale") is None:
        for part in (query, key):
            labels.freeze(part.labels[-1], "the scale of the attention follows its size")
    labels.unify(query.labels[-1], key.labels[-1], SUMMED)
    labels.freeze(labels.unify(key.labels[-2], value.labels[-2], SUMMED), "the softmax of the attention runs over it")
    stack: list[Dimension] = []
    for place in range(rank - 2):
        line = query.labels[place]
        for other in (key, value):
            if other.shape[place] == 1 < query.shape[place]:
                labels.freeze(other.labels[place], "attention repeats it along a dimension")
            elif other.shape[place] != query.shape[place]:
                shared = other.labels[place]
                times = query.shape[place] // other.shape[place]
                labels.unify(line, None if shared is None else np.repeat(shared, times), "heads without units")
            else:
                labels.unify(line, other.labels[place], "heads without units")
        stack.append(line)
    if isinstance(mask, Value):
        _meet_mask(call, mask, (*stack, query.labels[-2], key.labels[-2]), (*query.shape[:-1], key.shape[-2]))
    return Flow(
        (Value(shape, (*stack, query.labels[-2], value.labels[-1])),),
        "contract",
        rows=(*zip(shape[:-2], stack, strict=True), *sizes(query, (-2,))),
        columns=sizes(key, (-2,)),
        depth=sizes(query, (-1,)),
        taps=2,
    )


def _meet_mask(call: Call, mask: Value, lines: tuple[Dimension, ...], shape: tuple[int, ...]) -> None:
    for place in range(1, len(mask.shape) + 1):
        if mask.shape[-place] == shape[-place] and mask.shape[-place] > 1:
            call.labels.unify(lines[-place], mask.labels[-place], "the mask of the attention has no units")
