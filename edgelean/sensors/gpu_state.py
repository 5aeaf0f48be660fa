"""Clock, temperature and limits of an NVIDIA GPU, and whether it was held back while something was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelean.sensors.jetson import STEADY_CLOCK
from edgelean.sensors.nvml import Gpu
from edgelean.sensors.window import SensorError

HELD = 0.01
"""A limit that held the GPU back for a smaller share of the time is not said."""

CLOCK_SM, CLOCK_MEMORY, TEMPERATURE_GPU = 1, 2, 0
POLICIES: Mapping[str, int] = {"power": 0, "heat": 1}
"""What NVML counts the time of, in ns: how long power or heat held the clock down."""
REASONS: Mapping[int, tuple[str, str]] = {
    0x04: ("power", "its power limit"),
    0x08: ("heat", "a hardware slowdown (heat or power supply)"),
    0x20: ("heat", "its own temperature limit"),
    0x40: ("heat", "a thermal slowdown of the hardware"),
    0x80: ("supply", "the power brake of its supply"),
}
"""Bits of the reasons why a clock is held down; the numbers are part of NVML's binary interface."""


@dataclass(frozen=True)
class GpuState:
    """One look at a GPU; what it does not tell is None or empty.

    Attributes
    ----------
    words
        Name and UUID.
    clock_mhz, memory_mhz
        Clocks of the multiprocessors and of the memory.
    temperature_c, power_limit_w
        Of the chip, and the limit that is in force.
    reasons
        Why the clock is held down now: the kind (``"power"``, ``"heat"``, ``"supply"``) and the words for it.
    held_s
        How long each kind has held it down since the driver was loaded.
    """

    words: str
    clock_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_limit_w: float | None
    reasons: Mapping[str, str]
    held_s: Mapping[str, float]


def look_at_gpu(gpu: Gpu) -> GpuState:
    """Return what a GPU shows now; a few dozen microseconds a value, and nothing waits for the GPU."""
    limit_mw = _asked(gpu, "nvmlDeviceGetEnforcedPowerLimit")
    bits = _asked(gpu, "nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:  # the name that older drivers know
        bits = _asked(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    celsius = _asked(gpu, "nvmlDeviceGetTemperatureV", TEMPERATURE_GPU)
    if celsius is None:
        celsius = _asked(gpu, "nvmlDeviceGetTemperature", TEMPERATURE_GPU)
    counters = {kind: _asked(gpu, "nvmlDeviceGetViolationStatus", policy) for kind, policy in POLICIES.items()}
    return GpuState(
        words=gpu.words,
        clock_mhz=_asked(gpu, "nvmlDeviceGetClockInfo", CLOCK_SM),
        memory_mhz=_asked(gpu, "nvmlDeviceGetClockInfo", CLOCK_MEMORY),
        temperature_c=celsius,
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        reasons={kind: words for bit, (kind, words) in REASONS.items() if bits & bit},
        held_s={kind: status.violationTime / 1e9 for kind, status in counters.items() if status is not None},
    )


def gpu_disturbance(before: GpuState, after: GpuState, seconds: float) -> str:
    """Return what held the GPU back between two looks, and what to do; nothing where its clock was steady.

    Heat always counts, because it goes on rising. A power limit that holds a steady clock does not: that is how such a
    board works. One that moves the clock does.
    """
    held = _held(before, after, seconds)
    for kind, remedy in (
        ("heat", "let it cool down, cool it better, or lock a lower clock with `sudo nvidia-smi -lgc MHZ`"),
        ("supply", "check its power cables and its power supply"),
    ):
        if kind in held:
            return f"{held[kind]} slowed the GPU down during the measurement: {remedy}"
    was, now = before.clock_mhz, after.clock_mhz
    if was is None or now is None or abs(now - was) <= STEADY_CLOCK * max(was, now):
        return ""
    because = f" ({held['power']})" if "power" in held else ""
    return (
        f"the GPU's clock moved from {was:.0f} to {now:.0f} MHz during the measurement{because}: "
        f"`sudo nvidia-smi -lgc {min(was, now):.0f}` locks it, `sudo nvidia-smi -rgc` frees it again"
    )


def gpu_conditions(before: GpuState, after: GpuState, seconds: float) -> dict[str, str]:
    """Return under what a measurement between two looks was made, in words."""
    words: dict[str, str] = {}
    was, now = before.clock_mhz, after.clock_mhz
    if now is not None:
        words["gpu clock"] = f"{now:.0f} MHz" if was is None or was == now else f"{was:.0f} to {now:.0f} MHz"
        if held := _held(before, after, seconds):
            words["gpu clock"] += f", held down by {' and '.join(held.values())}"
    if after.memory_mhz is not None:
        words["memory clock"] = f"{after.memory_mhz:.0f} MHz"
    if after.power_limit_w is not None:
        words["power mode"] = f"GPU limited to {after.power_limit_w:g} W"
    return words


def _held(before: GpuState, after: GpuState, seconds: float) -> dict[str, str]:
    """Return what held the clock down, by its kind: at one of the two looks, or in between by the counters."""
    held = {**before.reasons, **after.reasons}
    for kind, words in (("power", "its power limit"), ("heat", "heat")):
        grown_s = after.held_s.get(kind, 0.0) - before.held_s.get(kind, 0.0)
        if grown_s > HELD * seconds:
            held.setdefault(kind, words)
    return held


def _asked(gpu: Gpu, call: str, *arguments: int) -> Any:
    """Return what NVML answers, None where this GPU or this driver does not tell it."""
    try:
        return gpu.ask(call, *arguments)
    except SensorError:
        return None
