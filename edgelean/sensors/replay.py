"""A recording instead of a sensor: what a board drew on another day, played back against a clock."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from edgelean.errors import DeviceError, InputError, MissingError
from edgelean.sensors.window import Clock, CounterSensor, integrate


def open_replay(file: Path, clock: Clock = time.perf_counter) -> CounterSensor:
    """Return a sensor that plays a recording, from its first second on as from now.

    Parameters
    ----------
    file
        CSV with the header ``seconds,watts``; seconds grow from line to line, watts are not negative.
    clock
        Monotonic seconds that drive the recording.

    Raises
    ------
    MissingError, InputError
        The file is not there, or one of its lines is not a recording.
    """
    samples = read_recording(file)
    offset = samples[0][0] - clock()

    def read_j() -> float:
        now_s = clock() + offset
        if now_s > samples[-1][0]:
            raise DeviceError(f"replay: {file} ends after {samples[-1][0] - samples[0][0]:g} s: record for longer")
        return integrate(samples, samples[0][0], now_s)

    return CounterSensor("replay", f"replay of the recording {file.name}", read_j, clock)


def read_recording(file: Path) -> Sequence[tuple[float, float]]:
    """Read pairs of seconds and watts, at least two."""
    if not file.is_file():
        raise MissingError(f"{file}: no such recording")
    with file.open(newline="") as stream:
        lines = list(csv.reader(stream))
    if not lines or lines[0] != ["seconds", "watts"]:
        raise InputError(f"{file}: line 1: a recording begins with the header seconds,watts")
    samples: list[tuple[float, float]] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            second, watt = (float(field) for field in line)
        except ValueError as error:
            raise InputError(f"{file}: line {number}: wanted two numbers, found {','.join(line)!r}") from error
        if not watt >= 0 or (samples and not second > samples[-1][0]):
            raise InputError(f"{file}: line {number}: seconds have to grow and watts cannot be negative")
        samples.append((second, watt))
    if len(samples) < 2:
        raise InputError(f"{file}: a recording has at least two samples, found {len(samples)}")
    return samples
