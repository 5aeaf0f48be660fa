"""NVIDIA GPUs: the energy counter of NVML, its instantaneous power, and last the power that it averages.

What a GPU can tell is found by asking it, never from its name or its architecture: on a Jetson everything but power
answers, an H100 on PCIe may refuse its counter with "not in ready state", a virtual GPU may refuse everything.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgelean.sensors.window import Clock, CounterSensor, PowerSensor, Sensor, SensorError, Sight

UNINITIALIZED, INVALID_ARGUMENT = 1, 2
FIELD_AVERAGE, FIELD_INSTANT = 185, 186
"""Field identifiers of NVML; older releases of nvidia-ml-py have no names for them."""
INSTANT_SETTLE_S, INSTANT_SIGHT = 0.4, Sight(tick_s=0.1, seen_s=0.025)
"""The instantaneous power rises for up to 0.25 s and is renewed every 0.1 s. An A100 or H100 averages 25 ms of them, an
RTX 3090 or 4090 all of them (arXiv 2312.02741); which one this is cannot be asked, and the smaller part fits both."""
AVERAGE_SETTLE_S, AVERAGE_SIGHT = 1.3, Sight(tick_s=0.1, seen_s=1.0)
"""The averaged power looks back over 1 s and is renewed every 0.1 s."""
ZERO_READS = 5
STUCK_READS, STUCK_S = 100, 10.0
"""A power that is the same to the milliwatt for so many readings and so long is not being measured any more."""

_REMEDIES = {  # the numbers are part of NVML's binary interface
    3: "this GPU or its driver cannot tell it: on a Jetson use the hwmon rails, on a virtual GPU ask its host",
    4: "NVML is not allowed to tell it here: give the container the whole GPU, or ask who runs the machine",
    9: "load the kernel module (sudo modprobe nvidia), or restart the machine after an update of the driver",
    12: "install the NVIDIA driver; start a container with --gpus all and NVIDIA_DRIVER_CAPABILITIES=utility,compute",
    15: "the GPU fell off its bus: `dmesg | grep Xid` says why, restart the machine",
    16: "the GPU has to be reset: nvidia-smi --gpu-reset, or restart the machine",
    18: "the driver was updated while it ran: restart the machine",
    27: "the driver is not ready: wait a minute, or restart the machine",
}
_USUAL_REMEDY = "look whether nvidia-smi still works; if not, restart the machine"


@dataclass
class Gpu:
    """One GPU as NVML knows it.

    Attributes
    ----------
    nvml, handle
        The module ``pynvml`` and its handle; the handle is replaced when NVML had to be started again.
    words, name
        Name with UUID for a person, and the name alone.
    index, uuid, bus
        Its place in NVML's list, its UUID (None on a Jetson) and its PCI bus id (empty where it has none).
    """

    nvml: Any
    handle: Any
    words: str
    name: str
    index: int = 0
    uuid: str | None = None
    bus: str = ""

    def ask(self, call: str, *arguments: Any) -> Any:
        """Call a function of NVML that takes this GPU first, and return what it returns.

        NVML forgets everything in a forked process, and when another library shuts it down; it is then started again,
        once for this call.

        Raises
        ------
        SensorError
            NVML refused, or this nvidia-ml-py does not know the function; the message names the call and the remedy.
        """
        function = getattr(self.nvml, call, None)
        if function is None:
            raise SensorError(f"this nvidia-ml-py does not know {call}", "pip install --upgrade nvidia-ml-py")
        try:
            return function(self.handle, *arguments)
        except self.nvml.NVMLError as error:
            if error.value not in (UNINITIALIZED, INVALID_ARGUMENT):
                raise self._refused(call, error) from error
        try:
            self._start_again()
            return function(self.handle, *arguments)
        except self.nvml.NVMLError as error:
            raise self._refused(call, error) from error

    def field(self, field: int) -> float:
        """Return one field of NVML, a whole number; raises as :meth:`ask` does."""
        value = self.ask("nvmlDeviceGetFieldValues", [field])[0]
        if value.nvmlReturn != 0:
            error = self.nvml.NVMLError(value.nvmlReturn)
            raise self._refused(f"nvmlDeviceGetFieldValues, field {field},", error) from error
        return float(value.value.uiVal)

    def driver(self) -> str:
        """Return the version of the driver, or why it is not known."""
        try:
            return str(self.nvml.nvmlSystemGetDriverVersion())
        except self.nvml.NVMLError as error:
            return f"unknown ({error})"

    def _start_again(self) -> None:
        self.nvml.nvmlInit()
        if self.uuid is None:
            self.handle = self.nvml.nvmlDeviceGetHandleByIndex(self.index)
        else:
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(self.uuid)

    def _refused(self, call: str, error: Any) -> SensorError:
        return SensorError(f"NVML: {call} of {self.words}: {error}", _REMEDIES.get(error.value, _USUAL_REMEDY))


def open_nvml(device: str | None = None, name_pattern: str | None = None, clock: Clock = time.perf_counter) -> Sensor:
    """Return the best sensor of one GPU: its energy counter, else its power.

    Parameters
    ----------
    device, name_pattern
        Which GPU, as in :func:`find_gpu`.
    clock
        Monotonic seconds.

    Raises
    ------
    SensorError
        No driver, no such GPU, a slice of one (MIG), or a GPU that tells nothing about its power.
    """
    gpu = find_gpu(device, name_pattern)
    refusals: list[str] = []
    for open_sensor in SENSORS:
        try:
            return open_sensor(gpu, clock)
        except SensorError as why:
            refusals.append(why.detail)
    raise SensorError(f"{gpu.words} tells nothing about its power ({'; '.join(refusals)})", _REMEDIES[3])


def find_gpu(device: str | None = None, name_pattern: str | None = None) -> Gpu:
    """Return the GPU that CUDA works on here; the indices of CUDA and NVML differ, so they are never mixed up.

    Parameters
    ----------
    device
        UUID (``GPU-...``, or the beginning of one) or PCI bus id. Without it: the current device of torch, where torch
        has started CUDA in this process; else the first of CUDA_VISIBLE_DEVICES, an index counted in the order of the
        PCI bus (if CUDA_DEVICE_ORDER says so, or all GPUs are alike); else the only GPU that fits.
    name_pattern
        Regular expression that the name of the GPU has to contain.

    Raises
    ------
    SensorError
        No driver, no such GPU, several, or a slice of one (MIG): NVML counts the slices of all tenants together.
    """
    gpus = _list_gpus(_load_nvml())
    wanted = device or _device_of_torch() or _first_visible(gpus)
    if wanted is not None and wanted.startswith("MIG"):
        raise SensorError(f"{wanted} is a slice of a GPU", "power is read for whole GPUs only: use one without MIG")
    found = "; ".join(gpu.words for gpu in gpus) or "none"
    meant = [gpu for gpu in gpus if wanted is None or _is(gpu, wanted)]
    if not meant:
        raise SensorError(f"NVML knows no GPU {wanted or ''}, it lists {found}", "nvidia-smi -L lists the GPUs")
    fitting = [gpu for gpu in meant if re.search(name_pattern or "", gpu.name)]
    if not fitting:
        meant_words = "; ".join(gpu.words for gpu in meant)
        raise SensorError(
            f"wanted a GPU named {name_pattern}, found {meant_words}",
            "choose the board that is here, or set CUDA_VISIBLE_DEVICES to the UUID of the GPU that is meant",
        )
    if len(fitting) > 1:
        raise SensorError(f"several GPUs fit: {found}", "set CUDA_VISIBLE_DEVICES to the UUID of one of them")
    _refuse_slices(fitting[0])
    return fitting[0]


def open_counter(gpu: Gpu, clock: Clock = time.perf_counter) -> CounterSensor:
    """Return the energy counter of a GPU; raises SensorError where it has none, or where it is 0."""

    def read_j() -> float:
        return float(gpu.ask("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    if read_j() == 0:
        raise SensorError(f"NVML: the energy counter of {gpu.words} is 0", "its power is read instead")
    return CounterSensor("nvml", f"NVML energy counter of {gpu.words}, between two of its ticks", read_j, clock)


def open_instant_power(gpu: Gpu, clock: Clock = time.perf_counter) -> PowerSensor:
    """Return the instantaneous power of a GPU (field 186); raises SensorError where it does not tell it."""
    field = getattr(gpu.nvml, "NVML_FI_DEV_POWER_INSTANT", FIELD_INSTANT)
    read_w = _awake(lambda: gpu.field(field) / 1e3, f"NVML: the instantaneous power of {gpu.words}", clock)
    method = f"NVML instantaneous power of {gpu.words} (field {field})"
    return PowerSensor("nvml", method, read_w, clock, settle_s=INSTANT_SETTLE_S, sight=INSTANT_SIGHT)


def open_averaged_power(gpu: Gpu, clock: Clock = time.perf_counter) -> PowerSensor:
    """Return the power of a GPU that NVML averages over a second; raises SensorError where it does not tell it.

    Work has to run for longer than that second before a window, or the model before is still in it.
    """
    field = getattr(gpu.nvml, "NVML_FI_DEV_POWER_AVERAGE", FIELD_AVERAGE)

    def by_field() -> float:
        return gpu.field(field) / 1e3

    def by_call() -> float:
        return float(gpu.ask("nvmlDeviceGetPowerUsage")) / 1e3

    try:
        by_field()
        read, source = by_field, f"field {field}"
    except SensorError:
        read, source = by_call, "nvmlDeviceGetPowerUsage"
    read_w = _awake(read, f"NVML: the averaged power of {gpu.words}", clock)
    method = f"NVML power of {gpu.words}, averaged over 1 s ({source})"
    return PowerSensor("nvml", method, read_w, clock, settle_s=AVERAGE_SETTLE_S, sight=AVERAGE_SIGHT)


SENSORS: Sequence[Callable[[Gpu, Clock], CounterSensor | PowerSensor]] = (
    open_counter,
    open_instant_power,
    open_averaged_power,
)
"""What a GPU may be able to tell, best first."""


def _load_nvml() -> Any:
    """Import the official package and start NVML."""
    try:
        import pynvml
    except ImportError as error:
        raise SensorError("the package nvidia-ml-py is not installed", "pip install nvidia-ml-py") from error
    # NVIDIA's package is one file with this name in it; the deprecated one is a folder that re-exports public names.
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise SensorError(
            "the deprecated package pynvml hides NVIDIA's own nvidia-ml-py",
            "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py",
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SensorError(f"NVML: nvmlInit: {error}", _REMEDIES.get(error.value, _USUAL_REMEDY)) from error
    return pynvml


def _list_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """Return all GPUs that answer; one that is lost or forbidden does not hide the others."""
    gpus = []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise SensorError(f"NVML: nvmlDeviceGetCount: {error}", _USUAL_REMEDY) from error
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = str(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError:
            continue
        gpu = Gpu(nvml, handle, name, name, index)
        try:
            gpu.uuid = str(nvml.nvmlDeviceGetUUID(handle))
            gpu.words = f"{name} ({gpu.uuid})"
            gpu.bus = str(nvml.nvmlDeviceGetPciInfo(handle).busId)
        except nvml.NVMLError:
            pass  # the GPU of a Jetson has neither
        gpus.append(gpu)
    return tuple(gpus)


def _is(gpu: Gpu, wanted: str) -> bool:
    """Return whether UUID or PCI bus id name this GPU; one without a UUID is the only one of its machine."""
    if wanted.startswith("GPU-"):
        return gpu.uuid is None or gpu.uuid.startswith(wanted)
    return bool(gpu.bus) and _bus_number(gpu.bus) == _bus_number(wanted)


def _bus_number(bus: str) -> tuple[int, ...]:
    """Return domain, bus, device and function as numbers; the domain is written with four digits or with eight."""
    try:
        return tuple(int(part, 16) for part in re.split("[:.]", bus))
    except ValueError:
        return ()


def _device_of_torch() -> str | None:
    """Return the UUID of torch's current device where torch runs on CUDA already; never imports or starts anything."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    uuid = getattr(cuda.get_device_properties(cuda.current_device()), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


def _first_visible(gpus: Sequence[Gpu]) -> str | None:
    """Return UUID or PCI bus id of the first GPU that CUDA may use, None where the environment does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    in_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if visible is None and not in_order:
        return None
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG")):
        return first
    if not first.isdecimal() or int(first) >= len(gpus):
        raise SensorError(f"CUDA_VISIBLE_DEVICES={visible} hides every GPU", "unset it, or name a GPU by its UUID")
    if len({gpu.name for gpu in gpus}) > 1 and not in_order:
        raise SensorError(
            f"CUDA_VISIBLE_DEVICES={visible} is an index into an order of CUDA's own, and the GPUs differ",
            "set it to a UUID of nvidia-smi -L, or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )
    gpu = sorted(gpus, key=lambda gpu: _bus_number(gpu.bus))[int(first)]
    return gpu.uuid or gpu.bus or None


def _refuse_slices(gpu: Gpu) -> None:
    """Raise where the GPU is cut into slices, because NVML then counts what the neighbours do."""
    try:
        current, _ = gpu.ask("nvmlDeviceGetMigMode")
    except SensorError:
        return
    if current:
        raise SensorError(f"{gpu.words} is cut into MIG slices", "its power is that of all slices: use a whole GPU")


def _awake(read_w: Callable[[], float], what: str, clock: Clock) -> Callable[[], float]:
    """Return a reading of a power that is not 0, and that raises when the power does not move any more.

    A 0 now and then is what a GPU answers that is asked too often; always 0 is a GPU that sleeps.
    """
    last_w, since_s, same = -1.0, 0.0, 0

    def watched_w() -> float:
        nonlocal last_w, since_s, same
        watts = read_w()
        if watts != last_w:
            last_w, since_s, same = watts, clock(), 0
        same += 1
        if same > STUCK_READS and clock() - since_s > STUCK_S:
            raise SensorError(f"{what} stands still at {watts:g} W", "its sensor is broken: restart the machine")
        return watts

    for _ in range(ZERO_READS):
        if watched_w() > 0:
            return watched_w
        time.sleep(1e-3)
    raise SensorError(f"{what} is 0 W", "the GPU sleeps or its sensor is broken: give it work, or restart the machine")
