"""Windows over counters, meters and recordings, against sensors that are computed from the exact energy."""

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_sensors import (
    SEEN_S,
    TICK_S,
    Machine,
    averaging_meter,
    blind_counter,
    blind_meter,
    meter,
    on_off,
    ticking_counter,
)

from edgelean.errors import DeviceError, InputError, MissingError
from edgelean.sensors import open_replay
from edgelean.sensors.pace import Calls, Sight, find_pace
from edgelean.sensors.protocol import per_call
from edgelean.sensors.window import CounterSensor, PowerSensor, integrate, watch_in_thread
from edgelean.testing.sensor_contract import Bench, SensorContract

RECORDING = Path(__file__).with_name("recordings") / "two_levels.csv"
SLOW_SENSORS = (ticking_counter, blind_meter, averaging_meter, blind_counter)
IDLE_W = 12.0


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
        return Bench(open_replay(file, clock), clock.work, 7.5, clock=clock, sleep=clock.work)


class TestSlowSensors(SensorContract):
    @pytest.fixture(params=SLOW_SENSORS, ids=lambda make: make.__name__)
    def bench(self, request):
        machine = Machine(idle_w=80.0)
        sensor = request.param(machine, 0.03)
        work, before = machine.work(((0.002, 80.0),)), machine.work(((0.01, 150.0),))
        return Bench(sensor, work, 80.0, 0.02, before, machine.clock, machine.sleep)


class TestRealThread(SensorContract):
    @pytest.fixture
    def bench(self):
        return Bench(PowerSensor("fake", "a meter", lambda: 5.0, period_s=0.005), lambda: time.sleep(1e-3), 5.0)


class TestRealThreadOnACounter(SensorContract):
    @pytest.fixture
    def bench(self):
        # It moves all the time, so that a thread that is late reads a later time and the energy that belongs to it.
        counter = CounterSensor("fake", "a counter", lambda: 5.0 * time.perf_counter())
        return Bench(counter, lambda: time.sleep(4e-3), 5.0, tolerance=0.25)


# -- recordings --------------------------------------------------------------------------------------------------------


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


# -- the integral of samples -------------------------------------------------------------------------------------------


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


# -- slow sensors ------------------------------------------------------------------------------------------------------


def error_of_one_second(make, steps, phase_s, before_w=150.0):
    """Measure a load right after another model, and return the error as a share."""
    machine = Machine(before_w, IDLE_W, seed=int(1e3 * phase_s), jitter=0.002)
    machine.draw(before_w, 0.5)
    window = make(machine, phase_s).over(machine.work(steps), 1.0)
    return per_call([window], IDLE_W).gross_mj.value / 1e3 / (machine.worked_j / machine.calls) - 1


@pytest.mark.parametrize("make", SLOW_SENSORS)
@pytest.mark.parametrize("steps", [((0.005, 80.0),), on_off(0.02), on_off(0.05), on_off(0.1), on_off(0.13)])
def test_window_of_a_second_is_right_within_one_percent_in_front_of_every_load(make, steps):
    assert max(abs(error_of_one_second(make, steps, TICK_S * phase / 6)) for phase in range(6)) < 0.01


@pytest.mark.parametrize("seed", range(12))
def test_half_blind_meter_sees_any_load(seed):
    machine = Machine(seed=seed)
    lengths = [machine.late_s(0.6) + 0.005 for _ in range(4)]
    steps = [(length, machine.late_s(1500) + 15) for length in lengths]
    errors = [error_of_one_second(blind_meter, steps, TICK_S * phase / 3) for phase in range(3)]
    assert max(map(abs, errors)) < 0.02


def test_meter_that_is_not_known_to_be_half_blind_is_misled():
    def trusted(machine, phase_s):
        sensor = blind_meter(machine, phase_s)
        return PowerSensor("fake", "a meter", sensor.read_w, machine.clock, settle_s=0.2, watch=machine.watch)

    assert max(abs(error_of_one_second(trusted, on_off(0.1), TICK_S * phase / 4)) for phase in range(4)) > 0.2


def test_counter_of_a_blind_power_is_right_only_where_it_is_known_to_be_blind():
    def trusted(machine, phase_s):
        return blind_counter(machine, phase_s, known=False)

    assert max(abs(error_of_one_second(trusted, on_off(0.1), TICK_S * phase / 4)) for phase in range(4)) > 0.2
    assert abs(error_of_one_second(blind_counter, on_off(0.1), 0.02)) < 0.01


def test_averaging_meter_that_does_not_settle_still_shows_the_model_before():
    def unsettled(machine, phase_s):
        return meter(machine, phase_s, 1.0, settle_s=0.0)

    assert error_of_one_second(unsettled, ((0.005, 80.0),), 0.05) > 0.2
    assert abs(error_of_one_second(averaging_meter, ((0.005, 80.0),), 0.05)) < 0.001


@pytest.mark.parametrize(("period_s", "tolerance"), [(0.02, 0.01), (0.1, 0.06)])
def test_samples_of_a_meter_are_never_in_step_with_the_calls(period_s, tolerance):
    machine = Machine()
    sensor = PowerSensor(
        "fake", "a meter of this moment", machine_power(machine), machine.clock, period_s, watch=machine.watch
    )
    energy = sensor.over(machine.work(on_off(0.1)), 5.0)
    assert energy.watts == pytest.approx(68.0, rel=tolerance)


def machine_power(machine):
    return lambda: machine.mean_w(machine.now_s - 1e-6, machine.now_s)


def test_pauses_are_only_made_for_sensors_that_need_them():
    for make, needs in ((ticking_counter, False), (averaging_meter, False), (blind_meter, True), (blind_counter, True)):
        machine = Machine()
        window = make(machine, 0.0).over(machine.work(on_off(0.1)), 1.0)
        assert (window.paused_s > 0.01) is needs
    machine = Machine()
    assert blind_meter(machine).over(machine.work(((0.0002, 80.0),)), 0.3).paused_s == 0


# -- the pace of calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.23, 1.0, 5.0])
@pytest.mark.parametrize("call_s", [0.0013, 0.01, 0.05, 0.1, 0.13, 0.23])
def test_paced_blocks_fit_into_a_window_of_whole_ticks(call_s, seconds):
    pace = find_pace(call_s, Sight(TICK_S, SEEN_S), seconds)
    assert pace.calls >= 1
    assert pace.calls * call_s < pace.cycle_s
    assert pace.window_s == pytest.approx(pace.ticks * TICK_S)
    assert pace.window_s / pace.cycle_s == pytest.approx(round(pace.window_s / pace.cycle_s))
    assert seconds - 1e-9 <= pace.window_s <= max(seconds, call_s) + 5.01 * TICK_S


@pytest.mark.parametrize("call_s", [0.004, 0.02, 0.05, 0.1, 0.13, 0.17])
def test_parts_that_a_sensor_sees_of_a_paced_block_cover_it_evenly(call_s):
    pace = find_pace(call_s, Sight(TICK_S, SEEN_S), 1.0)
    bins = 2000
    seen = [0.0] * bins
    for tick in range(pace.ticks):
        for i in range(100):  # the moments of one look
            moment = tick * TICK_S + SEEN_S * i / 100
            seen[int(bins * (moment % pace.cycle_s) / pace.cycle_s) % bins] += bins / (100 * pace.ticks)
    for duty in (0.2, 0.5, 0.8):
        for shift in range(0, bins, 97):
            width = int(duty * bins * call_s * pace.calls / pace.cycle_s)
            share = sum(seen[(shift + i) % bins] for i in range(width)) / bins
            assert share == pytest.approx(width / bins, abs=0.02)


def test_late_call_is_made_at_once_and_the_next_block_is_on_time_again():
    machine = Machine()
    lengths = iter([0.01, 0.01, 0.08, 0.01, 0.01])
    calls = Calls(lambda: machine.draw(50.0, next(lengths)), machine.clock, machine.sleep)
    pace = find_pace(0.01, Sight(TICK_S, SEEN_S), 1.0)
    calls.keep(type(pace)(calls=1, cycle_s=0.03, window_s=0.9, ticks=9))
    ends = []
    for _ in range(5):
        calls.make()
        ends.append(machine.now_s)
    assert ends == pytest.approx([0.01, 0.04, 0.14, 0.15, 0.16])


def test_calls_know_how_many_were_made_until_any_moment():
    machine = Machine()
    calls = Calls(machine.work(((0.1, 50.0),)), machine.clock, machine.sleep)
    calls.make()
    machine.sleep(0.1)
    calls.make()
    moments = (-1.0, 0.0, 0.05, 0.1, 0.15, 0.2, 0.225, 0.3, 9.0)
    assert [calls.position(moment) for moment in moments] == pytest.approx([0, 0, 0.5, 1, 1, 1, 1.25, 2, 2])
    assert calls.busy_s(0.05, 0.25) == pytest.approx(0.1)
    assert calls.busy_s(-1.0, 9.0) == pytest.approx(0.2)
    assert (calls.last_s, calls.typical_s) == pytest.approx((0.1, 0.1))


# -- counters ----------------------------------------------------------------------------------------------------------


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


def test_tick_in_the_middle_of_a_long_call_is_seen_when_it_happens():
    machine = Machine()
    window = ticking_counter(machine, 0.013).over(machine.work(on_off(0.13)), 1.0)
    assert window.seconds == pytest.approx(1.3, abs=0.005), "13 ticks are 10 calls"
    assert window.calls == pytest.approx(10.0, abs=0.03)


def test_window_in_which_the_counter_was_reset_is_measured_once_more():
    for at_s in (0.31, 0.95, 1.05):
        machine = Machine()

        def read_j(machine=machine, at_s=at_s):
            return 500.0 * (machine.now_s < at_s) + 8.0 * math.floor(machine.now_s * 10) / 10

        counter = CounterSensor("fake", "a counter of a driver", read_j, machine.clock, watch=machine.watch)
        assert counter.over(machine.work(((0.001, 8.0),)), 1.0).watts == pytest.approx(8.0, rel=0.01)
        assert machine.now_s > at_s + 1.0


def test_counter_that_runs_backwards_again_and_again_is_a_device_error():
    clock = Clock()
    counter = CounterSensor("fake", "a counter of a driver that restarts", lambda: 200.05 - clock(), clock)
    with pytest.raises(DeviceError, match=r"fake: a counter of a driver that restarts: ran backwards.*measure again"):
        counter.over(clock.work, 0.1)


@pytest.mark.parametrize("call_s", [0.001, 0.05])
def test_counter_that_stands_still_is_a_device_error(call_s):
    machine = Machine()
    counter = CounterSensor("fake", "a dead counter", lambda: 7.0, machine.clock, watch=machine.watch)
    with pytest.raises(DeviceError, match=r"fake: a dead counter: stood still at 7.000 J.*edgelean doctor"):
        counter.over(machine.work(((call_s, 50.0),)), 0.1)


def test_counter_that_fails_during_a_long_call_says_why():
    begin_s = time.perf_counter()

    def read_j():
        if time.perf_counter() > begin_s + 0.03:
            raise DeviceError("GPU is lost")
        return time.perf_counter()

    with pytest.raises(DeviceError, match="GPU is lost"):
        CounterSensor("fake", "a counter", read_j).over(lambda: time.sleep(0.005), 0.1)


# -- meters ------------------------------------------------------------------------------------------------------------


def readings(values):
    """Return a meter on a simulated machine that gives these powers in turn, the last one for ever."""
    machine, values = Machine(), list(values)

    def read_w():
        return values.pop(0) if len(values) > 1 else values[0]

    return machine, PowerSensor("fake", "a dead meter", read_w, machine.clock, watch=machine.watch)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -3.0])
def test_meter_that_reads_no_power_is_a_device_error(bad):
    machine, sensor = readings([bad])
    with pytest.raises(DeviceError, match=rf"fake: a dead meter: read {bad:g} W \d+ times.*edgelean doctor"):
        sensor.over(machine.work(((0.001, 50.0),)), 0.1)


def test_few_readings_of_nothing_are_left_out():
    machine, sensor = readings([6.0, 0.0, 6.0, 6.0, 0.0, 6.0])
    assert sensor.over(machine.work(((0.001, 6.0),)), 0.5).watts == pytest.approx(6.0)


def test_failure_of_a_meter_reaches_the_caller():
    def broken():
        raise DeviceError("the bus is gone")

    with pytest.raises(DeviceError, match="the bus is gone"):
        PowerSensor("fake", "a broken meter", broken, period_s=0.001).over(lambda: None, 0.005)


def test_watch_reads_at_the_beginning_and_at_the_end_and_in_order():
    values = iter(range(1000))
    with watch_in_thread(lambda: float(next(values)), time.perf_counter, 60.0) as samples:
        while not samples:
            time.sleep(1e-4)
    assert [value for _, value in samples] == [0.0, 1.0]
    assert samples[0][0] <= samples[1][0]


def test_watch_whose_sensor_fails_ends_with_no_number_and_raises_at_the_end():
    def broken():
        raise DeviceError("the bus is gone")

    seen = []

    def look():
        with watch_in_thread(broken, time.perf_counter, 1e-3) as samples:
            while not samples:
                time.sleep(1e-4)
            seen.append(samples[0][1])

    with pytest.raises(DeviceError, match="the bus is gone"):
        look()
    assert math.isnan(seen[0])
