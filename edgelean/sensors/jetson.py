"""What a Jetson tells about itself: which one it is, its power mode, and the clocks that its governor chose.

The governor lowers the clock of the GPU for lighter models, so that a smaller model can look slower than it is: an
engine in FP32 was seen to run at 598 MHz and the same in FP16 at 310 MHz. Every file here can be read without root,
except the clock of the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelean.sensors.kernel_files import (
    ROOT,
    compatible_of,
    first_number,
    model_of,
    number_of,
    text_of,
    zone_temperatures_c,
)

STEADY_CLOCK = 0.02
"""A clock that moves by less moves the latency by less than the precision that readings aim for (3 %)."""

ROUNDING = 0.005
"""A mode of 625 MHz means the clock of 624.75 MHz."""

GPU_FOLDERS = (
    "17000000.gpu",  # Orin, JetPack 6 and 7
    "17000000.ga10b",  # Orin, JetPack 5
    "17000000.gv11b",  # Xavier
    "gpu-gpc-0",  # Thor; gpu-nvd-0 beside it is the video engines
    "17000000.gp10b",  # TX2
    "57000000.gpu",  # Nano
)
LOADS = (
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/gpu.0/load",
)
MEMORY_CLOCKS = (
    "sys/kernel/debug/bpmp/debug/clk/emc/rate",
    "sys/kernel/debug/clk/emc/clk_rate",
)

JETPACKS: Mapping[str, str] = {
    "32.4": "4.4", "32.5": "4.5", "32.6": "4.6", "32.7": "4.6",
    "35.1": "5.0", "35.2": "5.1", "35.3": "5.1", "35.4": "5.1", "35.5": "5.1", "35.6": "5.1",
    "36.2": "6.0", "36.3": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1",
    "36.5": "6.2.2", "38.2": "7.0", "38.4": "7.1", "39.2": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
"""JetPack by the version of L4T; the longest beginning that fits."""

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_MODE = re.compile(r"<\s*POWER_MODEL\s([^>]*)>([^<]*)")
_GPU_CAP = re.compile(r"^GPU\s+MAX_FREQ\s+(-?\d+)", re.MULTILINE)


@dataclass(frozen=True)
class GpuClock:
    """The clock of the GPU and the range that its governor may use, in MHz."""

    now_mhz: float
    least_mhz: float
    most_mhz: float

    @property
    def locked(self) -> bool:
        """Whether the governor has no choice, as after ``jetson_clocks``."""
        return self.least_mhz >= self.most_mhz


@dataclass(frozen=True)
class Jetson:
    """One look at a Jetson; what it does not tell is None or empty.

    Attributes
    ----------
    model, compatible
        What its device tree says it is.
    l4t, jetpack
        Version of its Linux, such as ``36.4.3``, and of the JetPack with that Linux.
    power_mode
        Name and number of its power mode and the limit of the GPU that is really set. The limit counts: the file with
        the mode can be older than the last change of it.
    gpu
        The clock of the GPU.
    gpu_load
        How busy the GPU was of late, from 0 to 1.
    memory_mhz
        The clock of the memory; only root may read it.
    temperatures_c
        By thermal zone, in °C.
    """

    model: str
    compatible: tuple[str, ...]
    l4t: str
    jetpack: str
    power_mode: str
    gpu: GpuClock | None
    gpu_load: float | None
    memory_mhz: float | None
    temperatures_c: Mapping[str, float]


def look_at_jetson(root: Path = ROOT) -> Jetson | None:
    """Return what this Jetson shows now, None where this machine is none."""
    compatible = compatible_of(root)
    if not any(name.startswith("nvidia,tegra") for name in compatible):
        return None
    l4t = _l4t(root)
    folder = _gpu_folder(root)
    clock = None if folder is None else _gpu_clock(folder)
    permille = first_number([*([] if folder is None else [folder / "device/load"]), *(root / path for path in LOADS)])
    memory_hz = first_number(root / path for path in MEMORY_CLOCKS)
    return Jetson(
        model=model_of(root),
        compatible=compatible,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        power_mode=_power_mode(root, folder, clock),
        gpu=clock,
        gpu_load=None if permille is None else permille / 1e3,
        memory_mhz=None if memory_hz is None else memory_hz / 1e6,
        temperatures_c=zone_temperatures_c(root),
    )


def moved_clock(before: Jetson, after: Jetson) -> str:
    """Return that the clock of the GPU moved, and what to do; nothing where it did not."""
    if before.gpu is None or after.gpu is None:
        return ""
    was, now = before.gpu.now_mhz, after.gpu.now_mhz
    if abs(now - was) <= STEADY_CLOCK * max(was, now):
        return ""
    return (
        f"the governor moved the GPU's clock from {was:.0f} to {now:.0f} MHz during the measurement: "
        "`sudo jetson_clocks` holds it at the highest clock of the power mode"
    )


def jetson_conditions(before: Jetson, after: Jetson) -> dict[str, str]:
    """Return under what a measurement between two looks was made, in words."""
    words = {"machine": after.model, "l4t": after.l4t, "power mode": after.power_mode}
    if after.jetpack:
        words["l4t"] += f" (JetPack {after.jetpack})"
    if after.gpu is not None:
        was, now = after.gpu.now_mhz if before.gpu is None else before.gpu.now_mhz, after.gpu.now_mhz
        moved = f"{now:.0f} MHz" if was == now else f"{was:.0f} to {now:.0f} MHz"
        limits = f"may be {after.gpu.least_mhz:.0f} to {after.gpu.most_mhz:.0f} MHz"
        words["gpu clock"] = f"{moved}, {'locked' if after.gpu.locked else limits}"
    if after.gpu_load is not None:
        words["gpu load"] = f"{100 * after.gpu_load:.0f} %"
    if after.memory_mhz is not None:
        words["memory clock"] = f"{after.memory_mhz:.0f} MHz"
    return {key: word for key, word in words.items() if word}


def _l4t(root: Path) -> str:
    match = _RELEASE.search(text_of(root / "etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else ""


def _jetpack(l4t: str) -> str:
    beginnings = (known for known in JETPACKS if f"{l4t}.".startswith(f"{known}."))
    return JETPACKS.get(max(beginnings, key=len, default=""), "")


def _gpu_folder(root: Path) -> Path | None:
    folders = (root / "sys/class/devfreq" / name for name in GPU_FOLDERS)
    return next((folder for folder in folders if (folder / "cur_freq").is_file()), None)


def _gpu_clock(folder: Path) -> GpuClock | None:
    now, least, most = (number_of(folder / f"{name}_freq") for name in ("cur", "min", "max"))
    if now is None or least is None or most is None:
        return None
    return GpuClock(now / 1e6, least / 1e6, most / 1e6)


def _power_mode(root: Path, folder: Path | None, clock: GpuClock | None) -> str:
    """Return the power mode in words; where the files of nvpmodel contradict the limit of the GPU, they are stale."""
    limit = "" if clock is None else f"GPU up to {clock.most_mhz:.0f} MHz"
    number = re.search(r"pmode:0*(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    if number is None:
        return limit
    name, cap_mhz = _modes(text_of(root / "etc/nvpmodel.conf")).get(number[1], ("", None))
    words = f"{name} (mode {number[1]})" if name else f"mode {number[1]}"
    if clock is None or folder is None:
        return words
    wanted_mhz = _reached(folder, cap_mhz)
    # The kernel shows the limit as it was set, or the highest clock under it.
    told = [mhz for mhz in (wanted_mhz, cap_mhz) if mhz is not None and mhz > 0]
    if wanted_mhz is None or any(abs(mhz - clock.most_mhz) <= ROUNDING * mhz for mhz in told):
        return f"{words}, {limit}"
    return f"{limit} (nvpmodel's file says {words}, which would be {wanted_mhz:.0f} MHz: the file is stale)"


def _modes(conf: str) -> dict[str, tuple[str, float | None]]:
    """Return name and GPU limit in MHz of each mode by its number; 0 or -1 in the file is no limit."""
    modes: dict[str, tuple[str, float | None]] = {}
    for head, body in _MODE.findall(conf):
        fields = dict(re.findall(r"(\w+)=(\S+)", head))
        cap = _GPU_CAP.search(body)
        limit = None if cap is None else int(cap[1]) / 1e6
        modes[fields.get("ID", "")] = (fields.get("NAME", ""), limit)
    return modes


def _reached(folder: Path, cap_mhz: float | None) -> float | None:
    """Return the highest clock of the GPU under a limit, in MHz; None where the clocks or the limit are not known."""
    clocks = [int(hertz) / 1e6 for hertz in text_of(folder / "available_frequencies").split() if hertz.isdecimal()]
    if cap_mhz is None or not clocks:
        return None
    allowed = [clock for clock in clocks if cap_mhz <= 0 or clock <= cap_mhz * (1 + ROUNDING)]
    return max(allowed, default=min(clocks))
