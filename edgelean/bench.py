"""The bench: the model in training, taken apart and read on its target."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.board import Board, Precision, load_board
from edgelean.board.memory import Held
from edgelean.board.price import BYTES
from edgelean.control import Observed
from edgelean.exporter.fp16 import to_fp16
from edgelean.exporter.int8 import roughly_quantised
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.recorded import check_recording, recording_of
from edgelean.exporter.targets import graph_target
from edgelean.judging import figure_of
from edgelean.nn import check_poles
from edgelean.profile import Profile
from edgelean.quantity import QUANTITIES
from edgelean.reading import Figure, Reading
from edgelean.shrink import law
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.inputs import checked_inputs
from edgelean.shrink.parts import Parts
from edgelean.shrink.parts_law import reference_of
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.protect import protected
from edgelean.shrink.prove import Proof, prove
from edgelean.stopwatch import Stopwatch
from edgelean.target import Candidate, Target, in_precision, thorough
from edgelean.target.candidate import Feeds
from edgelean.target.held import measured_size, memory_figure, predicted_size
from edgelean.target.onnx_graph import held_by, operators_of

PROBE_SAMPLES = 8
"""Samples on which a cut model is compared with the masked one."""

FAITHFUL = 0.02
"""How far the predicted latencies of a traced model and of its exported file may be apart."""

FOLDED = 0.05
"""How far what a traced model and its exported file hold may be apart: norms are folded into what comes before them."""

Costs = dict[str, float]


@dataclass(frozen=True)
class _File:
    """How the exported file differs from the trace.

    Attributes
    ----------
    folded
        Weights in the file for each one in the trace: norms are folded, recurrences may be written out.
    around
        Bytes of the file that are not weights; they hardly change with the widths.
    """

    folded: float
    around: float


class Bench:
    """A model, its anatomy, and what it costs on the target.

    Parameters
    ----------
    model
        Left as it is.
    example
        Inputs; repeated or shortened to the batch of the profile.
    protect
        Paths of modules, or patterns of them, whose axes are left alone.

    Attributes
    ----------
    batch, probe
        Inputs: one batch of the profile, and a few samples to compare a cut model with the masked one.
    anatomy
        Axes and costs of the present structure; `look` makes it anew after a cut.
    notes
        What a person should know of how the model is taken apart and exported.
    """

    anatomy: Anatomy

    def __init__(
        self,
        model: nn.Module,
        example: tuple[Tensor, ...],
        profile: Profile,
        target: Target,
        stopwatch: Stopwatch,
        protect: Sequence[str] = (),
    ) -> None:
        self.model, self.profile, self.target = model, profile, target
        check_poles(model)
        example = checked_inputs(model, example)
        self.batch = tuple(_resized(x, profile.batch) for x in example)
        self.probe = tuple(_resized(x, PROBE_SAMPLES) for x in example)
        self._stopwatch = stopwatch
        self._protect = tuple(protect)
        self._proof: Proof | None = None
        self._parts: Parts | None = None
        self._traced: bool | None = None
        self._full_file: _File | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="edgelean-"))
        self._files: dict[Precision, Path] = {}
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.look()
        self.notes: tuple[str, ...] = () if self._parts is None else (self._parts.words(),)

    def compute_in(self, precision: Precision) -> None:
        """Let everything that is read or predicted from now on be of another precision."""
        self.profile = self.profile.model_copy(update={"precision": precision})
        self.target = in_precision(self.target, precision)
        self._full_file = None

    @property
    def stopwatch(self) -> Stopwatch:
        """What counts readings as a phase of its own, and checks of the law as another."""
        return self._stopwatch

    def look(self) -> None:
        """Take the model apart as it is now; the first time, prove which axes can be cut."""
        self._files.clear()
        found = protected(dissect(self.model, self.batch, self._parts), self.model, self._protect)
        self._parts = found.parts
        if self._proof is None:
            self._proof = prove(self.model, found, self.probe)
        self.anatomy = self._proof.applied(found)

    def expected(self, plan: Plan) -> list[Tensor]:
        """Return what the model has to compute on the probe once a plan is applied."""
        if not plan.detours and self.anatomy.statistics.isdisjoint(cut.axis for cut in plan.cuts):
            return law.outputs(self.model, law.masked(self.model, plan), self.probe)
        return reference_of(self.model, self.anatomy, self.probe).outputs(plan)

    def cost(self, keep: Mapping[str, int]) -> Costs:
        """Return the predicted cost of the model that keeps so many units of each axis, by quantity.

        Latency in ms and energy in mJ; memory and size in bytes where one of them has a budget.
        """
        structure, precision = self.anatomy.structure, self.profile.precision
        cost = self.target.predict(structure.operators(keep))
        costs: Costs = {"latency": cost.latency_ms, "energy": cost.energy_mj}
        if self._counts_bytes():
            held = self._held(keep)
            costs |= {"memory": held.bytes(precision), "size": self._predicted_size(held)}
        return costs

    def _held(self, keep: Mapping[str, int]) -> Held:
        """Return what the model that keeps so many units holds, as its file would: exporting folds some weights."""
        held = self.anatomy.structure.held(keep)
        return Held(held.weights * self._file().folded, held.alive)

    def _predicted_size(self, held: Held) -> float:
        return held.weights * BYTES[self.profile.precision] + self._file().around

    def _file(self) -> _File:
        """Return how the exported file differs from the trace; both were looked at before the first cut."""
        if self._full_file is None:
            precision: Precision = "fp32" if self.profile.budgets.size is None else self.profile.precision
            exported, weights = self._exported(precision), held_by(self._exported("fp32"), self.profile.batch).weights
            around = max(0.0, exported.stat().st_size - weights * BYTES[precision])
            self._full_file = _File(weights / self.anatomy.structure.held({}).weights, around)
        return self._full_file

    def parameters(self) -> int:
        """Return the number of elements of all parameters of the present model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def macs(self) -> int:
        """Return the multiply-accumulates of one inference of the present model."""
        return self.anatomy.structure.macs({})

    def read(self) -> Reading:
        """Read the present model on the target; from its trace where that tells its costs, which takes less time."""
        if not self.trace_tells():
            return self.read_artifact()
        structure = self.anatomy.structure
        with self._stopwatch.phase("measuring"):
            if self._counts_bytes():
                self._file()
            reading = self.target.read(Candidate(self._exported, structure.operators({}), self._feeds))
            return self._with_what_it_holds(reading, self._held({}), self._files)

    def trace_tells(self) -> bool:
        """Tell whether the traced model costs what its exported file does; some operators are exported as several."""
        if self._traced is None:
            structure, batch = self.anatomy.structure, self.profile.batch
            with self._stopwatch.phase("measuring"):
                file = self._recording_checked()
                traced = self.target.predict(structure.operators({})).latency_ms
                exported = self.target.predict(operators_of(file, batch)).latency_ms
                self._traced = abs(traced / exported - 1) <= FAITHFUL
                if self._counts_bytes():
                    pairs = zip(astuple(structure.held({})), astuple(held_by(file, batch)), strict=True)
                    self._traced &= all(abs(a - b) <= FOLDED * b for a, b in pairs)
        return self._traced

    def _counts_bytes(self) -> bool:
        return self.profile.budgets.memory is not None or self.profile.budgets.size is not None

    def _with_what_it_holds(self, reading: Reading, held: Held, files: Mapping[Precision, Path]) -> Reading:
        """Return a reading with memory and size: of a file where one was written, else as it would be."""
        precision = self.profile.precision
        file = files.get(precision)
        size = predicted_size(self._predicted_size(held), precision) if file is None else measured_size(file, precision)
        return replace(reading, memory=memory_figure(held, precision), size=size)

    def apart(self, reading: Reading) -> Costs:
        """Return how far the predicted costs of the traced model and of its exported file are apart, by quantity.

        Of none where they are measured: those are of a file in any case.
        """
        if reading.latency.low < reading.latency.high:
            return {}
        with self._stopwatch.phase("measuring"):
            file = self.target.predict(operators_of(self._exported("fp32"), self.profile.batch))
        traced = self.cost({})
        return {
            "latency": abs(traced["latency"] - file.latency_ms),
            "energy": abs(traced["energy"] - file.energy_mj),
        }

    def _recording_checked(self) -> Path:
        """Return the exported model; where it was recorded, after a look whether it does what the model does."""
        file = self._exported("fp32")
        if recording := recording_of(file):
            check_recording(file, self.model, self.probe)
            self.notes = (*self.notes, f"The model is exported {recording}")
        return file

    def read_artifact(self) -> Reading:
        """Read the present model on the target as the file that would be shipped."""
        with self._stopwatch.phase("measuring"):
            file = self._exported("fp32")
            if self.profile.budgets.size is not None:
                self._exported(self.profile.precision)
            reading = self.target.read(Candidate(self._exported, operators_of(file, self.profile.batch), self._feeds))
            return self._with_what_it_holds(reading, held_by(file, self.profile.batch), self._files)

    def read_files(self, onnx: Mapping[Precision, Path], sample: Callable[[], Feeds] | None = None) -> Reading:
        """Read the exported files of the present model, one a precision, thoroughly: the verdicts rest on it.

        Parameters
        ----------
        sample
            Gives the feeds of one batch, where those are not the inputs of the model.
        """
        with self._stopwatch.phase("measuring"):
            operators = operators_of(onnx["fp32"], self.profile.batch)
            candidate = Candidate(lambda precision: onnx[precision], operators, sample or self._feeds)
            reading = thorough(self.target, self.profile).read(candidate)
            return self._with_what_it_holds(reading, held_by(onnx["fp32"], self.profile.batch), onnx)

    def read_cut(self, keep: Mapping[str, int]) -> Reading:
        """Read a copy of the model that keeps so many units of each axis, whichever they are; the model stays.

        Raises
        ------
        InputError, LawError
            If the copy cannot be cut like that, or not be exported.
        """
        order = {name: range(axis.size) for name, axis in self.anatomy.axes.items()}
        plan = make_plan(self.anatomy, keep, order, 0.0)
        small = copy.deepcopy(self.model)
        apply(small, plan)
        batch = self.profile.batch
        file = export_onnx(small, self.batch, self._folder / "smallest.onnx", metadata={})
        self._files = {"fp32": file}
        try:
            with self._stopwatch.phase("measuring"):
                reading = self.target.read(Candidate(self._exported, operators_of(file, batch), self._feeds))
                self._exported(self.profile.precision)
                return self._with_what_it_holds(reading, held_by(file, batch), self._files)
        finally:
            # The files of the model itself are written anew when they are needed.
            self._files = {}

    def _exported(self, precision: Precision) -> Path:
        """Return the present structure as an ONNX file in a precision.

        Written once for each structure: what a model costs does not depend on its weights, and writing takes longer
        than timing.
        """
        if "fp32" not in self._files:
            place = self._folder / "candidate.onnx"
            why = None if self._parts is None else self._parts.untraceable()
            self._files["fp32"] = export_onnx(self.model, self.batch, place, metadata={}, untraceable=why)
        if precision not in self._files:
            self._files[precision] = self._lowered(self._files["fp32"], precision)
        return self._files[precision]

    def _lowered(self, file: Path, precision: Precision) -> Path:
        """Return a candidate in a lower precision, good enough to be timed."""
        out = file.with_name(f"candidate.{precision}.onnx")
        if precision == "int8":
            target = graph_target(precision, load_board(self.profile.board).kind)
            return roughly_quantised(file, out, target, tuple(self._feeds().values()))
        to_fp16(file, out)
        return out

    def _feeds(self) -> Feeds:
        names = ["input", *(f"input_{i}" for i in range(1, len(self.batch)))]
        return {name: x.cpu().numpy() for name, x in zip(names, self.batch, strict=True)}

    def told(self, reading: Reading) -> dict[str, Any]:
        """Return a reading of the present model as the fields of an event."""
        latency, energy = reading.latency, reading.energy
        return {
            "latency_ms": latency.value,
            "latency_low_ms": latency.low,
            "latency_high_ms": latency.high,
            "energy_mj": energy.value if energy else None,
            "provenance": latency.provenance,
            "energy_provenance": energy.provenance if energy else None,
            "energy_method": energy.method if energy else None,
            "memory_provenance": reading.memory.provenance if reading.memory else None,
            "memory_bytes": reading.memory.value if reading.memory else None,
            "size_bytes": reading.size.value if reading.size else None,
            "size_provenance": reading.size.provenance if reading.size else None,
            "noise": reading.noise,
            "parameters": self.parameters(),
            "macs": self.macs(),
        }

    def observed(self, reading: Reading) -> dict[str, Observed]:
        """Return a reading next to the predicted cost of the same structure, per quantity."""
        cost = self.cost({})
        figures = {name: figure_of(reading, name) for name in QUANTITIES if name in cost}
        return {name: _observed(figure, cost[name]) for name, figure in figures.items() if figure is not None}

    def step_width(self, board: Board) -> int:
        """Return the number of units by which axes shrink: what the board's precision is padded to.

        Boards that pad nothing still run fastest on whole vector registers, which hold at least 4 numbers.
        """
        return max(4, int(getattr(board.alignment, self.profile.precision)))


def _observed(figure: Figure, cost: float) -> Observed:
    return Observed(figure.value, figure.low, figure.high, cost)


def _resized(x: Tensor, samples: int) -> Tensor:
    """Return so many samples, the given ones over and over."""
    repeats = -(-samples // len(x))
    return torch.cat([x] * repeats)[:samples] if repeats > 1 else x[:samples]
