"""Which operators cannot bear a lower precision: found by what each does to the outputs, not by its kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.errors import InputError
from edgelean.exporter.rounding import open_as_written
from edgelean.exporter.targets import Tolerances

Array = NDArray[Any]

AIM = 0.5
"""Share of a tolerance that is used up on the held-out samples at most: the test split has others."""

RANKED_ON = 128
"""Samples on which operators are compared with one another; the final choice is judged on all of them."""


@dataclass(frozen=True)
class HeldOut:
    """Samples by which a file in a lower precision is judged; never those of the test split.

    Attributes
    ----------
    batches
        Inputs: per batch a tuple of arrays, one per input of the model.
    metric
        The task metric of the outputs for all samples, higher is better; None where nobody knows the targets.
    """

    batches: Sequence[Sequence[Array]]
    metric: Callable[[Array], float] | None = None


@dataclass(frozen=True)
class Loss:
    """What a file loses against the FP32 file.

    Attributes
    ----------
    drop
        Of the metric, near ties left out; 0 where there is no metric.
    disagreement
        Share of samples with another winning class, near ties left out; 0 where outputs are not ``[n, classes]``.
    noise
        One standard error of the drop: as many samples as have another winner may have gained or lost by it.
    worst, mean
        Relative L2 error of the outputs: of the worst sample, and in the mean. Infinite if an output is not finite.
    metric
        Of the file, near ties left out; None where there is no metric.
    """

    drop: float
    disagreement: float
    worst: float
    mean: float
    noise: float = 0.0
    metric: float | None = None

    def words(self) -> str:
        """Return the metric of the file and of the FP32 file, or their distance where there is no metric."""
        if self.metric is None:
            return f"the outputs were off by {self.mean:.2g} of their norm"
        return f"the metric was {self.metric:.4f} and in FP32 {self.metric + self.drop:.4f}"

    def share_of(self, allowed: Tolerances) -> float:
        """Return how much of the tightest tolerance is used up for certain; 1 is all of it."""
        disagreement = 1 - allowed.agreement
        shares = [
            self.worst / allowed.rel_l2,
            max(self.drop - self.noise, 0.0) / max(allowed.metric_drop, 1e-12),
            self.disagreement / disagreement if disagreement > 0 else 0.0,
        ]
        return max(shares)


class Judge:
    """Compares files with the FP32 file they were made from, on held-out samples.

    Parameters
    ----------
    reference
        The FP32 file.
    allowed
        What may be lost; also says which samples are near ties, whose winner rounding may decide.

    Raises
    ------
    InputError
        There is no sample, or the FP32 file itself gives what is not finite.
    """

    def __init__(self, reference: Path, held_out: HeldOut, allowed: Tolerances) -> None:
        if not held_out.batches:
            raise InputError("a lower precision is judged on samples, and there are none: give at least one batch")
        self._held_out, self.allowed = held_out, allowed
        self._few = _first(held_out.batches, RANKED_ON)
        self._wanted = outputs_of(reference, held_out.batches)
        if not np.isfinite(self._wanted).all():
            raise InputError(f"{reference.name}: gives NaN or infinity on the held-out samples already in FP32")

    def loss(self, path: Path) -> Loss:
        """Return what a file loses on all samples."""
        found = outputs_of(path, self._held_out.batches)
        errors = relative_errors(found, self._wanted)
        found = np.nan_to_num(found)
        lost, settled = _lost(found, self._wanted, self.allowed.near_tie)
        metric = self._held_out.metric
        value = None if metric is None else metric(settled)
        drop = 0.0 if metric is None or value is None else metric(self._wanted) - value
        noise = float(np.sqrt(lost.sum()) / len(lost))
        return Loss(drop, float(lost.mean()), float(errors.max()), float(errors.mean()), noise, value)

    def holds(self, loss: Loss) -> bool:
        """Tell whether a loss leaves room in every tolerance."""
        return loss.share_of(self.allowed) <= AIM

    def error(self, path: Path) -> float:
        """Return the mean relative error of a file on a few samples."""
        found = outputs_of(path, self._few)
        return float(relative_errors(found, self._wanted[: len(found)]).mean())


def spared(
    candidates: Sequence[str],
    make: Callable[[Collection[str]], Path],
    judge: Judge,
) -> tuple[tuple[str, ...], Loss]:
    """Return which operators have to keep their precision, the most sensitive first, and what is lost then.

    None has to where the tolerances hold at once. Else every candidate is tried alone, and those that do the most to
    the outputs keep their precision: one, two, four and so on, until `AIM` of each tolerance holds, then as few of the
    last doubling as do.

    Parameters
    ----------
    candidates
        Names of the operators that may keep their precision.
    make
        Writes a file in which these operators keep their precision, and returns its path.
    """
    loss = judge.loss(make(()))
    if judge.holds(loss):
        return (), loss
    alone = {name: judge.error(make([other for other in candidates if other != name])) for name in candidates}
    order = sorted(candidates, key=lambda name: -alone[name])
    enough, too_few, count = len(order), 0, 1
    while count < len(order):
        loss = judge.loss(make(order[:count]))
        if judge.holds(loss):
            enough = count
            break
        too_few, count = count, 2 * count
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        holds = judge.holds(judge.loss(make(order[:middle])))
        enough, too_few = (middle, too_few) if holds else (enough, middle)
    return tuple(order[:enough]), judge.loss(make(order[:enough]))


def outputs_of(path: Path, batches: Sequence[Sequence[Array]]) -> Array:
    """Return the first output of an ONNX file for all batches, ``[n, ...]``.

    Raises
    ------
    InputError
        onnxruntime does not run it.
    """
    try:
        session = open_as_written(path, threads=1)
        names = [entry.name for entry in session.get_inputs()]
        parts = [session.run(None, dict(zip(names, batch, strict=True)))[0] for batch in batches]
    except Exception as error:  # onnxruntime's kinds share no base class that it exports
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path.name}: onnxruntime does not run it on the held-out samples: {line}") from error
    return np.concatenate(parts)


def _lost(found: Array, wanted: Array, near_tie: float) -> tuple[Array, Array]:
    """Return which samples have another winner, near ties left out, and the outputs with these ties undone."""
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return np.zeros(len(wanted), dtype=bool), found
    winner, other = wanted.argmax(1, keepdims=True), found.argmax(1, keepdims=True)
    lead = np.take_along_axis(wanted, winner, 1) - np.take_along_axis(wanted, other, 1)
    tied = lead <= near_tie * np.linalg.norm(wanted, axis=1, keepdims=True)
    return ((winner != other) & ~tied)[:, 0], np.where(tied, wanted, found)


def relative_errors(found: Array, wanted: Array) -> Array:
    """Return the L2 error of every sample as a share of its norm, or of the mean norm where that is larger, ``[n]``.

    What is not finite is off by infinity.
    """
    rows = (len(wanted), -1)
    norms = np.linalg.norm(wanted.reshape(rows).astype(np.float64), axis=1)
    scale = np.maximum(norms, norms.mean())
    off = np.linalg.norm((found.astype(np.float64) - wanted).reshape(rows), axis=1) / np.where(scale > 0, scale, 1.0)
    return np.where(np.isfinite(off), off, np.inf)


def _first(batches: Sequence[Sequence[Array]], samples: int) -> list[Sequence[Array]]:
    """Return so many batches that they hold at least this many samples, or all."""
    chosen: list[Sequence[Array]] = []
    for batch in batches:
        if sum(len(each[0]) for each in chosen) >= samples:
            break
        chosen.append(batch)
    return chosen
