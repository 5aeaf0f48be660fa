"""The fake libnvidia-ml.so.1 in the place of the driver, under the real nvidia-ml-py."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from simulated_sensors import Machine

from edgelean.sensors.window import CounterSensor, PowerSensor

_FOLDER = tempfile.TemporaryDirectory(prefix="fake_nvml")


@functools.cache
def build_library() -> Path:
    """Compile tests/fake_nvml.c; its first lines say what it can do."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake libnvidia-ml.so.1 with")
    built = Path(_FOLDER.name) / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-lm"], check=True)
    return built


class FakeDriver(Machine):
    """GPUs on the clock of a simulated machine: what it draws, they draw."""

    def __init__(self) -> None:
        self.lib = ctypes.PyDLL(str(build_library()))
        self.lib.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
        self.lib.fake_fail.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self.lib.fake_name.argtypes = [ctypes.c_int, ctypes.c_char_p]
        self.lib.fake_advance.argtypes = [ctypes.c_double]
        self.lib.fake_now.restype = ctypes.c_double
        self.lib.fake_reset()
        super().__init__()

    @property
    def now_s(self) -> float:
        return float(self.lib.fake_now())

    @now_s.setter
    def now_s(self, second: float) -> None:
        self.lib.fake_advance(second - self.now_s)

    def draw(self, watts: float, seconds: float) -> None:
        self.set(power_mw=watts * 1e3)
        super().draw(watts, seconds)

    def set(self, **knobs: float) -> None:
        for name, value in knobs.items():
            self.lib.fake_set(name.encode(), value)

    def fail(self, *calls: str, code: int) -> None:
        for call in calls:
            self.lib.fake_fail(call.encode(), code)

    def name(self, *names: str) -> None:
        """Have so many GPUs with these names."""
        self.set(count=len(names))
        for gpu, name in enumerate(names):
            self.lib.fake_name(gpu, name.encode())

    def timed(self, sensor: CounterSensor | PowerSensor) -> CounterSensor | PowerSensor:
        """Return a sensor that waits, and looks from a second thread, in the time of this machine."""
        return replace(sensor, clock=self.clock, sleep=self.sleep, watch=self.watch)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Put the fake library where nvidia-ml-py looks for the driver, until the end of the test."""
    driver = FakeDriver()
    monkeypatch.setattr(pynvml, "nvmlLib", driver.lib)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return driver
