"""The energy of a call: its statistics against scipy and known normal noise, its course on simulated machines."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from simulated_sensors import Machine, averaging_meter, blind_meter, on_off, ticking_counter

from edgelean.errors import InputError
from edgelean.sensors.protocol import LABORATORY, EnergyProtocol, Estimate, measure_energy, measure_idle, per_call
from edgelean.sensors.window import Energy

STEADY = ((0.002, 80.0),)
TRUE_MJ, IDLE_W = 160.0, 12.0


def window(joules=1.0, seconds=0.5, calls=10, paused_s=0.0):
    return Energy(joules, seconds, calls, "a counter", paused_s)


class Noisy:
    """A sensor of 80 W with normal noise, and a diary of what it was asked."""

    name, method = "noisy", "a noisy sensor"

    def __init__(self, noise=0.0, idle_w=IDLE_W, seed=0):
        self.noise, self.idle_w, self.random = noise, idle_w, random.Random(seed)
        self.now_s, self.worked, self.slept, self.diary = 0.0, 0, [], []

    def over(self, work, seconds):
        before = self.worked
        work()
        watts = 80.0 if self.worked > before else self.idle_w
        self.now_s += seconds
        self.diary.append((watts, seconds))
        return Energy(watts * seconds * (1 + self.random.gauss(0, self.noise)), seconds, seconds / 0.002, self.method)

    def work(self):
        self.worked += 1

    def sleep(self, seconds):
        self.now_s += seconds
        self.slept.append(seconds)

    def measure(self, protocol=None, **more):
        return measure_energy(self, self.work, protocol, clock=lambda: self.now_s, sleep=self.sleep, **more)


@pytest.mark.parametrize("count", [2, 3, 4, 8, 11, 12, 20, 100])
def test_interval_is_that_of_student(count):
    values = [random.Random(i).uniform(0.9, 1.1) for i in range(count)]
    gross = per_call([window(joules=value) for value in values], None).gross_mj
    mean = sum(values) / count * 100
    deviation = math.sqrt(sum((100 * value - mean) ** 2 for value in values) / (count - 1))
    assert gross.value == pytest.approx(mean)
    assert gross.high - gross.value == pytest.approx(gross.value - gross.low)
    assert gross.high - mean == pytest.approx(student.ppf(0.975, count - 1) * deviation / math.sqrt(count), rel=1e-3)


@given(st.floats(1, 500), st.floats(0, 50), st.floats(0, 0.3), st.integers(2, 8))
def test_pauses_are_taken_out_at_the_idle_power_and_net_is_gross_less_idle(watts, idle_w, pause, count):
    call_s, calls = 0.01, 20
    seconds = calls * call_s / (1 - pause)
    joules = watts * calls * call_s + idle_w * seconds * pause
    result = per_call([window(joules, seconds, calls, seconds * pause)] * count, idle_w)
    assert result.gross_mj.value == pytest.approx(watts * call_s * 1e3)
    assert result.net_mj.value == pytest.approx((watts - idle_w) * call_s * 1e3, abs=1e-6)
    assert result.idle_w == idle_w
    assert result.windows == count


def test_what_is_not_known_of_the_idle_power_is_in_the_interval_of_the_net_energy():
    windows = [window(joules) for joules in (1.0, 1.01, 0.99, 1.0)]
    sure, unsure = per_call(windows, 1.0), per_call(windows, Estimate(1.0, 0.8, 1.2))
    assert unsure.net_mj.value == sure.net_mj.value
    width_mj = 0.2 * 50.0  # +-0.2 W over the 50 ms of a call
    reach = sure.net_mj.high - sure.net_mj.value
    assert unsure.net_mj.high - unsure.net_mj.value == pytest.approx(math.hypot(reach, width_mj))
    assert unsure.gross_mj == sure.gross_mj, "without a pause the idle power is no part of the gross energy"


def test_one_window_has_no_interval_and_is_not_narrow():
    result = per_call([window()], None)
    assert result.gross_mj == Estimate(100.0, 100.0, 100.0)
    assert not result.narrow
    assert "one window" in result.method


def test_windows_that_cannot_tell_an_energy_are_refused():
    with pytest.raises(InputError, match="at least one window"):
        per_call([], 5.0)
    with pytest.raises(InputError, match="measure the idle power too"):
        per_call([window(), window(paused_s=0.01)], None)


@pytest.mark.parametrize(
    "wrong",
    [{"windows": 1}, {"windows": 5, "most_windows": 4}, {"window_s": 0}, {"half_width": 0}, {"idle_s": -1},
     {"idle_windows": 1}, {"longest_delay_s": -1}],
)  # fmt: skip
def test_protocol_that_measures_nothing_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EnergyProtocol(**wrong)


def test_quiet_sensor_is_read_no_longer_than_needed():
    result = Noisy(noise=0.001).measure()
    assert result.narrow
    assert result.windows == EnergyProtocol().windows
    assert result.gross_mj.value == pytest.approx(TRUE_MJ, rel=0.01)
    assert result.net_mj.value == pytest.approx((80.0 - IDLE_W) * 2.0, rel=0.01)


def test_noisy_sensor_ends_at_the_cap_and_shows_it():
    result = Noisy(noise=0.3).measure()
    assert not result.narrow
    assert result.windows == EnergyProtocol().most_windows
    assert result.gross_mj.high - result.gross_mj.low > 0.06 * result.gross_mj.value


def test_interval_holds_the_truth_about_as_often_as_it_says_although_it_decides_when_to_stop():
    noise = itertools.cycle([0.01, 0.03, 0.05])
    results = [Noisy(next(noise), seed=seed).measure() for seed in range(600)]
    assert sum(result.gross_mj.low <= TRUE_MJ <= result.gross_mj.high for result in results) > 0.91 * 600
    net_mj = TRUE_MJ - 2 * IDLE_W
    assert sum(result.net_mj.low <= net_mj <= result.net_mj.high for result in results) > 0.91 * 600


def test_idle_power_is_read_after_the_first_call_and_before_the_warm_up():
    sensor = Noisy(noise=1e-6)
    sensor.measure(EnergyProtocol(idle_s=0.8, idle_windows=2))
    watts = [watt for watt, _ in sensor.diary]
    assert watts[:2] == [IDLE_W, IDLE_W]
    assert set(watts[2:]) == {80.0}
    assert [seconds for _, seconds in sensor.diary[:2]] == [0.4, 0.4]


def test_idle_power_that_is_known_is_not_read_again():
    sensor = Noisy()
    known = measure_idle(sensor, sleep=sensor.sleep)
    sensor.diary.clear()
    result = sensor.measure(idle_w=known)
    assert result.idle_w == known.value == IDLE_W
    assert IDLE_W not in [watt for watt, _ in sensor.diary]


def test_without_an_idle_power_there_is_no_net_energy():
    result = Noisy().measure(EnergyProtocol(idle_s=0))
    assert result.net_mj is None
    assert result.idle_w is None


def test_delays_before_windows_are_random_and_at_most_one_tick_long():
    sensor = Noisy(noise=0.3)
    sensor.measure(EnergyProtocol(idle_s=0, longest_delay_s=0.1), random=random.Random(7).random)
    assert len(sensor.slept) == len(set(sensor.slept)) == EnergyProtocol().most_windows
    assert max(sensor.slept) <= 0.1
    assert max(sensor.slept) - min(sensor.slept) > 0.03


def test_same_measurement_makes_the_same_delays():
    first, second = Noisy(noise=0.3), Noisy(noise=0.3)
    assert first.measure() == second.measure()
    assert first.slept == second.slept


class Rising(Noisy):
    """Its power rises for a while, as that of a GPU does whose clocks go up."""

    def over(self, work, seconds):
        energy = super().over(work, seconds)
        return Energy(energy.joules * (1 - 0.5 * math.exp(-self.now_s / 0.5)), seconds, energy.calls, energy.method)


def test_warm_up_goes_on_until_the_power_is_steady():
    protocol = EnergyProtocol(idle_s=0, warm_up_s=1.5, window_s=0.5)
    steady, rising = Noisy(), Rising()
    steady.measure(protocol)
    result = rising.measure(protocol)
    assert len(rising.diary) > len(steady.diary)
    assert result.gross_mj.value == pytest.approx(TRUE_MJ, rel=0.02)


class Bistable(Noisy):
    def over(self, work, seconds):
        energy = super().over(work, seconds)
        return Energy(energy.joules * (1 + len(self.diary) % 2), seconds, energy.calls, energy.method)


def test_warm_up_of_a_power_that_never_settles_ends():
    sensor = Bistable()
    sensor.measure(EnergyProtocol(idle_s=0, warm_up_s=0.9))
    assert 9 <= len(sensor.diary) - EnergyProtocol().most_windows <= 10, "three times as long as asked"


class Hot(Noisy):
    """A device that warms up by 5 C a window, and cools down while nothing is done."""

    def __init__(self, cools_c_per_s):
        super().__init__()
        self.cools_c_per_s, self.began_at_c = cools_c_per_s, []

    def over(self, work, seconds):
        self.began_at_c.append(self.celsius())
        return super().over(work, seconds)

    def celsius(self):
        return 40.0 + 5.0 * len(self.diary) - self.cools_c_per_s * sum(self.slept)


def test_device_cools_down_between_windows_to_what_it_was():
    device = Hot(cools_c_per_s=4.0)
    result = device.measure(EnergyProtocol(idle_s=0), temperature_c=device.celsius)
    windows_c = device.began_at_c[-result.windows :]
    before_c = device.began_at_c[-result.windows - 1] + 5.0  # what the warm-up made of it
    assert max(windows_c) <= before_c + 3.0
    assert max(windows_c) > before_c + 1.0, "it is not waited for longer than needed"
    assert "s of cooling down" in result.method


def test_device_that_does_not_cool_down_is_waited_for_no_longer_than_allowed():
    device = Hot(cools_c_per_s=0.0)
    device.measure(EnergyProtocol(idle_s=0, cool_down_s=2.0, longest_delay_s=0), temperature_c=device.celsius)
    assert sum(device.slept) == pytest.approx((EnergyProtocol().windows - 1) * 2.0)


def test_sensor_that_needs_pauses_gets_an_idle_power_even_where_none_was_asked_for():
    machine = Machine()
    result = measure_energy(
        blind_meter(machine),
        machine.work(on_off(0.1)),
        EnergyProtocol(idle_s=0),
        clock=machine.clock,
        sleep=machine.sleep,
    )
    assert result.idle_w == pytest.approx(IDLE_W, rel=0.01)
    assert result.gross_mj.value == pytest.approx(6800, rel=0.01)
    assert "pauses that this sensor needs" in result.method


@pytest.mark.parametrize("make", [ticking_counter, blind_meter, averaging_meter])
def test_laboratory_is_exact_in_front_of_every_sensor(make):
    machine = Machine(before_w=200.0)
    result = measure_energy(
        make(machine, 0.037), machine.work(on_off(0.05)), LABORATORY, clock=machine.clock, sleep=machine.sleep
    )
    assert result.narrow
    assert result.gross_mj.value == pytest.approx(3400, rel=0.002)
    assert result.net_mj.value == pytest.approx(3400 - 50 * IDLE_W, rel=0.002)
