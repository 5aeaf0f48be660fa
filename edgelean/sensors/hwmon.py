"""The power rails of Jetson boards: INA3221 and INA238 chips through Linux hwmon, and through iio on JetPack 4.

NVML answers on an Orin but has no power there, so this is the only way to its energy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelean.sensors.kernel_files import ROOT, number_of, text_of
from edgelean.sensors.window import Clock, PowerSensor, SensorError

PERIOD_S = 0.05
SETTLING = 5.0
"""The chips average like a low-pass filter; after so many of its time constants 99 % of a step have come through."""
LONGEST_ROUND_MS = 3 * 2 * 8.244
"""An INA3221 converts 3 channels x 2 voltages in at most 8.244 ms each; a longer interval counts its samples in."""
UNKNOWN_SETTLE_S = 2.0
"""For drivers that do not tell how their chip averages."""
INA238_INTERVAL_MS = 3 * 16 * 1.052
"""What Linux sets an INA238 to, where it cannot be asked: 3 values x 16 samples of 1.052 ms."""
SHUNT_STEP_UV = 40.0
"""The smallest voltage across its shunt that an INA3221 tells apart."""

USUAL_TOTALS: Sequence[tuple[str, ...]] = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX, TX2: what the module draws, everything else is inside it
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor, the carrier board with the module
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor without the monitor of the carrier board
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Which rails are the whole board, family by family: the first line whose rails are all there."""

_LOST = "`dmesg | grep -i ina` says why its driver stopped: restart the board"


@dataclass(frozen=True)
class Rail:
    """One supply line of the board.

    Attributes
    ----------
    name
        Its label, for example ``VDD_IN``.
    factors
        The files whose product is the power: voltage and current, or the power alone.
    watts
        What a product of 1 means, in W.
    interval_ms
        How often the chip renews its values; None where the driver does not tell.
    settle_s
        How long the values still contain what was before.
    current_step_ma
        The smallest current that the chip tells apart; None where the driver does not tell the shunt.
    """

    name: str
    factors: tuple[Path, ...]
    watts: float
    interval_ms: float | None
    settle_s: float
    current_step_ma: float | None = None

    def read_w(self) -> float:
        """Return the power in W now; it may be 0 or slightly below, as of a GPU that is switched off.

        Raises
        ------
        SensorError
            The rail vanished, cannot be read, or has no voltage.
        """
        values = [self._read(file) for file in self.factors]
        if len(values) > 1 and values[0] == 0:
            raise SensorError(f"hwmon: the rail {self.name} has 0 V", f"look at {self.factors[0]}, {_LOST}")
        product = self.watts
        for value in values:
            product *= value
        return product

    @property
    def step_w(self) -> float | None:
        """The smallest power that can be told apart at its present voltage, in W; None where it is not known."""
        if self.current_step_ma is None or len(self.factors) < 2:
            return None
        return self._read(self.factors[0]) * self.current_step_ma * self.watts

    def _read(self, file: Path) -> int:
        try:
            return int(file.read_text())
        except FileNotFoundError as error:
            raise SensorError(f"hwmon: the rail {self.name} vanished ({file})", _LOST) from error
        except PermissionError as error:
            raise SensorError(f"hwmon: {file} may not be read", f"sudo chmod a+r {file}") from error
        except (OSError, ValueError) as error:
            raise SensorError(f"hwmon: the rail {self.name} cannot be read ({error})", f"look at {file}") from error


def find_rails(root: Path = ROOT) -> tuple[Rail, ...]:
    """Return every labelled rail of every power monitor, wherever the kernel of this JetPack shows it.

    JetPack 5 and newer show them under ``/sys/class/hwmon`` and, the same again, under the driver of the chip; JetPack
    4 only as iio devices. A label counts where it is seen first. Channels that are not connected (``NC``) and the sum
    of the shunt voltages are no rails.
    """
    found: dict[str, Rail] = {}
    for folder in _folders(root, "sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*"):
        chip = text_of(folder / "name")
        if chip.startswith("ina3221"):
            rails = _channels(folder)
        elif chip == "ina238":
            rails = _single(folder)
        else:
            continue
        for rail in rails:
            found.setdefault(rail.name, rail)
    for folder in _folders(root, "sys/bus/i2c/drivers/ina3221*/*/iio*device*", "sys/bus/iio/devices/iio:device*"):
        for rail in _iio_channels(folder):
            found.setdefault(rail.name, rail)
    return tuple(found.values())


def usual_total(rails: Sequence[Rail]) -> tuple[str, ...]:
    """Return which of these rails are the whole board, by the names that NVIDIA's boards have; nothing if unknown."""
    names = {rail.name for rail in rails}
    return next((total for total in USUAL_TOTALS if names.issuperset(total)), ())


def open_hwmon(names: Sequence[str], root: Path = ROOT, clock: Clock = time.perf_counter) -> PowerSensor:
    """Return a sensor of the sum of some rails.

    Parameters
    ----------
    names
        The rail that feeds all others, alone, or the rails that add up to the whole board; never both.
    root
        Where sysfs is looked for.
    clock
        Monotonic seconds.

    Raises
    ------
    SensorError
        There is no power monitor, not all rails are there, or they cannot be read.
    """
    rails = {rail.name: rail for rail in find_rails(root)}
    if not rails:
        raise SensorError(
            f"no INA3221 or INA238 power monitor in {root / 'sys/class/hwmon'}",
            "only Jetson boards have them; a container needs /sys of its host",
        )
    missing = [name for name in names if name not in rails]
    if missing or not names:
        raise SensorError(
            f"the rails are {', '.join(rails)}, wanted: {', '.join(missing) or 'none given'}",
            "set sensors.total_rail or sensors.sum_rails in the board file to this board's rails",
        )
    chosen = [rails[name] for name in names]
    words = " + ".join(names)

    def read_w() -> float:
        watts = sum(rail.read_w() for rail in chosen)
        if watts <= 0:
            raise SensorError(f"hwmon: {words} read {watts:g} W", f"no board needs nothing: {_LOST}")
        return watts

    read_w()
    settle_s = max(rail.settle_s for rail in chosen)
    method = f"hwmon power rail{'s' if len(names) > 1 else ''} {words}, sampled every {PERIOD_S * 1e3:.0f} ms"
    return PowerSensor("hwmon", method, read_w, clock, PERIOD_S, settle_s=settle_s)


def _folders(root: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(pattern))


def _channels(folder: Path) -> list[Rail]:
    """Return the connected channels of an INA3221; in4 and above are shunt voltages, not rails."""
    interval_ms, settle_s = _averaging(folder, None)
    rails = []
    for channel in (1, 2, 3):
        label = text_of(folder / f"in{channel}_label")
        if not label or label == "NC":
            continue
        files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
        shunt_uohm = number_of(folder / f"shunt{channel}_resistor")
        step_ma = SHUNT_STEP_UV / shunt_uohm * 1e3 if shunt_uohm else None
        rails.append(Rail(label, files, 1e-6, interval_ms, settle_s, step_ma))
    return rails


def _single(folder: Path) -> list[Rail]:
    """Return the one channel of an INA238; without a label it is what the carrier board takes in."""
    file = folder / "power1_input"
    if not file.is_file():
        return []
    interval_ms, settle_s = _averaging(folder, INA238_INTERVAL_MS)
    return [Rail(text_of(folder / "label") or "VIN", (file,), 1e-6, interval_ms, settle_s)]


def _iio_channels(folder: Path) -> list[Rail]:
    """Return the channels of an INA3221 as the driver of JetPack 4 shows them."""
    rails = []
    for file in sorted(folder.glob("rail_name_*")):
        label, channel = text_of(file), file.name.removeprefix("rail_name_")
        if not label or label == "NC":
            continue
        power = folder / f"in_power{channel}_input"
        if power.is_file():
            rails.append(Rail(label, (power,), 1e-3, None, UNKNOWN_SETTLE_S))
        else:
            files = (folder / f"in_voltage{channel}_input", folder / f"in_current{channel}_input")
            rails.append(Rail(label, files, 1e-6, None, UNKNOWN_SETTLE_S))
    return rails


def _averaging(folder: Path, usual_interval_ms: float | None) -> tuple[float | None, float]:
    """Return how often a chip renews its values in ms, and how long it takes to settle in s.

    The INA3221 adds a part 1/samples of each new conversion to its register, so the samples are a time constant. Older
    drivers count them in their interval, newer ones do not; whatever is too long to be one round has them in it.
    """
    interval_ms = number_of(folder / "update_interval")
    if interval_ms is None:
        settle_s = UNKNOWN_SETTLE_S if usual_interval_ms is None else SETTLING * usual_interval_ms / 1e3
        return usual_interval_ms, settle_s
    samples = number_of(folder / "samples") or 1.0
    constant_ms = interval_ms if interval_ms > LONGEST_ROUND_MS else interval_ms * samples
    return interval_ms, SETTLING * max(constant_ms, 1.0) / 1e3
