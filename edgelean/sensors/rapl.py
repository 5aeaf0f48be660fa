"""RAPL: the energy counters of x86 processors, Intel's and AMD's, through Linux powercap."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path

from edgelean.errors import DeviceError
from edgelean.sensors.kernel_files import ROOT, text_of
from edgelean.sensors.window import Clock, CounterSensor, SensorError

MIRROR_UJ = 500_000
"""Two dies whose counters differ by less all the same show one counter: its ticks of 1 ms at 500 W."""
MOST_W = 5_000.0
"""No package draws more, so a counter that seems to have wrapped around with more was set back."""
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")


def open_rapl(root: Path = ROOT, clock: Clock = time.perf_counter) -> CounterSensor:
    """Return a sensor of the energy of all processor packages of this machine.

    Only the package domains are added up: ``psys`` contains them, ``core`` and ``uncore`` are inside them, and the
    ``intel-rapl-mmio`` domains show the same package a second time, so they are read only where the others are
    missing. AMD shows one package per die although all dies mirror one counter, Intel's dies have a counter each: those
    that show the same number are counted once. DRAM is a domain of its own that few machines have, and is left out
    everywhere so that machines can be compared.

    Raises
    ------
    SensorError
        There is no RAPL here, or it may not be read; the remedy is the one command that grants it.
    """
    powercap = root / "sys/class/powercap"
    packages = _packages(powercap, "intel-rapl") or _packages(powercap, "intel-rapl-mmio")
    if not packages:
        if any(powercap.glob("intel-rapl*:*")):
            raise SensorError(
                f"the processor packages in {powercap} are masked",
                "start the container with --security-opt systempaths=unconfined, or measure outside of it",
            )
        raise SensorError(
            f"no processor package in {powercap}",
            "virtual machines, containers and ARM boards have none: the energy is modelled instead",
        )
    zones, mirrors = _without_mirrors(packages)
    counter = _Packages(tuple(zones.values()), clock)
    method = f"RAPL energy counter of {' + '.join(zones)}: cores and caches, not the DRAM"
    if mirrors:
        method += f" ({', '.join(mirrors)} mirror the same counter)"
    return CounterSensor("rapl", method, counter.read_j, clock)


def _packages(powercap: Path, prefix: str) -> dict[str, Path]:
    """Return the folders of the package domains by name; two domains of one name are mirrors of one counter."""
    packages: dict[str, Path] = {}
    for zone in sorted(powercap.glob(f"{prefix}:*")):
        name = text_of(zone / "name")
        if _PACKAGE.fullmatch(name):
            packages.setdefault(name, zone)
    return packages


def _without_mirrors(packages: dict[str, Path]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the packages that have a counter of their own, and the names of those that show another's."""
    own: dict[str, Path] = {}
    mirrors: list[str] = []
    readers: dict[str, list[Path]] = defaultdict(list)
    for name, zone in packages.items():
        match = _PACKAGE.fullmatch(name)
        dies = readers[match[1] if match else name]
        if any(_same_counter(zone, other) for other in dies):
            mirrors.append(name)
        else:
            dies.append(zone)
            own[name] = zone
    return own, tuple(mirrors)


def _same_counter(zone: Path, other: Path) -> bool:
    """Return whether one counter lies between two readings of the other that enclose it."""
    before, between, after = (_read_uj(folder / "energy_uj") for folder in (other, zone, other))
    return before - MIRROR_UJ <= between <= after + MIRROR_UJ


class _Packages:
    """The sum of several counters, each of which starts again at 0 after its own range."""

    def __init__(self, zones: tuple[Path, ...], clock: Clock) -> None:
        self._zones, self._clock = zones, clock
        self._ranges_uj = [_read_uj(zone / "max_energy_range_uj") for zone in zones]
        self._last_uj = [_read_uj(zone / "energy_uj") for zone in zones]
        self._last_s = clock()
        self._total_uj = 0

    def read_j(self) -> float:
        """Return the joules since the start; one wrap of each counter between two calls is repaired."""
        now_s = self._clock()
        most_uj = (MOST_W * (now_s - self._last_s) + 1.0) * 1e6
        for i, zone in enumerate(self._zones):
            now = _read_uj(zone / "energy_uj")
            grown = now - self._last_uj[i]
            if grown < 0:
                grown += self._ranges_uj[i]
                if grown > most_uj:
                    self._last_uj[i] = now
                    raise DeviceError(
                        f"rapl: {zone / 'energy_uj'} was set back, as when the machine slept: measure again"
                    )
            self._total_uj += grown
            self._last_uj[i] = now
        self._last_s = now_s
        return self._total_uj / 1e6


def _read_uj(file: Path) -> int:
    """Read one number of microjoules."""
    try:
        return int(file.read_text())
    except PermissionError as error:
        zones = f"{file.parent.name.partition(':')[0]}:*"
        raise SensorError(
            f"{file} may only be read by root", f"sudo chmod a+r {file.parent.parent / zones / 'energy_uj'}"
        ) from error
    except (OSError, ValueError) as error:
        raise SensorError(
            f"{file} cannot be read ({error})", "this counter is broken, choose another target"
        ) from error
