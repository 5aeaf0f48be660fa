"""The candidate runs on this machine, in onnxruntime; where another board is meant, the figures are mapped to it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgelean.board import Board, Precision
from edgelean.board.cost import Cost, Operator, predict
from edgelean.errors import DeviceError
from edgelean.reading import Figure, Provenance, Reading
from edgelean.sensors.window import Sensor, Work
from edgelean.target.candidate import Candidate
from edgelean.target.latency import Interval, Patience, Timing, percentile_interval, scaled, time_calls
from edgelean.target.modelled import modelled_figure
from edgelean.target.session import open_session, runtime_conditions

WINDOWS = 4
WINDOW_S = 0.15
STUDENT_T = 3.182  # two-sided 95 %, three degrees of freedom: what the mean of four windows has


@dataclass(frozen=True)
class LocalTarget:
    """onnxruntime on one core of this machine.

    Attributes
    ----------
    board
        The board that is meant: this machine, or another one, to which the figures are then transferred.
    machine
        This machine with its numbers known, as :func:`edgelean.target.probe_this_machine` returns it.
    precision, batch, percentile
        As the profile wants them. The candidate runs in FP32 whatever the precision, which only the board knows.
    sensor
        Reads the energy of this machine; without one it is a constant power times the latency.
    patience
        How long one reading may take.
    """

    board: Board
    machine: Board
    precision: Precision
    batch: int
    percentile: float = 50
    sensor: Sensor | None = None
    patience: Patience = field(default_factory=Patience)

    @property
    def name(self) -> str:
        """The word by which ``--target`` names it."""
        return "local"

    @property
    def provenance(self) -> Provenance:
        """Measured where the board is this machine, else transferred."""
        return Provenance.MEASURED if self.board.name == self.machine.name else Provenance.TRANSFERRED

    def close(self) -> None:
        """Nothing is held."""

    def predict(self, operators: Iterable[Operator]) -> Cost:
        """Return the predicted cost on the board, not on this machine."""
        return predict(operators, self.board, self.precision, self.batch)

    def read(self, candidate: Candidate) -> Reading:
        """Run the candidate here and return what it takes on the board.

        Raises
        ------
        DeviceError
            onnxruntime cannot load or run the candidate, or the sensor failed.
        """
        call = _runnable(candidate)
        timing = time_calls(call, self.percentile, self.patience)
        here = self._energy_here(call, timing)
        conditions = runtime_conditions() | _quality(timing)
        latency_ratio, energy_ratio = 1.0, 1.0
        if self.provenance is Provenance.TRANSFERRED:
            there, cost = self.predict(candidate.operators), self._predict_here(candidate.operators)
            latency_ratio = there.latency_ms / cost.latency_ms
            energy_ratio = there.energy_mj / cost.energy_mj
        method = f"{conditions['runtime']} on {conditions['processor']}, {len(timing.samples_ms)} calls after a warm-up"
        return Reading(
            latency=self._figure(scaled(timing.interval, latency_ratio), "ms", method),
            energy=self._energy(here, energy_ratio, candidate.operators),
            batch=self.batch,
            percentile=self.percentile,
            samples_ms=tuple(sample * latency_ratio for sample in timing.samples_ms),
            conditions=conditions,
        )

    def _predict_here(self, operators: Iterable[Operator]) -> Cost:
        return predict(operators, self.machine, "fp32", self.batch)

    def _figure(self, interval: Interval, unit: str, method: str) -> Figure:
        """Return a figure of the board from one that was already mapped to it."""
        if self.provenance is Provenance.TRANSFERRED:
            method += f"; mapped to {self.board.title} by the ratio of the two cost models"
        return Figure(interval.value, interval.low, interval.high, unit, self.provenance, method)

    def _energy_here(self, call: Work, timing: Timing) -> Figure | None:
        """Return the energy of one inference on this machine, in mJ, gross."""
        if self.sensor is not None:
            return _measured_energy(self.sensor, call, self.batch)
        watts = self.machine.power.max_w
        if watts.value is None:
            return None
        # W times ms is mJ; the median, because an energy is not about the slow calls of a high percentile.
        median = scaled(percentile_interval(timing.samples_ms, 50), watts.value / self.batch)
        method = f"{watts.source}, times the median latency"
        return Figure(median.value, median.low, median.high, "mJ", Provenance.MODELLED, method)

    def _energy(self, here: Figure | None, ratio: float, operators: tuple[Operator, ...]) -> Figure | None:
        """Return the energy on the board: only a measured one can be mapped to another board."""
        if self.provenance is Provenance.MEASURED or here is None:
            return here
        if here.provenance is not Provenance.MEASURED:
            cost = self.predict(operators)
            return modelled_figure(cost.energy_mj, "mJ", self.board, cost)
        interval = scaled(Interval(here.value, here.low, here.high, closed=True), ratio)
        return self._figure(interval, "mJ", here.method)


def _runnable(candidate: Candidate) -> Work:
    """Return a call that runs one batch of the candidate, tried once."""
    path = candidate.onnx("fp32")
    session: Any = open_session(path)
    feeds = dict(candidate.sample())

    def call() -> object:
        return session.run(None, feeds)

    try:
        call()
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        raise DeviceError(f"onnxruntime does not run {path}: {error}") from error
    return call


def _measured_energy(sensor: Sensor, call: Work, batch: int) -> Figure:
    """Return the mean energy of one inference over several windows, in mJ, with its interval."""
    windows = [sensor.over(call, WINDOW_S) for _ in range(WINDOWS)]
    each_mj = [window.joules_per_call / batch * 1e3 for window in windows]
    mean = statistics.fmean(each_mj)
    reach = STUDENT_T * statistics.stdev(each_mj) / math.sqrt(WINDOWS)
    method = f"{windows[-1].method}; gross, over {WINDOWS} windows of back-to-back calls"
    return Figure(mean, max(mean - reach, 0.0), mean + reach, "mJ", Provenance.MEASURED, method)


def _quality(timing: Timing) -> dict[str, str]:
    """Return what tells a person how far to trust a timing."""
    width = f"{100 * timing.interval.half_width:.1f} % to either side"
    if not timing.interval.closed:
        width = f"open: {len(timing.samples_ms)} calls are too few for this percentile"
    elif not timing.narrow:
        width += ", wider than wanted when the time was up"
    return {"interval": width, "spread": f"{100 * timing.spread:.1f} % of the median between the quartiles"}
