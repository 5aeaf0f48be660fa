"""Jetson rails and RAPL, read from trees of files that look like their sysfs."""

import threading
import time
from pathlib import Path

import pytest

from edgelean.board import load_board
from edgelean.errors import DeviceError
from edgelean.sensors import find_sensor, probe_sensors
from edgelean.sensors.hwmon import find_rails, open_hwmon
from edgelean.sensors.rapl import open_rapl
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract


def write(root: Path, path: str, value: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


def ina3221(root: Path, number: int, rails: dict[str, tuple[int, int]]) -> None:
    """Write one chip with up to three channels: label -> (mV, mA)."""
    folder = f"sys/class/hwmon/hwmon{number}"
    write(root, f"{folder}/name", "ina3221")
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        write(root, f"{folder}/in{channel}_label", label)
        write(root, f"{folder}/in{channel}_input", millivolts)
        write(root, f"{folder}/curr{channel}_input", milliamperes)
    write(root, f"{folder}/in7_label", "sum of shunt voltages")
    write(root, f"{folder}/in7_input", 123)


def orin_nano(root: Path) -> None:
    write(root, "sys/class/hwmon/hwmon0/name", "pwmfan")
    ina3221(root, 1, {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 280)})


def agx_orin(root: Path) -> None:
    ina3221(root, 3, {"VDD_GPU_SOC": (20000, 120), "VDD_CPU_CV": (20000, 40), "VIN_SYS_5V0": (5000, 704)})
    ina3221(root, 4, {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 60)})


def thor(root: Path, *, with_input: bool) -> None:
    ina3221(root, 3, {"VDD_GPU": (20000, 100), "VDD_CPU_SOC_MSS": (20000, 300), "VIN_SYS_5V0": (5000, 1000)})
    if with_input:
        write(root, "sys/class/hwmon/hwmon5/name", "ina238")
        write(root, "sys/class/hwmon/hwmon5/power1_input", 19_780_000)


def watts_of(board: str, root: Path) -> float:
    sensor = find_sensor(load_board(board), root)
    assert sensor is not None
    return sensor.over(lambda: time.sleep(1e-3), 0.01).watts


class TestHwmon(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path):
        orin_nano(tmp_path)
        return Bench(open_hwmon("VDD_IN", (), tmp_path), lambda: time.sleep(1e-3), 6.0)


def test_orin_nano_total_is_its_input_rail_alone(tmp_path):
    orin_nano(tmp_path)
    assert watts_of("jetson-orin-nano-8gb-super", tmp_path) == pytest.approx(6.0)


def test_agx_orin_total_is_the_sum_of_its_three_supply_rails(tmp_path):
    agx_orin(tmp_path)
    assert watts_of("jetson-agx-orin-64gb", tmp_path) == pytest.approx(2.4 + 0.8 + 3.52)


@pytest.mark.parametrize(("with_input", "watts"), [(True, 19.78), (False, 2.0 + 6.0 + 5.0)])
def test_thor_total_is_its_input_where_there_is_one_else_the_sum_never_both(tmp_path, with_input, watts):
    thor(tmp_path, with_input=with_input)
    assert watts_of("jetson-thor-t5000", tmp_path) == pytest.approx(watts)


def test_unconnected_channels_and_shunt_sums_are_not_rails(tmp_path):
    agx_orin(tmp_path)
    names = {rail.name for rail in find_rails(tmp_path)}
    assert names == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


def test_missing_rail_is_named_with_those_that_are_there(tmp_path):
    orin_nano(tmp_path)
    with pytest.raises(SensorError, match=r"VDD_SOC, wanted: VDD_CPU_CV.*board file"):
        open_hwmon(None, ("VDD_SOC", "VDD_CPU_CV"), tmp_path)
    with pytest.raises(SensorError, match="wanted: none given"):
        open_hwmon(None, (), tmp_path)


def test_rail_that_dies_in_the_middle_is_a_device_error_with_its_file(tmp_path):
    orin_nano(tmp_path)
    sensor = open_hwmon("VDD_IN", (), tmp_path)
    current = tmp_path / "sys/class/hwmon/hwmon1/curr1_input"

    def work():
        current.unlink(missing_ok=True)

    with pytest.raises(DeviceError, match=r"VDD_IN.*curr1_input"):
        sensor.over(work, 0.01)


def rapl_zone(root: Path, zone: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    folder = f"sys/class/powercap/{zone}"
    write(root, f"{folder}/name", name)
    write(root, f"{folder}/energy_uj", energy_uj)
    write(root, f"{folder}/max_energy_range_uj", range_uj)
    return root / folder / "energy_uj"


def add(file: Path, microjoules: int) -> None:
    file.write_text(f"{int(file.read_text()) + microjoules}\n")


class FakePackages:
    """Zones that draw so many watts while the work goes on, on a clock of its own."""

    def __init__(self, zones: dict[Path, int]) -> None:
        self.zones, self.now_s = zones, 0.0

    def work(self) -> None:
        self.now_s += 0.005
        for file, watts in self.zones.items():
            add(file, watts * 5_000)

    def clock(self) -> float:
        return self.now_s


class TestRapl(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path):
        machine = FakePackages({rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5_000): 45})
        return Bench(open_rapl(tmp_path, machine.clock), machine.work, 45.0)


def test_nested_and_mirrored_domains_are_counted_once(tmp_path):
    machine = FakePackages(
        {
            rapl_zone(tmp_path, "intel-rapl:0", "package-0", 100): 30,
            rapl_zone(tmp_path, "intel-rapl:1", "package-1", 100): 20,
            rapl_zone(tmp_path, "intel-rapl:0:0", "core", 100): 10,
            rapl_zone(tmp_path, "intel-rapl:0:1", "dram", 100): 4,
            rapl_zone(tmp_path, "intel-rapl:2", "psys", 100): 90,
            rapl_zone(tmp_path, "intel-rapl:3", "package-0", 100): 30,
            rapl_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100): 30,
        }
    )
    sensor = open_rapl(tmp_path, machine.clock)
    assert sensor.over(machine.work, 0.05).watts == pytest.approx(50.0)
    assert "package-0 + package-1" in sensor.method


def test_counter_that_wraps_goes_on(tmp_path):
    size = 1_000_000
    file = rapl_zone(tmp_path, "intel-rapl:0", "package-0", size - 17_500, range_uj=size)
    machine = FakePackages({})

    def work():
        machine.work()
        file.write_text(f"{(int(file.read_text()) + 5_000) % size}\n")

    assert open_rapl(tmp_path, machine.clock).over(work, 0.05).watts == pytest.approx(1.0)
    assert int(file.read_text()) < 500_000, "the counter has to have wrapped"


def test_counter_that_only_root_may_read_names_the_command_that_grants_it(tmp_path, monkeypatch):
    energy = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    read_text = Path.read_text

    def guarded(self, *args, **kwargs):
        if self == energy:
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(SensorError, match=r"only be read by root: sudo chmod a\+r /sys/class/powercap"):
        open_rapl(tmp_path)


def test_machine_without_sensors_has_none_and_says_why(tmp_path):
    assert find_sensor(load_board("this-machine"), tmp_path) is None
    assert find_sensor(load_board("raspberry-pi-5"), tmp_path) is None
    probes = {probe.name: probe for probe in probe_sensors(tmp_path)}
    assert set(probes) == {"nvml", "hwmon", "rapl"}
    for name in ("hwmon", "rapl"):
        assert not probes[name].usable
        assert probes[name].remedy


def test_counter_that_stands_still_is_not_taken_for_a_sensor(tmp_path):
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert find_sensor(load_board("this-machine"), tmp_path) is None


def test_this_machine_is_read_by_rapl_where_its_counter_moves(tmp_path):
    file = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    done = threading.Event()

    def burn():
        energy = 5
        while not done.wait(1e-3):
            energy += 10_000
            beside = file.with_suffix(".new")
            beside.write_text(f"{energy}\n")
            beside.replace(file)

    burner = threading.Thread(target=burn)
    burner.start()
    try:
        sensor = find_sensor(load_board("this-machine"), tmp_path)
    finally:
        done.set()
        burner.join()
    assert sensor is not None
    assert sensor.name == "rapl"
