"""A cost model that is known exactly, as a calibration and as a target that behaves like it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from edgelean.board import Board, load_board
from edgelean.board.cost import predict
from edgelean.board.model import FORMS, Alignment, Calibration, Calibrations, Contraction, Fact, Fitted, Power
from edgelean.reading import Figure, Provenance, Reading

STEP = 16
HALF = {"rows": 0.5, "columns": 3.0, "depth": 5.0}
RATES = dict(zip(FORMS, (120.0, 90.0, 60.0, 100.0, 110.0), strict=True))
NUMBERS: Mapping[str, float] = {
    "call_us": 2.0,
    "contract_us": 0.5,
    "pointwise_us": 0.4,
    "reduce_us": 0.8,
    "move_us": 0.6,
    "pass_us": 0.3,
    "stack_us": 0.1,
    **{f"{form}.gflop_s": rate for form, rate in RATES.items()},
    **{f"{form}.{extent}": half for form in FORMS for extent, half in HALF.items()},
    "light_gelement_s": 12.0,
    "heavy_gelement_s": 3.0,
    "reduce_gelement_s": 8.0,
    "move_gelement_s": 20.0,
    "near_gb_s": 80.0,
    "far_gb_s": 25.0,
    "cache_mb": 16.0,
    "overlap": 0.5,
}


def exactly(value: float) -> Fitted:
    return Fitted(value=value, low=value, high=value)


def calibration(**changes: float) -> Calibration:
    """The calibration of `NUMBERS`; a changed key has two underscores where the parameter has a dot."""
    numbers = {**NUMBERS, **{key.replace("__", "."): value for key, value in changes.items()}}
    sections = {
        form: Contraction(**{name: exactly(numbers[f"{form}.{name}"]) for name in Contraction.model_fields})
        for form in FORMS
    }
    return Calibration(
        made="2026-01-31",
        runtime="the test",
        fitted_on="nothing",
        kernel_error=0.05,
        network_error=0.07,
        network_rank=0.98,
        **{key: exactly(value) for key, value in numbers.items() if "." not in key},
        **sections,
    )


def calibrated_board(**changes: float) -> Board:
    """A processor with that calibration in FP32, and nothing else but its power."""
    known = (Fact(value=watts, source="the test", confidence="measured") for watts in (10.0, 50.0))
    return Board(
        name="calibrated",
        title="Round numbers, calibrated",
        kind="cpu",
        alignment=Alignment(fp32=STEP, confidence="measured"),
        power=Power(**dict(zip(("idle_w", "max_w"), known, strict=True))),
        calibration=Calibrations(fp32=calibration(**changes)),
    )


class SimulatedTarget:
    """Behaves like the cost model of a board, but for some scatter; sometimes it says that it was noisy."""

    name = "simulated"
    sensor = None

    def __init__(
        self,
        board: Board | None = None,
        scatter: float = 0.02,
        noise: Callable[[int], str] = lambda reading: "",
        provenance: Provenance = Provenance.MEASURED,
        precision: str = "fp32",
        with_energy: bool = False,
    ) -> None:
        self.board, self.provenance = board or calibrated_board(), provenance
        self.meant = load_board("this-machine")
        self.readings: list[str] = []
        self.closed = 0
        self._scatter, self._noise, self._precision, self._energy = scatter, noise, precision, with_energy
        self._random = random.Random(7)

    def predict(self, operators):
        return predict(operators, self.board, "fp32", 1)

    def read(self, candidate):
        noise = self._noise(len(self.readings))
        self.readings.append(candidate.onnx("fp32").name)
        cost = self.predict(candidate.operators)
        off = math.exp(self._random.gauss(0.0, self._scatter))
        latency_ms = cost.latency_ms * off * (3.0 if noise else 1.0)
        return Reading(
            latency=self._figure(latency_ms, "ms"),
            energy=self._figure(cost.energy_mj, "mJ") if self._energy else None,
            energy_net=self._figure(cost.energy_mj - 10.0 * latency_ms, "mJ") if self._energy else None,
            batch=1,
            percentile=50,
            conditions={"runtime": "a simulation", "processor": "a processor", "precision": self._precision},
            noise=noise,
        )

    def close(self):
        self.closed += 1

    def _figure(self, value, unit):
        return Figure(value, value, value, unit, self.provenance, "simulated")
