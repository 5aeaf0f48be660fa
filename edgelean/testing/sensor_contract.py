"""What every sensor has to satisfy.

Derive a class named ``Test...`` from :class:`SensorContract`, give it a pytest fixture ``bench``, and run pytest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from edgelean.sensors.protocol import EnergyProtocol, measure_energy
from edgelean.sensors.window import Clock, Sensor, Sleep, Work

SHORT = EnergyProtocol(window_s=0.05, most_windows=5, idle_s=0.0, longest_delay_s=0.002, warm_up_s=0.01)


@dataclass(frozen=True)
class Bench:
    """A sensor in front of a load whose power is known.

    Attributes
    ----------
    sensor
        What is tested.
    work
        A short call; where the sensor follows a clock of the test, it moves that clock on.
    watts
        What the load truly draws, all the time.
    tolerance
        How far the sensor may be off, as a share.
    before
        Another work, whose power is not that of the load; None where the bench has only one.
    clock, sleep
        Seconds of the test and how to wait, where the sensor follows a clock of the test.
    """

    sensor: Sensor
    work: Work
    watts: float
    tolerance: float = 0.01
    before: Work | None = None
    clock: Clock = time.perf_counter
    sleep: Sleep = time.sleep


class SensorContract:
    """The properties of a sensor, as tests of a bench."""

    def test_energy_is_the_power_times_the_time(self, bench: Bench) -> None:
        """Short window or long, the mean power is that of the load."""
        for seconds in (0.05, 0.25):
            energy = bench.sensor.over(bench.work, seconds)
            assert abs(energy.watts / bench.watts - 1) <= bench.tolerance
            assert abs(energy.joules - energy.watts * energy.seconds) <= 1e-9 * energy.joules

    def test_window_is_at_least_as_long_as_asked(self, bench: Bench) -> None:
        """A window may be longer, because it ends with a tick or with a call, and never shorter."""
        assert bench.sensor.over(bench.work, 0.1).seconds >= 0.1

    def test_nothing_from_before_is_in_the_window(self, bench: Bench) -> None:
        """Whatever ran until now, for as long as any sensor looks back, the mean power is that of the load."""
        before = bench.before
        if before is None:
            return
        until_s = bench.clock() + 2.0
        while bench.clock() < until_s:
            before()
        assert abs(bench.sensor.over(bench.work, 0.1).watts / bench.watts - 1) <= bench.tolerance

    def test_calls_of_the_window_were_made(self, bench: Bench) -> None:
        """The count never invents a call; calls that only wait for a tick may be left out of it."""
        made: list[object] = []
        energy = bench.sensor.over(lambda: made.append(bench.work()), 0.1)
        assert 0 < energy.calls <= len(made)
        assert abs(energy.joules_per_call * energy.calls - energy.joules) <= 1e-9 * energy.joules

    def test_pauses_are_told_and_are_the_smaller_part(self, bench: Bench) -> None:
        """What a sensor adds to the work for its own sake is no secret, because somebody has to take it out again."""
        energy = bench.sensor.over(bench.work, 0.1)
        assert 0 <= energy.paused_s < energy.seconds / 2

    def test_method_is_one_line_for_the_report(self, bench: Bench) -> None:
        """Every energy says how it was read."""
        energy = bench.sensor.over(bench.work, 0.01)
        assert energy.method == bench.sensor.method
        assert bench.sensor.name
        assert bench.sensor.method
        assert "\n" not in bench.sensor.method

    def test_protocol_measures_with_it(self, bench: Bench) -> None:
        """The protocol for the energy of a call gets along with the sensor, whatever kind it is."""
        try:
            result = measure_energy(bench.sensor, bench.work, SHORT, clock=bench.clock, sleep=bench.sleep)
        except ArithmeticError as error:  # a window without a call in it
            raise AssertionError("a window of the sensor cannot be divided by its calls") from error
        assert SHORT.windows <= result.windows <= SHORT.most_windows
        assert result.gross_mj.low <= result.gross_mj.value <= result.gross_mj.high
        assert result.gross_mj.value > 0
        assert result.method.startswith(bench.sensor.method)

    def test_failure_of_the_work_is_raised_and_leaves_the_sensor_usable(self, bench: Bench) -> None:
        """What goes wrong in the work is not the sensor's to hide."""

        def fail() -> None:
            raise ArithmeticError("the work failed")

        try:
            bench.sensor.over(fail, 0.05)
        except ArithmeticError:
            pass
        else:
            raise AssertionError("the failure of the work was swallowed")
        assert bench.sensor.over(bench.work, 0.05).joules > 0
