"""Windows over counters, meters and recordings."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.errors import DeviceError, InputError, MissingError
from edgelean.sensors import open_replay
from edgelean.sensors.window import CounterSensor, PowerSensor, integrate
from edgelean.testing.sensor_contract import Bench, SensorContract

RECORDING = Path(__file__).with_name("recordings") / "two_levels.csv"


class Clock:
    """A clock that only the work moves on."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def work(self, seconds=0.001):
        self.now_s += seconds


class TestReplay(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path):
        file = tmp_path / "steady.csv"
        file.write_text("seconds,watts\n0,7.5\n3600,7.5\n")
        clock = Clock()
        return Bench(open_replay(file, clock), clock.work, 7.5)


def test_recording_is_played_from_its_first_second_on():
    clock = Clock()
    sensor = open_replay(RECORDING, clock)
    assert sensor.over(clock.work, 0.4).watts == pytest.approx(4.0)
    clock.now_s = 100.0 + 1.0
    assert sensor.over(clock.work, 0.5).watts == pytest.approx(12.0)


def test_recording_that_is_over_is_a_device_error():
    clock = Clock()
    sensor = open_replay(RECORDING, clock)
    clock.now_s += 2.9
    with pytest.raises(DeviceError, match="ends after 3 s"):
        sensor.over(clock.work, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("time,power\n0,1\n", "line 1.*header seconds,watts"),
        ("seconds,watts\n0,1\n", "at least two samples"),
        ("seconds,watts\n0,1\n1,much\n", "line 3.*two numbers"),
        ("seconds,watts\n0,1\n0,2\n", "line 3.*grow"),
        ("seconds,watts\n0,nan\n1,1\n", "line 2"),
    ],
)
def test_file_that_is_no_recording_is_refused_with_its_line(tmp_path, text, message):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        open_replay(file)
    with pytest.raises(MissingError, match="gone"):
        open_replay(tmp_path / "gone.csv")


@given(
    st.floats(0, 100),
    st.floats(-50, 50),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_integral_of_a_straight_line_is_exact(offset, slope, steps, left, right):
    times = [sum(steps[: i + 1]) for i in range(len(steps))]
    samples = [(time, offset + slope * time) for time in times]
    begin, end = (times[0] + share * (times[-1] - times[0]) for share in sorted((left, right)))
    exact = offset * (end - begin) + slope * (end**2 - begin**2) / 2
    assert integrate(samples, begin, end) == pytest.approx(exact, abs=1e-6)


def test_power_is_taken_as_constant_outside_its_samples():
    assert integrate([(1.0, 3.0), (2.0, 5.0)], 0.0, 4.0) == pytest.approx(3 + 4 + 10)


def test_window_on_a_counter_is_exact_to_one_call_wherever_it_begins():
    for phase in range(20):
        clock = Clock()
        clock.now_s += phase * 0.005
        counter = CounterSensor(
            "fake", "a counter with 100 ms ticks", lambda c=clock: 8.0 * math.floor(c() * 10) / 10, clock
        )
        energy = counter.over(clock.work, 0.25)
        assert energy.watts == pytest.approx(8.0, rel=0.001 / 0.25)
        assert energy.joules_per_call == pytest.approx(0.008, rel=0.001 / 0.25)


def test_counter_that_runs_backwards_is_a_device_error():
    clock = Clock()
    counter = CounterSensor("fake", "a counter of a driver that restarts", lambda: 200.05 - clock(), clock)
    with pytest.raises(DeviceError, match="ran backwards"):
        counter.over(clock.work, 0.1)


def test_meter_that_reads_nothing_is_a_device_error():
    with pytest.raises(DeviceError, match="0 W"):
        PowerSensor("fake", "a dead meter", lambda: 0.0, period_s=0.001).over(lambda: None, 0.005)


def test_failure_of_a_meter_reaches_the_caller():
    def broken():
        raise DeviceError("the bus is gone")

    with pytest.raises(DeviceError, match="the bus is gone"):
        PowerSensor("fake", "a broken meter", broken, period_s=0.001).over(lambda: None, 0.005)
