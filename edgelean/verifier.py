"""Is the artifact as good as the trained model? Answered on the whole test split, in the artifact's own runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.errors import InputError, VerificationError
from edgelean.exporter.rounding import open_as_written
from edgelean.exporter.steps import ANSWERS_KEY, LENGTH_KEY, Form
from edgelean.exporter.targets import ExportTarget, Tolerances

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]
Call = Callable[[Any, Sequence[Array]], Array]
"""Runs a session of onnxruntime on one batch and returns the first output."""

_ALONE = 16
"""Samples that are run a second time, one by one: a graph can be right for a batch and wrong for a single sample."""

_MOST_CALLS = 20_000
"""Calls of a step form; where the whole test split needs more, sequences from all over it are run."""

_TOGETHER = 256
"""Sequences that go through a step form at once."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the trained model said about the test split; every artifact is held against it.

    Attributes
    ----------
    batches
        The inputs: per batch a tuple of arrays, one per input of the model. Iterated once per artifact, so it has to
        start anew each time, as a list or a loader does.
    outputs
        The trained model's outputs for all samples of ``batches`` in their order, ``[n, ...]``.
    targets
        What ``metric`` compares them with, ``[n, ...]``.
    metric
        ``metric(outputs, targets)``; higher is better.
    metric_name
        What the metric is called.
    """

    batches: Iterable[Sequence[Array]]
    outputs: Array
    targets: Array
    metric: Metric
    metric_name: str

    def metric_of_model(self) -> float:
        """Return the task metric of the trained model."""
        return float(self.metric(self.outputs, self.targets))


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


def verify(path: Path | str, target: ExportTarget, evidence: Evidence, form: Form | None = None) -> ArtifactCheck:
    """Run an ONNX file over the whole test split and compare it with the trained model.

    Every batch is run as it comes, and the first samples once more on their own. The file fails when it does not run,
    when an output is not a finite number, when the outputs are further off than the tolerances of ``target``, when
    another class wins in more samples than they allow, or when the metric drops by more. A sample whose winner leads by
    so little that rounding may decide (``near_tie``) counts against neither agreement nor metric.

    Raises
    ------
    VerificationError
        The trained model's own outputs, or the metric, are not finite, so that nothing can be compared.
    InputError
        ``batches`` has another number of samples than ``outputs``.
    """
    import onnxruntime

    path, whole = Path(path), len(evidence.outputs)
    if bad := _not_finite(evidence.outputs):
        raise VerificationError(f"the trained model itself gives NaN or infinity in {bad} of the test samples")
    evidence = bounded(evidence) if form == "step" else evidence
    found, alone, complaint = _outputs(path, evidence, _stream if form == "step" else _call)
    figures = _compare(found, evidence, target.tolerances.near_tie)
    complaints = [complaint] if complaint else _excesses(figures, evidence.metric_name, target.tolerances)
    complaints = complaints or _excess_of_singles(alone, evidence.outputs, target.tolerances)
    return ArtifactCheck(
        file=path.name,
        precision=target.precision,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        samples=figures.samples,
        metric_name=evidence.metric_name,
        metric_model=figures.metric_model,
        metric_artifact=figures.metric_artifact,
        agreement=figures.agreement,
        rel_l2=figures.rel_l2,
        passed=not complaints,
        reason=_sentence(complaints, figures, target.tolerances, _samples(form, figures.samples, whole)),
        form=form,
    )


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
        raise VerificationError(f"{evidence.metric_name} is {value} on the test split, so that nothing can be compared")
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


def _excess_of_singles(alone: Array, wanted: Array, allowed: Tolerances) -> list[str]:
    off = float(relative_l2(alone, wanted[: len(alone)]).max(initial=0.0))
    return [] if off <= allowed.rel_l2 else [f"in a batch of one its outputs are off by up to {off:.2g} of their norm"]


def _samples(form: Form | None, seen: int, whole: int) -> str:
    words = f"all {whole} test samples" if seen == whole else f"{seen} of the {whole} test samples"
    return f"{words}, step by step," if form == "step" else words


def _sentence(complaints: list[str], figures: _Figures, allowed: Tolerances, samples: str) -> str:
    if complaints:
        return f"Failed on {samples.removeprefix('all ').removesuffix(',')}: {'; '.join(complaints)}."
    ties = f"; {figures.ties} near ties went the other way" if figures.ties else ""
    return f"On {samples} its outputs are within {figures.rel_l2:.2g} of their norm (allowed {allowed.rel_l2:g}){ties}."


def bounded(evidence: Evidence) -> Evidence:
    """Return the evidence on as many sequences as a step form can be run over in a short time, many at once.

    Where the test split has more, groups from its beginning to its end are taken: it may be sorted.
    """
    groups: list[list[Array]] = []
    for batch in evidence.batches:
        last = groups[-1] if groups else None
        if last is None or len(last[0]) + len(batch[0]) > _TOGETHER or last[0].shape[1:] != batch[0].shape[1:]:
            groups.append([np.asarray(array) for array in batch])
        else:
            groups[-1] = [np.concatenate(pair) for pair in zip(last, batch, strict=True)]
    ends = np.cumsum([len(group[0]) for group in groups])
    if not groups or ends[-1] != len(evidence.outputs):
        return evidence
    longest = max(group[0].shape[1] if group[0].ndim > 1 else 1 for group in groups)
    most = min(len(groups), max(1, _MOST_CALLS // longest))
    chosen = np.unique(np.linspace(0, len(groups) - 1, most).round().astype(int))
    rows = np.concatenate([np.arange(ends[index] - len(groups[index][0]), ends[index]) for index in chosen])
    return replace(
        evidence,
        batches=[groups[index] for index in chosen],
        outputs=evidence.outputs[rows],
        targets=evidence.targets[rows],
    )


def _outputs(path: Path, evidence: Evidence, call: Call) -> tuple[Array, Array, str]:
    """Return the artifact's outputs, those of the first samples alone, and what makes them unusable, or nothing.

    The outputs are finite and have the shape of the model's, whatever the artifact gave.
    """
    wanted = evidence.outputs
    nothing, none = np.zeros_like(wanted), wanted[:0]
    try:
        found, alone = _run(path, evidence.batches, call)
    except _UnusableError as error:
        return nothing, none, str(error)
    if len(found) != len(wanted):
        raise InputError(f"the test split has {len(found)} samples, but the model's outputs are of {len(wanted)}")
    if found.shape != wanted.shape:
        return nothing, none, f"its outputs have the shape {list(found.shape)}, wanted {list(wanted.shape)}"
    if bad := _not_finite(found):
        return np.where(np.isfinite(found), found, 0), none, f"NaN or infinity in the outputs of {bad} samples"
    return found, alone, ""


class _UnusableError(Exception):
    """onnxruntime cannot run the artifact; the message says why."""


def _run(path: Path, batches: Iterable[Sequence[Array]], call: Call) -> tuple[Array, Array]:
    """Return the outputs ``[n, ...]`` for all batches, and for the first samples each in a batch of one."""
    session = _open(path)
    parts: list[Array] = []
    alone: list[Array] = []
    for batch in batches:
        parts.append(call(session, batch))
        if not alone:
            # A step form is called once for each time step.
            most = min(_ALONE, max(1, _MOST_CALLS // batch[0].shape[1])) if call is _stream else _ALONE
            singles = range(min(len(batch[0]), most))
            alone = [call(session, [array[index : index + 1] for array in batch]) for index in singles]
    if not parts:
        raise InputError("the test split is empty; an artifact can only be verified on samples")
    return np.concatenate(parts), np.concatenate(alone)


def _open(path: Path) -> Any:
    try:
        return open_as_written(path, threads=0)
    except Exception as error:  # onnxruntime's kinds share no base class that it exports
        raise _UnusableError(f"onnxruntime cannot open it: {_first_line(error)}") from error


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
        raise InputError(f"the artifact has the inputs {', '.join(names)}, the test split gives {len(arrays)} arrays")
    try:
        outputs: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception as error:  # as in _open
        raise _UnusableError(
            f"onnxruntime cannot run it on a batch of {len(arrays[0])}: {_first_line(error)}"
        ) from error
    return outputs


def _refuse_length(session: Any, batch: Sequence[Array]) -> None:
    """Refuse sequences of another length than a file takes, which onnxruntime would blame on an operator inside."""
    length = session.get_modelmeta().custom_metadata_map.get(LENGTH_KEY)
    if length is not None and batch[0].shape[1:2] != (int(length),):
        raise _UnusableError(
            f"it takes sequences of {length} time steps and the test split has one of {batch[0].shape[1]}: cut and pad "
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
