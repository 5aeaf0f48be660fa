"""The energy of the training, with codecarbon for real."""

import socket
import time

import pytest

from edgelean.sensors import TrainingEnergy, estimate_power


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
