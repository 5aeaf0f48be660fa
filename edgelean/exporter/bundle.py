"""The bundle: what leaves the machine, with the hash of every file and the commands to run it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelean.errors import InputError, MissingError, VerificationError
from edgelean.shelf import shelf

MANIFEST = "manifest.json"
README = "README.md"
RUNNER, ENGINE_RUNNER = "run_onnx.py", "run_tensorrt.py"
RUNNER_PARTS = ("running.py", "samples.py")
"""What the runners have in common."""

EVIDENCE = "evidence.npz"
"""Samples of the test split with what the trained model says of them, so that the bundle can be verified anywhere."""

IMPORTABLE = (".py", ".pyc", ".pyd", ".so")
"""Endings of files that Python would import for a runner, in the place of a package."""

FORMAT = 3
"""Raised whenever a reader of the manifest has to know that it changed."""


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What the manifest tells about the files, in plain JSON types.

    Attributes
    ----------
    title
        The heading of the README: recipe and profile.
    batch
        Samples per inference of the profile.
    checks
        What the verifier found, a mapping per artifact: the fields of an ``ArtifactCheck``.
    verdicts
        Per budget, met or not.
    versions
        Of the software that made the files.
    labels
        Names of the classes; empty where the recipe names none.
    notes
        Sentences for the README, such as what came of the TensorRT engine.
    form, forms
        Of a sequence model with a step form: ``"sequence"`` or ``"step"``, whichever is faster on the board, and what
        each takes: the fields of a ``FormFigures``.
    stream
        What a runner has to know to go through a signal: sequence_length, state_size, answers (``"last"`` or
        ``"every"``). None where there is no step form.
    preparation
        How an image or a recording becomes a sample; None where the recipe does not say it.
    origin
        Where the files come from: recipe, profile, board, seed, the hash of the plan.
    metric
        What the metric of the checks is called.
    """

    title: str
    batch: int
    checks: Sequence[Mapping[str, Any]] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()
    form: str | None = None
    forms: Sequence[Mapping[str, Any]] = ()
    stream: Mapping[str, Any] | None = None
    preparation: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""

    @property
    def verified(self) -> bool:
        """Whether every artifact was checked and passed."""
        return bool(self.checks) and all(check["passed"] for check in self.checks)


def write_bundle(folder: Path | str, files: Iterable[Path | str], facts: BundleFacts) -> Path:
    """Write the bundle ``folder`` as a whole or not at all; one that was there before is replaced.

    Parameters
    ----------
    folder
        Where the bundle goes. It is written beside this place and then renamed.
    files
        What is copied into it: ONNX files, engines and their side-cars.
    facts
        What the manifest and the README say about them.

    Returns
    -------
    Path
        The folder: ``files``, the runners, README.md, manifest.json. A bundle in which a check failed, or in which
        nothing was checked, has ``"verified": false`` in its manifest and says so on top of its README.

    Raises
    ------
    MissingError
        One of the files does not exist.
    InputError
        Two files have the same name, one has a name that the bundle needs itself, or ``folder`` holds something else.
    """
    folder, sources = Path(folder), [Path(file) for file in files]
    _refuse(folder, sources)
    runners = (RUNNER, *RUNNER_PARTS, *([ENGINE_RUNNER] if _engines(sources) else []))
    sources += [shelf("export") / "runners" / name for name in runners]
    partial = _emptied(folder.with_name(f".{folder.name}.partial"))
    try:
        for source in sources:
            shutil.copyfile(source, partial / source.name)
        (partial / README).write_text(_readme(facts, sources), encoding="utf-8")
        entries = {path.name: _entry(path) for path in sorted(partial.iterdir())}
        manifest = {
            "format": FORMAT,
            "verified": facts.verified,
            **vars(facts),
            "files": entries,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_bundle(folder: Path | str) -> dict[str, Any]:
    """Return the manifest of a bundle, after comparing every file in it with its size and its hash.

    Raises
    ------
    MissingError
        There is no bundle at ``folder``.
    InputError
        The manifest is not one of a bundle, is of another format, or names a file outside ``folder``, a link, or the
        same file twice.
    VerificationError
        A file is missing, is not the one that was written, or came later and could be run; the message names it.
    """
    folder = Path(folder)
    manifest = _manifest(folder / MANIFEST)
    for name, entry in manifest["files"].items():
        if not _stays_inside(folder, name):
            raise InputError(f"{folder / MANIFEST}: files: {name!r} leads out of the bundle; do not use this bundle")
        path = folder / name
        if not path.is_file():
            raise VerificationError(f"{path}: the manifest lists it, and it is not there; copy the bundle again")
        if _entry(path) != entry:
            raise VerificationError(f"{path}: is not the file that the manifest describes; copy the bundle again")
    for path in sorted(folder.iterdir()):
        if path.name not in manifest["files"] and (path.suffix in IMPORTABLE or path.is_dir()):
            raise VerificationError(
                f"{path}: is in the bundle, and the manifest does not list it; Python could import it in the place of "
                "a package: remove it, or copy the bundle again"
            )
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"{path}: not found; a bundle is a folder with a {MANIFEST}, as edgelean fit writes it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{path}: files: is missing; this is not the manifest of a bundle")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format: must be {FORMAT} for this version, found {manifest.get('format')!r}")
    if len({name.casefold() for name in manifest["files"]}) != len(manifest["files"]):
        raise InputError(f"{path}: files: two names are one on some systems; do not use this bundle")
    for name in _named(path, manifest):
        if name not in manifest["files"]:
            raise InputError(f"{path}: {name!r} is spoken of, and is not among the files; do not use this bundle")
    return manifest


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of two entries with one name a second reader might take the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _named(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the files that the checks and the forms speak of."""
    try:
        checked = [check["file"] for check in manifest["checks"]]
        return [str(name) for name in (*checked, *(name for form in manifest["forms"] for name in form["files"]))]
    except (KeyError, TypeError):
        raise InputError(f"{path}: checks, forms: are not those of a bundle; do not use this bundle") from None


def _stays_inside(folder: Path, name: str) -> bool:
    """Tell whether ``name`` is that of a file right in ``folder``, and no link; a backslash separates on some systems.

    A colon leads to another drive there, or to a hidden stream of a file.
    """
    plain = not {"/", "\\", ":", "\0"} & {*name} and name not in ("", ".", "..")
    return plain and not (folder / name).is_symlink()


def _engines(sources: Iterable[Path]) -> list[Path]:
    return [source for source in sources if source.suffix == ".engine"]


def _refuse(folder: Path, sources: Sequence[Path]) -> None:
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: is there already and is not a bundle; choose another folder for the bundle")
    taken = {MANIFEST, README, RUNNER, ENGINE_RUNNER, *RUNNER_PARTS}
    for source in sources:
        if not source.is_file():
            raise MissingError(f"{source}: not found; it was to go into the bundle {folder}")
        if source.name in taken:
            raise InputError(f"{source}: the bundle has a file called {source.name} already; rename it")
        taken.add(source.name)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _swap(new: Path, place: Path) -> None:
    """Put the folder ``new`` at ``place``; what is there moves aside first, since a folder cannot be overwritten."""
    aside = place.with_name(f".{place.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.rename(aside)
    new.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def _readme(facts: BundleFacts, sources: Sequence[Path]) -> str:
    models = [source for source in sources if source.suffix == ".onnx"]
    stepwise = {name for form in facts.forms if form["form"] == "step" for name in form["files"]}
    lines = [f"# {facts.title}", ""]
    if not facts.verified:
        lines += ["**Not verified: do not deploy.** A check failed, or nothing was checked; see below.", ""]
    lines += ["## Run it", "", "With Python 3.8 or newer, on any machine:", "", "    pip install numpy onnxruntime"]
    lines += [f"    python {RUNNER} INPUT.npy --model {model.name}" for model in models if model.name not in stepwise]
    lines += [
        "",
        "INPUT.npy holds a batch of samples, as `numpy.save` writes it; one such file per input of the model. "
        f"{_IN_PLACE[facts.preparation['kind'] if facts.preparation else None]} The hash of the model is compared with "
        f"{MANIFEST} before it is run. `--benchmark` prints the latency of a batch.",
        "",
        *_streaming(facts, sorted(stepwise)),
        *_engine_lines(_engines(sources)),
        "## Build a TensorRT engine on the board",
        "",
        *(f"    {_trtexec(model, facts.batch)}" for model in models),
        "",
        "An engine runs only on the kind of GPU and with the version of TensorRT that built it.",
        "",
        "## What was checked",
        "",
        *(f"- {check['file']}: {check['reason']}" for check in facts.checks),
        *(f"- {note}" for note in facts.notes),
        *_evidence_lines(sources),
        *_origin_lines(facts),
    ]
    return "\n".join(lines) + "\n"


_IN_PLACE = {
    None: "",
    "image": "In its place any number of images can be given, each of which is a sample.",
    "audio": "In its place any number of .wav files can be given, each of which is a sample.",
}


def _engine_lines(engines: Sequence[Path]) -> list[str]:
    if not engines:
        return []
    commands = [f"    python {ENGINE_RUNNER} INPUT.npy --model {engine.name}" for engine in engines]
    return ["## Run an engine", "", *commands, "", "On the kind of GPU for which it was built; options as above.", ""]


def _evidence_lines(sources: Sequence[Path]) -> list[str]:
    if EVIDENCE not in {source.name for source in sources}:
        return []
    return ["", f"`edgelean verify .` does it again, on the samples of the test split in {EVIDENCE}."]


def _origin_lines(facts: BundleFacts) -> list[str]:
    told = {**facts.origin, **facts.versions}
    return ["", "## Where it comes from", "", *(f"- {key}: {value}" for key, value in told.items())] if told else []


def _streaming(facts: BundleFacts, models: Sequence[str]) -> list[str]:
    """Return the chapter on the two forms of a sequence model; nothing for other models."""
    if facts.stream is None:
        return []
    length, size = facts.stream["sequence_length"], facts.stream["state_size"]
    lines = ["## Stream a signal", "", *(f"    python {RUNNER} --stream FILE --model {name}" for name in models)]
    lines += [
        "",
        f"The model comes in two forms that give the same answer. A file of the whole sequence takes {length} time "
        "steps in one call, no more and no fewer. A step form takes one time step a call, for a sequence of any "
        f"length, and keeps {size} numbers in between: the output `new_state` of a call is the input `state` of the "
        "next, zeros at the start. FILE is a .npy file with one signal, time first, or a .wav file, whose samples are "
        "read as numbers from -1 to 1, at the rate at which they are; several files are parts of one signal. "
        "`--every N` also prints what the model says after every N steps; with `--hop N` the steps of a row of numbers "
        "overlap, and begin N numbers apart; `--gain X` multiplies the numbers.",
        "",
        f"| form | files | {length} time steps | one call | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for form in facts.forms:
        files = ", ".join(f"`{name}`" for name in form["files"])
        figures = f"{form['latency_ms']:.4g} ms, {form['provenance']} | {form['call_ms']:.4g} ms"
        lines.append(f"| {form['form']} | {files} | {figures} | {'chosen for the board' if form['chosen'] else ''} |")
    return [*lines, ""]


def _trtexec(model: Path, batch: int) -> str:
    """Return the command of the tool that comes with TensorRT on a Jetson."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]

    def shapes(batch: int) -> str:
        sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in inputs}
        return ",".join(f"{name}:{'x'.join(map(str, [batch, *rest]))}" for name, rest in sizes.items())

    return (
        f"/usr/src/tensorrt/bin/trtexec --onnx={model.name} --stronglyTyped --minShapes={shapes(1)} "
        f"--optShapes={shapes(batch)} --maxShapes={shapes(batch)} --saveEngine={model.stem}.engine"
    )
