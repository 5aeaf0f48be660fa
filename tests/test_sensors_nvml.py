"""NVML: the real nvidia-ml-py against a library that is compiled here."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from edgelean.errors import DeviceError
from edgelean.sensors.nvml import describe_gpus, open_nvml
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract

CALL_S = 0.0013


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake libnvidia-ml.so.1 with")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-lm"], check=True)
    return built


@pytest.fixture
def fake(library, monkeypatch):
    lib = ctypes.CDLL(str(library))
    lib.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
    lib.fake_advance.argtypes = [ctypes.c_double]
    lib.fake_now.restype = ctypes.c_double
    lib.fake_reset()
    monkeypatch.setattr(pynvml, "nvmlLib", lib)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lib


def work_on(fake):
    return lambda: fake.fake_advance(CALL_S)


class TestEnergyCounter(SensorContract):
    @pytest.fixture
    def bench(self, fake):
        return Bench(open_nvml(clock=fake.fake_now), work_on(fake), 60.0, tolerance=0.015)


class TestInstantPower(SensorContract):
    @pytest.fixture
    def bench(self, fake):
        fake.fake_set(b"no_counter", 1)
        return Bench(open_nvml(clock=fake.fake_now), work_on(fake), 60.0)


def counter_j():
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1e3


def switch_models(fake):
    """Draw 200 W, and between two ticks of the counter go over to 50 W."""
    fake.fake_set(b"power_mw", 200_000)
    fake.fake_advance(1.06)
    fake.fake_set(b"power_mw", 50_000)


def test_window_between_ticks_holds_nothing_of_the_model_before(fake):
    switch_models(fake)
    before_j = counter_j()
    fake.fake_advance(0.25)
    assert (counter_j() - before_j) / 0.25 > 75, "the fake has to be able to mislead a naive window"
    fake.fake_reset()
    sensor = open_nvml(clock=fake.fake_now)
    switch_models(fake)
    assert sensor.over(work_on(fake), 0.25).watts == pytest.approx(50, rel=0.01)


def test_gpu_without_a_counter_tells_its_instantaneous_power_and_says_so(fake):
    fake.fake_set(b"no_counter", 1)
    assert "instantaneous" in open_nvml().method


def test_gpu_without_counter_and_instantaneous_power_is_refused_not_averaged(fake):
    fake.fake_set(b"no_counter", 1)
    fake.fake_set(b"no_field_186", 1)
    with pytest.raises(SensorError, match="neither its energy nor its instantaneous power"):
        open_nvml()


def test_gpu_is_found_by_uuid_and_by_pci_bus_id(fake):
    fake.fake_set(b"count", 2)
    assert "Fake 1 (GPU-1)" in open_nvml("GPU-1").method
    assert "Fake 1 (GPU-1)" in open_nvml("0000:01:00.0").method
    assert "Fake 0 (GPU-0)" in open_nvml(name_pattern="Fake 0").method


def test_one_of_several_gpus_is_never_guessed(fake, monkeypatch):
    fake.fake_set(b"count", 2)
    with pytest.raises(SensorError, match=r"several GPUs.*CUDA_VISIBLE_DEVICES"):
        open_nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert "GPU-1" in open_nvml().method


def test_slice_of_a_gpu_is_refused(fake):
    with pytest.raises(SensorError, match="slice"):
        open_nvml("MIG-5a0c")
    fake.fake_set(b"mig", 1)
    with pytest.raises(SensorError, match="MIG slices"):
        open_nvml()


def test_unknown_gpu_is_named_in_the_message(fake):
    with pytest.raises(SensorError, match="GPU-7"):
        open_nvml("GPU-7")
    with pytest.raises(SensorError, match="wanted a GPU named H100, found NVIDIA Fake 0"):
        open_nvml(name_pattern="H100")


def test_gpu_that_is_lost_in_the_middle_is_a_device_error(fake):
    sensor = open_nvml(clock=fake.fake_now)

    def work():
        fake.fake_advance(CALL_S)
        fake.fake_set(b"lost", fake.fake_now() > 0.3)

    with pytest.raises(DeviceError, match="nvmlDeviceGetTotalEnergyConsumption"):
        sensor.over(work, 1.0)


def test_counter_that_stands_still_is_a_device_error(fake):
    sensor = open_nvml(clock=fake.fake_now)
    fake.fake_set(b"tick_s", 1e9)
    with pytest.raises(DeviceError, match="stood still"):
        sensor.over(work_on(fake), 0.1)


def test_missing_driver_says_how_to_get_one(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    with pytest.raises(SensorError, match=r"Library Not Found.*install the NVIDIA driver"):
        open_nvml()


def test_library_on_the_loader_path_is_found_by_itself(library):
    script = (
        "import ctypes; ctypes.CDLL('libnvidia-ml.so.1').fake_reset()\n"
        "from edgelean.sensors.nvml import describe_gpus, open_nvml\n"
        "print(open_nvml().method, describe_gpus())"
    )
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"LD_LIBRARY_PATH": str(library.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "energy counter of NVIDIA Fake 0 (GPU-0)" in done.stdout
    assert "driver 590.48.01" in done.stdout


def test_every_gpu_is_described(fake):
    fake.fake_set(b"count", 2)
    assert [words.split(",")[0] for words in describe_gpus()] == ["NVIDIA Fake 0 (GPU-0)", "NVIDIA Fake 1 (GPU-1)"]
