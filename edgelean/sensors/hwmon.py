"""The power rails of Jetson boards: INA3221 and INA238 chips through Linux hwmon.

NVML answers on an Orin but has no power there, so this is the only way to its energy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelean.sensors.window import Clock, PowerSensor, SensorError

PERIOD_S = 0.05


@dataclass(frozen=True)
class Rail:
    """One supply line of the board.

    Attributes
    ----------
    name
        Its label, for example ``VDD_IN``.
    factors
        The files whose product is the power in microwatts: millivolts and milliamperes, or microwatts alone.
    """

    name: str
    factors: tuple[Path, ...]

    def read_w(self) -> float:
        """Return the power in W now."""
        microwatts = 1.0
        for file in self.factors:
            try:
                microwatts *= int(file.read_text())
            except (OSError, ValueError) as error:
                raise SensorError(f"the rail {self.name} cannot be read ({error})", f"look at {file}") from error
        return microwatts / 1e6


def find_rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """Return every labelled rail of every power monitor under ``root``/sys/class/hwmon."""
    found: list[Rail] = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = _text(folder / "name")
        if chip.startswith("ina3221"):
            found += _channels(folder)
        elif chip == "ina238" and (folder / "power1_input").is_file():
            # This chip has one channel; where the device tree gives it no label, it is the carrier board's input.
            found.append(Rail(_text(folder / "label") or "VIN", (folder / "power1_input",)))
    return tuple(found)


def open_hwmon(
    total_rail: str | None, sum_rails: Sequence[str], root: Path = Path("/"), clock: Clock = time.perf_counter
) -> PowerSensor:
    """Return a sensor of the power of the whole board, by the rule of its board file.

    Parameters
    ----------
    total_rail
        The rail that feeds all others; where it is present it is the total, alone.
    sum_rails
        The rails that add up to the total where no rail feeds all others.

    Raises
    ------
    SensorError
        There is no power monitor, or the rails of the rule are not all there or cannot be read.
    """
    rails = {rail.name: rail for rail in find_rails(root)}
    if not rails:
        raise SensorError(
            f"no INA3221 or INA238 power monitor in {root / 'sys/class/hwmon'}",
            "only Jetson boards have them; a container needs /sys of its host",
        )
    names = (total_rail,) if total_rail in rails else tuple(sum_rails)
    missing = [name for name in names if name not in rails]
    if missing or not names:
        wanted = ", ".join(missing) or total_rail or "none given"
        raise SensorError(
            f"the rails are {', '.join(rails)}, wanted: {wanted}",
            "set sensors.total_rail or sensors.sum_rails in the board file to this board's rails",
        )
    chosen = [rails[str(name)] for name in names]

    def read_w() -> float:
        return sum(rail.read_w() for rail in chosen)

    read_w()
    words = f"hwmon power rail{'s' if len(names) > 1 else ''} {' + '.join(rail.name for rail in chosen)}"
    return PowerSensor(
        "hwmon",
        f"{words}, sampled every {PERIOD_S * 1e3:.0f} ms",
        read_w,
        clock,
        PERIOD_S,
    )


def _channels(folder: Path) -> list[Rail]:
    """Return the connected channels of an INA3221; in4 and above are shunt voltages, not rails."""
    rails = []
    for channel in (1, 2, 3):
        label = _text(folder / f"in{channel}_label")
        if label and label != "NC":
            rails.append(Rail(label, (folder / f"in{channel}_input", folder / f"curr{channel}_input")))
    return rails


def _text(file: Path) -> str:
    """Return the text of a small file, or nothing where it is not there."""
    return file.read_text().strip() if file.is_file() else ""
