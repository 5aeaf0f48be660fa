"""RAPL: the energy counters of x86 processors, through Linux powercap."""

from __future__ import annotations

import time
from pathlib import Path

from edgelean.sensors.window import Clock, CounterSensor, SensorError

GRANT = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"


def open_rapl(root: Path = Path("/"), clock: Clock = time.perf_counter) -> CounterSensor:
    """Return a sensor of the energy of all processor packages of this machine.

    Only the package domains are added up: ``psys`` contains them, ``core`` and ``uncore`` are inside them, and the
    ``intel-rapl-mmio`` domains show the same package a second time. DRAM is a domain of its own that few machines
    have, and is left out everywhere so that machines can be compared.

    Raises
    ------
    SensorError
        There is no RAPL here, or it may not be read; the remedy is the one command that grants it.
    """
    powercap = root / "sys/class/powercap"
    packages = _packages(powercap)
    if not packages:
        raise SensorError(
            f"no processor package in {powercap}",
            "virtual machines, containers and ARM boards have none: the energy is modelled instead",
        )
    counter = _Packages(tuple(packages.values()))
    method = f"RAPL energy counter of {' + '.join(packages)}: cores and caches, not the DRAM"
    return CounterSensor("rapl", method, counter.read_j, clock)


def _packages(powercap: Path) -> dict[str, Path]:
    """Return the folders of the package domains by name; two domains of one name are mirrors of one counter."""
    packages: dict[str, Path] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name_file = zone / "name"
        name = name_file.read_text().strip() if name_file.is_file() else ""
        if name.startswith("package-"):
            packages.setdefault(name, zone)
    return packages


class _Packages:
    """The sum of several counters, each of which starts again at 0 after its own range."""

    def __init__(self, zones: tuple[Path, ...]) -> None:
        self._zones = zones
        self._ranges_uj = [_read_uj(zone / "max_energy_range_uj") for zone in zones]
        self._last_uj = [_read_uj(zone / "energy_uj") for zone in zones]
        self._total_uj = 0

    def read_j(self) -> float:
        """Return the joules since the start; one wrap of each counter between two calls is repaired."""
        for i, zone in enumerate(self._zones):
            now = _read_uj(zone / "energy_uj")
            grown = now - self._last_uj[i]
            self._total_uj += grown if grown >= 0 else grown + self._ranges_uj[i]
            self._last_uj[i] = now
        return self._total_uj / 1e6


def _read_uj(file: Path) -> int:
    """Read one number of microjoules."""
    try:
        return int(file.read_text())
    except PermissionError as error:
        raise SensorError(f"{file} may only be read by root", GRANT) from error
    except (OSError, ValueError) as error:
        raise SensorError(
            f"{file} cannot be read ({error})", "this counter is broken, choose another target"
        ) from error
