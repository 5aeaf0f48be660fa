"""The time of one operator on a board, from its sizes.

Every board: the launch overhead plus the longer of two times, that of the arithmetic at the rate that the board
reaches, and that of the memory traffic at the bandwidth that the board reaches [1]_. Channels are padded to the board's
alignment, so that a width between two steps costs as much as the upper one.

A calibrated board: a rate for each form of contraction, which small extents do not reach [2]_; the pointwise passes
that a runtime does not fuse; two bandwidths, one for what fits into the cache; and how much of the shorter of the two
times hides behind the longer. Weights are read once per call, so they stay in the cache where those of the whole model
fit into it.

References
----------
.. [1] S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for multicore
   architectures. Communications of the ACM 52(4), 2009.
.. [2] R. W. Hockney, C. R. Jesshope: Parallel Computers 2, 1988: the half-performance length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from edgelean.board.model import FORMS, Precision

if TYPE_CHECKING:
    from edgelean.board.cost import Operator

Bound = Literal["launch", "compute", "memory"]
Price = Callable[["Operator"], tuple[float, float, Bound]]
"""Of an operator: its time in ms, the part of that which is no launch overhead, and the longest of its times."""

Numbers = tuple[tuple[str, float], ...]
"""Parameters of a calibration: keys, such as ``conv.gflop_s``, and values."""

BYTES: Mapping[Precision, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


def roofline(overhead_ms: float, flops_per_ms: float, elements_per_ms: float, step: int) -> Price:
    """Return the price of an operator on a board of which only these four numbers are known."""

    def price(operator: Operator) -> tuple[float, float, Bound]:
        compute = operator.flops / flops_per_ms
        if compute:
            compute *= _padding(operator.columns, step) * _padding(operator.depth, step)
        memory = operator.elements / elements_per_ms
        busy = max(compute, memory)
        bound: Bound = "launch" if overhead_ms > busy else "compute" if compute > memory else "memory"
        return overhead_ms + busy, busy, bound

    return price


def _padding(extent: float, step: int) -> float:
    return -(-extent // step) * step / extent if extent > 0 else 1.0


class _Speed(NamedTuple):
    """Of one form of contraction: ms for each floating point operation, and its half-performance extents."""

    ms: float
    rows: float
    columns: float
    depth: float


@lru_cache(maxsize=8)
def calibrated(parameters: Numbers, step: int, precision: Precision) -> tuple[float, Callable[[float], Price]]:
    """Return the time of a call in ms, and what prices the operators of a model on a calibrated board.

    An allocation asks some thousand times for the same board, so the answer is kept.

    Parameters
    ----------
    parameters
        Those of a :class:`edgelean.board.model.Calibration`.
    step
        Multiple to which channels are padded. Fewer input channels than that are not padded: there runtimes have
        kernels that read the few channels of an image.
    precision
        Of the calibration.

    Returns
    -------
    call_ms, prices
        The latter takes the elements of all weights of the model.
    """
    numbers = dict(parameters)
    elements_per_mb = 1e6 / BYTES[precision]
    near_ms, far_ms = (1.0 / (numbers[key] * elements_per_mb) for key in ("near_gb_s", "far_gb_s"))
    cache = numbers["cache_mb"] * elements_per_mb
    launch_ms = {kind: numbers[f"{kind}_us"] * 1e-3 for kind in ("contract", "pointwise", "reduce", "move")}
    element_ms = {kind: 1e-6 / numbers[f"{kind}_gelement_s"] for kind in ("light", "heavy", "reduce", "move")}
    light_ms, heavy_ms = element_ms["light"], element_ms["heavy"]
    pass_ms, stack_ms, shown = numbers["pass_us"] * 1e-3, numbers["stack_us"] * 1e-3, 1.0 - numbers["overlap"]
    contract = _contraction(numbers, step)

    def priced(operator: Operator, weight_ms: float) -> tuple[float, float, Bound]:
        detail, kind = operator.detail, operator.kind
        launch = launch_ms.get(kind, launch_ms["reduce"]) + pass_ms * detail.passes
        compute = detail.light * light_ms + detail.heavy * heavy_ms
        if kind == "contract":
            compute += contract(operator)
            if detail.stacks > 1 and detail.form != "depthwise":
                launch += stack_ms * detail.stacks
        elif kind != "pointwise":
            compute += operator.elements * element_ms.get(kind, element_ms["reduce"])
        elif detail.passes:
            launch -= pass_ms
        moved = operator.elements - detail.weights
        memory = detail.weights * weight_ms + moved * (near_ms + far_ms * _missed(moved, cache))
        longer, shorter = (compute, memory) if compute > memory else (memory, compute)
        busy = longer + shown * shorter
        bound: Bound = "launch" if launch > busy else "compute" if compute > memory else "memory"
        return launch + busy, busy, bound

    def prices(weights: float) -> Price:
        weight_ms = near_ms + far_ms * _missed(weights, cache)
        return lambda operator: priced(operator, weight_ms)

    return numbers["call_us"] * 1e-3, prices


def _contraction(numbers: Mapping[str, float], step: int) -> Callable[[Operator], float]:
    """Return what computes the ms of a contraction alone."""
    speeds = {
        form: _Speed(2e-6 / numbers[f"{form}.gflop_s"], *(numbers[f"{form}.{extent}"] for extent in _Speed._fields[1:]))
        for form in FORMS
    }

    def contract(operator: Operator) -> float:
        rows, columns, depth = operator.rows, operator.columns, operator.depth
        if not (rows and columns and depth):
            return 0.0
        form, stacks = operator.detail.form or "product", operator.detail.stacks
        ms, half_rows, half_columns, half_depth = speeds[form]
        taps = operator.flops / (2.0 * rows * columns * depth)
        columns = -(-columns // step) * step
        if depth > step:
            depth = -(-depth // step) * step
        if form == "product":
            rows += stacks * half_rows
            columns += half_columns
        else:
            rows += half_rows
            columns += half_columns if form == "depthwise" else stacks * half_columns
        return ms * rows * columns * (depth * taps + half_depth)

    return contract


def _missed(elements: float, cache: float) -> float:
    """Return the share of a working set that is not in the cache any more when it is read again."""
    return 1.0 - cache / elements if elements > cache else 0.0
