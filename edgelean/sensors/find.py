"""Which sensors a board has, which of them work here, and how far each can be trusted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from edgelean.board import Board
from edgelean.errors import DeviceError
from edgelean.sensors.chain import OnLoss, SensorChain
from edgelean.sensors.hwmon import find_rails, open_hwmon, usual_total
from edgelean.sensors.kernel_files import ROOT
from edgelean.sensors.nvml import SENSORS as NVML_SENSORS
from edgelean.sensors.nvml import Gpu, find_gpu, open_averaged_power, open_counter, open_instant_power
from edgelean.sensors.pmic import open_pmic
from edgelean.sensors.rapl import open_rapl
from edgelean.sensors.window import Clock, CounterSensor, PowerSensor, Sensor, SensorError

Device = Literal["cpu", "gpu"]
"""What the model runs on: the processor, or a GPU."""

Opener = Callable[..., CounterSensor | PowerSensor]
"""Opens a sensor, given the ``clock`` by its name."""

INSTEAD = "the energy is modelled instead"
LONGEST_SPIN_S = 1.0
FEW_TICKS, MANY_TICKS = 3, 20
COMPARED_S = 0.5
DISAGREEMENT = 0.2
"""Counter and power of one GPU may differ by 5 % of gain each; beyond this share one of them is wrong."""


@dataclass(frozen=True)
class Probe:
    """What asking for one sensor found.

    Attributes
    ----------
    name
        ``"nvml"`` where there is no such GPU, else ``"nvml counter"``, ``"nvml instant"``, ``"nvml average"``;
        ``"hwmon"``, ``"rapl"``, ``"pmic"``.
    usable
        Whether it reads power here.
    detail
        What was found.
    remedy
        What a person can do where it is not usable; empty where it is.
    tick_ms
        How often its value is renewed, as measured or as its driver says; None where it is not known.
    resolution
        The smallest difference that it tells apart.
    trust
        Whether its figures can be trusted, in one sentence that begins with yes, with care, or no.
    """

    name: str
    usable: bool
    detail: str
    remedy: str = ""
    tick_ms: float | None = None
    resolution: str = "not known"
    trust: str = "no: not tried"


def find_sensor(
    board: Board,
    root: Path = ROOT,
    on_loss: OnLoss = "next",
    device: Device | None = None,
    clock: Clock = time.perf_counter,
) -> Sensor | None:
    """Return the sensors that read this board's power as one, or None where it has none that works here.

    Parameters
    ----------
    board, root, device, clock
        As in :func:`line_up`.
    on_loss
        What happens when a sensor fails in the middle of a run: the ``next`` in line goes on, or the run has to
        ``stop``.
    """
    sensors = line_up(board, root, device, clock)
    return SensorChain(sensors, on_loss) if sensors else None


def line_up(
    board: Board, root: Path = ROOT, device: Device | None = None, clock: Clock = time.perf_counter
) -> tuple[Sensor, ...]:
    """Return the sensors of a board that work here, best first; why others do not is said by :func:`probe_sensors`.

    A counter has been seen to tick, which takes a few of its ticks; its method says how long they are. A meter of watts
    has been read once.

    Parameters
    ----------
    board
        Its file says what reads its power. The description of this machine does not: there the processor is read by
        RAPL, a GPU by NVML, and a whole Raspberry Pi or Jetson by its own chip.
    root
        Where sysfs is looked for.
    device
        What the model runs on; by default what the board is. NVML would answer for a model on the processor too,
        with the power of a GPU that does nothing.
    clock
        Monotonic seconds.
    """
    found: list[Sensor] = []
    for open_sensor in _openers(board, root, device or board.kind):
        try:
            found.append(_tried(open_sensor(clock=clock)))
        except DeviceError:
            continue
    return tuple(found)


def probe_sensors(root: Path = ROOT, clock: Clock = time.perf_counter) -> tuple[Probe, ...]:
    """Ask for every kind of sensor on this machine and say what was found; takes a second or two per sensor."""
    return (
        *_probe_gpu(clock),
        _probe("hwmon", partial(_probe_rails, root)),
        _probe("rapl", partial(_probe_packages, root, clock)),
        _probe("pmic", _probe_pmic),
    )


def measure_tick(
    read: Callable[[], float],
    clock: Clock = time.perf_counter,
    most_ticks: int = MANY_TICKS,
    seconds: float = LONGEST_SPIN_S,
) -> float | None:
    """Return how often a value changes, in s, by reading it again and again; None where it does not change twice.

    Parameters
    ----------
    read
        The value; reading it should take much less than a tick.
    clock
        Monotonic seconds.
    most_ticks, seconds
        It ends after so many changes, or so long.
    """
    value, until_s = read(), clock() + seconds
    changes: list[float] = []
    while len(changes) <= most_ticks and clock() < until_s:
        now = read()
        if now != value:
            value = now
            changes.append(clock())
    return statistics.median(b - a for a, b in pairwise(changes)) if len(changes) > 1 else None


def _openers(board: Board, root: Path, device: Device) -> Iterator[Opener]:
    """Return what opens the sensors that may read this board, best first."""
    backend = board.sensors.backend
    here = board.name == "this-machine" and backend == "none"
    if backend == "pmic":
        yield open_pmic
    elif backend == "hwmon":
        yield from _rail_openers(board, root)
    elif here or backend in ("nvml", "rapl"):
        if device == "gpu":
            yield from _gpu_openers(board.match.nvml_name)
        else:
            yield partial(open_rapl, root)
    if here:
        if device == "cpu":
            yield open_pmic
        yield partial(open_hwmon, usual_total(find_rails(root)), root)


def _rail_openers(board: Board, root: Path) -> Iterator[Opener]:
    """Return what opens the total rail of a board, and the rails that add up to it; without a rule, the usual ones."""
    if board.sensors.total_rail:
        yield partial(open_hwmon, (board.sensors.total_rail,), root)
    if board.sensors.sum_rails:
        yield partial(open_hwmon, board.sensors.sum_rails, root)
    if not board.sensors.total_rail and not board.sensors.sum_rails:
        yield partial(open_hwmon, usual_total(find_rails(root)), root)


def _gpu_openers(name_pattern: str | None) -> Iterator[Opener]:
    try:
        gpu = find_gpu(name_pattern=name_pattern)
    except SensorError:
        return
    for open_sensor in NVML_SENSORS:
        yield partial(open_sensor, gpu)


def _tried(sensor: CounterSensor | PowerSensor) -> Sensor:
    """Return the sensor if it moves; some virtual machines have counters that stand still."""
    if isinstance(sensor, PowerSensor):
        return sensor
    tick_s = measure_tick(sensor.read_j, sensor.clock, FEW_TICKS)
    if tick_s is None:
        raise _stands_still(sensor)
    tick_ms = f"{tick_s * 1e3:.0f}" if tick_s >= 0.01 else f"{tick_s * 1e3:.2g}"
    return replace(sensor, method=f"{sensor.method}; a tick is {tick_ms} ms")


def _stands_still(sensor: CounterSensor) -> SensorError:
    return SensorError(f"{sensor.method}: it stands still", INSTEAD)


def _probe(name: str, look: Callable[[], Probe]) -> Probe:
    try:
        return look()
    except SensorError as why:
        return _unusable(name, why)
    except DeviceError as why:
        return _unusable(name, SensorError(str(why), INSTEAD))


def _unusable(name: str, why: SensorError) -> Probe:
    return Probe(name, False, why.detail, why.remedy, trust=f"no: {why.detail}")


def _probe_gpu(clock: Clock) -> Iterator[Probe]:
    """Return one probe for each thing that the GPU may tell, or one that says why there is no GPU."""
    try:
        gpu = find_gpu()
    except SensorError as why:
        yield _unusable("nvml", why)
        return
    yield _probe("nvml counter", partial(_probe_counter, gpu, clock))
    yield _probe("nvml instant", partial(_probe_power, "nvml instant", open_instant_power, gpu, clock))
    yield _probe("nvml average", partial(_probe_power, "nvml average", open_averaged_power, gpu, clock))


def _probe_counter(gpu: Gpu, clock: Clock) -> Probe:
    sensor = open_counter(gpu, clock)
    tick_s = measure_tick(sensor.read_j, sensor.clock)
    if tick_s is None:
        raise _stands_still(sensor)
    trust = _counter_against_power(sensor, gpu)
    return Probe("nvml counter", True, f"{gpu.words}, driver {gpu.driver()}", "", tick_s * 1e3, "1 mJ", trust)


def _counter_against_power(counter: CounterSensor, gpu: Gpu) -> str:
    """Say whether the counter of a GPU agrees with its power; on some cards they differ by 1.7 times."""
    try:
        power = open_instant_power(gpu, counter.clock)
    except SensorError:
        return "yes: read from tick to tick; the GPU has no power to compare it with"
    watts: list[float] = []
    counted_w = counter.over(lambda: watts.append(power.read_w()), COMPARED_S).watts
    read_w = statistics.fmean(watts)
    if abs(counted_w / read_w - 1) > DISAGREEMENT:
        return f"with care: it counts {counted_w:.3g} W while the power reads {read_w:.3g} W; compare like with like"
    return f"yes: read from tick to tick, within {abs(counted_w / read_w - 1):.0%} of the power"


def _probe_power(name: str, open_sensor: Callable[[Gpu, Clock], PowerSensor], gpu: Gpu, clock: Clock) -> Probe:
    sensor = open_sensor(gpu, clock)
    tick_s = measure_tick(sensor.read_w, sensor.clock)
    if tick_s is None:
        trust = f"with care: it did not move in {LONGEST_SPIN_S:g} s, as if nothing was measured"
        return Probe(name, True, sensor.method, "", None, "1 mW", trust)
    trust = f"{_how_it_sees(sensor)}; the work runs for {sensor.settle_s:g} s before each window"
    return Probe(name, True, sensor.method, "", tick_s * 1e3, "1 mW", trust)


def _how_it_sees(sensor: PowerSensor) -> str:
    if sensor.sight is not None and sensor.sight.blind:
        return "yes: it may see only a part of the time, so calls are paced"
    return "with care: it averages"


def _probe_rails(root: Path) -> Probe:
    rails = {rail.name: rail for rail in find_rails(root)}
    names = usual_total(tuple(rails.values()))
    if rails and not names:
        raise SensorError(
            f"rails {', '.join(rails)}: which of them are the whole board is not known",
            "name them in the board file: sensors.total_rail or sensors.sum_rails",
        )
    sensor = open_hwmon(names, root)
    chosen = [rails[name] for name in names]
    intervals, steps = [rail.interval_ms for rail in chosen], [rail.step_w for rail in chosen]
    tick_ms = None if None in intervals else max(value for value in intervals if value is not None)
    resolution = "not known" if None in steps else f"{sum(step for step in steps if step is not None) * 1e3:.0f} mW"
    settles = f"the work runs for {sensor.settle_s:.2g} s before each window"
    trust = f"yes: {settles}" if tick_ms is not None else f"with care: its averaging is not known, {settles}"
    return Probe("hwmon", True, f"{' + '.join(names)} of {', '.join(rails)}", "", tick_ms, resolution, trust)


def _probe_packages(root: Path, clock: Clock) -> Probe:
    sensor = open_rapl(root, clock)
    tick_s = measure_tick(sensor.read_j, sensor.clock)
    if tick_s is None:
        raise _stands_still(sensor)
    return Probe("rapl", True, sensor.method, "", tick_s * 1e3, "1 uJ", "yes: read from tick to tick")


def _probe_pmic() -> Probe:
    sensor = open_pmic()
    trust = "with care: scaled to the plug by a line that was fitted to one board"
    return Probe("pmic", True, sensor.method, "", sensor.period_s * 1e3, trust=trust)
