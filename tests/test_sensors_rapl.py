"""RAPL, read from trees of files that look like the powercap of Intel's and AMD's processors."""

import re
from pathlib import Path

import pytest
from board_trees import rapl_zone

from edgelean.errors import DeviceError
from edgelean.sensors.rapl import open_rapl
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract

CALL_S = 0.002


def add(file: Path, microjoules: float) -> None:
    file.write_text(f"{int(file.read_text()) + round(microjoules)}\n")


class FakePackages:
    """Zones that draw so many watts while the work goes on, on a clock of its own."""

    def __init__(self, zones: dict[Path, int]) -> None:
        self.zones, self.now_s = zones, 0.0

    def work(self, seconds: float = CALL_S) -> None:
        self.now_s += seconds
        for file, watts in self.zones.items():
            add(file, watts * seconds * 1e6)

    def clock(self) -> float:
        return self.now_s


class TestRapl(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path):
        machine = FakePackages({rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5_000): 45})
        sensor = open_rapl(tmp_path, machine.clock)
        return Bench(sensor, machine.work, 45.0, clock=machine.clock, sleep=machine.work)


def watts_of(root: Path, zones: dict[tuple[str, str, int], int]) -> tuple[float, str]:
    """Return what is read of zones (folder, name, microjoules so far) that draw so many watts, and how."""
    machine = FakePackages({rapl_zone(root, *zone): watts for zone, watts in zones.items()})
    sensor = open_rapl(root, machine.clock)
    return sensor.over(machine.work, 0.05).watts, sensor.method


def test_nested_domains_and_those_of_the_memory_bus_are_counted_once(tmp_path):
    watts, method = watts_of(
        tmp_path,
        {
            ("intel-rapl:0", "package-0", 100): 30,
            ("intel-rapl:1", "package-1", 100): 20,
            ("intel-rapl:0:0", "core", 100): 10,
            ("intel-rapl:0:1", "dram", 100): 4,
            ("intel-rapl:2", "psys", 100): 90,
            ("intel-rapl:3", "package-0", 100): 30,
            ("intel-rapl-mmio:0", "package-0", 100): 30,
        },
    )
    assert watts == pytest.approx(50.0)
    assert "package-0 + package-1" in method


def test_dies_of_amd_that_mirror_one_counter_are_counted_once_and_named(tmp_path):
    zones = {(f"intel-rapl:{die}", f"package-0-die-{die}", 41_000_000_000 + die): 68 for die in range(4)}
    zones[("intel-rapl:4", "package-1-die-0", 40_000_000_000)] = 70
    watts, method = watts_of(tmp_path, zones)
    assert watts == pytest.approx(68.0 + 70.0)
    assert "package-0-die-3 mirror the same counter" in method


def test_dies_of_intel_that_have_a_counter_each_are_added_up(tmp_path):
    watts, method = watts_of(
        tmp_path,
        {
            ("intel-rapl:0", "package-0-die-0", 41_000_000_000): 90,
            ("intel-rapl:1", "package-0-die-1", 38_500_000_000): 110,
        },
    )
    assert watts == pytest.approx(200.0)
    assert "mirror" not in method


def test_two_sockets_that_show_the_same_number_by_chance_are_two(tmp_path):
    watts, _ = watts_of(tmp_path, {("intel-rapl:0", "package-0", 7): 30, ("intel-rapl:1", "package-1", 7): 30})
    assert watts == pytest.approx(60.0)


def test_processor_that_is_shown_on_the_memory_bus_only_is_read_there(tmp_path):
    watts, _ = watts_of(tmp_path, {("intel-rapl-mmio:0", "package-0", 7): 12})
    assert watts == pytest.approx(12.0)


def test_counter_that_wraps_goes_on(tmp_path):
    size = 1_000_000
    file = rapl_zone(tmp_path, "intel-rapl:0", "package-0", size - 17_500, range_uj=size)
    machine = FakePackages({})

    def work():
        machine.work()
        file.write_text(f"{(int(file.read_text()) + 2_000) % size}\n")

    assert open_rapl(tmp_path, machine.clock).over(work, 0.05).watts == pytest.approx(1.0)
    assert int(file.read_text()) < 500_000, "the counter has to have wrapped"


def test_counter_that_was_set_back_is_not_taken_for_one_that_wrapped(tmp_path):
    machine = FakePackages({rapl_zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000_000): 45})
    sensor = open_rapl(tmp_path, machine.clock)
    (file,) = machine.zones
    machine.work()
    file.write_text("0\n")
    with pytest.raises(DeviceError, match=r"intel-rapl:0/energy_uj was set back.*measure again"):
        sensor.over(machine.work, 0.05)
    assert sensor.over(machine.work, 0.05).watts == pytest.approx(45.0)


def refuse(monkeypatch, error):
    """Let the kernel refuse every energy counter."""
    read_text = Path.read_text

    def guarded(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise error
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)


def test_counter_that_only_root_may_read_names_the_one_command_that_grants_it(tmp_path, monkeypatch):
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    refuse(monkeypatch, PermissionError(13, "Permission denied"))
    command = f"sudo chmod a+r {tmp_path}/sys/class/powercap/intel-rapl:*/energy_uj"
    with pytest.raises(SensorError, match=re.escape(f"only be read by root: {command}")) as caught:
        open_rapl(tmp_path)
    assert caught.value.remedy == command


def test_counter_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    refuse(monkeypatch, OSError(61, "No data available"))
    with pytest.raises(SensorError, match=r"intel-rapl:0/energy_uj cannot be read.*No data"):
        open_rapl(tmp_path)


def test_machine_without_rapl_and_a_container_that_masks_it_are_told_apart(tmp_path):
    with pytest.raises(SensorError, match=r"no processor package.*virtual machines"):
        open_rapl(tmp_path)
    powercap = tmp_path / "sys/class/powercap"
    powercap.mkdir(parents=True)
    (powercap / "intel-rapl:0").symlink_to(tmp_path / "masked")
    with pytest.raises(SensorError, match="masked: start the container with --security-opt systempaths=unconfined"):
        open_rapl(tmp_path)
