"""Measuring kernels and networks on a target, in an order that lets no drift tilt the fit."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

from edgelean.board import Precision
from edgelean.board.cost import Operator
from edgelean.errors import DeviceError, InputError
from edgelean.reading import Provenance, Reading
from edgelean.target.candidate import Candidate, Feeds, Target
from edgelean.target.onnx_graph import operators_of

if TYPE_CHECKING:
    import onnx

MOST_NOISY = 0.25
"""A calibration stands when at most this share of what it measured was never measured in quiet."""

HOPELESS = 0.75
"""No second round is tried where more than this share was noisy in the first."""

Halve = Callable[[Path, Path], object]
"""Writes a file in FP32 as one in FP16."""

OnReading = Callable[[int, int], None]
"""Told after each reading how many are done and how many there will be."""


class Piece(Protocol):
    """A kernel or a network."""

    @property
    def name(self) -> str:
        """What tells it apart."""
        ...

    def graph(self) -> tuple[onnx.ModelProto, Feeds]:
        """Return its graph in FP32, and one batch of inputs."""
        ...


@dataclass(frozen=True)
class Measured:
    """What one piece took.

    Attributes
    ----------
    latency_ms
        Of a call: the median of the quiet readings, or the shortest of the others.
    energy_mj, idle_w
        Of a call, gross, and the power of the board that waits; None where they were not measured.
    noise
        Why no reading was quiet; empty where one was.
    runtime, processor
        What ran it, and on what, in the words of the reading.
    """

    name: str
    operators: tuple[Operator, ...]
    latency_ms: float
    energy_mj: float | None = None
    idle_w: float | None = None
    noise: str = ""
    runtime: str = ""
    processor: str = ""


def measure(
    pieces: Sequence[Piece],
    rounds: Sequence[Target],
    precision: Precision,
    halve: Halve,
    on_reading: OnReading = lambda done, wanted: None,
    most_noisy: float = MOST_NOISY,
) -> tuple[Measured, ...]:
    """Measure every piece once a round, each round in another order, until each was measured in quiet.

    Parameters
    ----------
    pieces
        Kernels and networks.
    rounds
        What reads all of them once: as many readings of each piece, and up to twice as many of one that was never
        quiet. Not every round has to measure energy, which takes longer.
    precision
        In which the kernels have to run.
    halve
        Writes an FP16 file, where the target wants one.
    on_reading
        Called after each reading with how many are done, and how many there will be.
    most_noisy
        The share of the pieces that may never have been measured in quiet.

    Raises
    ------
    DeviceError
        The machine was too noisy, or the target failed.
    InputError
        The target does not run the kernels on the board itself.
    """
    order, shuffle = list(range(len(pieces))), Random(0)
    readings: list[list[Reading]] = [[] for _ in pieces]
    done, wanted = 0, len(rounds) * len(pieces)
    with tempfile.TemporaryDirectory() as folder:
        candidates = [_candidate(piece, Path(folder) / str(i), halve) for i, piece in enumerate(pieces)]
        for turn, target in enumerate((*rounds, *rounds)):
            shuffle.shuffle(order)
            for place in order if turn < len(rounds) else [i for i in order if not _quiet(readings[i])]:
                readings[place].append(_as_asked(target.read(candidates[place]), precision))
                done += 1
                on_reading(done, max(wanted, done))
            if turn == 0:
                _refuse_noise(readings, max(most_noisy, HOPELESS))
    _refuse_noise(readings, most_noisy)
    return tuple(
        _summary(piece.name, candidate.operators, read)
        for piece, candidate, read in zip(pieces, candidates, readings, strict=True)
    )


def _candidate(piece: Piece, path: Path, halve: Halve) -> Candidate:
    """Return a piece as a target reads it; its weights lie in a file, not in memory."""
    model, feeds = piece.graph()
    batch = next(iter(feeds.values())).shape[0]
    single, half = path.with_suffix(".onnx"), path.with_suffix(".fp16.onnx")
    single.write_bytes(model.SerializeToString())

    def write(precision: Precision) -> Path:
        if precision == "fp32":
            return single
        if precision != "fp16":
            raise InputError(f"the kernels of a calibration run in fp32 or fp16, and {precision} is asked for")
        if not half.is_file():
            halve(single, half)
        return half

    return Candidate(write, operators_of(model, batch), lambda: feeds)


def _as_asked(reading: Reading, precision: Precision) -> Reading:
    if reading.latency.provenance is not Provenance.MEASURED:
        raise InputError(
            f"a calibration needs kernels that run on the board itself, and these are {reading.latency.provenance} "
            f"({reading.latency.method}): run it on the board, or with --target ssh://HOST"
        )
    found = reading.conditions.get("precision", precision)
    if found != precision:
        raise InputError(f"a calibration in {precision} is asked for, and the runtime there computes in {found}")
    return reading


def _quiet(readings: Sequence[Reading]) -> list[Reading]:
    return [reading for reading in readings if not reading.noise]


def _summary(name: str, operators: tuple[Operator, ...], readings: Sequence[Reading]) -> Measured:
    quiet = _quiet(readings)
    times = [reading.latency.value for reading in quiet or readings]
    energies = [one for one in map(_energies, quiet or readings) if one is not None]
    gross, idle = (statistics.median(column) for column in zip(*energies, strict=True)) if energies else (None, None)
    return Measured(
        name,
        operators,
        statistics.median(times) if quiet else min(times),
        gross,
        idle,
        "" if quiet else readings[-1].noise,
        readings[-1].conditions.get("runtime", "a runtime that did not name itself"),
        readings[-1].conditions.get("processor", ""),
    )


def _energies(reading: Reading) -> tuple[float, float] | None:
    """Return the gross energy of a call in mJ and the idle power in W, where both were measured."""
    gross, net = reading.energy, reading.energy_net
    if gross is None or net is None or gross.provenance is not Provenance.MEASURED:
        return None
    return gross.value * reading.batch, (gross.value - net.value) * reading.batch / reading.latency.value


def _refuse_noise(readings: Sequence[Sequence[Reading]], most: float) -> None:
    noisy = [read[-1].noise for read in readings if not _quiet(read)]
    if len(noisy) > most * len(readings):
        (reason, _), *_ = Counter(noisy).most_common(1)
        raise DeviceError(
            f"the machine is too noisy for a calibration: {len(noisy)} of {len(readings)} kernels and networks were "
            f"never measured in quiet; {reason}"
        )
