"""What an NVIDIA GPU tells of itself: the management library of its driver, through ctypes.

Whether a GPU can tell something is found by asking it, never from its name: on a Jetson Orin the library starts, counts
one GPU and names it, and refuses everything else.
"""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Optional

from common import RefusedError

LIBRARY = "libnvidia-ml.so.1"
POWER_INSTANT = 186
SM_CLOCK = 1
MEMORY_CLOCK = 2
# How long the power limit and heat held the clock down, in ns since the driver was loaded.
POLICIES = {"power": 0, "heat": 1}


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Value(ctypes.Union):
    _fields_ = [("d", ctypes.c_double), ("ui", ctypes.c_uint), ("ull", ctypes.c_ulonglong)]


class _Field(ctypes.Structure):
    _fields_ = [
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("kind", ctypes.c_int),
        ("code", ctypes.c_int),
        ("value", _Value),
    ]


class _Held(ctypes.Structure):
    _fields_ = [("reference_us", ctypes.c_ulonglong), ("held_ns", ctypes.c_ulonglong)]


class Nvml:
    """The library, started."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise RefusedError("sensor", f"nvml: {error}", "only machines with NVIDIA's driver have it") from None
        self.call("nvmlInitWithFlags", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function of the library; what it refuses is named with the function."""
        function = getattr(self._library, name, None)
        code = function(*arguments) if function is not None else 3  # as a driver that knows it and cannot do it
        if code != 0:
            describe = self._library.nvmlErrorString
            describe.restype = ctypes.c_char_p
            words = describe(code).decode()
            raise RefusedError("sensor", f"nvml: {name}: {words}", "look at nvidia-smi, restart the driver")

    def words(self, name: str, *before: Any) -> str:
        """Return what a function writes into a buffer for text."""
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *before, buffer, 96)
        return buffer.value.decode(errors="replace")

    def gpus(self) -> List[Gpu]:
        """Return all GPUs."""
        count = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return [Gpu(self, self._handle("nvmlDeviceGetHandleByIndex_v2", index)) for index in range(count.value)]

    def gpu(self, bus_id: Optional[str]) -> Gpu:
        """Return the GPU at a PCI bus id, because CUDA numbers GPUs in another order; without one the only GPU."""
        if bus_id:
            return Gpu(self, self._handle("nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode()))
        gpus = self.gpus()
        if len(gpus) != 1:
            found = ", ".join(gpu.name() for gpu in gpus) or "none"
            raise RefusedError("sensor", f"nvml: wanted one GPU, found {found}", "it is not clear whose power counts")
        return gpus[0]

    def driver(self) -> str:
        """Return the version of the driver."""
        return self.words("nvmlSystemGetDriverVersion")

    def _handle(self, name: str, which: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call(name, which, ctypes.byref(handle))
        return handle


class Gpu:
    """One GPU."""

    def __init__(self, nvml: Nvml, handle: ctypes.c_void_p) -> None:
        self._nvml = nvml
        self._handle = handle

    def name(self) -> str:
        """Return its name."""
        return self._nvml.words("nvmlDeviceGetName", self._handle)

    def energy_j(self) -> float:
        """Return its counter of energy, in J."""
        millijoules = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", millijoules)
        return millijoules.value / 1e3

    def instant_w(self) -> float:
        """Return its power at this instant (field 186), in W."""
        field = _Field(field=POWER_INSTANT)
        self._nvml.call("nvmlDeviceGetFieldValues", self._handle, 1, ctypes.byref(field))
        if field.code != 0 or field.value.ui == 0:
            found = f"error {field.code}" if field.code != 0 else "0 W"
            raise RefusedError("sensor", f"nvml: field {POWER_INSTANT} gave {found}", "read another sensor")
        return float(field.value.ui) / 1e3

    def average_w(self) -> float:
        """Return its power, which newer drivers average over a second, in W."""
        milliwatts = ctypes.c_uint()
        self._ask("nvmlDeviceGetPowerUsage", milliwatts)
        if milliwatts.value == 0:
            raise RefusedError("sensor", "nvml: nvmlDeviceGetPowerUsage gave 0 W", "read another sensor")
        return milliwatts.value / 1e3

    def refuse_slices(self) -> None:
        """Raise where the GPU is cut into slices (MIG): its power is that of all of them."""
        now, later = ctypes.c_uint(), ctypes.c_uint()
        try:
            self._nvml.call("nvmlDeviceGetMigMode", self._handle, ctypes.byref(now), ctypes.byref(later))
        except RefusedError:
            return
        if now.value:
            raise RefusedError("sensor", f"nvml: {self.name()} is cut into MIG slices", "measure on a whole GPU")

    def facts(self) -> Dict[str, Any]:
        """Return what it is; None for what it does not tell."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        known = self._told("nvmlDeviceGetCudaComputeCapability", major, minor)
        memory = _Memory()
        self._told("nvmlDeviceGetMemoryInfo", memory)
        try:
            uuid: Optional[str] = self._nvml.words("nvmlDeviceGetUUID", self._handle)
        except RefusedError:
            uuid = None
        return {
            "name": self.name(),
            "uuid": uuid,
            "driver": self._nvml.driver(),
            "memory_bytes": int(memory.total) or None,
            "compute_capability": f"{major.value}.{minor.value}" if known else None,
            "power_limit_w": self._scaled("nvmlDeviceGetEnforcedPowerLimit", 1e3),
        }

    def state(self) -> Dict[str, Any]:
        """Return clocks, temperature, and what holds the clock down; None for what it does not tell."""
        celsius, reasons = ctypes.c_uint(), ctypes.c_ulonglong()
        held = {kind: self._held_s(policy) for kind, policy in POLICIES.items()}
        self._told("nvmlDeviceGetCurrentClocksThrottleReasons", reasons)
        return {
            "words": self.name(),
            "clock_mhz": self.clock_mhz(),
            "memory_mhz": self.clock_mhz(MEMORY_CLOCK),
            "temperature_c": float(celsius.value) if self._told("nvmlDeviceGetTemperature", 0, celsius) else None,
            "power_limit_w": self._scaled("nvmlDeviceGetEnforcedPowerLimit", 1e3),
            "reasons": reasons.value,
            "held_s": {kind: seconds for kind, seconds in held.items() if seconds is not None},
        }

    def clock_mhz(self, kind: int = SM_CLOCK) -> Optional[float]:
        """Return a clock now: that of its processors, or of its memory."""
        clock = ctypes.c_uint()
        return float(clock.value) if self._told("nvmlDeviceGetClockInfo", kind, clock) else None

    def _scaled(self, name: str, unit: float) -> Optional[float]:
        value = ctypes.c_uint()
        return value.value / unit if self._told(name, value) else None

    def _held_s(self, policy: int) -> Optional[float]:
        held = _Held()
        return held.held_ns / 1e9 if self._told("nvmlDeviceGetViolationStatus", policy, held) else None

    def _ask(self, name: str, *arguments: Any) -> None:
        """Call a function of this GPU; structures and numbers to fill in go by reference."""
        places = [value if isinstance(value, int) else ctypes.byref(value) for value in arguments]
        self._nvml.call(name, self._handle, *places)

    def _told(self, name: str, *arguments: Any) -> bool:
        """Tell whether the GPU answered."""
        try:
            self._ask(name, *arguments)
        except RefusedError:
            return False
        return True
