"""Trees of files that look like the sysfs of real machines, with the figures that their tegrastats prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Rails = Mapping[str, tuple[int, int]]
"""Label: millivolts and milliamperes."""

ORIN_NANO: Rails = {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 280)}
AGX_ORIN: Rails = {"VDD_GPU_SOC": (20000, 120), "VDD_CPU_CV": (20000, 40), "VIN_SYS_5V0": (5000, 704)}
THOR: Rails = {"VDD_GPU": (20000, 98), "VDD_CPU_SOC_MSS": (20000, 294), "VIN_SYS_5V0": (5000, 1127)}
XAVIER_NX: Rails = {"VDD_IN": (5000, 820), "VDD_CPU_GPU_CV": (5000, 190), "VDD_SOC": (5000, 210)}


def write(root: Path, path: str, value: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")
    return file


def ina3221(root: Path, folder: str, rails: Rails, *, interval_ms: int = 7, samples: int = 1) -> None:
    """Write one chip with up to three channels as the hwmon driver shows it."""
    write(root, f"{folder}/name", "ina3221")
    write(root, f"{folder}/update_interval", interval_ms)
    write(root, f"{folder}/samples", samples)
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        write(root, f"{folder}/in{channel}_label", label)
        write(root, f"{folder}/in{channel}_input", millivolts)
        write(root, f"{folder}/curr{channel}_input", milliamperes)
        write(root, f"{folder}/shunt{channel}_resistor", 5000)
    write(root, f"{folder}/in7_label", "sum of shunt voltages")
    write(root, f"{folder}/in7_input", 123)


def ina3221_iio(root: Path, folder: str, rails: Rails, *, with_power: bool = True) -> None:
    """Write one chip as the driver of JetPack 4 shows it; its older form multiplies nothing."""
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items()):
        write(root, f"{folder}/rail_name_{channel}", label)
        write(root, f"{folder}/in_voltage{channel}_input", millivolts)
        write(root, f"{folder}/in_current{channel}_input", milliamperes)
        if with_power:
            write(root, f"{folder}/in_power{channel}_input", millivolts * milliamperes // 1000)


def orin_nano(root: Path) -> None:
    """JetPack 6: one chip, under two names."""
    write(root, "sys/class/hwmon/hwmon0/name", "pwmfan")
    chip = "sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-0040"
    ina3221(root, f"{chip}/hwmon/hwmon1", ORIN_NANO)
    for link in ("sys/class/hwmon/hwmon1", "sys/bus/i2c/drivers/ina3221/1-0040"):
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(root / (f"{chip}/hwmon/hwmon1" if "class" in link else chip))


def agx_orin(root: Path) -> None:
    """JetPack 5: two chips, a channel that is not connected."""
    ina3221(root, "sys/class/hwmon/hwmon3", AGX_ORIN)
    ina3221(root, "sys/class/hwmon/hwmon4", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 60)})


def agx_orin_jetpack_7(root: Path) -> None:
    """A container without /sys/class/hwmon: only the driver's own folder; unused channels have no files."""
    ina3221(root, "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2", AGX_ORIN)
    folder = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon3"
    write(root, f"{folder}/name", "ina3221")
    write(root, f"{folder}/in2_label", "VDDQ_VDD2_1V8AO")
    write(root, f"{folder}/in2_input", 5000)
    write(root, f"{folder}/curr2_input", 60)


def thor_module(root: Path) -> None:
    """A Thor on a carrier board without its own monitor."""
    ina3221(root, "sys/class/hwmon/hwmon3", THOR)


def thor(root: Path) -> None:
    """A Thor developer kit: the carrier board reads its input."""
    thor_module(root)
    write(root, "sys/class/hwmon/hwmon5/name", "ina238")
    write(root, "sys/class/hwmon/hwmon5/power1_input", 19_780_000)


def thor_asleep(root: Path) -> None:
    """The GPU is switched off; the offset of its monitor is below zero."""
    ina3221(root, "sys/class/hwmon/hwmon3", {**THOR, "VDD_GPU": (20000, -20)})


def xavier_nx_jetpack_4(root: Path) -> None:
    """JetPack 4 shows iio devices."""
    ina3221_iio(root, "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0", XAVIER_NX)


def xavier_nx_jetpack_5(root: Path) -> None:
    """JetPack 5 shows hwmon."""
    ina3221(root, "sys/class/hwmon/hwmon4", XAVIER_NX)


def agx_xavier_jetpack_4(root: Path) -> None:
    """Two chips, six rails, none of which feeds the others."""
    folder = "sys/bus/i2c/drivers/ina3221x"
    first: Rails = {"GPU": (19000, 100), "CPU": (19000, 50), "SOC": (19000, 60)}
    second: Rails = {"CV": (19000, 10), "VDDRQ": (19000, 20), "SYS5V": (19000, 110)}
    ina3221_iio(root, f"{folder}/1-0040/iio_device", first, with_power=False)
    ina3221_iio(root, f"{folder}/1-0041/iio_device", second, with_power=False)


def rapl_zone(root: Path, zone: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    """Write one domain of an x86 processor and return the file of its counter."""
    folder = f"sys/class/powercap/{zone}"
    write(root, f"{folder}/name", name)
    write(root, f"{folder}/max_energy_range_uj", range_uj)
    return write(root, f"{folder}/energy_uj", energy_uj)
