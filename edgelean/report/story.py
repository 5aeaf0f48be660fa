"""The sentences and rows that the page and the terminal share, so that both tell the same story."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from edgelean.quantity import word
from edgelean.reading import Provenance
from edgelean.report import numbers
from edgelean.report.footprint import certainty
from edgelean.report.model import Report, Side, Verdict
from edgelean.stopwatch import OVERHEAD
from edgelean.verifier import ArtifactCheck

IN_WORDS = {
    Provenance.MEASURED: "measured on the board",
    Provenance.TRANSFERRED: "measured on this machine, mapped to the board by its cost model",
    Provenance.MODELLED: "computed from what is known of the board, not measured",
}

SELECTED = ".selected"
"""Ends the name of an axis of states of a selective layer."""


TITLES = {"energy": "Energy per inference", "memory": "Memory per call", "size": "Exported file"}

_MEMORY = "counted on the graph: weights, and the most activations that are alive at once"
_SIZE = "in the profile's precision; of full-size counted, of lean measured"


@dataclass(frozen=True)
class Row:
    """One line of the full-size against lean table, ready to print.

    Attributes
    ----------
    provenance
        The word of the figures where they are latency or energy, else empty; a training's energy is measured,
        estimated, or partly estimated.
    note
        What limits the figures of this line.
    """

    label: str
    full: str
    lean: str
    change: str
    note: str = ""
    provenance: str = ""


def headline(report: Report) -> str:
    """Return the one sentence that says how the run ended."""
    missed = [v for v in report.verdicts if v.outcome == "not met"]
    open_ = [v for v in report.verdicts if v.outcome == "undecided"]
    failed = [check for check in report.checks if not check.passed]
    if missed:
        return f"Does not fit: {_listed(_missed(v) for v in missed)}{_rest(report, missed)}."
    if failed:
        return f"Not verified: {_listed(_failed(check) for check in failed)}{_rest(report, [])}."
    if open_:
        return f"Undecided: {_listed(_undecided(v) for v in open_)}{_rest(report, open_)}."
    return f"Fits: {_listed([*(_figure(v) for v in report.verdicts), _accuracy(report)])}."


def in_words(verdict: Verdict) -> str:
    """Return in a sentence what the provenance of a verdict means."""
    if verdict.quantity in ("latency", "energy"):
        return IN_WORDS[verdict.provenance]
    return verdict.method


def outcome(report: Report) -> str:
    """Return ``"met"``, ``"not met"`` or ``"undecided"`` for the whole run; a failed check is ``"not met"``."""
    if report.met:
        return "met"
    missed = any(verdict.outcome == "not met" for verdict in report.verdicts)
    return "not met" if missed or not all(check.passed for check in report.checks) else "undecided"


def origin(report: Report) -> str:
    """Return the sentence that says where latency and energy come from."""
    groups: dict[Provenance, list[str]] = {}
    for verdict in report.verdicts:
        if verdict.quantity in ("latency", "energy"):
            groups.setdefault(verdict.provenance, []).append(verdict.quantity)
    if not groups:
        groups = {report.lean.provenance: ["latency"]}
    sentences = []
    for provenance, quantities in groups.items():
        verb = "is" if len(quantities) == 1 else "are"
        sentences.append(f"{' and '.join(quantities)} {verb} {provenance}: {IN_WORDS[provenance]}.".capitalize())
    return " ".join(sentences)


def margin_text(verdict: Verdict) -> str:
    """Return the margin in words, with the way the budget was asked for where that is not just its number."""
    asked = f" of {verdict.limit_text}" if "full-size" in verdict.limit_text else ""
    if verdict.margin >= 0:
        return f"{numbers.percent(verdict.margin)} below the budget{asked}"
    return f"{numbers.percent(-verdict.margin)} over the budget{asked}"


def started_text(report: Report) -> str:
    """Return when the run began, to the minute: ``"2026-03-14 09:26 UTC"``."""
    return f"{datetime.fromisoformat(report.started).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def quantity_title(verdict: Verdict) -> str:
    """Return what a verdict is about: ``"Latency, median"``, ``"Energy per inference"``."""
    if verdict.quantity == "latency":
        return f"Latency, {percentile_name(verdict.percentile)}"
    return TITLES.get(verdict.quantity, word(verdict.quantity).capitalize())


def percentile_name(percentile: float) -> str:
    """Return ``"median"`` or ``"95th percentile"``."""
    if percentile == 50:
        return "median"
    whole = f"{percentile:g}"
    ending = "th" if whole.endswith(("11", "12", "13")) else {"1": "st", "2": "nd", "3": "rd"}.get(whole[-1], "th")
    return f"{whole}{ending} percentile"


def provenances(values: Iterable[Provenance]) -> str:
    """Return the provenance words that occur, each once, in the order of trust."""
    seen = set(values)
    return " and ".join(word.value for word in Provenance if word in seen)


def comparison(report: Report) -> tuple[Row, ...]:
    """Return the full-size against lean table."""
    full, lean = report.full_size, report.lean
    return (
        _metric_row(report),
        _latency_row(full, lean),
        _energy_row(full, lean),
        _row("Parameters", full.parameters, lean.parameters, "whole"),
        _row("MACs per inference", full.macs, lean.macs, "count"),
        _row("Memory per call", full.memory_bytes, lean.memory_bytes, "bytes", _MEMORY),
        _row("Exported file", full.artifact_bytes, lean.artifact_bytes, "bytes", _SIZE),
        Row("Training time", numbers.duration(full.training_s), numbers.duration(lean.training_s),
            numbers.ratio(full.training_s, lean.training_s), _both(full.training_note, lean.training_note)),
        replace(_row("Training energy", full.training_kwh, lean.training_kwh, "kWh", report.training_energy_method),
                provenance=certainty((*full.training_parts, *lean.training_parts))),
        _row("Training CO₂", full.training_co2_g, lean.training_co2_g, "g", report.electricity),
    )  # fmt: skip


@dataclass(frozen=True)
class TruncationRow:
    """One truncation, ready to print: gains as shares of the layer's own largest gain."""

    cut: int
    layer: str
    states: str
    certificate: str
    worst: str
    energy: str


def selective_text(report: Report) -> str:
    """Say why selective layers have no spectrum over the steps and no certificate; empty where there is none."""
    names = [layer.name.removesuffix(SELECTED) for layer in report.layers if layer.name.endswith(SELECTED)]
    if not names:
        return ""
    one = len(names) == 1
    return (
        f"{', '.join(names)} {'is' if one else 'are'} selective: the recurrence depends on the input, so there are no "
        "Hankel singular values and no certificate. States go by their price in nats, the energy of what they add on "
        "recorded sequences, weighed by the Fisher information there; prices before a first cut are among the spectra."
    )


def truncations(report: Report) -> tuple[TruncationRow, ...]:
    """Return what is known of each truncation of a state space layer, in the order of the cuts."""
    return tuple(
        TruncationRow(
            cut=number,
            layer=each.layer,
            states=f"{each.before} → {each.after}",
            certificate=_share(each.certificate, each.gain),
            worst=_share(each.worst, each.gain),
            energy=_share(each.energy, 1.0),
        )
        for number, cut in enumerate(report.cuts, start=1)
        for each in cut.truncations
    )


def _share(part: float, whole: float) -> str:
    """Return a share as a percentage; what is far below what single precision tells is said to be nothing."""
    share = part / whole if whole > 0 else 0.0
    if share >= 10:
        return f"{share:.0f}×"
    return "< 1e-6 %" if share < 1e-8 else f"{100 * share:.2g} %" if share < 0.1 else numbers.percent(share)


def form_rows(report: Report) -> tuple[tuple[str, ...], ...]:
    """Return per form of a sequence model: name, files, latency and energy of a sequence, latency of a call, remark."""
    return tuple(
        (
            {"sequence": "whole sequence", "step": "step by step"}[each.form],
            ", ".join(each.files),
            f"{numbers.number(each.latency_ms)} ms",
            numbers.UNKNOWN if each.energy_mj is None else f"{numbers.number(each.energy_mj)} mJ",
            f"{numbers.number(each.call_ms)} ms",
            "chosen" if each.chosen else "",
        )
        for each in report.forms
    )


def form_text(report: Report) -> str:
    """Return the sentence about the two forms of a sequence model; empty for other models."""
    if not report.forms:
        return ""
    taken = {each.form: f"{numbers.number(each.latency_ms)} ms" for each in report.forms}
    chosen = {"sequence": "the whole sequence", "step": "step by step"}[report.form or "sequence"]
    first = report.forms[0]
    return (
        f"A sequence of {first.steps} steps takes {taken['sequence']} as a whole and {taken['step']} step by step, "
        f"{first.provenance}; chosen for the board: {chosen}."
    )


def time_shares(report: Report) -> tuple[tuple[str, float, float], ...]:
    """Return ``(phase, seconds, share of the run)``, in the order of the report."""
    total = sum(report.timing.values()) or 1.0
    return tuple((phase, seconds, seconds / total) for phase, seconds in report.timing.items())


def overhead_text(report: Report) -> str:
    """Return the sentences about what control and measuring cost, and the law among it."""
    shares = {phase: share for phase, _, share in time_shares(report)}
    overhead = sum(shares.get(phase, 0.0) for phase in OVERHEAD)
    return (
        f"Training took {numbers.percent(shares.get('training', 0.0))} of the run, "
        f"control and measuring {numbers.percent(overhead)}.{_law_text(report)}"
    )


def _law_text(report: Report) -> str:
    if report.law is None:
        return ""
    share = numbers.percent(report.law.share)
    took = numbers.duration(report.law.seconds)
    return f" Holding every cut against the law took {took} of it, {share} of the training of the lean model."


def _metric_row(report: Report) -> Row:
    full, lean, name = report.full_size, report.lean, report.metric_name
    return Row(
        f"{name.capitalize()}, test split",
        numbers.metric_text(name, full.accuracy),
        numbers.metric_text(name, lean.accuracy),
        numbers.metric_change(name, full.accuracy, lean.accuracy),
        _both(full.accuracy_note, lean.accuracy_note),
    )


def _latency_row(full: Side, lean: Side) -> Row:
    texts = _pair(full.latency_ms, lean.latency_ms, "ms")
    words = (full.provenance, lean.provenance)
    change = numbers.ratio(full.latency_ms, lean.latency_ms, "faster")
    return Row("Latency", *texts, change, IN_WORDS[lean.provenance], provenances(words))


def _energy_row(full: Side, lean: Side) -> Row:
    texts = _pair(full.energy_mj, lean.energy_mj, "mJ")
    words = [side.energy_provenance or side.provenance for side in (full, lean) if side.energy_mj is not None]
    change = numbers.ratio(full.energy_mj, lean.energy_mj)
    note = IN_WORDS[words[-1]] if words else "nothing on this target can tell it"
    return Row("Energy per inference", *texts, change, note, provenances(words))


def _row(label: str, full: float | None, lean: float | None, unit: str, note: str = "") -> Row:
    left, right = numbers.scaled((full, lean), unit)
    return Row(label, left, right, numbers.ratio(full, lean), note)


def _pair(full: float | None, lean: float | None, unit: str) -> tuple[str, str]:
    left, right = numbers.amounts((full, lean), unit)
    return left, right


def _both(full: str, lean: str) -> str:
    if full == lean:
        return full
    parts = [f"{side}: {note}" for side, note in (("full-size", full), ("lean", lean)) if note]
    return "; ".join(parts)


def _figure(verdict: Verdict) -> str:
    named = "" if verdict.quantity in ("latency", "energy") else f"{word(verdict.quantity)} "
    return named + numbers.against(verdict.value, verdict.limit, verdict.unit)


def _missed(verdict: Verdict) -> str:
    return f"{_figure(verdict)} ({numbers.percent(-verdict.margin)} over)"


def _undecided(verdict: Verdict) -> str:
    (low, high), unit = numbers.in_unit((verdict.low, verdict.high), verdict.unit)
    return f"{_figure(verdict)}, and the reading is only sure to lie between {low} and {high} {unit}"


def _failed(check: ArtifactCheck) -> str:
    return f"{check.file} failed its check ({check.reason})"


def _rest(report: Report, said: list[Verdict]) -> str:
    met = [f"{_figure(v)} {v.outcome}" for v in report.verdicts if v not in said]
    return f"; {_listed([*met, _accuracy(report)])}"


def _accuracy(report: Report) -> str:
    name, full, lean = report.metric_name, report.full_size.accuracy, report.lean.accuracy
    if full is None:
        return f"{name} {numbers.metric_text(name, lean)}"
    return f"{name} {numbers.metric_text(name, lean)} against {numbers.metric_text(name, full)} full-size"


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
