"""From the lean model to what leaves the machine: exported, verified, read as an artifact, and bundled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import edgelean
from edgelean.bench import Bench
from edgelean.board import Precision
from edgelean.exporter.bundle import BundleFacts, check_bundle, write_bundle
from edgelean.exporter.fp16 import to_fp16
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.recorded import recording_of
from edgelean.exporter.targets import ExportTarget, load_target
from edgelean.exporter.tensorrt import EngineNote, build_engine, side_car
from edgelean.judging import judge, values_of
from edgelean.loop import ClosedLoop
from edgelean.reading import Reading
from edgelean.recipe import Metric
from edgelean.report.model import BundleFile, Verdict
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
    """

    reading: Reading
    verdicts: tuple[Verdict, ...]
    checks: tuple[ArtifactCheck, ...]
    engine: EngineNote
    bundle: tuple[BundleFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """What the bundle says about itself: a title, and the names of the classes."""

    title: str
    classes: tuple[str, ...]


def evidence_of(session: Session) -> Evidence:
    """Return what a trained model says about the whole test split."""
    recipe = session.recipe
    pairs = batches(session.loaders.test, session.device, recipe.name)
    return evidence(session.model, pairs, recipe.metric_function(), recipe.metric_name())


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
    targets = [load_target(name) for name in bench.profile.targets]
    with tempfile.TemporaryDirectory() as scratch:
        with stopwatch.phase("exporting"):
            onnx = _export(bench, targets, label, Path(scratch))
            engine, engine_files = _engines(targets, onnx, Path(scratch), bench.profile.batch)
        with stopwatch.phase("verifying"):
            # An engine is as good as the file that it is built from: that one is verified and shipped in any case.
            precisions = sorted({target.precision for target in targets}, reverse=True)
            wanted = [load_target(f"onnx-{precision}") for precision in precisions]
            checks = tuple(verify(onnx[target.precision], target, evidence) for target in wanted)
        recording = recording_of(onnx["fp32"])
        notes = (f"The model is exported {recording}",) if recording else ()
        reading = bench.read_files(onnx)
        verdicts = judge(bench.profile.budgets, reading, loop.limits, values_of(loop.full_size))
        shipped = [onnx[target.precision] for target in wanted]
        facts = BundleFacts(
            title=label.title,
            batch=bench.profile.batch,
            checks=[vars(check) for check in checks],
            verdicts=[vars(verdict) for verdict in verdicts],
            versions={"edgelean": edgelean.__version__, **{name: version(name) for name in PACKAGES}},
            labels=label.classes,
            notes=[engine.text, *notes],
        )
        write_bundle(folder, [*shipped, *engine_files], facts)
    files = check_bundle(folder)["files"]
    bundle = tuple(BundleFile(name, entry["bytes"], entry["sha256"]) for name, entry in files.items())
    return Delivery(reading, verdicts, checks, engine, bundle, notes)


def _export(bench: Bench, targets: Sequence[ExportTarget], label: Label, scratch: Path) -> dict[Precision, Path]:
    """Write an ONNX file per precision that a target or the board needs; FP32 always, the others are made from it."""
    metadata = {"edgelean.version": edgelean.__version__, "edgelean.title": label.title}
    if label.classes:
        metadata["edgelean.labels"] = ",".join(label.classes)
    onnx: dict[Precision, Path] = {
        "fp32": export_onnx(bench.model, bench.batch, scratch / "model.onnx", metadata=metadata)
    }
    if "fp16" in {bench.profile.precision, *(target.precision for target in targets)}:
        onnx["fp16"] = scratch / "model.fp16.onnx"
        to_fp16(onnx["fp32"], onnx["fp16"])
    return onnx


def _engines(
    targets: Sequence[ExportTarget], onnx: Mapping[Precision, Path], scratch: Path, batch: int
) -> tuple[EngineNote, list[Path]]:
    files: list[Path] = []
    notes = []
    for target in targets:
        if target.format == "tensorrt":
            place = scratch / target.file
            note = build_engine(onnx[target.precision], place, batch)
            notes.append(note)
            files.extend([place, side_car(place)] if note.built else [])
    if not notes:
        return NO_ENGINE, files
    together = " ".join(note.text for note in notes)
    return replace(notes[0], built=all(note.built for note in notes), text=together), files
