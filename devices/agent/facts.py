"""What this board is, and the state it is in: small files of the kernel as they are, and what NVML and Python tell.

The host reads the files with the code with which it reads its own, so nothing is interpreted twice.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Set

import power
from common import ROOT, RefusedError, number, text
from nvml import Gpu, Nvml

PACKAGES = ("numpy", "onnxruntime", "tensorrt")
LONGEST = 65536

CHIP = ("name", "*label", "update_interval", "samples", "shunt*_resistor", "in*_input", "curr*_input", "power*_input")
IDENTITY = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "sys/class/devfreq/*/available_frequencies",
    *(f"{folder}/{name}" for folder in power.HWMON for name in CHIP),
    *(f"{power.IIO}/{name}" for name in ("rail_name_*", "in_power*_input", "in_voltage*_input", "in_current*_input")),
    "sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list",
)
STATE = (
    "proc/loadavg",
    "proc/self/cgroup",
    "proc/self/task/*/schedstat",
    "proc/thread-self/stat",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
    "sys/firmware/acpi/platform_profile",
    "sys/class/power_supply/*/status",
    "sys/class/power_supply/*/scope",
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/temp1_input",
    "sys/class/thermal/thermal_zone*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/devfreq/*/*_freq",
    "sys/class/devfreq/*/device/load",
    "sys/devices/platform/gpu.0/load",
    "var/lib/nvpmodel/status",
)
# The devfreq devices of the GPUs of Jetson boards, from the Nano to the Thor; others belong to video engines.
JETSON_GPU = re.compile(r"gpu-gpc-0|\d+\.(gpu|gp10b|gv11b|ga10b)")


def examine(folder: Path, root: Path = ROOT) -> Dict[str, Any]:
    """Return everything there is to know about this board; what is missing or broken is None or said in words."""
    versions = {name: version(name) for name in PACKAGES}
    providers = importlib.import_module("onnxruntime").get_available_providers() if versions["onnxruntime"] else []
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "providers": providers,
        "gpus": gpus(),
        "sensors": power.examine(root),
        "free_bytes": shutil.disk_usage(str(folder)).free,
        "files": files(IDENTITY, root),
        "state": state(None, root),
    }


def version(package: str) -> Optional[str]:
    """Return the version of a package that can really be imported, None where it cannot."""
    try:
        return str(importlib.import_module(package).__version__)
    except Exception:  # a package whose shared libraries are missing raises anything
        return None


def gpus() -> List[Dict[str, Any]]:
    """Return what NVML knows of every GPU; empty without a driver."""
    try:
        return [gpu.facts() for gpu in Nvml().gpus()]
    except RefusedError:
        return []


def state(gpu: Optional[Gpu], root: Path = ROOT) -> Dict[str, Any]:
    """Return counters and states at this moment; the host compares those of before with those of after."""
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    clock = f"sys/devices/system/cpu/cpu{_processor(root)}/cpufreq/scaling_cur_freq"  # others would be woken up
    group = text(root / "proc/self/cgroup").rpartition(":")[2]
    found = files((*STATE, clock, f"sys/fs/cgroup{group}/cpu.stat"), root)
    return {
        "at_s": time.perf_counter(),
        "own_s": sum(os.times()[:4]),
        "processors": len(allowed),
        "files": {**found, "proc/stat": summed(text(root / "proc/stat"), allowed)},
        "throttled": throttled(),
        "gpu": gpu.state() if gpu else None,
    }


def files(patterns: Iterable[str], root: Path = ROOT) -> Dict[str, str]:
    """Return the texts of all files that fit, by their paths; what cannot be read is left out."""
    found = {str(file.relative_to(root)): text(file)[:LONGEST] for pattern in patterns for file in root.glob(pattern)}
    return {path: content for path, content in found.items() if content}


def summed(stat: str, allowed: Set[str]) -> str:
    """Return /proc/stat with one line: the counters of all processors that this process may use."""
    rows = {row[0]: [int(count) for count in row[1:]] for row in map(str.split, stat.split("\n")) if row[:1]}
    chosen = [rows[name] for name in rows if name in allowed] or [rows.get("cpu", [])]
    return " ".join(["cpu", *(str(sum(counts)) for counts in zip(*chosen))])


def throttled() -> str:
    """Return what a Raspberry Pi says about its clock and its supply; nothing elsewhere."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "get_throttled"], stdout=subprocess.PIPE, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip()


def device_name(gpu: Optional[Gpu], root: Path = ROOT) -> str:
    """Return what an engine is bound to: the name of the GPU, or of the whole embedded board."""
    return text(root / "proc/device-tree/model") or (gpu.name() if gpu else platform.machine())


class Watch:
    """The clock of the GPU, looked at while it works; it stays empty for a model on the processor."""

    def __init__(self, gpu: Optional[Gpu], root: Path = ROOT) -> None:
        self._gpu = gpu
        folders = sorted((root / "sys/class/devfreq").glob("*"))
        self._file = next((f / "cur_freq" for f in folders if JETSON_GPU.fullmatch(f.name)), None)
        self.clocks_mhz: List[float] = []

    def look(self) -> None:
        """Note the clock now."""
        hertz = number(self._file) if self._file else None
        clock = hertz / 1e6 if hertz else self._gpu.clock_mhz() if self._gpu else None
        self.clocks_mhz += [clock] if clock else []


def _processor(root: Path) -> str:
    """Return the number of the processor that this thread is on."""
    fields = text(root / "proc/thread-self/stat").rpartition(")")[2].split()
    return fields[36] if len(fields) > 36 else "0"
