"""The energy of a floating point operation and of a moved byte, from the measured energy of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgelean.board import Precision
from edgelean.board.model import Fitted
from edgelean.board.price import BYTES
from edgelean.calibration.measure import Measured
from edgelean.target.latency import percentile_interval

FEWEST = 10
"""Kernels with a measured energy that a fit takes at least."""

NORMAL_95 = 1.96
MJ_PER_PJ = 1e-9


class Energies(NamedTuple):
    """What the energy of a call is made of: the idle power over its time, its operations, and its traffic."""

    idle_w: Fitted
    pj_per_flop: Fitted
    pj_per_byte: Fitted


def fit_energy(kernels: Sequence[Measured], precision: Precision) -> Energies | None:
    """Return the energies, or None where too few kernels have a measured one.

    Least squares of the relative errors, with neither energy below 0 [1]_; the intervals are those of the
    unconstrained problem.

    References
    ----------
    .. [1] C. L. Lawson, R. J. Hanson: Solving Least Squares Problems, 1974, chapter 23.
    """
    from scipy.optimize import nnls

    known = [
        (one, one.energy_mj, one.idle_w) for one in kernels if one.energy_mj is not None and one.idle_w is not None
    ]
    if len(known) < FEWEST:
        return None
    gross = np.array([energy for _, energy, _ in known])
    idle = percentile_interval([watts for *_, watts in known], 50)
    work = MJ_PER_PJ * np.array([[_flops(one), _elements(one) * BYTES[precision]] for one, *_ in known])
    net = gross - idle.value * np.array([one.latency_ms for one, *_ in known])
    design, wanted = work / gross[:, None], net / gross
    found, _ = nnls(design, wanted)
    variance = float(np.mean((design @ found - wanted) ** 2))
    reach = NORMAL_95 * np.sqrt(np.diag(np.linalg.pinv(design.T @ design)) * variance)
    per_flop, per_byte = (
        Fitted(value=value, low=max(value - half, 0.0), high=value + half)
        for value, half in zip(found.tolist(), reach.tolist(), strict=True)
    )
    # A sensor's noise may put the idle power of a board that draws next to nothing below 0.
    low, value, high = (max(watts, 0.0) for watts in (idle.low, idle.value, idle.high))
    return Energies(Fitted(value=value, low=low, high=high), per_flop, per_byte)


def _flops(one: Measured) -> float:
    return sum(operator.flops for operator in one.operators)


def _elements(one: Measured) -> float:
    return sum(operator.elements for operator in one.operators)
