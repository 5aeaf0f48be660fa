"""A calibration from beginning to end: measure the kernels, fit, and try the fit on networks."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelean.board import Board, Fact, Precision
from edgelean.board.model import FORMS, Calibration, Contraction, Fitted
from edgelean.calibration.energy import Energies, fit_energy
from edgelean.calibration.families import designed
from edgelean.calibration.fit import Fit, errors, fit
from edgelean.calibration.measure import MOST_NOISY, Halve, Measured, OnReading, measure
from edgelean.calibration.networks import networks
from edgelean.target.candidate import Target

HELD_OUT = 5
"""Every so many-th kernel is not fitted to."""

LARGEST_S = 1e-3
"""The largest kernel takes about so long."""

SLOWEST, FASTEST = 4e6, 2e11
"""Floating point operations of the largest kernel, at least and at most."""

USUAL_FLOP_S = 1e11
"""Taken for a board whose rate is not known: one core of a desktop."""

ONE_SAMPLE = 1e9
"""A board that computes so many floating point operations in a kernel gets networks with a batch of two, and so on."""

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Trial:
    """A network that was not fitted to: what it takes, and what the calibrated cost model says."""

    name: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes
    ----------
    board
        With the calibration in it.
    calibration
        The same on its own.
    trials
        The networks, in the order in which they are built.
    """

    board: Board
    calibration: Calibration
    trials: tuple[Trial, ...]


def calibrate(
    board: Board,
    precision: Precision,
    rounds: Sequence[Target],
    halve: Halve,
    share: float = 1.0,
    on_reading: OnReading = lambda done, wanted: None,
    most_noisy: float = MOST_NOISY,
) -> Calibrated:
    """Fit the cost model of a board to kernels that are measured on it.

    Parameters
    ----------
    board
        What is known of it, which stays; an earlier calibration in another precision does, too.
    precision
        In which the target measures.
    rounds
        A target for each round of readings; energy is taken from those that measure it.
    halve
        Writes an FP16 file, for a target that wants one.
    share
        Of the designed kernels.
    on_reading
        Told after each reading how many are done and how many there will be.
    most_noisy
        The share of kernels and networks that may never have been measured in quiet.

    Raises
    ------
    DeviceError
        The machine is too noisy, or the target failed.
    InputError
        The target does not run the kernels on the board.
    """
    reach = reach_of(board, precision)
    kernels = designed(reach, share)
    batch = int(min(max(reach / ONE_SAMPLE, 1.0), LARGEST_BATCH))
    found = measure((*kernels, *networks(batch)), rounds, precision, halve, on_reading, most_noisy)
    measured, tried = found[: len(kernels)], found[len(kernels) :]
    held = [one for i, one in enumerate(measured) if i % HELD_OUT == HELD_OUT // 2]
    fitted_to = [one for i, one in enumerate(measured) if i % HELD_OUT != HELD_OUT // 2]
    fitted = fit(fitted_to, precision)
    trials = _trials(tried, fitted, precision)
    scores = {
        "kernel_error": float(np.median(np.abs(errors(held, fitted.numbers, fitted.step, precision)))),
        "network_error": float(np.median([abs(trial.error) for trial in trials])),
        "network_rank": rank_correlation([(trial.measured_ms, trial.predicted_ms) for trial in trials]),
    }
    words = {
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "runtime": found[0].runtime,
        "fitted_on": f"{len(fitted_to)} kernels, each the median of up to {2 * len(rounds)} readings",
    }
    energies = fit_energy(fitted_to, precision)
    calibration = Calibration.model_validate(words | scores | _fields(fitted) | _energy_fields(energies))
    found_here = _recognised(_with(board, precision, calibration, fitted.step), found[0].processor)
    return Calibrated(found_here, calibration, trials)


def reach_of(board: Board, precision: Precision) -> float:
    """Return the floating point operations that the largest kernel may have on a board."""
    peak: Fact = getattr(board.compute, "int8_tops" if precision == "int8" else f"{precision}_tflops")
    flop_s = USUAL_FLOP_S
    if peak.value is not None:
        flop_s = peak.value * 1e12 * (board.compute.efficiency.value or 1.0)
    return min(max(flop_s * LARGEST_S, SLOWEST), FASTEST)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Spearman's rank correlation of pairs; 0 where one side has no ranks."""
    from scipy.stats import rankdata

    first, second = (rankdata(column) - (len(pairs) + 1) / 2 for column in zip(*pairs, strict=True))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip(first @ second / scale, -1, 1)) if scale else 0.0


def _trials(tried: Sequence[Measured], fitted: Fit, precision: Precision) -> tuple[Trial, ...]:
    off = errors(tried, fitted.numbers, fitted.step, precision).tolist()
    return tuple(
        Trial(one.name, one.latency_ms, one.latency_ms * (1 + error)) for one, error in zip(tried, off, strict=True)
    )


def _fields(fitted: Fit) -> dict[str, Any]:
    """Return the sections of a calibration."""
    flat = {
        key: Fitted(value=_rounded(value), low=_rounded(fitted.low[key]), high=_rounded(fitted.high[key]))
        for key, value in fitted.numbers.items()
    }
    contractions = {
        form: Contraction(**{name: flat[f"{form}.{name}"] for name in Contraction.model_fields}) for form in FORMS
    }
    return {key: one for key, one in flat.items() if "." not in key} | contractions


def _energy_fields(energies: Energies | None) -> dict[str, Fitted]:
    return {} if energies is None else energies._asdict()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _with(board: Board, precision: Precision, calibration: Calibration, step: int) -> Board:
    """Return the board with a calibration, and with the channel step that was seen."""
    alignment = board.alignment.model_copy(
        update={
            precision: step,
            "source": f"{precision.upper()}: the step that describes the kernels of the calibration best",
            "confidence": "measured",
        }
    )
    calibrations = board.calibration.model_copy(update={precision: calibration})
    return board.model_copy(update={"alignment": alignment, "calibration": calibrations})


def _recognised(board: Board, processor: str) -> Board:
    """Return a processor's board with the name by which its machine is recognised, where it has no other mark."""
    match = board.match
    if board.kind != "cpu" or not processor or match.device_tree or match.processor:
        return board
    return board.model_copy(update={"match": match.model_copy(update={"processor": processor})})
