"""What every sensor has to satisfy.

Derive a class named ``Test...`` from :class:`SensorContract`, give it a pytest fixture ``bench``, and run pytest.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgelean.sensors.window import Sensor, Work


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
    """

    sensor: Sensor
    work: Work
    watts: float
    tolerance: float = 0.01


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

    def test_calls_of_the_window_were_made(self, bench: Bench) -> None:
        """The count never invents a call; calls that only wait for a tick may be left out of it."""
        made: list[object] = []
        energy = bench.sensor.over(lambda: made.append(bench.work()), 0.1)
        assert 1 <= energy.calls <= len(made)
        assert abs(energy.joules_per_call * energy.calls - energy.joules) <= 1e-9 * energy.joules

    def test_method_is_one_line_for_the_report(self, bench: Bench) -> None:
        """Every energy says how it was read."""
        energy = bench.sensor.over(bench.work, 0.01)
        assert energy.method == bench.sensor.method
        assert bench.sensor.name
        assert bench.sensor.method
        assert "\n" not in bench.sensor.method

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
