"""What one run has to tell: a tree of plain values, the same in memory, in report.json and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from edgelean.errors import InputError
from edgelean.exporter import EngineNote
from edgelean.exporter.steps import Form
from edgelean.reading import Provenance
from edgelean.report.axes import Evolution, LayerWidth, Spectrum
from edgelean.report.decisions import Decision
from edgelean.report.front import TradeOff
from edgelean.shrink.certificate import Truncation
from edgelean.verifier import ArtifactCheck

Outcome = Literal["met", "not met", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One budget, judged on the exported artifact.

    Attributes
    ----------
    quantity, unit
        ``"latency"`` in ``"ms"``, ``"energy"`` in ``"mJ"``, ``"memory"`` and ``"size"`` in ``"bytes"``,
        ``"accuracy_loss"`` in ``"points"`` of the metric.
    limit, limit_text
        The budget in ``unit``, and how it was asked for, as ``"50 % of full-size"``.
    value, low, high
        The final figure and the ends of its 95 % confidence interval, in ``unit``.
    full_size
        The same figure of the full-size model, in ``unit``; None when it is unknown.
    margin
        ``1 - value / limit``: the share of the budget that is left, negative when it is exceeded.
    provenance, method
        Where the figure comes from, as a word and as a sentence.
    percentile
        Which percentile a latency is (50 for the median).
    """

    quantity: str
    unit: str
    limit: float
    limit_text: str
    value: float
    low: float
    high: float
    full_size: float | None
    outcome: Outcome
    margin: float
    provenance: Provenance
    method: str
    percentile: float


@dataclass(frozen=True)
class EnergyPart:
    """Energy that one component took for a training, and how it is known; of an unknown one ``kwh`` is 0.

    Attributes
    ----------
    component
        ``"cpu"``, ``"gpu"``, ``"ram"``.
    """

    component: str
    how: Literal["measured", "estimated", "unknown"]
    kwh: float


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the comparison: the full-size model or the lean one. None means unknown; the notes say why.

    Attributes
    ----------
    accuracy, accuracy_note
        The recipe's metric on the test split, and a remark about it.
    latency_ms, energy_mj, provenance, energy_provenance
        Latency and energy per inference. ``energy_provenance`` is None when it is the same as ``provenance``.
    parameters, macs, artifact_bytes, memory_bytes
        Size: parameters, multiply-accumulates per inference, bytes of the exported file in the precision of the
        profile, bytes of the weights and of the most activations that are alive at once.
    training_s, training_kwh, training_co2_g, training_note
        What the training cost, and a remark such as ``"estimated from its step time"``.
    training_parts
        ``training_kwh`` by component; empty when nothing is known about it.
    """

    accuracy: float | None
    accuracy_note: str
    latency_ms: float | None
    energy_mj: float | None
    provenance: Provenance
    parameters: int | None
    macs: int | None
    artifact_bytes: int | None
    training_s: float | None
    training_note: str
    training_kwh: float | None
    training_co2_g: float | None
    energy_provenance: Provenance | None = None
    training_parts: tuple[EnergyPart, ...] = ()
    memory_bytes: float | None = None


@dataclass(frozen=True)
class EpochPoint:
    """Training loss and validation metric at the end of one epoch."""

    epoch: int
    step: int
    loss: float
    metric: float | None


@dataclass(frozen=True, kw_only=True)
class ReadingPoint:
    """One reading during training. ``energy_provenance`` is None when it is the same as ``provenance``."""

    step: int
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    energy_mj: float | None
    parameters: int
    macs: int
    provenance: Provenance
    energy_provenance: Provenance | None = None
    memory_bytes: float | None = None
    size_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class CutPoint:
    """One cut.

    Attributes
    ----------
    demand, binding
        The fraction of predicted cost that had to go, and the quantity whose budget asked for it; 0 and ``"tolerance"``
        for a cut by the tolerance on Hankel singular values.
    axes
        ``(axis, units before, units after)`` of every axis that was cut.
    nats
        The predicted price: how much the loss rises.
    metric_before, metric_after
        The validation metric right before and right after the cut.
    law_error
        Largest relative difference between the cut model and the masked model on the probe batch.
    kept
        False when the guard rolled the cut back.
    truncations
        Of the state space layers that lost states.
    """

    step: int
    demand: float
    binding: str
    axes: tuple[tuple[str, int, int], ...]
    nats: float
    metric_before: float | None
    metric_after: float | None
    law_error: float
    kept: bool
    truncations: tuple[Truncation, ...] = ()


@dataclass(frozen=True)
class BundleFile:
    """One file of the bundle."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FormFigures:
    """What one form of a sequence model takes for a whole sequence on the board.

    Attributes
    ----------
    form, files
        ``"sequence"`` reads all time steps in one call, ``"step"`` one a call; its ONNX files.
    steps
        Time steps of a sequence.
    latency_ms, low_ms, high_ms
        Of the whole sequence, with the ends of the 95 % confidence interval.
    call_ms
        Of one call: the whole sequence, or one time step.
    energy_mj
        Of the whole sequence, per sample; None where nothing can tell it.
    provenance, method
        Where the latency comes from, as a word and as a sentence.
    chosen
        Whether it is the faster of the forms that passed their checks.
    """

    form: Form
    files: tuple[str, ...]
    steps: int
    latency_ms: float
    low_ms: float
    high_ms: float
    call_ms: float
    energy_mj: float | None
    provenance: Provenance
    method: str
    chosen: bool


@dataclass(frozen=True)
class LawCost:
    """What it took to hold every cut, refused ones included, against the law: cut = masked.

    Attributes
    ----------
    share
        Of the training of the lean model.
    """

    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one run has to tell.

    Attributes
    ----------
    board, target
        The board's title, and the name of the target that the candidates were read on.
    started, seconds
        Start in ISO 8601, UTC; length of the whole run.
    verdicts, checks
        Per budget, and per exported file.
    epochs_history, full_size_history, readings, cuts
        The story over the training steps; ``full_size_history`` is empty when no full-size twin was trained.
    timing
        Seconds per phase: training, evaluating, control, law, measuring, exporting, verifying, other.
    law
        What the law cost; None where nothing was cut.
    notes
        Remarks that limit the figures, such as guessed board numbers.
    refused
        ``(what, why)``: parts of the model that were left alone.
    references
        Citations of the methods that were used.
    training_energy_method, electricity
        How the energy of the training was found, and what a kWh of it stands for in CO2.
    commands
        Shell commands that run what is in the bundle.
    caveats
        How the model was taken apart and exported, where it could not be traced whole.
    evolutions
        How the spectra of state space layers changed; empty where there are none.
    form, forms
        Of a sequence model that is exported in two forms: the one chosen for the board, and what each takes.
    decisions
        What was read, demanded and cut at each event, and what it cost.
    front, nearest
        Structures that the run has seen and no other one beats, and sentences about feasible budgets where one was not
        met.
    """

    edgelean_version: str
    recipe: str
    profile: str
    board: str
    target: str
    seed: int
    epochs: int
    steps: int
    started: str
    seconds: float
    exit_code: int
    verdicts: tuple[Verdict, ...]
    checks: tuple[ArtifactCheck, ...]
    full_size: Side
    lean: Side
    metric_name: str
    epochs_history: tuple[EpochPoint, ...]
    full_size_history: tuple[EpochPoint, ...]
    readings: tuple[ReadingPoint, ...]
    cuts: tuple[CutPoint, ...]
    layers: tuple[LayerWidth, ...]
    spectra: tuple[Spectrum, ...]
    timing: Mapping[str, float]
    engine: EngineNote
    bundle: tuple[BundleFile, ...]
    notes: tuple[str, ...]
    environment: Mapping[str, str]
    refused: tuple[tuple[str, str], ...]
    references: tuple[str, ...]
    training_energy_method: str
    electricity: str = ""
    commands: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    evolutions: tuple[Evolution, ...] = ()
    form: Form | None = None
    forms: tuple[FormFigures, ...] = ()
    decisions: tuple[Decision, ...] = ()
    front: tuple[TradeOff, ...] = ()
    nearest: tuple[str, ...] = ()
    law: LawCost | None = None

    @property
    def met(self) -> bool:
        """Whether every budget is met and every exported file passed its check."""
        return all(v.outcome == "met" for v in self.verdicts) and all(c.passed for c in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        plain: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Report:
        """Return the report that ``to_json`` gave.

        Raises
        ------
        InputError
            If a field is missing or is not of its type.
        """
        try:
            return _adapter().validate_python(plain)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"this is not a report of edgelean: {where}: {first['msg']}: write a new one with `edgelean fit`"
            ) from None


@cache
def _adapter() -> TypeAdapter[Report]:
    return TypeAdapter(Report)
