"""The energy of the training, with codecarbon for real."""

import socket
import sys
import time
from types import SimpleNamespace

import pytest

from edgelean.sensors import TrainingEnergy, estimate_power
from edgelean.sensors.carbon import TrainingCost


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture
def contacted(monkeypatch):
    """Every address that is contacted; none is reached."""
    addresses = []

    def refuse(self, address):
        addresses.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return addresses


def test_training_energy_is_silent_offline_and_leaves_no_file(tmp_path, monkeypatch, capfd, contacted):
    monkeypatch.chdir(tmp_path)
    energy = TrainingEnergy()
    energy.start()
    busy(0.2)
    cost = energy.stop()
    assert cost.kwh is not None
    assert cost.kwh > 0
    assert cost.seconds >= 0.2
    assert contacted == []
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_energy_so_far_grows_and_ends_as_the_whole():
    energy = TrainingEnergy()
    before = energy.so_far()
    energy.start()
    found = []
    for _ in range(2):
        busy(0.1)
        found.append(energy.so_far())
    whole = energy.stop()
    assert before.kwh is None
    assert 0 < found[0].kwh < found[1].kwh <= whole.kwh
    assert found[0].seconds < found[1].seconds <= whole.seconds
    assert found[1].parts.keys() == whole.parts.keys()


def test_parts_add_up_and_say_which_of_them_are_guessed():
    energy = TrainingEnergy()
    energy.start()
    busy(0.1)
    cost = energy.stop()
    assert {"cpu", "ram"} <= set(cost.parts)
    assert cost.parts["ram"].how == "estimated"
    assert cost.kwh == pytest.approx(sum(part.kwh for part in cost.parts.values()))
    assert f"cpu {cost.parts['cpu'].how}" in cost.method


def test_settings_of_the_users_own_codecarbon_do_not_leak_in(tmp_path, monkeypatch, contacted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("CODECARBON_SAVE_TO_FILE", "true")
    monkeypatch.setenv("CODECARBON_OUTPUT_METHODS", "csv")
    energy = TrainingEnergy()
    energy.start()
    assert energy.stop().parts
    assert contacted == []
    assert list(tmp_path.iterdir()) == []


def test_codecarbon_that_fails_leaves_the_energy_unknown_not_zero():
    cost = TrainingEnergy().stop()
    assert cost.kwh is None
    assert "not known" in cost.method


def test_estimate_of_the_power_says_whose_it_is(capfd):
    estimate = estimate_power()
    assert estimate.watts > 0
    assert "codecarbon's estimate" in estimate.method
    assert f"{estimate.watts:g} W" in estimate.method
    assert capfd.readouterr() == ("", "")


class AppleSiliconChip:
    """The name by which codecarbon calls what it reads through powermetrics."""

    def __init__(self, chip_part):
        self.chip_part = chip_part


class Raspberry(AppleSiliconChip):
    """What it reads from the power chip of a Raspberry Pi."""


class Tracker:
    """What is looked at of a tracker of codecarbon that has stopped."""

    _start_time = 0.0

    def __init__(self, *hardware, cpu=0.3, gpu=0.0, ram=0.1):
        self._hardware = hardware
        self.final_emissions_data = SimpleNamespace(cpu_energy=cpu, gpu_energy=gpu, ram_energy=ram)

    def stop(self):
        pass


def cost_of(tracker) -> TrainingCost:
    energy = TrainingEnergy()
    energy._tracker = tracker
    return energy.stop()


@pytest.mark.parametrize(
    ("hardware", "cpu", "ram"),
    [
        ([SimpleNamespace(_mode="intel_rapl")], "measured", "estimated"),
        ([SimpleNamespace(_mode="windows_emi")], "measured", "estimated"),
        ([SimpleNamespace(_mode="cpu_load")], "estimated", "estimated"),
        ([SimpleNamespace(_mode="constant")], "estimated", "estimated"),
        ([AppleSiliconChip("CPU"), AppleSiliconChip("GPU")], "measured", "estimated"),
        ([Raspberry("CPU"), Raspberry("RAM")], "measured", "measured"),
        ([], "estimated", "estimated"),
    ],
)
def test_only_what_comes_from_a_sensor_counts_as_measured(hardware, cpu, ram):
    parts = cost_of(Tracker(*hardware)).parts
    assert (parts["cpu"].how, parts["ram"].how) == (cpu, ram)


def test_gpu_that_was_read_is_measured():
    assert cost_of(Tracker(gpu=0.5)).parts["gpu"] == (0.5, "measured")


@pytest.mark.parametrize(("in_use", "how"), [(True, "unknown"), (False, None)])
def test_gpu_that_works_and_was_not_read_is_unknown_and_not_zero(monkeypatch, in_use, how):
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: in_use))
    monkeypatch.setitem(sys.modules, "torch", torch)
    cost = cost_of(Tracker())
    assert (cost.parts["gpu"].how if "gpu" in cost.parts else None) == how
    assert cost.kwh == pytest.approx(0.4)
    assert ("gpu unknown" in cost.method) == in_use
