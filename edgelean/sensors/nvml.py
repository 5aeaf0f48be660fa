"""NVIDIA GPUs: the energy counter of NVML, or its instantaneous power."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from edgelean.errors import DeviceError
from edgelean.sensors.window import Clock, CounterSensor, PowerSensor, Sensor, SensorError


def open_nvml(device: str | None = None, name_pattern: str | None = None, clock: Clock = time.perf_counter) -> Sensor:
    """Return a sensor of one GPU: its energy counter, else its instantaneous power.

    What a GPU can tell is found by asking it, never from its name: on a Jetson everything but power answers. The power
    that NVML averages over a second is not used, because it still contains what ran before.

    Parameters
    ----------
    device
        UUID (``GPU-...``) or PCI bus id of the GPU, because the indices of CUDA and NVML differ. Without it
        CUDA_VISIBLE_DEVICES is looked at, and then there has to be exactly one GPU that fits.
    name_pattern
        Regular expression that the name of the GPU has to contain.

    Raises
    ------
    SensorError
        No driver, no such GPU, a slice of one (MIG), or a GPU without power readings.
    """
    nvml = _driver()
    handle, words = _choose(nvml, device or _visible(), name_pattern)
    _refuse_slices(nvml, handle, words)
    sensor = _energy_counter(nvml, handle, words, clock) or _instant_power(nvml, handle, words, clock)
    if sensor is None:
        raise SensorError(
            f"{words} tells neither its energy nor its instantaneous power",
            "on a Jetson use the hwmon sensor; on a virtual GPU ask its host",
        )
    return sensor


def describe_gpus() -> tuple[str, ...]:
    """Return name, UUID and driver of every GPU; raises SensorError where there is no driver."""
    nvml = _driver()
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        return tuple(f"{words}, driver {driver}" for _, words in _gpus(nvml, None))
    except nvml.NVMLError as error:
        raise SensorError(f"NVML does not list its GPUs ({error})", "restart the machine or its driver") from error


def _driver() -> Any:
    """Load and start NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SensorError(
            f"NVML does not start ({error})", "install the NVIDIA driver, start a container with --gpus all"
        ) from error
    return pynvml


def _visible() -> str | None:
    """Return the first GPU of CUDA_VISIBLE_DEVICES where it names one by UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return first if first.startswith(("GPU-", "MIG-")) else None


def _choose(nvml: Any, device: str | None, name_pattern: str | None) -> tuple[Any, str]:
    """Return the handle of the asked GPU and the words for it."""
    if device is not None and device.startswith("MIG-"):
        raise SensorError(f"{device} is a slice of a GPU", "power is read for whole GPUs only: use one without MIG")
    try:
        gpus = _gpus(nvml, device)
    except nvml.NVMLError as error:
        raise SensorError(f"no GPU {device or ''} in NVML ({error})", "nvidia-smi -L lists the GPUs") from error
    fitting = [(handle, words) for handle, words in gpus if re.search(name_pattern or "", words)]
    if len(fitting) == 1:
        return fitting[0]
    found = "; ".join(words for _, words in gpus) or "none"
    if fitting:
        raise SensorError(f"several GPUs fit: {found}", "set CUDA_VISIBLE_DEVICES to the UUID of one of them")
    raise SensorError(f"wanted a GPU named {name_pattern or 'anything'}, found {found}", "choose another board")


def _gpus(nvml: Any, device: str | None) -> list[tuple[Any, str]]:
    """Return handle and words of one GPU, by UUID or PCI bus id, or of all."""
    if device is None:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    elif device.startswith("GPU-"):
        handles = [nvml.nvmlDeviceGetHandleByUUID(device)]
    else:
        handles = [nvml.nvmlDeviceGetHandleByPciBusId(device)]
    return [(handle, _words(nvml, handle)) for handle in handles]


def _words(nvml: Any, handle: Any) -> str:
    """Return name and UUID; the GPU of a Jetson has no UUID."""
    name = str(nvml.nvmlDeviceGetName(handle))
    try:
        return f"{name} ({nvml.nvmlDeviceGetUUID(handle)})"
    except nvml.NVMLError:
        return name


def _refuse_slices(nvml: Any, handle: Any, words: str) -> None:
    """Raise where the GPU is cut into slices, because NVML then counts what the neighbours do."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return
    if current:
        raise SensorError(f"{words} is cut into MIG slices", "its power is that of all slices: use a whole GPU")


def _energy_counter(nvml: Any, handle: Any, words: str, clock: Clock) -> Sensor | None:
    """Return the energy counter, or None where the GPU has none."""

    def read_j() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except nvml.NVMLError as error:
            raise DeviceError(f"NVML: nvmlDeviceGetTotalEnergyConsumption of {words}: {error}") from error

    try:
        if read_j() == 0:
            return None
    except DeviceError:
        return None
    return CounterSensor("nvml", f"NVML energy counter of {words}, between two of its ticks", read_j, clock)


def _instant_power(nvml: Any, handle: Any, words: str, clock: Clock) -> Sensor | None:
    """Return the instantaneous power (field 186), or None where the GPU does not tell it."""

    def read_w() -> float:
        try:
            value = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
            if value.nvmlReturn != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(value.nvmlReturn)
        except nvml.NVMLError as error:
            raise DeviceError(f"NVML: field {nvml.NVML_FI_DEV_POWER_INSTANT} of {words}: {error}") from error
        return float(value.value.uiVal) / 1e3

    try:
        if read_w() == 0:
            return None
    except DeviceError:
        return None
    return PowerSensor("nvml", f"NVML instantaneous power of {words} (it has no energy counter)", read_w, clock)
