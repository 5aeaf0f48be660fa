"""Counters and states of the processors, read from the files of Linux: each None or empty where it is not shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgelean.sensors.kernel_files import number_of, text_of

PROCESSOR_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
"""Only these are asked for their temperature: a disk needs milliseconds to answer."""


@dataclass(frozen=True)
class Processors:
    """What the processors that this process may use did since the start of the machine, all together, in s.

    Attributes
    ----------
    busy_s, idle_s, stolen_s
        Time with work, without, and with work that a hypervisor kept from running.
    count, cores
        How many there are, and how many cores they are: two hyper-threads are one core.
    """

    busy_s: float
    idle_s: float
    stolen_s: float
    count: int
    cores: int


def ticks_a_second() -> float:
    """Return the unit of the kernel's CPU times."""
    return float(os.sysconf("SC_CLK_TCK"))


def processors(root: Path) -> Processors | None:
    """Add up /proc/stat over the processors that this process may use, over all where they cannot be told apart."""
    rows = {
        row[0]: [int(count) / ticks_a_second() for count in row[1:9]]
        for row in (line.split() for line in text_of(root / "proc/stat").splitlines() if line.startswith("cpu"))
    }
    if "cpu" not in rows:
        return None
    total = rows.pop("cpu")
    allowed = [f"cpu{number}" for number in _allowed() if f"cpu{number}" in rows] or list(rows)
    if len(allowed) < len(rows):
        total = [sum(rows[name][field] for name in allowed) for field in range(len(total))]
    user, nice, system, idle, waiting_for_disks, interrupts, soft_interrupts, stolen = [*total, *[0.0] * 8][:8]
    siblings = (root / "sys/devices/system/cpu" / name / "topology/thread_siblings_list" for name in allowed)
    cores = {text_of(file) or str(file) for file in siblings}
    busy = user + nice + system + interrupts + soft_interrupts
    return Processors(busy, idle + waiting_for_disks, stolen, len(allowed), len(cores))


def _allowed() -> frozenset[int]:
    """Return the numbers of the processors that this process may use; nothing where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def waiting_s(root: Path) -> dict[int, float] | None:
    """Return how long each thread of this process could have run and had no processor, in s."""
    waiting: dict[int, float] = {}
    for thread in (root / "proc/self/task").glob("*"):
        fields = text_of(thread / "schedstat").split()  # ns on a processor, ns waiting for one, turns
        if len(fields) == 3:
            waiting[int(thread.name)] = int(fields[1]) / 1e9
    return waiting or None


def quota_s(root: Path) -> float | None:
    """Return how long the CPU quota of its control group, old or new, held this process back, in s."""
    groups = dict(re.findall(r"^\d+:([^:]*):(.*)$", text_of(root / "proc/self/cgroup"), re.MULTILINE))
    for folder, key, unit in (
        (f"sys/fs/cgroup{groups.get('', '')}", "throttled_usec", 1e-6),
        (f"sys/fs/cgroup/cpu{groups.get('cpu', groups.get('cpu,cpuacct', ''))}", "throttled_time", 1e-9),
    ):
        found = re.search(rf"^{key} (\d+)$", text_of(root / folder / "cpu.stat"), re.MULTILINE)
        if found:
            return int(found[1]) * unit
    return None


def throttled(root: Path) -> float | None:
    """Return how often heat slowed the cores and packages of an Intel processor down."""
    counts = [number_of(f) for f in (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def processor_mhz(root: Path) -> float | None:
    """Return the clock of the processor that this thread is on; asking the idle ones would wake them up."""
    fields = text_of(root / "proc/thread-self/stat").rpartition(")")[2].split()
    if len(fields) < 37:
        return None
    khz = number_of(root / f"sys/devices/system/cpu/cpu{fields[36]}/cpufreq/scaling_cur_freq")
    return None if khz is None else khz / 1e3


def power_setting(root: Path) -> str:
    """Return what the system was told to do about power: profile, governor, and whether a battery is running down."""
    profile = text_of(root / "sys/firmware/acpi/platform_profile")
    governor = text_of(root / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor")
    supplies = (root / "sys/class/power_supply").glob("*")
    # A mouse has a battery too; its scope is "Device".
    running_down = any(
        text_of(supply / "status") == "Discharging" and text_of(supply / "scope") != "Device" for supply in supplies
    )
    words = (profile and f"profile {profile}", governor and f"governor {governor}", "on battery" * running_down)
    return ", ".join(filter(None, words))


def chip_temperatures_c(root: Path) -> dict[str, float]:
    """Return the temperatures of processors that are no thermal zone, as those of AMD."""
    found: dict[str, float] = {}
    for folder in (root / "sys/class/hwmon").glob("hwmon*"):
        name = text_of(folder / "name")
        millidegrees = number_of(folder / "temp1_input") if name in PROCESSOR_CHIPS else None
        if millidegrees is not None:
            found[name] = max(millidegrees / 1e3, found.get(name, -100.0))
    return found


def raspberry() -> int | None:
    """Return the bits with which the firmware of a Raspberry Pi says that it slows the board down, and why."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None
    try:
        done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", done.stdout)
    return int(match[1], 16) if match else None
