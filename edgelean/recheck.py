"""A bundle looked at again, here or where it was copied: its hashes, and then its files against the trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgelean.delivery import evidence_of
from edgelean.divergence import first_divergence
from edgelean.errors import DeviceError, MissingError, VerificationError
from edgelean.evidence import Evidence, read_evidence
from edgelean.exporter.bundle import EVIDENCE, MANIFEST, check_bundle
from edgelean.exporter.engine_session import open_engine
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.targets import ExportTarget, Tolerances, load_target, target_names
from edgelean.job import asked_before
from edgelean.pipeline import load
from edgelean.recipe import METRICS
from edgelean.training.run import Run
from edgelean.training.trainer import Session, prepare
from edgelean.verifier import ArtifactCheck, verify


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """What came of it.

    Attributes
    ----------
    bundle
        Its folder.
    files
        How many files are the ones that were written.
    checks
        Per ONNX file; empty where there is nothing to hold them against.
    notes
        What was not looked at, in sentences.
    passed
        Whether every check did; without checks, whether those did that were made when the bundle was written.
    """

    bundle: Path
    files: int
    checks: tuple[ArtifactCheck, ...]
    notes: tuple[str, ...]
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return it in plain JSON types."""
        return asdict(self) | {"bundle": str(self.bundle)}


def verify_again(place: Path) -> Rechecked:
    """Compare the hashes of a bundle, then run its ONNX files and compare them with the trained model.

    Parameters
    ----------
    place
        The folder of a run: the files are run over the whole test and validation split of its recipe. The folder of a
        bundle: over the samples that are in it. Nothing in either is unpickled or run before its hash was compared.

    Raises
    ------
    MissingError
        There is no bundle, or the recipe of the run or its data is gone.
    InputError
        The manifest is not one of a bundle, or leads out of it.
    VerificationError
        A file is missing, is not the one that was written, or reads others; the message names it.
    """
    bundle = _bundle_at(place)
    manifest = check_bundle(bundle)
    session = _session_of(place) if bundle != place and (place / "run.json").is_file() else None
    evidence, notes = _evidence(manifest, bundle, session)
    checks = tuple(_checked(told, bundle, evidence, session) for told in manifest["checks"]) if evidence else ()
    for name in (name for name in manifest["files"] if name.endswith(".engine")):
        found = _engine_checked(bundle, name, evidence)
        checks += (found,) if isinstance(found, ArtifactCheck) else ()
        notes += (found,) if isinstance(found, str) else ()
    passed = all(check.passed for check in checks) if checks else bool(manifest["verified"])
    return Rechecked(bundle=bundle, files=len(manifest["files"]), checks=checks, notes=notes, passed=passed)


def _bundle_at(place: Path) -> Path:
    for folder in (place / "bundle", place):
        if (folder / MANIFEST).is_file():
            return folder
    raise MissingError(f"{place}: holds no bundle: name the folder of a run that ended, or of a bundle")


def _session_of(place: Path) -> Session | None:
    """Return the trained model of a run with its data; None where only the program that made the recipe has it."""
    run = Run.open(place)
    if run.asked()["recipe"] is None:
        return None
    job = asked_before(run)
    return replace(prepare(job.recipe, job.seed, torch.device("cpu")), model=load(place))


def _evidence(
    manifest: Mapping[str, Any], bundle: Path, session: Session | None
) -> tuple[Evidence | None, tuple[str, ...]]:
    """Return what the files are held against, and what a person should know of it."""
    largest = int(manifest["batch"])
    if session is not None:
        return replace(evidence_of(session), largest=largest), ()
    if EVIDENCE not in manifest["files"]:
        told = "only the hashes were compared: this bundle has no samples of the test split with it"
        return None, (told if manifest["verified"] else f"{told}, and it was not verified when it was written",)
    name = str(manifest["metric"])
    found = read_evidence(bundle / EVIDENCE, _metrics(), name, largest)
    if name in METRICS:
        return found, ()
    return found, (f"{name} is a function of the recipe and is not known here: the outputs were compared",)


def _metrics() -> dict[str, Any]:
    def on_arrays(metric: Any) -> Any:
        return lambda found, wanted: float(metric(torch.from_numpy(found), torch.from_numpy(wanted)))

    return {name: on_arrays(metric) for name, metric in METRICS.items()}


def _checked(told: Mapping[str, Any], bundle: Path, evidence: Evidence, session: Session | None) -> ArtifactCheck:
    """Check one file again as it was checked when the bundle was written."""
    file = bundle / told["file"]
    _refuse_others(file)
    check = verify(file, _target(told), evidence, told["form"])
    if check.passed or session is None or check.form == "step":
        return check
    inputs = tuple(torch.from_numpy(array) for array in next(iter(evidence.batches)))
    with tempfile.TemporaryDirectory() as scratch:
        sound = export_onnx(session.model, inputs, Path(scratch) / "sound.onnx", metadata={})
        where = first_divergence(file, session.model, inputs, check.tolerances["rel_l2"], sound)
    return replace(check, reason=f"{check.reason} In the file {where}.") if where else check


def _engine_checked(bundle: Path, name: str, evidence: Evidence | None) -> ArtifactCheck | str:
    """Run an engine where that is possible; else say why it was not."""
    targets = [load_target(each) for each in target_names()]
    target = next((each for each in targets if each.file == name), None)
    if target is None or evidence is None:
        return f"{name}: its hash is right; it was not run"
    try:
        engine = open_engine(bundle, name, evidence.largest)
    except DeviceError as error:
        return f"{name}: its hash is right; it was not run: {error}"
    return verify(bundle / name, target, evidence, None, engine)


def _refuse_others(file: Path) -> None:
    """Refuse an ONNX file with weights elsewhere: those have no hash, and their path may lead anywhere.

    Raises
    ------
    VerificationError
        It names such a file.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception:  # protobuf's own kinds; that it does not open comes out when it is run
        return
    if outside := next((tensor.name for tensor in graph.initializer if uses_external_data(tensor)), None):
        raise VerificationError(
            f"{file}: the weight {outside!r} lies in another file, of which the manifest has no hash"
        )


def _target(told: Mapping[str, Any]) -> ExportTarget:
    """Return what a file was held to; it may come from a target that is on no shelf here."""
    own = {"precision": told["precision"], "tolerances": Tolerances(**told["tolerances"])}
    return load_target("onnx-fp32").model_copy(update=own)
