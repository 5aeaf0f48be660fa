"""NVML: the real nvidia-ml-py against a library that is compiled here."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pynvml
import pytest
import torch
from fake_driver import build_library, install
from simulated_sensors import on_off

from edgelean.board import board_names, load_board
from edgelean.errors import DeviceError
from edgelean.sensors.nvml import find_gpu, open_averaged_power, open_counter, open_instant_power, open_nvml
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract

CALL_S, WATTS, IDLE_W = 0.0013, 60.0, 12.0
COUNTER, FIELDS, USAGE = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"
OPENERS = (open_counter, open_instant_power, open_averaged_power)
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, NOT_READY, UNKNOWN = 3, 4, 15, 27, 999


@pytest.fixture
def driver(monkeypatch):
    return install(monkeypatch)


def opened(open_sensor, driver):
    return driver.timed(open_sensor(find_gpu(), driver.clock))


class GpuContract(SensorContract):
    @pytest.fixture
    def bench(self, driver):
        sensor = opened(self.open_sensor, driver)
        work, before = (driver.work([(CALL_S, watts)]) for watts in (WATTS, 200.0))
        return Bench(sensor, work, WATTS, self.tolerance, before, driver.clock, driver.sleep)


class TestEnergyCounter(GpuContract):
    open_sensor, tolerance = staticmethod(open_counter), 0.015


class TestInstantPower(GpuContract):
    open_sensor, tolerance = staticmethod(open_instant_power), 0.03  # the pauses of its pace draw less


class TestAveragedPower(GpuContract):
    open_sensor, tolerance = staticmethod(open_averaged_power), 0.01


@pytest.mark.parametrize("period_s", [0.01, 0.05, 0.1, 0.13])
@pytest.mark.parametrize("open_sensor", OPENERS)
def test_load_in_step_with_the_sensor_is_read_within_a_percent_in_one_second(driver, open_sensor, period_s):
    sensor = opened(open_sensor, driver)
    driver.draw(200.0, 2.03)
    energy = sensor.over(driver.work(on_off(period_s)), 1.0)
    assert energy.joules - energy.paused_s * IDLE_W == pytest.approx(68.0 * period_s * energy.calls, rel=0.01)


def test_fake_can_mislead_whoever_reads_right_after_a_cut(driver):
    counter, instant, average = (opened(open_sensor, driver) for open_sensor in OPENERS)
    driver.draw(200.0, 2.06)
    before_j = counter.read_j()
    driver.draw(50.0, 0.25)
    assert (counter.read_j() - before_j) / 0.25 > 75.0
    assert average.read_w() > 150.0
    driver.draw(200.0, 0.06)
    assert instant.read_w() < 60.0


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, NOT_READY, UNKNOWN])
def test_what_a_gpu_refuses_is_replaced_by_the_next_best_and_the_averaged_power_comes_last(driver, code):
    assert "energy counter" in open_nvml().method
    driver.fail(COUNTER, code=code)
    assert "instantaneous power" in open_nvml().method
    driver.fail(f"{FIELDS} 186", code=code)
    assert "averaged over 1 s (field 185)" in open_nvml().method
    driver.fail(f"{FIELDS} 185", code=code)
    assert "averaged over 1 s (nvmlDeviceGetPowerUsage)" in open_nvml().method
    driver.fail(USAGE, code=code)
    with pytest.raises(SensorError, match=rf"nothing about its power.*{COUNTER}.*field 186.*{USAGE}"):
        open_nvml()


def test_refusal_names_the_call_what_nvml_said_and_what_to_do(driver):
    driver.fail(COUNTER, code=NO_PERMISSION)
    with pytest.raises(SensorError, match=r"nvmlDeviceGetTotal.*GPU-0.*Insufficient Permissions.*give the container"):
        open_counter(find_gpu())


def test_jetson_whose_nvml_starts_and_tells_nothing_is_sent_to_its_rails(driver):
    driver.name("Orin (nvgpu)")
    driver.fail(COUNTER, FIELDS, USAGE, "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo_v3", code=NOT_SUPPORTED)
    with pytest.raises(SensorError, match=r"Orin \(nvgpu\) tells nothing.*on a Jetson use the hwmon rails"):
        open_nvml()


def test_power_or_counter_of_zero_is_no_reading(driver):
    driver.set(power_mw=0.0, drop_counter=1)
    for open_sensor in OPENERS:
        with pytest.raises(SensorError, match=r" is 0"):
            open_sensor(find_gpu(), driver.clock)


def test_power_that_stands_still_under_a_changing_load_is_a_device_error(driver):
    driver.draw(WATTS, 2.0)
    sensor = opened(open_averaged_power, driver)
    driver.set(frozen=1)
    load = driver.work([(0.02, 300.0), (0.02, 30.0)])
    with pytest.raises(DeviceError, match=r"averaged power.*stands still at 60 W"):
        sensor.over(load, 30.0)


def test_counter_that_stands_still_is_a_device_error(driver):
    sensor = opened(open_counter, driver)
    driver.set(frozen=1)
    with pytest.raises(DeviceError, match="stood still"):
        sensor.over(driver.work([(CALL_S, WATTS)]), 0.1)


def test_counter_that_the_driver_set_back_gives_no_wrong_energy(driver):
    sensor = opened(open_counter, driver)
    work = driver.work([(CALL_S, WATTS)])
    dropped = []

    def work_that_restarts_the_driver():
        work()
        if driver.now_s > 0.5 and not dropped:
            dropped.append(driver.set(drop_counter=1))

    assert sensor.over(work_that_restarts_the_driver, 1.0).watts == pytest.approx(WATTS, rel=0.01)
    assert dropped


@pytest.mark.parametrize("open_sensor", OPENERS)
def test_gpu_that_is_lost_in_the_middle_is_a_device_error_with_a_remedy(driver, open_sensor):
    sensor = opened(open_sensor, driver)
    driver.set(lost_at_s=2.0)
    with pytest.raises(DeviceError, match=r"GPU is lost.*dmesg \| grep Xid"):
        sensor.over(driver.work([(CALL_S, WATTS)]), 5.0)


@pytest.mark.parametrize("open_sensor", OPENERS)
def test_nvml_that_was_shut_down_is_started_again(driver, open_sensor):
    sensor = opened(open_sensor, driver)
    driver.set(forget=1)
    assert sensor.over(driver.work([(CALL_S, WATTS)]), 0.2).watts == pytest.approx(WATTS, rel=0.03)


def test_nvml_that_cannot_be_started_again_is_a_device_error(driver):
    sensor = opened(open_counter, driver)
    driver.set(forget=1)
    driver.fail("nvmlInitWithFlags", code=9)
    with pytest.raises(DeviceError, match=r"nvmlDeviceGetTotal.*sudo modprobe nvidia"):
        sensor.read_j()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(4, "not allowed"), (9, "sudo modprobe nvidia"), (18, "the driver was updated"), (999, "nvidia-smi still works")],
)
def test_driver_that_does_not_start_is_told_apart(driver, code, remedy):
    driver.fail("nvmlInitWithFlags", code=code)
    with pytest.raises(SensorError, match=remedy):
        open_nvml()


def test_missing_driver_says_how_to_get_one(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    with pytest.raises(SensorError, match=r"Library Not Found.*install the NVIDIA driver.*--gpus all"):
        open_nvml()


def test_missing_package_and_the_deprecated_one_that_hides_it_are_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SensorError, match="pip install nvidia-ml-py"):
        open_nvml()
    deprecated = ModuleType("pynvml")
    deprecated.nvmlInit = lambda: None  # it re-exports the public names only
    monkeypatch.setitem(sys.modules, "pynvml", deprecated)
    with pytest.raises(SensorError, match=r"deprecated package pynvml.*pip uninstall -y pynvml"):
        open_nvml()


def test_older_nvidia_ml_py_without_names_and_functions_is_no_crash(driver, monkeypatch):
    monkeypatch.delattr(pynvml, "NVML_FI_DEV_POWER_INSTANT")
    monkeypatch.delattr(pynvml, "NVML_FI_DEV_POWER_AVERAGE")
    assert "field 186" in open_instant_power(find_gpu()).method
    monkeypatch.delattr(pynvml, COUNTER)
    with pytest.raises(SensorError, match=rf"does not know {COUNTER}: pip install --upgrade nvidia-ml-py"):
        open_counter(find_gpu())
    assert "instantaneous" in open_nvml().method


def test_gpu_is_found_by_uuid_its_beginning_and_its_pci_bus_id(driver):
    driver.name("NVIDIA A", "NVIDIA B")
    assert find_gpu("GPU-1").words == "NVIDIA B (GPU-1)"
    assert find_gpu("0000:01:00.0").name == "NVIDIA B"
    assert find_gpu("00000000:01:00.0").name == "NVIDIA B"
    assert find_gpu(name_pattern="A$").name == "NVIDIA A"


def test_name_patterns_of_all_boards_fit_the_whole_name_and_nothing_longer(driver):
    patterns = [load_board(name).match.nvml_name for name in board_names()]
    for pattern in filter(None, patterns):
        driver.name(pattern.strip("^$"))
        assert find_gpu(name_pattern=pattern).name == pattern.strip("^$")
        driver.name(f"{pattern.strip('^$')} Laptop GPU")
        with pytest.raises(SensorError, match=r"wanted a GPU named .* found NVIDIA .* Laptop GPU"):
            find_gpu(name_pattern=pattern)


def test_one_of_several_gpus_is_never_guessed(driver, monkeypatch):
    driver.name("NVIDIA A", "NVIDIA A")
    with pytest.raises(SensorError, match=r"several GPUs.*CUDA_VISIBLE_DEVICES"):
        find_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-0")
    assert find_gpu().uuid == "GPU-1"


def test_index_of_cuda_counts_gpus_that_are_alike_on_the_pci_bus(driver, monkeypatch):
    driver.name("NVIDIA A", "NVIDIA A", "NVIDIA A")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert find_gpu().uuid == "GPU-2"
    driver.set(reverse_pci=1)
    assert find_gpu().uuid == "GPU-0"


def test_index_of_cuda_among_different_gpus_needs_the_order_of_the_bus(driver, monkeypatch):
    driver.name("NVIDIA Slow", "NVIDIA Fast")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(SensorError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        find_gpu()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert find_gpu().name == "NVIDIA Fast"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_gpu().name == "NVIDIA Slow"


@pytest.mark.parametrize("hidden", ["", "-1", "7"])
def test_gpu_that_cuda_may_not_use_is_not_read(driver, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(SensorError, match="hides every GPU"):
        find_gpu()


def test_gpu_that_torch_works_on_is_the_one_that_is_read(driver, monkeypatch):
    driver.name("NVIDIA A", "NVIDIA B")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1"))
    assert find_gpu().name == "NVIDIA B"
    with pytest.raises(SensorError, match=r"wanted a GPU named A\$, found NVIDIA B \(GPU-1\)"):
        find_gpu(name_pattern="A$")


def test_slice_of_a_gpu_is_refused(driver, monkeypatch):
    with pytest.raises(SensorError, match="MIG-5a0c is a slice"):
        find_gpu("MIG-5a0c")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5a0c")
    with pytest.raises(SensorError, match="MIG-5a0c is a slice"):
        open_nvml()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.set(mig=1)
    with pytest.raises(SensorError, match="MIG slices"):
        open_nvml()


def test_unknown_gpu_is_named_in_the_message_with_those_that_are_there(driver):
    with pytest.raises(SensorError, match=r"GPU-7.*lists NVIDIA Fake 0 \(GPU-0\)"):
        find_gpu("GPU-7")
    driver.set(count=0)
    with pytest.raises(SensorError, match="lists none"):
        find_gpu()


def test_library_on_the_loader_path_is_found_and_a_forked_process_reads_on():
    script = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL('libnvidia-ml.so.1').fake_reset()\n"
        "from edgelean.sensors.nvml import find_gpu, open_nvml\n"
        "sensor = open_nvml()\n"
        "print(sensor.method, find_gpu().driver(), 'torch' in sys.modules, flush=True)\n"
        "if os.fork() == 0:\n"
        "    print('forked', sensor.read_j(), flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"LD_LIBRARY_PATH": str(build_library().parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "energy counter of NVIDIA Fake 0 (GPU-0)" in done.stdout
    assert "590.48.01 False" in done.stdout
    assert "forked 1000.0" in done.stdout
