"""Which sensor a board has, and which of them work here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgelean.board import Board
from edgelean.errors import DeviceError
from edgelean.sensors.hwmon import find_rails, open_hwmon
from edgelean.sensors.nvml import describe_gpus, open_nvml
from edgelean.sensors.rapl import open_rapl
from edgelean.sensors.window import Sensor, SensorError

ROOT = Path("/")
INSTEAD = "the energy is modelled instead"


@dataclass(frozen=True)
class Probe:
    """What asking for one sensor found.

    Attributes
    ----------
    name
        ``"nvml"``, ``"hwmon"``, ``"rapl"``.
    usable
        Whether it reads power here.
    detail
        What was found.
    remedy
        What a person can do where it is not usable; empty where it is.
    """

    name: str
    usable: bool
    detail: str
    remedy: str = ""


def find_sensor(board: Board, root: Path = ROOT) -> Sensor | None:
    """Return the sensor that reads this board's power, or None where it has none that works here.

    The description of this machine names no sensor: its models run on the processor, so RAPL is asked. NVML would
    answer too where there is a GPU, with the power of a GPU that does nothing. Why a sensor is not usable is said by
    :func:`probe_sensors`.
    """
    try:
        return _tried(_open(board, root))
    except SensorError:
        return None


def probe_sensors(root: Path = ROOT) -> tuple[Probe, ...]:
    """Ask for every kind of sensor on this machine and say what was found."""
    return (
        _probe("nvml", lambda: "; ".join(describe_gpus()) + f": {_tried(open_nvml()).method}"),
        _probe("hwmon", lambda: _rails_in_words(root)),
        _probe("rapl", lambda: _tried(open_rapl(root)).method),
    )


def _backend(board: Board) -> str:
    return "rapl" if board.name == "this-machine" and board.sensors.backend == "none" else board.sensors.backend


def _open(board: Board, root: Path) -> Sensor:
    """Open the sensor that the board names."""
    match _backend(board):
        case "nvml":
            return open_nvml(name_pattern=board.match.nvml_name)
        case "hwmon":
            return open_hwmon(board.sensors.total_rail, board.sensors.sum_rails, root)
        case "rapl":
            return open_rapl(root)
        case "pmic":
            raise SensorError("the power chip of the Raspberry Pi 5 is not read", INSTEAD)
        case _:
            raise SensorError(f"the board {board.name} names no sensor", INSTEAD)


def _tried(sensor: Sensor) -> Sensor:
    """Return the sensor if it can follow a few milliseconds; some virtual machines have counters that stand still."""
    try:
        sensor.over(lambda: time.sleep(1e-3), 5e-3)
    except SensorError:
        raise
    except DeviceError as error:
        raise SensorError(str(error), INSTEAD) from error
    return sensor


def _probe(name: str, describe: Callable[[], str]) -> Probe:
    try:
        return Probe(name, True, describe())
    except SensorError as why:
        return Probe(name, False, why.detail, why.remedy)


def _rails_in_words(root: Path) -> str:
    rails = find_rails(root)
    if not rails:
        raise SensorError("no INA3221 or INA238 power monitor", "only Jetson boards have them")
    return f"rails {', '.join(rail.name for rail in rails)}"
