"""The candidate runs on this machine, in the runtime of its deployment; for another board the figures are mapped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from edgelean.board import Board, Precision
from edgelean.board.cost import Cost, Operator, predict
from edgelean.reading import Figure, Provenance, Reading
from edgelean.sensors.gpu_state import look_at_gpu
from edgelean.sensors.machine import Glance, clock_yardstick, conditions, disturbance, energy_disturbance, look
from edgelean.sensors.nvml import Gpu, find_gpu
from edgelean.sensors.protocol import EnergyPerCall, EnergyProtocol, Estimate, measure_energy
from edgelean.sensors.window import Sensor, SensorError, Work
from edgelean.target.candidate import Candidate, Feeds
from edgelean.target.latency import (
    Interval,
    Patience,
    Timing,
    all_samples,
    disagreement,
    percentile_interval,
    pooled,
    scaled,
    time_calls,
    warm_up,
)
from edgelean.target.modelled import modelled_figure
from edgelean.target.runtime import OnnxRuntimeCpu, Runtime

STEADY = 0.03
"""How far a repeat, or the interval of the median, may be off the median before the machine counts as noisy."""
STEADY_CLOCK = 0.02
"""How far a fixed piece of arithmetic may become slower or faster; on a quiet core it stays within 0.5 %."""


@dataclass(frozen=True)
class Routine:
    """How one reading goes.

    Attributes
    ----------
    repeats
        Sessions that are opened one after the other. Where a session has its weights in memory moves its latency by
        a percent or two: that is part of the truth, and one session alone does not show it.
    attempts
        Sessions that are disturbed are opened again, and so is the whole reading where its sessions disagree, until
        there were so many times as many as the repeats. Then the reading is noisy.
    pause_s
        The longest of the random pauses between two repeats, so that they do not keep in step with something else.
    rest_s
        The pause after something noisy.
    patience
        How long each repeat is timed.
    energy
        How the energy is measured, once per reading.
    """

    repeats: int
    attempts: int
    pause_s: float
    rest_s: float
    patience: Patience
    energy: EnergyProtocol


IN_THE_LOOP = Routine(
    repeats=2,
    attempts=1,
    pause_s=0.02,
    rest_s=0.1,
    patience=Patience(warm_up_s=0.05, least_s=0.1, cap_s=0.4),
    energy=EnergyProtocol(
        window_s=0.15, most_windows=6, idle_s=0.0, longest_delay_s=0.03, warm_up_s=0.05, cool_down_s=0.0
    ),
)
"""About half a second: a run takes a dozen readings or two, and what disturbs one of them the controller averages."""

THOROUGH = Routine(
    repeats=6,
    attempts=3,
    pause_s=0.1,
    rest_s=0.5,
    patience=Patience(warm_up_s=0.2, least_s=0.4, cap_s=2.0),
    energy=EnergyProtocol(window_s=1.0, idle_s=2.0, warm_up_s=1.0),
)
"""Some 5 s, and 10 s where there is a sensor: six repeats, whose range holds the median over all sessions with 97 %."""


@dataclass(frozen=True)
class LocalTarget:
    """A runtime on this machine.

    Attributes
    ----------
    board
        The board that is meant: this machine, or another one, to which the figures are then transferred.
    machine
        What the runtime runs on, with its numbers known: as :func:`edgelean.target.probe_this_machine` returns it, or
        the board itself.
    precision, batch, percentile
        As the profile wants them. A runtime that does not compute in the precision runs the candidate in FP32.
    sensor
        Reads the energy of this machine; without one it is a constant power times the latency.
    runtime
        Runs the candidate.
    routine
        How one reading goes.
    """

    board: Board
    machine: Board
    precision: Precision
    batch: int
    percentile: float = 50
    sensor: Sensor | None = None
    runtime: Runtime = field(default_factory=OnnxRuntimeCpu)
    routine: Routine = IN_THE_LOOP

    @property
    def name(self) -> str:
        """The word by which ``--target`` names it."""
        return "local"

    @property
    def provenance(self) -> Provenance:
        """Measured where the board is this machine, else transferred."""
        return Provenance.MEASURED if self.board.name == self.machine.name else Provenance.TRANSFERRED

    @property
    def precision_here(self) -> Precision:
        """The precision in which the candidate really runs here.

        INT8 is another graph on another board, whose conversions take another share of the time: what it takes here
        says nothing about there, while FP32 does.
        """
        here = self.precision in self.runtime.precisions
        if not here or (self.precision == "int8" and self.provenance is not Provenance.MEASURED):
            return self.runtime.precisions[0]
        return self.precision

    def close(self) -> None:
        """Nothing is held."""

    def predict(self, operators: Iterable[Operator]) -> Cost:
        """Return the predicted cost on the board, not on this machine."""
        return predict(operators, self.board, self.precision, self.batch)

    def read(self, candidate: Candidate) -> Reading:
        """Run the candidate here and return what it takes on the board.

        A reading that is noisy after all attempts says so in its ``noise``.

        Raises
        ------
        DeviceError
            The runtime cannot load or run the candidate, or the sensor failed.
        """
        ratio = self._ratio(candidate.operators)
        limit_ms = self.routine.patience.limit_ms
        patience = replace(self.routine.patience, limit_ms=None if limit_ms is None else limit_ms / ratio.latency)
        seen = self._see(candidate.onnx(self.precision_here), candidate.sample(), patience)
        return Reading(
            latency=self._latency(seen, ratio.latency),
            energy=self._gross(seen, ratio.energy, candidate.operators),
            energy_net=self._net(seen),
            batch=self.batch,
            percentile=self.percentile,
            samples_ms=tuple(sample * ratio.latency for sample in all_samples(seen.repeats)),
            conditions=seen.conditions | {"precision": self.precision_here},
            noise=seen.noise,
        )

    def _ratio(self, operators: tuple[Operator, ...]) -> Ratio:
        """Return what figures of this machine are multiplied by."""
        if self.provenance is Provenance.MEASURED:
            return Ratio(1.0, 1.0)
        there, here = self.predict(operators), predict(operators, self.machine, self.precision_here, self.batch)
        return Ratio(there.latency_ms / here.latency_ms, there.energy_mj / here.energy_mj)

    # -- on this machine -----------------------------------------------------------------------------------------------

    def _see(self, onnx: Path, feeds: Feeds, patience: Patience) -> Seen:
        """Time the candidate, what is disturbed again and again, and then measure its energy."""
        gpu = gpu_of(self.runtime)
        sessions, call, noise = self._sessions(onnx, feeds, patience, gpu)
        repeats = tuple(session.timing for session in sessions)
        before, after = sessions[0].before, sessions[-1].after
        words = self.runtime.conditions() | conditions(before, after) | quality(repeats, self.percentile)
        if self.sensor is None:
            return Seen(repeats, None, words, noise)
        before = look(gpu=gpu)
        energy = measure_energy(self.sensor, call, self.routine.energy, temperature_c=thermometer(gpu))
        whole_machine = not self.sensor.name.startswith("nvml")
        disturbed = energy_disturbance if whole_machine else disturbance
        return Seen(repeats, energy, words, noise or disturbed(before, look(gpu=gpu)))

    def _sessions(
        self, onnx: Path, feeds: Feeds, patience: Patience, gpu: Gpu | None
    ) -> tuple[list[Session], Work, str]:
        """Return as many sessions as there are repeats, the last call, and why they are noisy if none were quiet.

        Whether a session counts is told by what others did in the meantime, and never by how fast it was.
        """
        pauses = random.Random()
        kept: list[Session] = []
        left = self.routine.attempts * self.routine.repeats
        while True:
            call = self.runtime.open(onnx, feeds)
            session = self._session(call, patience, gpu)
            left -= 1
            if session.noise and left >= self.routine.repeats - len(kept):
                time.sleep(self.routine.rest_s)
                continue
            kept.append(session)
            if len(kept) < self.routine.repeats:
                time.sleep(pauses.uniform(0, self.routine.pause_s))
                continue
            noise = next((session.noise for session in kept if session.noise), "") or doubts(
                [session.timing for session in kept], [pace for session in kept for pace in session.paces]
            )
            if not noise or left < self.routine.repeats:
                return kept, call, noise
            kept.clear()
            time.sleep(self.routine.rest_s)

    def _session(self, call: Work, patience: Patience, gpu: Gpu | None) -> Session:
        """Time the calls of one session."""
        warm_up(call, patience.warm_up_s)  # before the look, because the clocks rise in it
        first_pace, before = clock_yardstick(), look(gpu=gpu)
        timing = time_calls(call, self.percentile, replace(patience, warm_up_s=0.0))
        after, last_pace = look(gpu=gpu), clock_yardstick()
        return Session(timing, before, after, (first_pace, last_pace), disturbance(before, after))

    # -- on the board --------------------------------------------------------------------------------------------------

    def _latency(self, seen: Seen, ratio: float) -> Figure:
        words, calls = seen.conditions, sum(len(repeat.samples_ms) for repeat in seen.repeats)
        method = (
            f"{words['runtime']} on {words.get('gpu') or words['processor']}, {calls} calls in {len(seen.repeats)} "
            "sessions, each after a warm-up"
        )
        return self._figure(scaled(pooled(seen.repeats, self.percentile), ratio), "ms", method)

    def _gross(self, seen: Seen, ratio: float, operators: tuple[Operator, ...]) -> Figure | None:
        """Return the energy of one inference: only a measured one can be mapped to another board."""
        if seen.energy is not None:
            interval = scaled(_per_inference(seen.energy.gross_mj, self.batch), ratio)
            return self._figure(interval, "mJ", f"{seen.energy.method}; gross")
        if self.provenance is Provenance.TRANSFERRED:
            cost = self.predict(operators)
            return modelled_figure(cost.energy_mj, "mJ", self.board, cost)
        watts = self.machine.power.max_w
        if watts.value is None:
            return None
        # W times ms is mJ; the median, because an energy is not about the slow calls of a high percentile.
        median = scaled(pooled(seen.repeats, 50), watts.value / self.batch)
        method = f"{watts.source}, times the median latency"
        return Figure(median.value, median.low, median.high, "mJ", Provenance.MODELLED, method)

    def _net(self, seen: Seen) -> Figure | None:
        """Return the same net of the idle power; another board has another idle power, so nothing is mapped."""
        if seen.energy is None or seen.energy.net_mj is None or self.provenance is Provenance.TRANSFERRED:
            return None
        interval = _per_inference(seen.energy.net_mj, self.batch)
        return self._figure(interval, "mJ", f"{seen.energy.method}; net of the idle power")

    def _figure(self, interval: Interval, unit: str, method: str) -> Figure:
        """Return a figure of the board from one that was already mapped to it."""
        if self.provenance is Provenance.TRANSFERRED:
            method += f"; mapped to {self.board.title} by the ratio of the two cost models"
        return Figure(interval.value, interval.low, interval.high, unit, self.provenance, method)


class Ratio(NamedTuple):
    """What figures of this machine are multiplied by to be those of the board."""

    latency: float
    energy: float


@dataclass(frozen=True)
class Session:
    """One session of a candidate.

    Attributes
    ----------
    timing
        Of its calls.
    before, after
        The machine around them.
    paces
        The yardstick of the processor's clock before and after them, in s.
    noise
        What disturbed them; empty where nothing did.
    """

    timing: Timing
    before: Glance
    after: Glance
    paces: tuple[float, float]
    noise: str


@dataclass(frozen=True)
class Seen:
    """What one reading saw on this machine.

    Attributes
    ----------
    repeats
        The timings, one per session.
    energy
        Per call; None without a sensor.
    conditions, noise
        As in a reading.
    """

    repeats: tuple[Timing, ...]
    energy: EnergyPerCall | None
    conditions: dict[str, str]
    noise: str


def doubts(repeats: Sequence[Timing], paces: Sequence[float]) -> str:
    """Return why the timings themselves show a noisy machine, and what to do; nothing where they do not.

    It is judged by the median, whichever percentile is asked for: a tail may well be wide on a quiet machine, and its
    interval says so.

    Parameters
    ----------
    repeats
        The timings, one per session.
    paces
        Yardsticks of the processor's clock that were taken in between, in s.
    """
    moved = max(paces) / min(paces) - 1
    if moved > STEADY_CLOCK:
        return (
            f"the processor became {100 * moved:.1f} % slower or faster during the measurement: let it cool down, hold "
            "its clock, or measure when its neighbours are quieter"
        )
    apart = disagreement(repeats)
    if apart > STEADY:
        return (
            f"the median of one session is {100 * apart:.1f} % off that of all {len(repeats)}: end other programs, and "
            "measure again"
        )
    median = percentile_interval(all_samples(repeats), 50)
    if not median.closed or median.half_width > STEADY:
        return (
            f"the median is known to {100 * median.half_width:.1f} % only after {len(all_samples(repeats))} calls, so "
            "much do they differ: end other programs, and measure again"
        )
    return ""


def quality(repeats: Sequence[Timing], percentile: float) -> dict[str, str]:
    """Return what tells a person how far to trust the timings."""
    interval = pooled(repeats, percentile)
    width = f"{100 * interval.half_width:.1f} % to either side"
    if not interval.closed:
        width = f"open: {len(all_samples(repeats))} calls are too few for this percentile"
    elif not all(repeat.narrow for repeat in repeats):
        width += ", wider than wanted when the time was up"
    spread = max(repeat.spread for repeat in repeats)
    return {
        "interval": width,
        "spread": f"{100 * spread:.1f} % of the median between the quartiles",
        "sessions": f"{len(repeats)}, their medians within {100 * disagreement(repeats):.1f} % of that of all calls",
    }


def gpu_of(runtime: Runtime) -> Gpu | None:
    """Return the GPU of a runtime as NVML knows it; None on a processor, and on a Jetson, where NVML knows nothing."""
    if runtime.device == "cpu":
        return None
    try:
        return find_gpu()
    except SensorError:
        return None


def thermometer(gpu: Gpu | None) -> Callable[[], float] | None:
    """Return what reads the temperature of a GPU in degrees Celsius; None where there is none."""
    if gpu is None or look_at_gpu(gpu).temperature_c is None:
        return None
    return lambda: look_at_gpu(gpu).temperature_c or 0.0


def _per_inference(estimate: Estimate, batch: int) -> Interval:
    return Interval(estimate.value / batch, max(estimate.low, 0.0) / batch, estimate.high / batch, closed=True)
