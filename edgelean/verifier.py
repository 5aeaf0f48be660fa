"""Is the artifact as good as the trained model? Answered on the whole test split, in the artifact's own runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelean.errors import InputError, VerificationError
from edgelean.evidence import MOST_CALLS, Array, bounded
from edgelean.evidence import Evidence as Evidence
from edgelean.exporter.engine_session import EngineSession
from edgelean.exporter.rounding import open_as_written
from edgelean.exporter.steps import ANSWERS_KEY, LENGTH_KEY, Form
from edgelean.exporter.targets import ExportTarget, Tolerances

Call = Callable[[Any, Sequence[Array]], Array]
"""Runs a session of onnxruntime on one batch and returns the first output."""

_ALONE = 16
"""Samples that are run a second time, one by one: a graph can be right for a batch and wrong for a single sample."""


@dataclass(frozen=True, kw_only=True)
class ArtifactCheck:
    """What the verifier found for one exported file.

    Attributes
    ----------
    file, precision, runtime
        The artifact, and what it was run with.
    samples
        How many test samples both models were run on.
    metric_name, metric_model, metric_artifact
        The task metric of the trained model and of the artifact on these samples.
    agreement
        Share of samples with the same winning class, 0 to 1; None where the outputs are not ``[n, classes]``.
    rel_l2
        Largest relative L2 error of the outputs of a sample. Outputs that are not finite numbers count as 0, here
        and in the metric.
    passed, reason
        The verdict, and why, in one sentence.
    form
        How the file reads a sequence; None where the model has one form only.
    tolerances
        What it was held to: the fields of a ``Tolerances``.
    """

    file: str
    precision: str
    runtime: str
    samples: int
    metric_name: str
    metric_model: float
    metric_artifact: float
    agreement: float | None
    rel_l2: float
    passed: bool
    reason: str
    form: Form | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)


def verify(
    path: Path | str,
    target: ExportTarget,
    evidence: Evidence,
    form: Form | None = None,
    engine: EngineSession | None = None,
) -> ArtifactCheck:
    """Run an ONNX file, or an engine, over whole splits and compare it with the trained model.

    Every batch is run as it comes, the first samples once more on their own, and some as the largest batch of the
    profile. The file fails when it does not run, when an output is not a finite number, when the outputs are further
    off than the tolerances of ``target``, when another class wins in more samples than they allow, or when the metric
    drops by more. A sample whose winner leads by so little that rounding may decide (``near_tie``) counts against
    neither agreement nor metric.

    Parameters
    ----------
    engine
        Where ``path`` is an engine: what runs it, in the place of onnxruntime.

    Raises
    ------
    VerificationError
        The trained model's own outputs, or the metric, are not finite, so that nothing can be compared.
    InputError
        ``batches`` has another number of samples than ``outputs``.
    """
    import onnxruntime

    path = Path(path)
    session = _opened(path) if engine is None else engine
    found = [_compared(session, target.tolerances, each, form) for each in (evidence, *evidence.others)]
    figures, failed = found[0].figures, [each for each in found if each.complaints]
    return ArtifactCheck(
        file=path.name,
        precision=target.precision,
        runtime=f"onnxruntime {onnxruntime.__version__}" if engine is None else engine.words,
        samples=figures.samples,
        metric_name=evidence.metric_name,
        metric_model=figures.metric_model,
        metric_artifact=figures.metric_artifact,
        agreement=figures.agreement,
        rel_l2=max(each.figures.rel_l2 for each in found),
        passed=not failed,
        reason=_sentence(failed[:1] or found, target.tolerances),
        form=form,
        tolerances=target.tolerances.model_dump(),
    )


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """One split: ``whole`` samples in it, the figures of those that were run, and what is wrong with them."""

    split: str
    whole: int
    form: Form | None
    figures: _Figures
    complaints: Sequence[str]

    def words(self) -> str:
        seen = self.figures.samples
        return f"all {seen} {self.split}" if seen == self.whole else f"{seen} of the {self.whole} {self.split}"


def _compared(session: Any, allowed: Tolerances, evidence: Evidence, form: Form | None) -> _Compared:
    whole = len(evidence.outputs)
    if bad := _not_finite(evidence.outputs):
        raise VerificationError(
            f"the trained model itself gives NaN or infinity in {bad} of the {evidence.split} samples"
        )
    evidence = bounded(evidence) if form == "step" else evidence
    found, again, complaint = _outputs(session, evidence, _stream if form == "step" else _call)
    figures = _compare(found, evidence, allowed.near_tie)
    complaints = [complaint] if complaint else _excesses(figures, evidence.metric_name, allowed)
    complaints = complaints or _excess_of_sizes(again, evidence.outputs, allowed)
    return _Compared(split=evidence.split, whole=whole, form=form, figures=figures, complaints=complaints)


def relative_l2(found: Array, wanted: Array) -> Array:
    """Return the L2 error of every sample as a share of its norm, ``[n]``.

    The norm of a sample counts as no smaller than the mean norm of all: a regression whose output happens to be near
    zero is not wrong by a large factor, it is right to the same absolute error as its neighbours.
    """
    norms = _norms(wanted)
    scale = np.maximum(norms, norms.mean())
    return _norms(found.astype(np.float64) - wanted) / np.where(scale > 0, scale, 1.0)


def lost_ties(found: Array, wanted: Array, near_tie: float) -> tuple[Array, Array]:
    """Return per sample whether another class wins, and whether that is a near tie: two boolean arrays ``[n]``.

    Parameters
    ----------
    found, wanted
        Outputs of the artifact and of the trained model, ``[n, classes]``.
    near_tie
        A lead of the trained model's winner over the artifact's below this share of the sample's norm is a near tie.
    """
    rows, winner, other = np.arange(len(wanted)), wanted.argmax(1), found.argmax(1)
    lead = wanted[rows, winner].astype(np.float64) - wanted[rows, other]
    lost = winner != other
    return lost, lost & (lead <= near_tie * _norms(wanted))


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The artifact against the trained model, in figures; ``drop`` and ``disagreement`` leave the near ties out."""

    samples: int
    rel_l2: float
    agreement: float | None
    disagreement: float
    ties: int
    metric_model: float
    metric_artifact: float
    drop: float


def _compare(found: Array, evidence: Evidence, near_tie: float) -> _Figures:
    wanted = evidence.outputs
    classes = wanted.ndim == 2 and wanted.shape[1] > 1
    lost = tied = np.zeros(len(wanted), dtype=bool)
    settled = found
    if classes:
        lost, tied = lost_ties(found, wanted, near_tie)
        settled = np.where(tied[:, None], wanted, found)
    metric_model = _metric(wanted, evidence)
    return _Figures(
        samples=len(wanted),
        rel_l2=float(relative_l2(found, wanted).max()),
        agreement=float(1 - lost.mean()) if classes else None,
        disagreement=float((lost & ~tied).mean()),
        ties=int(tied.sum()),
        metric_model=metric_model,
        metric_artifact=_metric(found, evidence),
        drop=metric_model - _metric(settled, evidence),
    )


def _metric(outputs: Array, evidence: Evidence) -> float:
    value = float(evidence.metric(outputs, evidence.targets))
    if not math.isfinite(value):
        raise VerificationError(
            f"{evidence.metric_name} is {value} on the {evidence.split} split, so that nothing can be compared"
        )
    return value


def _excesses(figures: _Figures, metric_name: str, allowed: Tolerances) -> list[str]:
    """Return a clause for every tolerance that is exceeded; a figure that is NaN exceeds it."""
    excesses = []
    if not figures.rel_l2 <= allowed.rel_l2:
        excesses.append(f"its outputs are off by up to {figures.rel_l2:.2g} of their norm, allowed {allowed.rel_l2:g}")
    if not 1 - figures.disagreement >= allowed.agreement:
        excesses.append(f"another class wins in {figures.disagreement:.2%} of the samples, near ties left out")
    if not figures.drop <= allowed.metric_drop:
        excesses.append(f"{metric_name} falls by {figures.drop:.4g}, allowed {allowed.metric_drop:g}")
    return excesses


def _excess_of_sizes(again: Mapping[int, Array], wanted: Array, allowed: Tolerances) -> list[str]:
    """Return a clause for every batch size in which the first samples, over and over, give something else."""
    clauses = []
    for size, outputs in again.items():
        rows = np.arange(len(outputs)) % len(wanted)
        off = float(relative_l2(outputs, wanted[rows]).max(initial=0.0))
        words = "one" if size == 1 else str(size)
        if not off <= allowed.rel_l2:
            clauses.append(f"in a batch of {words} its outputs are off by up to {off:.2g} of their norm")
    return clauses


def _sentence(found: Sequence[_Compared], allowed: Tolerances) -> str:
    first, words = found[0], " and ".join(each.words() for each in found)
    step = ", step by step" if first.form == "step" else ""
    if first.complaints:
        return f"Failed on {words.removeprefix('all ')} samples{step}: {'; '.join(first.complaints)}."
    ties, off = sum(each.figures.ties for each in found), max(each.figures.rel_l2 for each in found)
    told = f"; {ties} near ties went the other way" if ties else ""
    step = ", step by step," if first.form == "step" else ""
    return (
        f"On {words} samples{step} its outputs are within {off:.2g} of their norm (allowed {allowed.rel_l2:g}){told}."
    )


def _outputs(session: Any, evidence: Evidence, call: Call) -> tuple[Array, Mapping[int, Array], str]:
    """Return the artifact's outputs, some again by batch size, and what makes them unusable, or nothing.

    The outputs are finite and have the shape of the model's, whatever the artifact gave.
    """
    wanted, split = evidence.outputs, f"{evidence.split} split"
    nothing = np.zeros_like(wanted)
    try:
        found, again = _run(session, evidence, call)
    except _UnusableError as error:
        return nothing, {}, str(error)
    if len(found) != len(wanted):
        raise InputError(f"the {split} has {len(found)} samples, but the model's outputs are of {len(wanted)}")
    if found.shape != wanted.shape:
        return nothing, {}, f"its outputs have the shape {list(found.shape)}, wanted {list(wanted.shape)}"
    if bad := _not_finite(found):
        return np.where(np.isfinite(found), found, 0), {}, f"NaN or infinity in the outputs of {bad} samples"
    return found, again, ""


class _UnusableError(Exception):
    """onnxruntime cannot run the artifact; the message says why."""


def _run(session: Any, evidence: Evidence, call: Call) -> tuple[Array, dict[int, Array]]:
    """Return the outputs ``[n, ...]`` for all batches, and those of the first samples in batches of other sizes."""
    if isinstance(session, _UnusableError):
        raise session
    parts: list[Array] = []
    again: dict[int, Array] = {}
    for batch in evidence.batches:
        parts.append(call(session, batch))
        if not again:
            # A step form is called once for each time step.
            most = min(_ALONE, max(1, MOST_CALLS // batch[0].shape[1])) if call is _stream else _ALONE
            singles = range(min(len(batch[0]), most))
            again[1] = np.concatenate([call(session, _rows(batch, [index])) for index in singles])
            if evidence.largest not in (1, len(batch[0])):
                rows = [index % len(batch[0]) for index in range(evidence.largest)]
                again[evidence.largest] = call(session, _rows(batch, rows))
    if not parts:
        raise InputError(f"the {evidence.split} split is empty; an artifact can only be verified on samples")
    return np.concatenate(parts), again


def _rows(batch: Sequence[Array], rows: Sequence[int]) -> list[Array]:
    return [array[list(rows)] for array in batch]


def _opened(path: Path) -> Any:
    """Return a session of onnxruntime, or why there is none."""
    try:
        return open_as_written(path, threads=0)
    except Exception as error:  # onnxruntime's kinds share no base class that it exports
        return _UnusableError(f"onnxruntime cannot open it: {_first_line(error)}")


def _call(session: Any, batch: Sequence[Array]) -> Array:
    _refuse_length(session, batch)
    output = _called(session, batch)[0]
    if output.shape[:1] != (len(batch[0]),):
        raise _UnusableError(f"for a batch of {len(batch[0])} its output has the shape {list(output.shape)}")
    return output


def _stream(session: Any, batch: Sequence[Array]) -> Array:
    """Run a step form over every time step of a batch, from zeros, and return its answer for the whole sequences."""
    (inputs,) = batch
    state = np.zeros((len(inputs), session.get_inputs()[-1].shape[-1]), np.float32)
    answers: list[Array] = []
    for step in np.moveaxis(inputs, 1, 0):
        output, state = _called(session, [np.ascontiguousarray(step), state])
        answers.append(output)
    every = session.get_modelmeta().custom_metadata_map.get(ANSWERS_KEY) == "every"
    return np.stack(answers, 1) if every else answers[-1]


def _called(session: Any, arrays: Sequence[Array]) -> list[Array]:
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != len(arrays):
        raise InputError(f"the artifact has the inputs {', '.join(names)}, the split gives {len(arrays)} arrays")
    try:
        outputs: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception as error:  # as in _open
        raise _UnusableError(f"it cannot be run on a batch of {len(arrays[0])}: {_first_line(error)}") from error
    return outputs


def _refuse_length(session: Any, batch: Sequence[Array]) -> None:
    """Refuse sequences of another length than a file takes, which onnxruntime would blame on an operator inside."""
    length = session.get_modelmeta().custom_metadata_map.get(LENGTH_KEY)
    if length is not None and batch[0].shape[1:2] != (int(length),):
        raise _UnusableError(
            f"it takes sequences of {length} time steps and the split has one of {batch[0].shape[1]}: cut and pad "
            "them to one length, or use the step form, which takes any"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _not_finite(outputs: Array) -> int:
    """Return how many samples have an output that is not a finite number."""
    return int((~np.isfinite(outputs.reshape(len(outputs), -1))).any(axis=1).sum())


def _norms(outputs: Array) -> Array:
    norms: Array = np.linalg.norm(outputs.reshape(len(outputs), -1).astype(np.float64), axis=1)
    return norms
