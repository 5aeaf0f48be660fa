"""What a model costs on a board: the operators that are launched, and the time and energy of each.

The time of an operator is in :mod:`edgelean.board.price`. The board draws its idle power all the time, and its full
power while an operator computes or moves data; where a calibration measured the energy, each floating point operation
and each byte has its own. Both models are monotone: fewer channels never cost more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgelean.board.model import Board, Calibration, Fact, Form, Precision
from edgelean.board.price import BYTES, Bound, Price, calibrated, roofline
from edgelean.errors import InputError

Kind = Literal["contract", "pointwise", "reduce", "move", "free"]


@dataclass(frozen=True, slots=True)
class Detail:
    """What only the cost model of a calibrated board looks at.

    Attributes
    ----------
    form
        How a contraction is computed: ``conv`` along two dimensions, ``depthwise`` along two dimensions with one input
        channel per group, any other ``grouped`` one, ``conv1d`` along one or three dimensions or transposed, or
        ``product`` of matrices. None for all others.
    stacks
        Products that are computed one after the other: groups of a convolution, matrices of a stack.
    weights
        Elements, of those that are read, that are the same in every call.
    passes
        Pointwise nodes that a runtime computes on their own if it does not fuse them: all but the affine ones and the
        clamps behind a contraction, which every runtime fuses; a bias of a stack of products is not among these.
    light, heavy
        Elements that these passes compute with a few instructions each, and with an exponential each.
    """

    form: Form | None = None
    stacks: float = 1.0
    weights: float = 0.0
    passes: int = 0
    light: float = 0.0
    heavy: float = 0.0


PLAIN = Detail()


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
    detail
        What a calibrated board asks for beyond that.
    """

    name: str
    kind: str
    flops: float
    elements: float
    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0
    detail: Detail = PLAIN


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
        Time of one batch; on a calibrated board with that of the call, which belongs to no operator.
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


def convolution_form(groups: int, depth: int, dimensions: int, transposed: bool = False) -> Form:
    """Return how a convolution is computed: from its groups, input channels per group, and spatial dimensions."""
    plain = dimensions == 2 and not transposed
    if groups > 1:
        return "depthwise" if plain and depth == 1 else "grouped"
    return "conv" if plain else "conv1d"


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


def unfused(group: Sequence[Node], exponentials: Sequence[float], constants: Set[str]) -> tuple[tuple[int, float], ...]:
    """Return the pointwise passes that a runtime without fusion makes over a launched group.

    What scales, shifts or clamps the result of a contraction is computed with it by every runtime. What belongs to one
    activation that is written as several nodes is one pass: these read nothing but each other, constants, and what the
    exponential among them reads.

    Parameters
    ----------
    group
        Its nodes, in order.
    exponentials
        How many exponentials an element of each node takes; 0 for a few instructions.
    constants
        Tensors that are the same in every call.

    Returns
    -------
    passes
        For each the place of its node in the group, and the exponentials of an element.
    """
    absorbs = any(exponentials) or group[0].kind == "contract"
    own: set[str] = set()
    passes = []
    for place, (node, each) in enumerate(zip(group, exponentials, strict=True)):
        read = set(node.inputs) - constants
        joins = len(read) > 1 and not own.issuperset(read)
        own.add(node.output)
        if node.kind == "pointwise":
            own |= read
            if each or joins or not absorbs:
                passes.append((place, each))
    return tuple(passes)


def predict(operators: Iterable[Operator], board: Board, precision: Precision, batch: int) -> Cost:
    """Predict latency and energy of a model on a board.

    Where the board was calibrated in the precision, that is used. Else an unknown efficiency counts as 1, and an
    unknown idle power as 0: the prediction is then a lower bound, and a note says so. Everything else has to be known.

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
    operators = tuple(operators)
    call_ms, price, power, notes = _model(board, precision, operators)
    idle_w, extra_w, mj_per_flop, mj_per_element = power
    costs: list[OperatorCost] = []
    unknown: list[str] = []
    total_ms, total_mj = call_ms, idle_w * call_ms / batch
    for operator in operators:
        latency_ms, busy_ms, bound = price(operator)
        work_mj = mj_per_flop * operator.flops + mj_per_element * operator.elements
        energy_mj = (idle_w * latency_ms + extra_w * busy_ms + work_mj) / batch
        costs.append(OperatorCost(operator.name, latency_ms, energy_mj, bound))
        total_ms += latency_ms
        total_mj += energy_mj
        if operator.kind == "unknown":
            unknown.append(operator.name)
    if unknown:
        notes += (f"unknown operators are counted by their traffic alone: {', '.join(unknown)}",)
    return Cost(total_ms, total_mj, tuple(costs), notes)


class _Power(NamedTuple):
    """What the energy is made of: power while idle, on top of that while busy, and energy of the work itself."""

    idle_w: float
    extra_w: float = 0.0
    mj_per_flop: float = 0.0
    mj_per_element: float = 0.0


class _Model(NamedTuple):
    call_ms: float
    price: Price
    power: _Power
    notes: tuple[str, ...]


def _model(board: Board, precision: Precision, operators: Sequence[Operator]) -> _Model:
    calibration: Calibration | None = getattr(board.calibration, precision)
    if calibration is None:
        return _uncalibrated(board, precision)
    weights = sum([operator.detail.weights for operator in operators])
    call_ms, prices = calibrated(calibration.numbers, getattr(board.alignment, precision), precision)
    price = prices(weights)
    note = (
        f"calibrated on {calibration.made} with {calibration.runtime}: off by {100 * calibration.network_error:.0f} % "
        "in the median on networks that it was not fitted to"
    )
    idle_w, flop, byte = calibration.idle_w, calibration.pj_per_flop, calibration.pj_per_byte
    if idle_w is not None and flop is not None and byte is not None:
        power = _Power(idle_w.value, 0.0, flop.value * 1e-9, byte.value * 1e-9 * BYTES[precision])
        return _Model(call_ms, price, power, (note,))
    needed, optional = {"power.max_w": board.power.max_w}, {"power.idle_w": board.power.idle_w}
    (most,) = _known(board, needed)
    idle = board.power.idle_w.value or 0.0
    return _Model(call_ms, price, _Power(idle, most - idle), (note, *_notes(board, needed | optional, optional)))


def _uncalibrated(board: Board, precision: Precision) -> _Model:
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
    price = roofline(
        overhead_ms=overhead * 1e-3,
        flops_per_ms=peak * efficiency * 1e9,
        elements_per_ms=bandwidth * bandwidth_efficiency * 1e6 / BYTES[precision],
        step=getattr(board.alignment, precision),
    )
    return _Model(0.0, price, _Power(idle, most - idle), _notes(board, needed | optional, optional))


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
