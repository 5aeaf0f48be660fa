"""From the lean model to what leaves the machine: exported, verified, read as an artifact, and bundled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import edgelean
from edgelean.bench import Bench
from edgelean.board import Precision
from edgelean.divergence import first_divergence
from edgelean.errors import InputError
from edgelean.evidence import write_evidence
from edgelean.exporter.bundle import EVIDENCE, BundleFacts, check_bundle, write_bundle
from edgelean.exporter.fp16 import products_to_fp16, to_fp16
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.recorded import recording_of
from edgelean.exporter.steps import Form, Steps, export_steps, find_steps, step_name
from edgelean.exporter.targets import ExportTarget, load_target
from edgelean.exporter.tensorrt import EngineNote, build_engine, side_car
from edgelean.judging import judge, values_of
from edgelean.label import Label as Label
from edgelean.loop import ClosedLoop
from edgelean.reading import Reading
from edgelean.recipe import Metric
from edgelean.report.model import BundleFile, FormFigures, Verdict
from edgelean.stopwatch import Stopwatch
from edgelean.training.trainer import Session, batches
from edgelean.verifier import ArtifactCheck, Evidence, verify

PACKAGES = ("torch", "onnx", "onnxruntime")
"""What made the files of a bundle, besides edgelean."""

NO_ENGINE = EngineNote(False, "", "", "the profile asks for no TensorRT engine", 0.0, 0)


@dataclass(frozen=True)
class Delivery:
    """What was made of the lean model, and how it stands.

    Attributes
    ----------
    reading
        Of the exported artifact, in its own runtime or by the cost model over its graph.
    verdicts, checks
        Per budget, and per exported file.
    notes
        How the model was exported, where that limits what the files can do.
    form, forms
        Of a sequence model with a step form: the one chosen for the board, and what each takes for a sequence.
    """

    reading: Reading
    verdicts: tuple[Verdict, ...]
    checks: tuple[ArtifactCheck, ...]
    engine: EngineNote
    bundle: tuple[BundleFile, ...]
    notes: tuple[str, ...] = ()
    form: Form | None = None
    forms: tuple[FormFigures, ...] = ()


def evidence_of(session: Session) -> Evidence:
    """Return what a trained model says about the whole test split, and about the validation split."""
    recipe, metric = session.recipe, session.recipe.metric_function()

    def said(loader: DataLoader[Any]) -> Evidence:
        pairs = batches(loader, session.device, recipe.name)
        return evidence(session.model, pairs, metric, recipe.metric_name())

    validation = replace(said(session.loaders.validation), split="validation")
    return replace(said(session.loaders.test), others=(validation,))


def evidence(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], metric: Metric, metric_name: str) -> Evidence:
    """Return what a trained model says about ``(input, target)`` batches, which are gone through once.

    Once, because a loader may come in another order, or with other augmentations, the second time.
    """
    inputs, outputs, targets = [], [], []
    training = model.training
    model.eval()
    with torch.no_grad():
        for x, y in pairs:
            inputs.append((x.cpu().numpy(),))
            outputs.append(model(x).cpu())
            targets.append(y.cpu())
    model.train(training)
    return Evidence(
        batches=inputs,
        outputs=torch.cat(outputs).numpy(),
        targets=torch.cat(targets).numpy(),
        metric=lambda found, wanted: float(metric(torch.from_numpy(found), torch.from_numpy(wanted))),
        metric_name=metric_name,
    )


def deliver(loop: ClosedLoop, evidence: Evidence, label: Label, folder: Path, stopwatch: Stopwatch) -> Delivery:
    """Export, verify, judge and bundle the model that a loop has steered.

    Parameters
    ----------
    evidence
        What the trained model says about the test split.
    folder
        The bundle's place.
    """
    bench = loop.bench
    evidence, label = replace(evidence, largest=bench.profile.batch), label.of(bench.profile)
    targets = [load_target(name) for name in bench.profile.targets]
    with tempfile.TemporaryDirectory() as scratch:
        with stopwatch.phase("exporting"):
            steps, exported, notes = _export(bench, targets, label, Path(scratch))
            engine, engine_files = _engines(targets, exported, Path(scratch), bench.profile.batch)
        with stopwatch.phase("verifying"):
            # An engine is as good as the file that it is built from: that one is verified and shipped in any case.
            precisions = sorted({target.precision for target in targets}, reverse=True)
            wanted = [load_target(f"onnx-{precision}") for precision in precisions]
            kinds = product(exported.items(), wanted)
            told = [(files[kind.precision], kind, evidence, form if steps else None) for (form, files), kind in kinds]
            checks = tuple(_explained(verify(*each), each[0], bench, exported["sequence"]["fp32"]) for each in told)
            proof = write_evidence(evidence, label.evidence, Path(scratch) / EVIDENCE)
        recording = recording_of(exported["sequence"]["fp32"])
        notes += (f"The model is exported {recording}",) if recording else ()
        reading = bench.read_files(exported["sequence"])
        verdicts = judge(bench.profile.budgets, reading, loop.limits, values_of(loop.full_size))
        forms = () if steps is None else _compared(bench, steps, exported["step"], reading, checks)
        shipped = [file for file, *_ in told]
        facts = BundleFacts(
            title=label.title,
            batch=bench.profile.batch,
            checks=[vars(check) for check in checks],
            verdicts=[vars(verdict) for verdict in verdicts],
            versions={"edgelean": edgelean.__version__, **{name: version(name) for name in PACKAGES}},
            labels=label.classes,
            notes=[engine.text, *notes],
            form=_chosen(forms),
            forms=[vars(form) for form in forms],
            stream=None if steps is None else _stream(steps),
            preparation=label.preparation,
            origin=label.origin,
            metric=evidence.metric_name,
        )
        write_bundle(folder, [*shipped, *engine_files, *([proof] if proof else [])], facts)
    files = check_bundle(folder)["files"]
    bundle = tuple(BundleFile(name, entry["bytes"], entry["sha256"]) for name, entry in files.items())
    return Delivery(reading, verdicts, checks, engine, bundle, notes, _chosen(forms), forms)


def _explained(check: ArtifactCheck, file: Path, bench: Bench, sound: Path) -> ArtifactCheck:
    """Return a check with the first layer that is off, where it failed; ``sound``: the FP32 file."""
    if check.passed or check.form == "step":
        return check
    right = None if file == sound else sound
    where = first_divergence(file, bench.model, bench.probe, check.tolerances["rel_l2"], right)
    return replace(check, reason=f"{check.reason} In the file {where}.") if where else check


def _export(
    bench: Bench, targets: Sequence[ExportTarget], label: Label, scratch: Path
) -> tuple[Steps | None, dict[Form, dict[Precision, Path]], tuple[str, ...]]:
    """Write an ONNX file per form and per precision that a target or the board needs: FP32, and FP16 made from it.

    Returns
    -------
    The step form where there is one, the files, and a note where the model's ``step`` cannot be used.
    """
    metadata = label.metadata()
    half = "fp16" in {bench.profile.precision, *(target.precision for target in targets)}
    whole, part = scratch / "model.onnx", scratch / step_name("model.onnx")
    steps: Steps | None = None
    notes: tuple[str, ...] = ()
    try:
        steps = find_steps(bench.model, bench.batch, bench.probe)
        if steps is not None:
            export_steps(steps, part, metadata=metadata)
    except InputError as error:
        steps, notes = None, (f"There is no step form for streams: {error}.",)
    told = {} if steps is None else steps.metadata("sequence")
    export_onnx(bench.model, bench.batch, whole, metadata=metadata | told)
    exported: dict[Form, dict[Precision, Path]] = {"sequence": _precisions(whole, half, to_fp16)}
    if steps is not None:
        exported["step"] = _precisions(part, half, products_to_fp16)
    return steps, exported, notes


def _precisions(file: Path, half: bool, convert: Callable[[Path, Path], object]) -> dict[Precision, Path]:
    files: dict[Precision, Path] = {"fp32": file}
    if half:
        files["fp16"] = file.with_suffix(".fp16.onnx")
        convert(file, files["fp16"])
    return files


def _engines(
    targets: Sequence[ExportTarget], exported: Mapping[Form, Mapping[Precision, Path]], scratch: Path, batch: int
) -> tuple[EngineNote, list[Path]]:
    files: list[Path] = []
    notes = []
    for target, (form, onnx) in product(targets, exported.items()):
        if target.format == "tensorrt":
            place = scratch / (step_name(target.file) if form == "step" else target.file)
            note = build_engine(onnx[target.precision], place, batch)
            notes.append(note)
            files.extend([place, side_car(place)] if note.built else [])
    if not notes:
        return NO_ENGINE, files
    together = " ".join(note.text for note in notes)
    return replace(notes[0], built=all(note.built for note in notes), text=together), files


def _compared(
    bench: Bench, steps: Steps, files: Mapping[Precision, Path], whole: Reading, checks: Sequence[ArtifactCheck]
) -> tuple[FormFigures, ...]:
    """Return what each form takes for a whole sequence; the faster of those that passed is chosen, the first at a tie.

    Parameters
    ----------
    files
        Of the step form.
    whole
        The reading of the form that takes the whole sequence.
    """
    readings: dict[Form, tuple[Reading, int]] = {
        "sequence": (whole, 1),
        "step": (bench.read_files(files, steps.feeds), steps.length),
    }
    sound = [form for form in readings if all(check.passed for check in checks if check.form == form)]
    taken = {form: reading.latency.value * calls for form, (reading, calls) in readings.items()}
    chosen = min(sound or readings, key=taken.__getitem__)
    return tuple(
        FormFigures(
            form=form,
            files=tuple(check.file for check in checks if check.form == form),
            steps=steps.length,
            latency_ms=reading.latency.value * calls,
            low_ms=reading.latency.low * calls,
            high_ms=reading.latency.high * calls,
            call_ms=reading.latency.value,
            energy_mj=None if reading.energy is None else reading.energy.value * calls,
            provenance=reading.latency.provenance,
            method=reading.latency.method + ("" if calls == 1 else f"; one time step, times {calls}"),
            chosen=form == chosen,
        )
        for form, (reading, calls) in readings.items()
    )


def _chosen(forms: Sequence[FormFigures]) -> Form | None:
    return next((figures.form for figures in forms if figures.chosen), None)


def _stream(steps: Steps) -> dict[str, Any]:
    """Return what a runner has to know of a signal."""
    return {"sequence_length": steps.length, "state_size": steps.size, "answers": steps.answers}
