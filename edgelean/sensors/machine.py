"""Whether the machine was quiet while something was measured: load, stolen time, heat, clocks, power mode.

Two looks at counters and states, one before and one after, tell what happened in between. A look takes about a
millisecond; it belongs right behind a warm-up, when the clocks have risen already. Where a machine or a container does
not show something, nothing is said about it.

What disturbs was found by trying, with onnxruntime on one of two cores. A busy process on the other core left the
median of a small network alone (under 1 %), but one that adds long vectors made a network that streams its weights from
memory slower by more than half. With two busy processes the thread waited for a processor for 27 to 39 % of the time,
the mean of calls of 0.1 ms rose by 37 to 62 % (their median did not), and the median of calls of 11 ms by up to 30 %.
How long a thread waits, Linux counts itself.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edgelean.sensors import counters
from edgelean.sensors.gpu_state import GpuState, gpu_conditions, gpu_disturbance, look_at_gpu
from edgelean.sensors.jetson import Jetson, jetson_conditions, look_at_jetson, moved_clock
from edgelean.sensors.kernel_files import ROOT, model_of, number_of, zone_temperatures_c
from edgelean.sensors.nvml import Gpu

WAITED = 0.02
"""Share of the time that a thread may wait for a processor; beside one busy process it was 0 to 1.3 %."""
STOLEN = 0.02
"""Share of the time that a hypervisor may take away; at 6 % the mean of calls of 11 ms rose by 5 %."""
CROWDED = 0.05
"""Share of a core by which the wish for cores may exceed them, and that others may take where energy is counted."""
COMPANY = 0.25
"""Others that take less of a core are elsewhere most of the time."""
STEADY_PROCESSOR = 0.05
"""The clock of a processor hops by steps of 100 MHz; two of them are no change."""
QUOTA_HELD = 0.01
"""Share of the time that the quota of a container may hold a process back."""
YARDSTICK_TRIES, YARDSTICK_CALLS, YARDSTICK_NUMBERS = 9, 200, 2048

_RASPBERRY: Mapping[int, tuple[str, str]] = {
    0x1: ("its supply voltage was too low", "use a supply for this board, with a short cable"),
    0x8: ("it reached its soft temperature limit", "cool it better, or let it cool down"),
    0x4: ("it was throttled", "cool it better, or let it cool down"),
    0x2: ("its clock was capped", "cool it better, or let it cool down"),
}
"""Bits of ``vcgencmd get_throttled``, most telling first; the same bits 16 places higher stay set until a restart."""
_TEMPERATURES = re.compile(r"(?i)(cpu|gpu|tj|soc0|x86_pkg|coretemp|k10temp)")


@dataclass(frozen=True)
class Glance:
    """Counters and states of the machine at one moment; what it does not show is None or empty.

    Attributes
    ----------
    at_s
        When, by a monotonic clock.
    own_s
        CPU time of this process and of its children that have ended.
    processors
        CPU time of everything.
    waiting_s
        By thread of this process: how long it could have run and had no processor.
    quota_s
        How long the CPU quota of the container held this process back.
    throttled
        How often heat slowed the processor down.
    processor_mhz
        The clock of the processor that this thread is on.
    load
        Load average over a minute.
    power_setting
        What the system was told to do about power, in words.
    raspberry
        The bits of ``vcgencmd get_throttled``.
    jetson, gpu
        What a Jetson shows, and the NVIDIA GPU that takes part.
    """

    at_s: float
    own_s: float
    processors: counters.Processors | None = None
    waiting_s: Mapping[int, float] | None = None
    quota_s: float | None = None
    throttled: float | None = None
    processor_mhz: float | None = None
    load: float | None = None
    power_setting: str = ""
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    raspberry: int | None = None
    jetson: Jetson | None = None
    gpu: GpuState | None = None

    @property
    def power_mode(self) -> str:
        """The power mode of a Jetson; elsewhere how system and GPU are limited."""
        if self.jetson is not None:
            return self.jetson.power_mode
        limit_w = None if self.gpu is None else self.gpu.power_limit_w
        limit = "" if limit_w is None else f"GPU limited to {limit_w:g} W"
        return ", ".join(filter(None, (self.power_setting, limit)))


class Shares(NamedTuple):
    """What happened between two looks, in cores: 1 is one processor all the time.

    ``tick`` is what the counters of the kernel may be wrong by, ``waiting`` is None where Linux does not count it.
    """

    own: float
    others: float
    idle: float
    stolen: float
    waiting: float | None
    tick: float


def look(root: Path = ROOT, gpu: Gpu | None = None) -> Glance:
    """Return what the machine shows now.

    Parameters
    ----------
    root
        Where /proc and /sys are looked for.
    gpu
        The NVIDIA GPU that takes part in the measurement; without one no such GPU is looked at.
    """
    model = model_of(root)
    return Glance(
        at_s=time.perf_counter(),
        own_s=sum(os.times()[:4]),
        processors=counters.processors(root),
        waiting_s=counters.waiting_s(root),
        quota_s=counters.quota_s(root),
        throttled=counters.throttled(root),
        processor_mhz=counters.processor_mhz(root),
        load=number_of(root / "proc/loadavg"),
        power_setting=counters.power_setting(root),
        temperatures_c=counters.chip_temperatures_c(root) | zone_temperatures_c(root),
        model=model,
        raspberry=counters.raspberry() if model.startswith("Raspberry Pi") else None,
        jetson=look_at_jetson(root),
        gpu=None if gpu is None else look_at_gpu(gpu),
    )


def disturbance(before: Glance, after: Glance) -> str:
    """Return why a measurement between two looks is not to be trusted and what to do; nothing where it is."""
    reasons = (_power_changed, _slowed_down, _clock_moved, _held_by_quota, _stolen, _crowded)
    return next(filter(None, (reason(before, after) for reason in reasons)), "")


def energy_disturbance(before: Glance, after: Glance) -> str:
    """Return the same for the energy by a sensor of the whole machine, which counts what others use as well."""
    found = disturbance(before, after)
    shares = shares_between(before, after)
    if found or shares is None or shares.others <= CROWDED + shares.tick:
        return found
    return (
        f"other processes took {_percent(shares.others)} of a core during the measurement, and the sensor counts their "
        "energy too: end them (`top` shows them), or measure when they are done"
    )


def conditions(before: Glance, after: Glance) -> dict[str, str]:
    """Return under what a measurement between two looks was made, for a reading: what is known, in words."""
    words = {"machine": after.model, "power mode": after.power_mode}
    if after.load is not None:
        words["load average"] = f"{after.load:g}"
    shares = shares_between(before, after)
    if shares is not None:
        words["other processes"] = f"{_percent(shares.others)} of a core"
        if shares.stolen > 0:
            words["stolen"] = f"{_percent(shares.stolen)} of a core by the hypervisor"
    if after.processor_mhz is not None:
        was, now = before.processor_mhz or after.processor_mhz, after.processor_mhz
        words["processor clock"] = f"{now:.0f} MHz" if round(was) == round(now) else f"{was:.0f} to {now:.0f} MHz"
    if after.jetson is not None:
        words |= jetson_conditions(before.jetson or after.jetson, after.jetson)
    if after.gpu is not None:
        words |= gpu_conditions(before.gpu or after.gpu, after.gpu, after.at_s - before.at_s)
    words["temperature"] = _temperatures(after)
    return {key: word for key, word in words.items() if word}


def shares_between(before: Glance, after: Glance) -> Shares | None:
    """Return who had the processors between two looks; None where the system does not tell."""
    seconds = after.at_s - before.at_s
    if before.processors is None or after.processors is None or seconds <= 0:
        return None
    waiting = None
    if before.waiting_s is not None and after.waiting_s is not None:
        waiting = sum(max(now - before.waiting_s.get(thread, 0.0), 0.0) for thread, now in after.waiting_s.items())
    own = (after.own_s - before.own_s) / seconds
    busy = (after.processors.busy_s - before.processors.busy_s) / seconds
    return Shares(
        own=own,
        others=max(busy - own, 0.0),
        idle=(after.processors.idle_s - before.processors.idle_s) / seconds,
        stolen=(after.processors.stolen_s - before.processors.stolen_s) / seconds,
        waiting=None if waiting is None else waiting / seconds,
        tick=2 / (counters.ticks_a_second() * seconds),
    )


def clock_yardstick(clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a fixed piece of arithmetic takes on this core now, in s: the clock of machines that show none.

    Running sums of 2048 whole numbers, which fit into the first cache, in nine blocks of about 0.25 ms. The shortest
    block counts: nothing makes a block shorter than the core allows, while single ones took up to 30 times longer
    beside busy processes. On a virtual machine, two yardsticks 50 ms apart differed by less than 0.5 % in 90 and by
    less than 1 % in 95 of 100 cases, beside busy processes as well. While something outside of it slowed the core down
    they were 4 to 69 % longer, and showed 4 of 5 of the cases in which onnxruntime was more than 3 % slower (a chain of
    SHA-256 showed none). What a neighbour on another core takes of the memory's bandwidth they do not show.
    """
    import numpy as np

    numbers = np.arange(YARDSTICK_NUMBERS, dtype=np.int64)
    sums = np.empty_like(numbers)
    accumulate = np.add.accumulate
    shortest_s = math.inf
    for _ in range(YARDSTICK_TRIES):
        begin_s = clock()
        for _ in range(YARDSTICK_CALLS):
            accumulate(numbers, 0, None, sums)
        shortest_s = min(shortest_s, clock() - begin_s)
    return shortest_s


# -- reasons -----------------------------------------------------------------------------------------------------------


def _power_changed(before: Glance, after: Glance) -> str:
    was, now = before.power_mode, after.power_mode
    if was == now:
        return ""
    return f"the power mode changed during the measurement, from {was!r} to {now!r}: measure again"


def _slowed_down(before: Glance, after: Glance) -> str:
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        return "heat slowed the processor down during the measurement: let it cool down, or cool it better"
    if before.raspberry is not None and after.raspberry is not None:
        # Set now, or set since: what was set before the first look and is over says nothing.
        seen = (before.raspberry | after.raspberry | (after.raspberry & ~before.raspberry) >> 16) & 0xF
        for bit, (words, remedy) in _RASPBERRY.items():
            if seen & bit:
                return f"the board was slowed down during the measurement, {words}: {remedy}"
    return ""


def _clock_moved(before: Glance, after: Glance) -> str:
    if before.gpu is not None and after.gpu is not None:
        found = gpu_disturbance(before.gpu, after.gpu, after.at_s - before.at_s)
        if found:
            return found
    if before.jetson is not None and after.jetson is not None:
        found = moved_clock(before.jetson, after.jetson)
        if found:
            return found
    was, now = before.processor_mhz, after.processor_mhz
    if was is None or now is None or abs(now - was) <= STEADY_PROCESSOR * max(was, now):
        return ""
    return (
        f"the processor's clock moved from {was:.0f} to {now:.0f} MHz during the measurement: warm up for longer, or "
        "hold it with `sudo cpupower frequency-set -g performance`"
    )


def _held_by_quota(before: Glance, after: Glance) -> str:
    held_s = (after.quota_s or 0.0) - (before.quota_s or 0.0)
    if before.quota_s is None or held_s <= QUOTA_HELD * (after.at_s - before.at_s):
        return ""
    return (
        f"the CPU quota of the container held this process back for {1e3 * held_s:.0f} ms during the measurement: "
        "give the container more (--cpus), or fewer threads to the measurement"
    )


def _stolen(before: Glance, after: Glance) -> str:
    shares = shares_between(before, after)
    if shares is None or shares.own + shares.others <= 0:
        return ""
    # Only a processor with work can be stolen from: this process was hit by its share of the work.
    hit = shares.stolen * shares.own / (shares.own + shares.others)
    if hit <= STOLEN + shares.tick / 2:
        return ""
    return (
        f"the hypervisor took {_percent(hit)} of a core from this virtual machine during the measurement: measure when "
        "its neighbours are quieter, or on a machine of its own"
    )


def _crowded(before: Glance, after: Glance) -> str:
    shares = shares_between(before, after)
    if shares is None or after.processors is None:
        return ""
    wanted = math.ceil(shares.own - CROWDED)
    others = f"other processes took {_percent(shares.others)} of a core during the measurement"
    end = "end them (`top` shows them), or measure when they are done"
    if shares.waiting is not None and shares.waiting > WAITED * max(wanted, 1):
        waited = f"waited {_percent(min(shares.waiting / max(wanted, 1), 1.0))} of the time for a processor"
        if shares.others > shares.waiting / 2:
            return f"{others}, and this one {waited}: {end}"
        return f"this process {waited}, its threads are more than the processors: give it fewer (OMP_NUM_THREADS)"
    if shares.others <= COMPANY + shares.tick:
        return ""
    if shares.others + wanted > after.processors.cores + CROWDED + shares.tick:
        return f"{others} and left no whole core to this one: {end}"
    if shares.idle < 0.5:
        return f"{others} and left no processor idle, so that they use the same memory and caches as this one: {end}"
    return ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _temperatures(glance: Glance) -> str:
    """Return the temperatures that matter here: of processors and GPUs."""
    shown = {
        re.sub(r"(?i)[-_]therm(al)?$", "", kind).lower(): celsius
        for kind, celsius in glance.temperatures_c.items()
        if _TEMPERATURES.match(kind)
    }
    if glance.gpu is not None and glance.gpu.temperature_c is not None:
        shown["gpu"] = glance.gpu.temperature_c
    return ", ".join(f"{kind} {celsius:.0f} °C" for kind, celsius in shown.items())
