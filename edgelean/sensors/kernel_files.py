"""Small files in which a kernel tells about the machine; what is not there, or may not be read, is not known."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

ROOT = Path("/")


def text_of(file: Path) -> str:
    """Return the text of a file, nothing where it cannot be read; device trees end their texts with a NUL."""
    try:
        return file.read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number_of(file: Path) -> float | None:
    """Return the number that a file holds, None where it holds none."""
    try:
        return float(text_of(file).split(maxsplit=1)[0])
    except (IndexError, ValueError):
        return None


def first_number(files: Iterable[Path]) -> float | None:
    """Return the number of the first of these files that holds one."""
    return next((number for number in map(number_of, files) if number is not None), None)


def compatible_of(root: Path = ROOT) -> tuple[str, ...]:
    """Return what the device tree says this machine is, most special first; nothing on a PC."""
    return tuple(filter(None, text_of(root / "proc/device-tree/compatible").split("\0")))


def model_of(root: Path = ROOT) -> str:
    """Return the model of the board by its device tree; nothing on a PC."""
    return text_of(root / "proc/device-tree/model")


def zone_temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Return the temperature of each thermal zone in °C, by its type; of several alike the hottest.

    A zone that is switched off, as that of a sleeping GPU, refuses to be read or is far below zero; it is left out.
    """
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, millidegrees = text_of(zone / "type"), number_of(zone / "temp")
        if kind and millidegrees is not None and millidegrees > -100_000:
            found[kind] = max(millidegrees / 1e3, found.get(kind, -100.0))
    return found


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's own name, else its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
