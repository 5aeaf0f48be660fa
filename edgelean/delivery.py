"""From the lean model to what leaves the machine: exported, verified, read as an artifact, and bundled."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
from edgelean.exporter.graphs import Graphs, Samples, lowered, lowered_steps
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.recorded import recording_of
from edgelean.exporter.steps import Form, Steps, export_steps, find_steps, step_name
from edgelean.exporter.targets import PRECISIONS, ExportTarget, graph_target, graph_targets, load_target
from edgelean.exporter.tensorrt import EngineNote, build_engine, side_car
from edgelean.judging import Kept, judge, judge_loss, values_of
from edgelean.label import Label
from edgelean.loop import ClosedLoop
from edgelean.reading import Reading
from edgelean.recipe import Metric
from edgelean.report.model import BundleFile, FormFigures, Verdict
from edgelean.shrink.reference import leaves
from edgelean.stopwatch import Stopwatch
from edgelean.training.trainer import Session, batches
from edgelean.verifier import ArtifactCheck, Evidence, verify

PACKAGES = ("torch", "onnx", "onnxruntime")
"""What made the files of a bundle, besides edgelean."""

WHOLE = "model.onnx"
"""The file in FP32, from which the others are made."""

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


Sample = Tensor | tuple[Tensor, ...]
"""One batch of the input of a model, or of each of its inputs."""


def evidence(model: nn.Module, pairs: Iterable[tuple[Sample, Tensor]], metric: Metric, metric_name: str) -> Evidence:
    """Return what a trained model says about ``(input, target)`` batches, which are gone through once.

    Of several outputs the first one counts.

    Once, because a loader may come in another order, or with other augmentations, the second time.
    """
    inputs, outputs, targets = [], [], []
    training = model.training
    model.eval()
    with torch.no_grad():
        for x, y in pairs:
            given = x if isinstance(x, tuple) else (x,)
            inputs.append(tuple(each.cpu().numpy() for each in given))
            outputs.append(leaves(model(*given))[0].cpu())
            targets.append(y.cpu())
    model.train(training)
    return Evidence(
        batches=inputs,
        outputs=torch.cat(outputs).numpy(),
        targets=torch.cat(targets).numpy(),
        metric=lambda found, wanted: float(metric(torch.from_numpy(found), torch.from_numpy(wanted))),
        metric_name=metric_name,
    )


def deliver(
    loop: ClosedLoop,
    evidence: Evidence,
    samples: Samples,
    label: Label,
    folder: Path,
    stopwatch: Stopwatch,
    full_size_metric: float | None = None,
) -> Delivery:
    """Export, verify, judge and bundle the model that a loop has steered.

    Parameters
    ----------
    samples
        What lower precisions are made with.
    evidence
        What the trained model says about the test split.
    folder
        The bundle's place.
    full_size_metric
        Of the full-size model on the test split, where it was trained as well.
    """
    bench, targets = loop.bench, _targets(loop)
    evidence = replace(evidence, largest=bench.profile.batch)
    with tempfile.TemporaryDirectory() as scratch:
        with stopwatch.phase("exporting"):
            steps, exported, notes = _export(loop, targets, samples, label, Path(scratch))
            engine, engine_files = _engines(targets, exported, Path(scratch), bench.profile.batch)
        with stopwatch.phase("verifying"):
            found = _verified(targets, exported, evidence, steps)
            sound = exported["sequence"][WHOLE]
            checked, fallen = _settled(loop, [(file, _explained(check, file, bench, sound)) for file, check in found])
            proof = write_evidence(evidence, label.evidence, Path(scratch) / EVIDENCE)
        checks = tuple(check for _, check in checked)
        recording = recording_of(sound)
        notes += (*((f"The model is exported {recording}",) if recording else ()), *fallen)
        reading = bench.read_files(_by_precision(loop, exported["sequence"]))
        verdicts = _judged(loop, reading, checks, full_size_metric)
        forms = () if steps is None else _compared(bench, steps, _by_precision(loop, exported["step"]), reading, checks)
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
        write_bundle(folder, [*(file for file, _ in checked), *engine_files, *([proof] if proof else [])], facts)
    files = check_bundle(folder)["files"]
    bundle = tuple(BundleFile(name, entry["bytes"], entry["sha256"]) for name, entry in files.items())
    return Delivery(reading, verdicts, checks, engine, bundle, notes, _chosen(forms), forms)


def _targets(loop: ClosedLoop) -> list[ExportTarget]:
    """Return what is exported: what the profile names, and the precision that the run has chosen."""
    profile = loop.bench.profile
    named = [load_target(name) for name in profile.targets]
    chosen = [graph_target(profile.precision, loop.around.board.kind)] if loop.progress.precision is not None else []
    return [*named, *(target for target in chosen if target not in named)]


def _verified(
    targets: Sequence[ExportTarget], exported: Mapping[Form, Graphs], evidence: Evidence, steps: Steps | None
) -> list[tuple[Path, ArtifactCheck]]:
    """Return the files that are shipped, each with what the verifier found.

    An engine is as good as the file that it is built from: that one is verified and shipped in any case.
    """
    kinds = product(exported.items(), graph_targets(targets))
    told = [(files[kind.graph], kind, form) for (form, files), kind in kinds if kind.graph in files]
    return [(file, verify(file, kind, evidence, form if steps else None)) for file, kind, form in told]


def _settled(
    loop: ClosedLoop, checked: list[tuple[Path, ArtifactCheck]]
) -> tuple[list[tuple[Path, ArtifactCheck]], tuple[str, ...]]:
    """Return what is shipped and why, where the run has chosen a precision: one whose file failed is given up.

    A file in it that the profile does not ask for is left out. The verdicts are then on the next higher precision.
    """
    bench, kind = loop.bench, loop.around.board.kind
    passed = {check.file: check.passed for _, check in checked}
    chosen = graph_target(bench.profile.precision, kind)
    if loop.progress.precision is None or passed.get(chosen.graph, True):
        return checked, ()
    higher = PRECISIONS[: PRECISIONS.index(chosen.precision)]
    left = next((each for each in reversed(higher) if passed.get(graph_target(each, kind).graph)), PRECISIONS[0])
    loop.compute_in(left)
    asked = {load_target(name).graph for name in bench.profile.targets}
    kept = [(file, check) for file, check in checked if check.passed or check.file in asked]
    return kept, (f"{chosen.graph} failed its check, so the verdicts are on {left} and not on {chosen.precision}.",)


def _judged(
    loop: ClosedLoop, reading: Reading, checks: Sequence[ArtifactCheck], full_size_metric: float | None
) -> tuple[Verdict, ...]:
    """Return a verdict per budget: on what was read of the artifact, and on what is left of the metric."""
    budgets = loop.bench.profile.budgets
    verdicts = judge(budgets, reading, loop.limits, values_of(loop.full_size))
    if budgets.accuracy_loss is None:
        return verdicts
    return (*verdicts, judge_loss(budgets.accuracy_loss, _kept(loop, checks, full_size_metric)))


def _kept(loop: ClosedLoop, checks: Sequence[ArtifactCheck], full_size: float | None) -> Kept:
    """Return what is left of the metric: against the full-size model, else against the best before a cut."""
    if full_size is not None:
        shipped = [check for check in checks if check.precision == loop.bench.profile.precision] or list(checks)
        worst = min(check.metric_artifact for check in shipped)
        return Kept(full_size, worst, "on the test split: the exported file against the full-size model, trained alike")
    now = math.nan if loop.left is None else loop.left
    best = max(now, loop.progress.guard.best or now)
    words = "on the validation split: the model at the end against the best that it came to before a cut"
    return Kept(best, now, f"{words}; with `--set compare=true` against the full-size model")


def _explained(check: ArtifactCheck, file: Path, bench: Bench, sound: Path) -> ArtifactCheck:
    """Return a check with the first layer that is off, where it failed; ``sound``: the FP32 file."""
    if check.passed or check.form == "step":
        return check
    right = None if file == sound else sound
    where = first_divergence(file, bench.model, bench.probe, check.tolerances["rel_l2"], right)
    return replace(check, reason=f"{check.reason} In the file {where}.") if where else check


def _export(
    loop: ClosedLoop, targets: Sequence[ExportTarget], samples: Samples, label: Label, scratch: Path
) -> tuple[Steps | None, dict[Form, Graphs], tuple[str, ...]]:
    """Write an ONNX file per form and per graph that a target or the board needs: FP32, and the others made from it.

    Returns
    -------
    The step form where there is one, the files, and notes: where the model's ``step`` cannot be used, and what was
    kept in a higher precision.
    """
    bench, metadata = loop.bench, label.metadata()
    needed = graph_targets(
        [load_target("onnx-fp32"), *targets, graph_target(bench.profile.precision, loop.around.board.kind)]
    )
    whole, part = scratch / WHOLE, scratch / step_name(WHOLE)
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
    files, remarks = lowered(whole, needed, samples)
    exported: dict[Form, Graphs] = {"sequence": files}
    notes += remarks
    if steps is not None:
        exported["step"], remarks = lowered_steps(part, needed)
        notes += remarks
    return steps, exported, notes


def _by_precision(loop: ClosedLoop, files: Graphs) -> dict[Precision, Path]:
    """Return the files that the board of a loop would run, by their precision."""
    kind = loop.around.board.kind
    targets = [graph_target(precision, kind) for precision in PRECISIONS]
    return {target.precision: files[target.graph] for target in targets if target.graph in files}


def _engines(
    targets: Sequence[ExportTarget], exported: Mapping[Form, Graphs], scratch: Path, batch: int
) -> tuple[EngineNote, list[Path]]:
    files: list[Path] = []
    notes = []
    for target, (form, onnx) in product(targets, exported.items()):
        if target.format == "tensorrt" and target.graph in onnx:
            place = scratch / (step_name(target.file) if form == "step" else target.file)
            note = build_engine(onnx[target.graph], place, batch)
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
