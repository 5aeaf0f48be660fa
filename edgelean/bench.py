"""The bench: the model in training, taken apart and read on its target."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.board import Board, Precision
from edgelean.control import UNITS, Observed
from edgelean.errors import InputError
from edgelean.exporter.fp16 import to_fp16
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.recorded import check_recording, recording_of
from edgelean.nn import check_poles
from edgelean.profile import Profile
from edgelean.reading import Figure, Reading
from edgelean.shrink import law
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.inputs import checked_inputs
from edgelean.shrink.parts import Parts
from edgelean.shrink.parts_law import reference_of
from edgelean.shrink.plan import Plan
from edgelean.shrink.protect import protected
from edgelean.shrink.prove import Proof, prove
from edgelean.stopwatch import Stopwatch
from edgelean.target import Candidate, Target, thorough
from edgelean.target.candidate import Feeds
from edgelean.target.onnx_graph import operators_of

PROBE_SAMPLES = 8
"""Samples on which a cut model is compared with the masked one."""

FAITHFUL = 0.02
"""How far the predicted latencies of a traced model and of its exported file may be apart."""

Costs = dict[str, float]


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
        self._folder = Path(tempfile.mkdtemp(prefix="edgelean-"))
        self._files: dict[Precision, Path] = {}
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.look()
        self.notes: tuple[str, ...] = () if self._parts is None else (self._parts.words(),)

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
        """Return the predicted latency in ms and energy in mJ of the model that keeps so many units of each axis."""
        cost = self.target.predict(self.anatomy.structure.operators(keep))
        return {"latency": cost.latency_ms, "energy": cost.energy_mj}

    def parameters(self) -> int:
        """Return the number of elements of all parameters of the present model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def macs(self) -> int:
        """Return the multiply-accumulates of one inference of the present model."""
        return self.anatomy.structure.macs({})

    def read(self) -> Reading:
        """Read the present model on the target; from its trace where that tells its costs, which takes less time."""
        if not self._trace_tells():
            return self.read_artifact()
        with self._stopwatch.phase("measuring"):
            return self.target.read(Candidate(self._exported, self.anatomy.structure.operators({}), self._feeds))

    def _trace_tells(self) -> bool:
        """Tell whether the traced model costs what its exported file does; some operators are exported as several."""
        if self._traced is None:
            with self._stopwatch.phase("measuring"):
                traced = self.target.predict(self.anatomy.structure.operators({})).latency_ms
                file = self.target.predict(operators_of(self._recording_checked(), self.profile.batch)).latency_ms
            self._traced = abs(traced / file - 1) <= FAITHFUL
        return self._traced

    def apart(self) -> Costs:
        """Return how far the predicted costs of the traced model and of its exported file are apart, by quantity."""
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
            operators = operators_of(self._exported("fp32"), self.profile.batch)
            return self.target.read(Candidate(self._exported, operators, self._feeds))

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
            return thorough(self.target, self.profile).read(candidate)

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
            self._files[precision] = self._folder / f"candidate.{precision}.onnx"
            to_fp16(self._files["fp32"], self._files[precision])
        return self._files[precision]

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
            "noise": reading.noise,
            "parameters": self.parameters(),
            "macs": self.macs(),
        }

    def observed(self, reading: Reading) -> dict[str, Observed]:
        """Return a reading next to the predicted cost of the same structure, per quantity."""
        cost = self.cost({})
        figures = {"latency": reading.latency, "energy": reading.energy}
        return {name: _observed(figure, cost[name]) for name, figure in figures.items() if figure is not None}

    def step_width(self, board: Board) -> int:
        """Return the number of units by which axes shrink: what the board's precision is padded to.

        Boards that pad nothing still run fastest on whole vector registers, which hold at least 4 numbers.
        """
        return max(4, int(getattr(board.alignment, self.profile.precision)))


def limits_of(profile: Profile, full_size: Reading) -> dict[str, float]:
    """Return the budgets in ms and mJ.

    Raises
    ------
    InputError
        If there is an energy budget, and nothing here can tell the energy.
    """
    limits = {}
    if profile.budgets.latency is not None:
        limits["latency"] = profile.budgets.latency.resolve(full_size.latency.value)
    if profile.budgets.energy is not None:
        if full_size.energy is None:
            raise InputError(
                f"profile {profile.name!r} has an energy budget, but nothing here can tell the energy: "
                "see `edgelean doctor` for the sensors, or use --target modelled"
            )
        limits["energy"] = profile.budgets.energy.resolve(full_size.energy.value)
    return limits


def refuse_the_unreachable(
    bench: Bench, floor: int, limits: Mapping[str, float], start: Mapping[str, Observed]
) -> None:
    """Compare the budgets with the model at its smallest.

    Parameters
    ----------
    floor
        Channels, or elements of heads, that every axis keeps.
    start
        The full-size model, per quantity.

    Raises
    ------
    InputError
        If a budget is below what that would need; says how much it is.
    """
    least = bench.cost({name: axis.least(floor) for name, axis in bench.anatomy.axes.items()})
    for name, limit in limits.items():
        reachable = start[name].measured * least[name] / start[name].cost
        if limit < reachable:
            unit = UNITS[name]
            raise InputError(
                f"the {name} budget of {limit:.4g} {unit} is below anything that can be reached: the model at its "
                f"smallest (every axis at {floor} units) needs about {reachable:.4g} {unit}, "
                f"at full size {start[name].measured:.4g} {unit}"
            )


def _observed(figure: Figure, cost: float) -> Observed:
    return Observed(figure.value, figure.low, figure.high, cost)


def _resized(x: Tensor, samples: int) -> Tensor:
    """Return so many samples, the given ones over and over."""
    repeats = -(-samples // len(x))
    return torch.cat([x] * repeats)[:samples] if repeats > 1 else x[:samples]
