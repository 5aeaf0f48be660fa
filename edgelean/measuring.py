"""One model, measured: the public function ``edgelean.measure``, and what the command line shows of it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgelean.board import Board, Precision, load_board
from edgelean.budget import Budgets
from edgelean.errors import DeviceError, InputError, MissingError
from edgelean.exporter.bundle import MANIFEST, check_bundle
from edgelean.exporter.targets import graph_target
from edgelean.judging import judge
from edgelean.profile import Profile, load_profile
from edgelean.reading import Figure, Provenance, Reading
from edgelean.report import read_report
from edgelean.report.model import Verdict
from edgelean.sensors.identify import THIS_MACHINE
from edgelean.target import THOROUGH, Candidate, Target, open_target
from edgelean.target.held import measured_size, memory_figure
from edgelean.target.latency import percentile_interval
from edgelean.target.onnx_graph import held_by, operators_of
from edgelean.target.onnx_inputs import feeds_from, fix_shapes, precision_of, random_feeds, read_model
from edgelean.target.runtime import EagerTorch
from edgelean.training.run import Run

if TYPE_CHECKING:
    import torch

RuntimeWord = Literal["onnxruntime", "tensorrt", "torch"]

PERCENTILES = (50.0, 90.0, 99.0)
"""What a person is shown of a latency, besides the percentile of the budget."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a model is to be measured, apart from the profile.

    Attributes
    ----------
    target
        ``"local"``, ``"modelled"``, ``"ssh://[user@]host"``, or None for what suits the board.
    batch
        Another batch than the profile's.
    runtime
        Another runtime than the one that the board deploys.
    latency, energy, memory, size
        Other budgets than the profile's: ``"2ms"``, ``"10mJ"``, ``"2MB"``, ``"300kB"``.
    shapes
        Shapes of inputs that the file leaves open, by name, with or without the batch.
    inputs
        A .npy or .npz file of real inputs; random ones without it.
    """

    target: str | None = None
    batch: int | None = None
    runtime: RuntimeWord | None = None
    latency: str | None = None
    energy: str | None = None
    memory: str | None = None
    size: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """What came of measuring one model.

    Attributes
    ----------
    model
        The file, or the class of a PyTorch model.
    reading
        The percentile of the profile's budget, and the energy.
    percentiles
        Other percentiles of the latency; empty where nothing ran.
    verdicts
        Per budget that has a limit.
    unjudged
        Why the other budgets have no verdict.
    """

    model: str
    profile: Profile
    board: Board
    target: str
    reading: Reading
    percentiles: Mapping[float, Figure]
    verdicts: tuple[Verdict, ...]
    unjudged: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """3 where a budget is not met or undecided, else 0."""
        return 0 if all(verdict.outcome == "met" for verdict in self.verdicts) else 3


def measure(
    model: str | Path | torch.nn.Module,
    profile: str | Path | Profile | None = None,
    target: str | None = None,
    *,
    example_inputs: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
    batch: int | None = None,
    runtime: RuntimeWord | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: str | Path | None = None,
) -> Reading:
    """Measure latency and energy of one model.

    Parameters
    ----------
    model
        An ONNX file, the folder of a run, or a PyTorch model, which is exported.
    profile
        A name on the shelf, a TOML file, or a `Profile`: says the board, the precision, the batch and the percentile.
        Left out: the profile of the run, and ``"this-machine"`` for everything else.
    target
        ``"local"``, ``"modelled"``, ``"ssh://[user@]host"``; left out: local where the board is this machine, else
        modelled.
    example_inputs
        One batch of inputs of a PyTorch model; repeated or shortened to the batch of the profile.
    batch
        Another batch than the profile's.
    runtime
        ``"onnxruntime"``, ``"tensorrt"``, or ``"torch"`` to run a PyTorch model as it is; left out: what the board
        deploys.
    shapes
        Shapes of inputs that an ONNX file leaves open, by name, with or without the batch.
    inputs
        A .npy or .npz file of real inputs for an ONNX file; random ones without it.

    Returns
    -------
    Reading
        Latency in ms per batch, energy in mJ per inference, each with its interval, provenance and method.

    Raises
    ------
    InputError, MissingError
        The model or the profile cannot be used.
    DeviceError
        The runtime or the sensor failed, or the machine was too noisy for a figure: says why, and what to do.
    """
    wishes = Wishes(
        target=target,
        batch=batch,
        runtime=runtime,
        shapes=shapes or {},
        inputs=None if inputs is None else Path(inputs),
    )
    if isinstance(model, str | Path):
        return measure_file(Path(model), profile, wishes).reading
    return _measure_module(model, profile, wishes, example_inputs).reading


def measure_file(path: Path, profile: str | Path | Profile | None, wishes: Wishes) -> Measurement:
    """Measure an ONNX file, or the bundle of a run; see :func:`measure`."""
    if wishes.runtime == "torch":
        raise InputError(f"--runtime torch: {path} is no PyTorch model: use edgelean.measure(model, ...) in Python")
    full_size: Mapping[str, float] = {}
    if path.is_dir() and profile is None:
        profile, full_size = _profile_of_run(path), _full_size(path)
    wanted = _wanted(profile, wishes)
    files = _bundled(path, load_board(wanted.board)) if path.is_dir() else {precision_of(read_model(path)): path}
    if profile is None and "int8" in files and len(files) == 1:
        wanted = wanted.model_copy(update={"precision": "int8"})
    # What an INT8 file costs is predicted from the graph that it was made from.
    like = "fp32" if wanted.precision == "int8" else wanted.precision
    model = read_model(files.get(like) or next(iter(files.values())))
    if wishes.inputs is not None:
        feeds = feeds_from(wishes.inputs, model, wanted.batch)
    else:
        fix_shapes(model, wanted.batch, wishes.shapes)
        feeds = random_feeds(model)

    def candidate(place: Target, scratch: Path) -> Candidate:
        return Candidate(
            lambda precision: _in_precision(files, precision, place, scratch),
            () if place.provenance is Provenance.MEASURED else operators_of(model, wanted.batch),
            lambda: feeds,
        )

    return _take(str(path), candidate, wanted, wishes, full_size)


def _measure_module(
    model: torch.nn.Module, profile: str | Path | Profile | None, wishes: Wishes, example: Any
) -> Measurement:
    """Measure a PyTorch model: exported, or as it is where that is asked for."""
    from edgelean.exporter.onnx import export_onnx

    if example is None:
        raise InputError("a PyTorch model is measured on its inputs: give example_inputs, one batch of them")
    if wishes.shapes or wishes.inputs:
        raise InputError("shapes and inputs are for ONNX files: give a PyTorch model its example_inputs")
    wanted = _wanted(profile, wishes)
    batch = tuple(_resized(x, wanted.batch) for x in (example if isinstance(example, tuple) else (example,)))
    feeds = {f"input_{index}" if index else "input": x.cpu().numpy() for index, x in enumerate(batch)}

    def candidate(place: Target, scratch: Path) -> Candidate:
        if wishes.runtime == "torch" and place.provenance is Provenance.MEASURED:
            return Candidate(lambda _: scratch, (), lambda: feeds)
        file = export_onnx(model, batch, scratch / "model.onnx", metadata={})
        operators = () if place.provenance is Provenance.MEASURED else operators_of(file, wanted.batch)
        return Candidate(
            lambda precision: _in_precision({"fp32": file}, precision, place, scratch), operators, lambda: feeds
        )

    eager = EagerTorch(copy.deepcopy(model).eval()) if wishes.runtime == "torch" else None
    return _take(type(model).__name__, candidate, wanted, wishes, {}, eager)


def _take(
    name: str,
    candidate: Callable[[Target, Path], Candidate],
    profile: Profile,
    wishes: Wishes,
    full_size: Mapping[str, float],
    eager: EagerTorch | None = None,
) -> Measurement:
    """Read a candidate on its target, and hold it against the budgets.

    Raises
    ------
    DeviceError
        The machine was too noisy.
    """
    board = load_board(profile.board)
    runtime = None if wishes.runtime == "torch" else wishes.runtime
    place = open_target(wishes.target, profile, board, runtime=eager or runtime, routine=THOROUGH)
    try:
        if wishes.runtime is not None and place.name != "local":
            raise InputError(f"--runtime {wishes.runtime}: the target is {place.name}, and only local has a choice")
        with tempfile.TemporaryDirectory() as scratch:
            taken = candidate(place, Path(scratch))
            reading = _with_what_it_holds(place.read(taken), taken, profile)
    finally:
        place.close()
    if reading.noise:
        raise DeviceError(f"too noisy to measure {name}: {reading.noise}")
    limits, unjudged = _limits(profile.budgets, full_size)
    if profile.budgets.energy is not None and reading.energy is None:
        unjudged = (*unjudged, "energy: nothing here can tell it, see `edgelean doctor` for the sensors")
    verdicts = judge(profile.budgets, reading, limits, full_size)
    return Measurement(name, profile, board, place.name, reading, percentiles_of(reading), verdicts, unjudged)


def _with_what_it_holds(reading: Reading, candidate: Candidate, profile: Profile) -> Reading:
    """Return a reading with memory and size of the file; without them for a PyTorch model that runs as it is."""
    file = candidate.onnx(profile.precision)
    if not file.is_file():
        return reading
    sized = replace(reading, size=measured_size(file, profile.precision))
    # Of a file whose shapes cannot all be inferred the memory is not known.
    with suppress(InputError):
        return replace(sized, memory=memory_figure(held_by(file, profile.batch), profile.precision))
    return sized


def percentiles_of(reading: Reading) -> dict[float, Figure]:
    """Return the usual percentiles of the latency, those that there are enough calls for.

    What differs between sessions moves all calls of one by the same share. So the interval of every percentile is
    widened by as much as that of the one which was asked for.
    """
    if not reading.samples_ms:
        return {}
    asked = percentile_interval(reading.samples_ms, reading.percentile)
    down = reading.latency.low / asked.low if asked.low > 0 else 1.0
    up = reading.latency.high / asked.high if asked.high > 0 else 1.0
    found = {reading.percentile: reading.latency}
    for percentile in PERCENTILES:
        interval = percentile_interval(reading.samples_ms, percentile)
        if interval.closed and percentile != reading.percentile:
            low, high = interval.low * down, interval.high * up
            found[percentile] = replace(reading.latency, value=interval.value, low=low, high=high)
    return dict(sorted(found.items()))


# -- what is measured --------------------------------------------------------------------------------------------------


def _wanted(profile: str | Path | Profile | None, wishes: Wishes) -> Profile:
    found = profile if isinstance(profile, Profile) else load_profile(profile or THIS_MACHINE)
    if wishes.batch is not None:
        if wishes.batch < 1:
            raise InputError(f"a batch has at least one sample, found {wishes.batch}")
        found = found.model_copy(update={"batch": wishes.batch})
    return found.with_budgets(wishes.latency, wishes.energy, wishes.memory, wishes.size)


def _bundled(folder: Path, board: Board) -> dict[Precision, Path]:
    """Return the ONNX files of a run, or of a bundle, by their precision; their hashes were compared.

    Of two files in INT8 the one for the board.

    Of a model with two forms those of the whole sequence: the budgets are about an inference, and a step is none.
    """
    for bundle in (folder / "bundle", folder):
        if (bundle / MANIFEST).is_file():
            checks = [check for check in check_bundle(bundle)["checks"] if check["form"] != "step"]
            for_board = graph_target("int8", board.kind).graph
            checks.sort(key=lambda check: check["file"] == for_board)
            return {check["precision"]: bundle / check["file"] for check in checks}
    raise MissingError(f"{folder}: holds no bundle: name the folder of a run that ended, or an ONNX file")


def _profile_of_run(folder: Path) -> Profile | None:
    """Return the profile with the budgets that a run had; None for a bundle alone."""
    if not (folder / "run.json").is_file():
        return None
    run = Run.open(folder)
    profile = Profile.model_validate(run.asked()["profile"])
    chosen = [event["precision"] for event in run.events() if event["event"] == "precision"]
    return profile.model_copy(update={"precision": chosen[-1]}) if chosen else profile


def _full_size(folder: Path) -> dict[str, float]:
    """Return what the full-size model of a run took, by quantity, each in its unit."""
    if not (folder / "run.json").is_file():
        return {}
    full = read_report(folder).full_size
    known = {
        "latency": full.latency_ms,
        "energy": full.energy_mj,
        "memory": full.memory_bytes,
        "size": full.artifact_bytes,
    }
    return {quantity: value for quantity, value in known.items() if value is not None}


def _in_precision(files: Mapping[Precision, Path], precision: Precision, place: Target, scratch: Path) -> Path:
    """Return the file in a precision: FP16 is made from FP32 where it has to be, and nothing is made from FP16."""
    if precision in files:
        return files[precision]
    (found, path), *_ = files.items()
    if found == "fp32" and precision == "fp16":
        from edgelean.exporter.fp16 import to_fp16

        to_fp16(path, scratch / "half.onnx")
        return scratch / "half.onnx"
    if precision == "int8":
        raise InputError(
            f"{path}: is {found.upper()}, and INT8 is to be measured, whose ranges come from data: name the folder "
            "of a run that exported INT8, or a profile in another precision"
        )
    if place.provenance is Provenance.TRANSFERRED:
        raise InputError(
            f"{path}: is {found.upper()}, and this machine computes {precision.upper()}, so what it takes here says "
            "nothing about the board: give the model in FP32, or use --target modelled"
        )
    return path


def _limits(budgets: Budgets, full_size: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the budgets in the units of their quantities, and why the others have no limit."""
    limits: dict[str, float] = {}
    without = []
    for budget in budgets.costs:
        if budget.limit is not None or budget.quantity in full_size:
            limits[budget.quantity] = budget.resolve(full_size.get(budget.quantity, 0.0))
        else:
            without.append(
                f"{budget.quantity}: {budget} is a share of a full-size model, which is not known here: give a budget "
                f"in {budget.unit} with --{budget.quantity}"
            )
    if budgets.accuracy_loss is not None:
        without.append("accuracy loss: a measurement runs no test split, see the report of the run")
    return limits, tuple(without)


def _resized(x: torch.Tensor, samples: int) -> torch.Tensor:
    """Return so many samples, the given ones over and over."""
    return x[[index % len(x) for index in range(samples)]]
