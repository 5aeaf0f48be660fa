"""What a model costs on a board: a roofline per fused operator.

Each launched operator takes the launch overhead plus the longer of two times: its arithmetic at the rate that the board
reaches, and its memory traffic at the bandwidth that the board reaches [1]_. Channels are padded to the board's
alignment, so that a width between two steps costs as much as the upper one. The board draws its idle power all the
time, and its full power while an operator computes or moves data.

References
----------
.. [1] S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for multicore
   architectures. Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgelean.board.model import Board, Fact, Precision
from edgelean.errors import InputError

Kind = Literal["contract", "pointwise", "reduce", "move", "free"]
Bound = Literal["launch", "compute", "memory"]

_BYTES: dict[Precision, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Operator:
    """One launched operator: what it computes and what it moves, for one batch.

    Attributes
    ----------
    name
        The name of its first node.
    kind
        ``contract`` (convolution, matrix product), ``pointwise``, ``reduce``, ``move``, or ``unknown``: counted by
        its traffic alone.
    flops
        2 * rows * columns * depth * (groups and kernel positions) of a contraction; 0 for all others, whose time is
        their traffic.
    elements
        Elements that are read (inputs, weights) and written, of one number each.
    rows, columns, depth
        Extents of a contraction: output positions of the whole batch, output channels, and input channels of one
        group. Alignment applies to columns and depth. 0 for all others.
    """

    name: str
    kind: str
    flops: float
    elements: float
    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph, as far as fusing needs it; inputs and outputs are names of tensors."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str


class OperatorCost(NamedTuple):
    """Cost of one operator: ms for the batch, mJ per inference, and which of its three times is the longest."""

    name: str
    latency_ms: float
    energy_mj: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted cost of a model on a board.

    Attributes
    ----------
    latency_ms
        Time of one batch.
    energy_mj
        Energy of one inference, that is of one sample of the batch.
    operators
        The same for each operator, in the order of execution.
    notes
        What the prediction rests on that is not known: guesses and gaps of the board file, unknown operators.
    """

    latency_ms: float
    energy_mj: float
    operators: tuple[OperatorCost, ...]
    notes: tuple[str, ...]


def views(nodes: Sequence[Node]) -> dict[str, str]:
    """Return, for every tensor that a free node makes, the tensor that it is a view of."""
    viewed: dict[str, str] = {}
    for node in nodes:
        if node.kind == "free" and node.inputs:
            viewed[node.output] = viewed.get(node.inputs[0], node.inputs[0])
    return viewed


def fuse(nodes: Sequence[Node]) -> tuple[tuple[int, ...], ...]:
    """Group the nodes, in topological order, into operators that are launched once each.

    A contraction or a pointwise node takes in the pointwise node that follows (normalisation with fixed statistics,
    activation, residual addition) as long as that one is the only reader of its result. A node with two inputs joins
    the input that is computed last. An activation that is written as several nodes (``x * sigmoid(x)``) joins as a
    whole when nothing else reads what it reads. Free nodes launch nothing and belong to no group; one reads through
    them.

    Returns
    -------
    groups
        Indices into ``nodes``; each group in order, the groups by their first node.
    """
    viewed = views(nodes)
    inputs = [{viewed.get(name, name) for name in node.inputs} for node in nodes]
    readers = Counter(name for node, read in zip(nodes, inputs, strict=True) if node.kind != "free" for name in read)
    groups: list[list[int]] = []
    open_groups: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        if node.kind == "free":
            continue
        joinable = [open_groups[name] for name in inputs[index] if name in open_groups and readers[name] == 1]
        if node.kind == "pointwise" and joinable:
            group = max(joinable, key=lambda members: members[-1])
            group.append(index)
        else:
            group = [index]
            groups.append(group)
        if node.kind in ("contract", "pointwise"):
            open_groups[node.output] = group
    return tuple(tuple(group) for group in _without_forks(groups, nodes, inputs))


def _without_forks(groups: list[list[int]], nodes: Sequence[Node], inputs: Sequence[set[str]]) -> list[list[int]]:
    """Merge every pointwise group into the group before it that nothing but this group reads."""
    writer = {nodes[i].output: place for place, group in enumerate(groups) for i in group}
    read_by: dict[int, set[int]] = {place: set() for place in range(len(groups))}
    sources: dict[int, set[int]] = {place: set() for place in range(len(groups))}
    for place, group in enumerate(groups):
        for name in (name for i in group for name in inputs[i]):
            if name in writer and writer[name] != place:
                read_by[writer[name]].add(place)
                sources[place].add(writer[name])
    home = list(range(len(groups)))
    for place, group in enumerate(groups):
        if any(nodes[i].kind != "pointwise" for i in group):
            continue
        for source in sorted(sources[place], reverse=True):
            mergeable = nodes[groups[source][0]].kind in ("contract", "pointwise")
            if mergeable and read_by[source] == {place}:
                home[place] = home[source]
                break
    merged: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        merged.setdefault(home[place], []).extend(group)
    return list(merged.values())


def predict(operators: Iterable[Operator], board: Board, precision: Precision, batch: int) -> Cost:
    """Predict latency and energy of a model on a board.

    An unknown efficiency counts as 1, an unknown idle power as 0: the prediction is then a lower bound, and a note
    says so. Everything else has to be known.

    Parameters
    ----------
    operators
        The fused operators of one batch.
    board
        The hardware.
    precision
        What weights and activations are stored in and computed with.
    batch
        Samples per call, by which the energy is divided.

    Raises
    ------
    InputError
        The batch is below 1, or the board lacks a number that the prediction needs.
    """
    if batch < 1:
        raise InputError(f"a cost needs a batch of at least 1, found {batch}")
    rates = _rates(board, precision)
    step, overhead = rates.step, rates.overhead_ms
    costs: list[OperatorCost] = []
    unknown: list[str] = []
    total_ms = total_mj = 0.0
    for operator in operators:
        compute = operator.flops / rates.flops_per_ms
        if compute:
            compute *= _padding(operator.columns, step) * _padding(operator.depth, step)
        memory = operator.elements / rates.elements_per_ms
        busy = max(compute, memory)
        bound: Bound = "launch" if overhead > busy else "compute" if compute > memory else "memory"
        latency_ms = overhead + busy
        energy_mj = (rates.idle_w * latency_ms + rates.extra_w * busy) / batch
        costs.append(OperatorCost(operator.name, latency_ms, energy_mj, bound))
        total_ms += latency_ms
        total_mj += energy_mj
        if operator.kind == "unknown":
            unknown.append(operator.name)
    notes = rates.notes
    if unknown:
        notes += (f"unknown operators are counted by their traffic alone: {', '.join(unknown)}",)
    return Cost(total_ms, total_mj, tuple(costs), notes)


def _padding(extent: float, step: int) -> float:
    return -(-extent // step) * step / extent if extent > 0 else 1.0


class _Rates(NamedTuple):
    overhead_ms: float
    flops_per_ms: float
    elements_per_ms: float
    step: int
    idle_w: float
    extra_w: float
    notes: tuple[str, ...]


def _rates(board: Board, precision: Precision) -> _Rates:
    peak_key = "int8_tops" if precision == "int8" else f"{precision}_tflops"
    needed = {
        f"compute.{peak_key}": getattr(board.compute, peak_key),
        "memory.bandwidth_gb_s": board.memory.bandwidth_gb_s,
        "launch.overhead_us": board.launch.overhead_us,
        "power.max_w": board.power.max_w,
    }
    optional = {
        "compute.efficiency": board.compute.efficiency,
        "memory.bandwidth_efficiency": board.memory.bandwidth_efficiency,
        "power.idle_w": board.power.idle_w,
    }
    peak, bandwidth, overhead, most = _known(board, needed)
    efficiency = board.compute.efficiency.value or 1.0
    bandwidth_efficiency = board.memory.bandwidth_efficiency.value or 1.0
    idle = board.power.idle_w.value or 0.0
    return _Rates(
        overhead_ms=overhead * 1e-3,
        flops_per_ms=peak * efficiency * 1e9,
        elements_per_ms=bandwidth * bandwidth_efficiency * 1e6 / _BYTES[precision],
        step=getattr(board.alignment, precision),
        idle_w=idle,
        extra_w=most - idle,
        notes=_notes(board, needed | optional, optional),
    )


def _known(board: Board, needed: dict[str, Fact]) -> list[float]:
    missing = [key for key, fact in needed.items() if fact.value is None]
    if missing:
        raise InputError(
            f"the cost on the board {board.name} cannot be predicted, its file does not know {', '.join(missing)}: "
            "measure instead with --target local, or write the numbers, each with its source, into a copy of the board "
            "file and name that copy in the profile"
        )
    return [fact.value for fact in needed.values() if fact.value is not None]


def _notes(board: Board, used: dict[str, Fact], optional: dict[str, Fact]) -> tuple[str, ...]:
    notes = []
    guessed = [f"{key} = {fact.value:g}" for key, fact in used.items() if fact.confidence == "guess"]
    if guessed:
        notes.append(f"guesses in the file of the board {board.name}: {', '.join(guessed)}")
    if board.alignment.confidence == "guess":
        notes.append(f"the channel alignment of the board {board.name} is a guess")
    unknown = [key for key, fact in optional.items() if fact.value is None]
    efficiencies = [key for key in unknown if key != "power.idle_w"]
    if efficiencies:
        notes.append(f"not known and taken as 1, so the latency is a lower bound: {', '.join(efficiencies)}")
    if "power.idle_w" in unknown:
        notes.append("power.idle_w is not known: the energy leaves the idle power out")
    return tuple(notes)
