"""Fitting the parameters of a board's cost model to measured kernels.

The logarithm of predicted over measured time is made small for all kernels, by nonlinear least squares with a loss
that grows only linearly for those that the model cannot describe [1]_. All parameters are above 0 and are fitted as
logarithms (the overlap as a log-odds). Each is drawn weakly to a start that is read off the fastest kernels, so that
one that no kernel tells stays there, with a wide interval. The intervals come from the curvature at the solution.

References
----------
.. [1] P. J. Huber, E. M. Ronchetti: Robust Statistics, 2nd ed., 2009, chapter 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelean.board import Precision
from edgelean.board.cost import Operator
from edgelean.board.model import FORMS
from edgelean.board.price import BYTES, calibrated

if TYPE_CHECKING:
    from edgelean.calibration.measure import Measured

STEPS = (1, 4, 8, 16, 32)
"""Multiples to which a runtime may pad channels; the one that describes the kernels best is taken."""

CLEARLY = 0.9
"""A wider step is taken only where it makes the loss smaller than this share of that of a narrower one."""

OUTLIER = 0.1
"""Relative error beyond which the loss grows linearly."""

PULL = 0.05
"""A parameter that is off its start by a factor of e counts as much as this relative error of one kernel."""

FEW_STEPS = 5
"""Iterations to see whether another channel step fits better, from the solution of the one before."""

NORMAL_95 = 1.96

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Fit:
    """A fitted cost model.

    Attributes
    ----------
    numbers
        The parameters by their keys in :class:`edgelean.board.model.Calibration`.
    low, high
        The ends of their 95 % intervals.
    step
        The multiple to which channels are padded.
    """

    numbers: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    step: int


def latencies_ms(
    models: Iterable[Sequence[Operator]], numbers: Mapping[str, float], step: int, precision: Precision
) -> Vector:
    """Return the predicted time of one call of each model."""
    call_ms, prices = calibrated(tuple(numbers.items()), step, precision)
    times = []
    for operators in models:
        price = prices(sum([operator.detail.weights for operator in operators]))
        times.append(call_ms + sum([price(operator)[0] for operator in operators]))
    return np.array(times)


def fit(kernels: Sequence[Measured], precision: Precision) -> Fit:
    """Fit all parameters, and the channel step.

    Parameters
    ----------
    kernels
        At least one contraction and one operator of another kind among them.
    precision
        In which they were measured.
    """
    start = _start(kernels, precision)
    solutions = []
    at = _to_vector(start)
    for step in STEPS:
        solution = _solve(kernels, precision, start, step, at, FEW_STEPS)
        at = solution.x
        solutions.append((step, solution))
    step, best = solutions[0]
    for other, solution in solutions[1:]:
        if solution.cost < CLEARLY * best.cost:
            step, best = other, solution
    final = _solve(kernels, precision, start, step, best.x, None)
    spread = NORMAL_95 * _deviations(final.jac, final.cost, len(kernels))
    low, value, high = (_to_numbers(final.x + sign * spread, list(start)) for sign in (-1, 0, 1))
    return Fit(value, low, high, step)


def errors(measured: Sequence[Measured], numbers: Mapping[str, float], step: int, precision: Precision) -> Vector:
    """Return predicted over measured time less 1, for each kernel or network."""
    predicted = latencies_ms([one.operators for one in measured], numbers, step, precision)
    return np.asarray(predicted / np.array([one.latency_ms for one in measured]) - 1)


def _solve(
    kernels: Sequence[Measured],
    precision: Precision,
    start: Mapping[str, float],
    step: int,
    at: Vector,
    most: int | None,
) -> Any:
    from scipy.optimize import least_squares

    keys, anchor = list(start), _to_vector(start)
    measured = np.log([kernel.latency_ms for kernel in kernels])
    models = [kernel.operators for kernel in kernels]

    def residuals(x: Vector) -> Vector:
        predicted = latencies_ms(models, _to_numbers(x, keys), step, precision)
        return np.concatenate([np.log(predicted) - measured, PULL * (x - anchor)])

    return least_squares(residuals, at, loss="soft_l1", f_scale=OUTLIER, max_nfev=most)


def _start(kernels: Sequence[Measured], precision: Precision) -> dict[str, float]:
    """Read the order of magnitude of every parameter off the fastest kernels."""
    call_ms = min(kernel.latency_ms for kernel in kernels)
    flops_per_ms = max(sum(o.flops for o in kernel.operators) / kernel.latency_ms for kernel in kernels)
    elements_per_ms = max(sum(o.elements for o in kernel.operators) / kernel.latency_ms for kernel in kernels)
    starts = {f"{kind}_us": 0.2 * call_ms * 1e3 for kind in ("contract", "pointwise", "reduce", "move")}
    rates = {
        f"{form}.{key}": value
        for form in FORMS
        for key, value in (("gflop_s", flops_per_ms / 1e6), ("rows", 0.5), ("columns", 2.0), ("depth", 4.0))
    }
    element_rate, bandwidth = elements_per_ms / 1e6, elements_per_ms * BYTES[precision] / 1e6
    return {
        "call_us": 0.8 * call_ms * 1e3,
        **starts,
        "pass_us": 0.1 * call_ms * 1e3,
        "stack_us": 0.1 * call_ms * 1e3,
        **rates,
        "light_gelement_s": element_rate,
        "heavy_gelement_s": 0.2 * element_rate,
        "reduce_gelement_s": 0.5 * element_rate,
        "move_gelement_s": element_rate,
        "near_gb_s": bandwidth,
        "far_gb_s": 0.25 * bandwidth,
        "cache_mb": 16.0,
        "overlap": 0.5,
    }


def _to_vector(numbers: Mapping[str, float]) -> Vector:
    return np.array([math.log(x / (1 - x)) if key == "overlap" else math.log(x) for key, x in numbers.items()])


def _to_numbers(x: Vector, keys: Sequence[str]) -> dict[str, float]:
    return {
        key: 1 / (1 + math.exp(-value)) if key == "overlap" else math.exp(value)
        for key, value in zip(keys, x.tolist(), strict=True)
    }


def _deviations(jacobian: Vector, cost: float, kernels: int) -> Vector:
    """Return the standard deviation of every fitted number: from the curvature of the loss, and the pull."""
    curvature = jacobian[:kernels].T @ jacobian[:kernels] + PULL**2 * np.eye(jacobian.shape[1])
    return np.asarray(np.sqrt(np.diag(np.linalg.inv(curvature)) * 2 * cost / kernels))
