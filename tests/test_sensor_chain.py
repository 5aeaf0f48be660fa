"""Sensors in line: the next one goes on, or the run stops, and the change is on record."""

import pytest
from simulated_sensors import Machine, averaging_meter, blind_meter, on_off, ticking_counter

from edgelean.errors import DeviceError, InputError
from edgelean.sensors.chain import SensorChain
from edgelean.sensors.protocol import EnergyProtocol, measure_energy
from edgelean.sensors.window import CounterSensor, Energy
from edgelean.testing.sensor_contract import Bench, SensorContract

STEADY = ((0.001, 80.0),)


class TestChain(SensorContract):
    @pytest.fixture
    def bench(self):
        machine = Machine(idle_w=80.0)
        work, before = machine.work(STEADY), machine.work(((0.01, 150.0),))
        chain = SensorChain((Mortal(0), ticking_counter(machine)))
        return Bench(chain, work, 80.0, before=before, clock=machine.clock, sleep=machine.sleep)


class Mortal:
    """A sensor that reads 50 W so many times and then dies."""

    def __init__(self, windows, name="mortal"):
        self.name, self.method, self.left = name, f"the {name} counter", windows

    def over(self, work, seconds):
        work()
        if self.left == 0:
            raise DeviceError("nvmlDeviceGetTotalEnergyConsumption:\n GPU is lost")
        self.left -= 1
        return Energy(50.0 * seconds, seconds, 1, self.method)


def test_healthy_sensor_is_read_and_nothing_is_said():
    chain = SensorChain((Mortal(9, "first"), Mortal(9, "second")))
    assert (chain.name, chain.method) == ("first", "the first counter")
    assert chain.over(lambda: None, 0.5) == Energy(25.0, 0.5, 1, "the first counter")


def test_next_sensor_goes_on_and_every_energy_after_it_says_since_when_and_why():
    chain = SensorChain((Mortal(1, "first"), Mortal(2, "second"), Mortal(9, "third")))
    methods = [chain.over(lambda: None, 0.1).method for _ in range(5)]
    reason = "failed (nvmlDeviceGetTotalEnergyConsumption: GPU is lost)"
    assert methods[0] == "the first counter"
    assert methods[1] == methods[2] == f"since the first counter {reason}: the second counter"
    assert methods[3] == methods[4]
    assert methods[3] == f"since the first counter {reason} and the second counter {reason}: the third counter"
    assert chain.name == "third"


def test_chain_that_was_told_to_stop_raises_the_failure_and_says_that_the_run_can_be_resumed():
    chain = SensorChain((Mortal(1, "first"), Mortal(9, "second")), on_loss="stop")
    chain.over(lambda: None, 0.1)
    with pytest.raises(DeviceError, match=r"first was lost.*GPU is lost[\s\S]*resume"):
        chain.over(lambda: None, 0.1)
    assert chain.name == "first"


def test_last_failure_names_all_that_were_lost_before():
    chain = SensorChain((Mortal(0, "first"), Mortal(0, "second")))
    with pytest.raises(DeviceError, match=r"no sensor is left[\s\S]*before that, the first counter failed"):
        chain.over(lambda: None, 0.1)


def test_failure_of_the_work_costs_no_sensor():
    chain = SensorChain((Mortal(9, "first"), Mortal(9, "second")))

    def work():
        raise DeviceError("the runtime does not run the model")

    with pytest.raises(DeviceError, match="does not run the model"):
        chain.over(work, 0.1)
    assert chain.name == "first"


def test_chain_needs_a_sensor():
    with pytest.raises(InputError, match="edgelean doctor"):
        SensorChain(())


def test_sensor_that_dies_in_the_middle_of_a_measurement_leaves_nothing_of_itself_in_the_figure():
    machine = Machine()
    counter = ticking_counter(machine)

    def dying_j():
        if machine.now_s > 3.0:
            raise DeviceError("GPU is lost")
        return 3 * counter.read_j()  # a gain that would show

    dying = CounterSensor("dying", "a dying counter", dying_j, machine.clock, sleep=machine.sleep, watch=machine.watch)
    chain = SensorChain((dying, averaging_meter(machine)))
    protocol = EnergyProtocol(windows=4, window_s=0.5)
    result = measure_energy(chain, machine.work(STEADY), protocol, clock=machine.clock, sleep=machine.sleep)
    assert machine.now_s > 3.0
    assert result.gross_mj.value == pytest.approx(80.0, rel=0.01)
    assert result.idle_w == pytest.approx(12.0, rel=0.01)
    assert result.method.startswith("since a dying counter failed (GPU is lost): a meter of the last 1000 ms")


def test_sensor_that_does_not_notice_the_work_is_left_for_the_next_one():
    machine = Machine()
    elsewhere = CounterSensor(
        "elsewhere",
        "a counter of another GPU",
        lambda: round(30 * machine.now_s, 9),
        machine.clock,
        sleep=machine.sleep,
    )
    work = machine.work(on_off(0.002))
    with pytest.raises(DeviceError, match=r"elsewhere.*with work and without"):
        measure_energy(elsewhere, work, clock=machine.clock, sleep=machine.sleep)
    chain = SensorChain((elsewhere, blind_meter(machine)))
    result = measure_energy(chain, work, clock=machine.clock, sleep=machine.sleep)
    assert result.gross_mj.value == pytest.approx(2 * 68.0, rel=0.01)
    assert "another GPU failed (" in result.method
