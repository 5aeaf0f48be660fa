"""Whether the machine was quiet: from looks that are made up, from trees of files, and from this machine itself."""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_driver import install
from hypothesis import given
from hypothesis import strategies as st

from edgelean.sensors.counters import Processors
from edgelean.sensors.gpu_state import gpu_conditions, gpu_disturbance, look_at_gpu
from edgelean.sensors.jetson import GpuClock, Jetson
from edgelean.sensors.machine import (
    YARDSTICK_TRIES,
    Glance,
    clock_yardstick,
    conditions,
    disturbance,
    energy_disturbance,
    look,
    shares_between,
)
from edgelean.sensors.nvml import find_gpu

START = Glance(at_s=100.0, own_s=50.0, processors=Processors(1000.0, 2000.0, 0.0, 2, 2), waiting_s={1: 5.0})


def after(own=1.0, others=0.0, stolen=0.0, waiting=0.0, seconds=1.0, before=START):
    """The look some seconds after another one, when so many cores went to whom."""
    then = before.processors
    busy = own + others
    processors = replace(
        then,
        busy_s=then.busy_s + seconds * busy,
        idle_s=then.idle_s + seconds * max(then.count - busy - stolen, 0.0),
        stolen_s=then.stolen_s + seconds * stolen,
    )
    waited = None if before.waiting_s is None else {1: before.waiting_s[1] + seconds * waiting}
    return replace(
        before,
        at_s=before.at_s + seconds,
        own_s=before.own_s + seconds * own,
        processors=processors,
        waiting_s=waited,
    )


def with_processors(count, cores):
    return replace(START, processors=replace(START.processors, count=count, cores=cores))


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


# -- others ------------------------------------------------------------------------------------------------------------


@given(own=st.floats(0, 2), others=st.floats(0, 0.2), waiting=st.floats(0, 0.019), seconds=st.floats(0.2, 60))
def test_machine_on_which_nobody_waits_and_others_do_little_is_quiet(own, others, waiting, seconds):
    assert disturbance(START, after(own=own, others=others, waiting=waiting, seconds=seconds)) == ""


def test_thread_that_waited_for_a_processor_names_the_others_and_how_to_see_them():
    said = disturbance(START, after(own=0.67, others=1.33, waiting=0.33))
    assert "other processes took 133 % of a core" in said
    assert "waited 33 % of the time" in said
    assert "`top` shows them" in said


def test_more_threads_than_processors_are_not_blamed_on_others():
    said = disturbance(START, after(own=1.98, others=0.02, waiting=1.0))
    assert "its threads are more than the processors" in said
    assert "other processes" not in said


def test_threads_that_came_and_went_in_between_are_counted_from_zero():
    end = replace(after(own=0.7, others=1.3), waiting_s={1: 5.0, 7: 0.3})
    assert "waited 30 % of the time" in disturbance(START, end)
    gone = replace(after(own=0.7, others=0.1), waiting_s={7: 0.0})
    assert disturbance(START, gone) == ""


def test_without_the_waiting_times_crowding_follows_from_the_times_of_the_processors():
    start = replace(START, waiting_s=None)
    assert "left no whole core" in disturbance(start, after(own=0.67, others=1.33, before=start))
    assert disturbance(start, after(own=1.0, others=0.1, before=start)) == ""


def test_neighbour_that_takes_the_last_idle_processor_disturbs_and_one_of_many_does_not():
    assert "left no processor idle" in disturbance(START, after(others=0.95))
    many = with_processors(8, 8)
    assert disturbance(many, after(others=3.0, before=many)) == ""


def test_hyper_threads_are_not_taken_for_cores():
    threads = with_processors(8, 4)
    assert "left no whole core" in disturbance(threads, after(others=3.5, before=threads))
    assert disturbance(threads, after(others=2.5, before=threads)) == ""


def test_time_that_a_hypervisor_takes_counts_as_far_as_it_hit_this_process():
    assert "hypervisor took 6 %" in disturbance(START, after(own=0.94, stolen=0.06))
    many = with_processors(16, 16)
    assert disturbance(many, after(own=1.0, others=9.0, stolen=0.2, before=many)) == ""


def test_one_tick_of_a_coarse_clock_is_no_disturbance():
    end = after(stolen=0.1, others=0.1, seconds=0.1)
    assert disturbance(START, end) == ""
    assert energy_disturbance(START, end) == ""


def test_sensor_of_the_whole_machine_is_disturbed_by_whatever_others_do():
    many = with_processors(16, 16)
    end = after(others=0.5, seconds=10, before=many)
    assert disturbance(many, end) == ""
    assert "50 % of a core" in energy_disturbance(many, end)
    assert "counts their energy" in energy_disturbance(many, end)
    assert energy_disturbance(many, after(others=0.03, seconds=10, before=many)) == ""
    stolen = after(own=0.9, stolen=0.1)
    assert energy_disturbance(START, stolen) == disturbance(START, stolen)


# -- clocks, heat, modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ({"quota_s": 1.0}, {"quota_s": 1.2}, "CPU quota of the container held this process back for 200 ms"),
        ({"throttled": 3.0}, {"throttled": 4.0}, "heat slowed the processor down"),
        ({"processor_mhz": 4800.0}, {"processor_mhz": 3000.0}, "clock moved from 4800 to 3000 MHz"),
        ({"power_setting": "governor performance"}, {"power_setting": "on battery"}, "power mode changed"),
        ({"raspberry": 0}, {"raspberry": 0x1}, "supply voltage was too low: use a supply for this board"),
        ({"raspberry": 0}, {"raspberry": 0x40000}, "it was throttled: cool it better"),
        ({"raspberry": 0x2}, {"raspberry": 0x20000}, "clock was capped"),
        ({"raspberry": 0x80008}, {"raspberry": 0x80008}, "soft temperature limit"),
    ],
)
def test_what_changed_between_the_looks_is_named_with_a_remedy(was, now, said):
    assert said in disturbance(replace(START, **was), replace(after(), **now))


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"quota_s": 1.0}, {"quota_s": 1.001}),
        ({"throttled": 3.0}, {"throttled": 3.0}),
        ({"processor_mhz": 4800.0}, {"processor_mhz": 4700.0}),
        ({"raspberry": 0x50000}, {"raspberry": 0x50000}),
        ({"raspberry": None}, {"raspberry": None}),
        ({"quota_s": None}, {"quota_s": 8.0}),
    ],
)
def test_what_did_not_change_or_is_long_over_is_not_said(was, now):
    assert disturbance(replace(START, **was), replace(after(), **now)) == ""


def jetson(mhz, mode="15W (mode 0)"):
    return Jetson("NVIDIA Jetson X", (), "36.4.3", "6.2", mode, GpuClock(mhz, 306, 612), 0.9, None, {})


def test_moving_clock_and_changed_mode_of_a_jetson_disturb():
    start = replace(START, jetson=jetson(306))
    assert "sudo jetson_clocks" in disturbance(start, replace(after(), jetson=jetson(612)))
    assert "from '15W (mode 0)' to '7W'" in disturbance(start, replace(after(), jetson=jetson(306, "7W")))
    assert disturbance(start, replace(after(), jetson=jetson(306))) == ""


# -- an NVIDIA GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch):
    driver = install(monkeypatch)
    driver.set(sm_mhz=1980, memory_mhz=2619, temperature_c=54, power_limit_mw=700_000, throttle=0)
    return driver


def test_gpu_tells_clock_temperature_and_limit_through_the_driver(driver):
    state = look_at_gpu(find_gpu())
    assert (state.clock_mhz, state.memory_mhz, state.temperature_c, state.power_limit_w) == (1980, 2619, 54, 700)
    assert state.reasons == {}
    assert state.held_s == {"power": 0, "heat": 0}


def test_older_drivers_are_asked_by_the_names_that_they_know(driver):
    driver.fail("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTemperatureV", code=13)
    driver.set(throttle=0x40)
    state = look_at_gpu(find_gpu())
    assert state.temperature_c == 54
    assert set(state.reasons) == {"heat"}


def test_gpu_that_tells_nothing_disturbs_nothing(driver):
    gpu = find_gpu()
    driver.fail("device", code=3)
    state = look_at_gpu(gpu)
    assert gpu_disturbance(state, state, 1.0) == ""
    assert gpu_conditions(state, state, 1.0) == {}


@pytest.mark.parametrize(
    ("bits", "mhz", "said"),
    [
        (0x20, 1980, "temperature limit slowed the GPU down"),
        (0x40, 1980, "thermal slowdown of the hardware"),
        (0x80, 1980, "power brake of its supply"),
        (0x04, 1700, "from 1980 to 1700 MHz during the measurement (its power limit): `sudo nvidia-smi -lgc 1700`"),
        (0x00, 1700, "from 1980 to 1700 MHz during the measurement: `sudo nvidia-smi -lgc 1700`"),
    ],
)
def test_gpu_that_was_held_back_names_the_reason_and_the_remedy(driver, bits, mhz, said):
    gpu = find_gpu()
    start = replace(START, gpu=look_at_gpu(gpu))
    driver.set(throttle=bits, sm_mhz=mhz)
    assert said in disturbance(start, replace(after(), gpu=look_at_gpu(gpu)))


def test_gpu_that_stays_steady_at_its_power_limit_is_a_condition_and_no_disturbance(driver):
    driver.set(throttle=0x04)
    gpu = find_gpu()
    start = replace(START, gpu=look_at_gpu(gpu))
    driver.set(sm_mhz=1965)
    end = replace(after(), gpu=look_at_gpu(gpu))
    assert disturbance(start, end) == ""
    words = conditions(start, end)
    assert words["gpu clock"] == "1980 to 1965 MHz, held down by its power limit"
    assert words["power mode"] == "GPU limited to 700 W"
    assert words["temperature"] == "gpu 54 °C"


def test_heat_between_the_looks_is_seen_by_the_counters_of_the_driver(driver):
    gpu = find_gpu()
    before = look_at_gpu(gpu)
    driver.set(heat_held_s=0.3)
    assert "heat slowed the GPU down" in gpu_disturbance(before, look_at_gpu(gpu), 1.0)
    assert gpu_disturbance(before, look_at_gpu(gpu), 60.0) == "", "under a hundredth of the time"


# -- looking -----------------------------------------------------------------------------------------------------------


def test_machine_that_shows_nothing_is_looked_at_without_complaint(tmp_path):
    first, second = look(tmp_path), look(tmp_path)
    assert shares_between(first, second) is None
    assert disturbance(first, second) == energy_disturbance(first, second) == ""
    assert conditions(first, second) == {}


def laptop(root: Path) -> Path:
    return write(
        root,
        {
            "proc/stat": "cpu  400 0 200 4000 0 10 20 30 0 0\n"
            "cpu0 100 5 50 1000 6 3 4 7 0 0\ncpu1 200 0 100 2000 0 0 0 0 0 0\ncpu2 100 0 50 1000 0 0 0 3 0 0\n"
            "intr 12345\n",
            "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
            "proc/self/task/11/schedstat": "672879 2000000000 2\n",
            "proc/self/task/12/schedstat": "1 500000000 2\n",
            "proc/thread-self/stat": f"11 (py (x) y) R {' '.join('0' * 35)} 2 0 0\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "800000\n",
            "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq": "3600000\n",
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,2\n",
            "sys/devices/system/cpu/cpu2/topology/thread_siblings_list": "0,2\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/cpu2/thermal_throttle/package_throttle_count": "4\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
            "sys/firmware/acpi/platform_profile": "balanced\n",
            "sys/class/power_supply/BAT0/status": "Discharging\n",
            "sys/class/power_supply/mouse/status": "Discharging\n",
            "sys/class/power_supply/mouse/scope": "Device\n",
            "sys/class/hwmon/hwmon0/name": "nvme\n",
            "sys/class/hwmon/hwmon0/temp1_input": "80000\n",
            "sys/class/hwmon/hwmon1/name": "k10temp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "61000\n",
            "sys/class/thermal/thermal_zone0/type": "acpitz\n",
            "sys/class/thermal/thermal_zone0/temp": "27800\n",
        },
    )


@pytest.fixture
def allowed(monkeypatch):
    """Let the process use the processors 0 and 2, and count in hundredths of a second."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)


def test_look_adds_up_the_processors_that_this_process_may_use(tmp_path, allowed):
    seen = look(laptop(tmp_path))
    counted = (seen.processors.busy_s, seen.processors.idle_s, seen.processors.stolen_s)
    assert counted == pytest.approx((1.0 + 1.0 + 0.05 + 0.5 + 0.5 + 0.03 + 0.04, 20.06, 0.1))
    assert (seen.processors.count, seen.processors.cores) == (2, 1)
    assert seen.waiting_s == {11: 2.0, 12: 0.5}
    assert seen.load == 0.52
    assert seen.throttled == 7
    assert seen.temperatures_c == {"k10temp": 61.0, "acpitz": 27.8}, "a disk is not asked"


def test_look_asks_the_processor_that_it_runs_on_for_its_clock(tmp_path, allowed):
    assert look(laptop(tmp_path)).processor_mhz == 3600


def test_conditions_of_a_laptop_say_what_a_person_has_to_know(tmp_path, allowed):
    first = look(laptop(tmp_path))
    write(tmp_path, {"sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq": "3500000\n"})
    words = conditions(first, look(tmp_path))
    assert words["power mode"] == "profile balanced, governor powersave, on battery"
    assert words["processor clock"] == "3600 to 3500 MHz"
    assert words["load average"] == "0.52"
    assert words["temperature"] == "k10temp 61 °C"
    (tmp_path / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    assert "battery" not in look(tmp_path).power_mode


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.stat": "nr_throttled 9\nthrottled_usec 1500000\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "throttled_usec 1500000\n"},
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n0::/x\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.stat": "throttled_time 1500000000\n",
        },
    ],
)
def test_time_that_a_container_was_held_back_is_found_in_old_and_new_control_groups(tmp_path, files):
    assert look(write(tmp_path, files)).quota_s == pytest.approx(1.5)


def test_raspberry_pi_is_asked_whether_it_is_slowed_down(tmp_path, monkeypatch):
    command = tmp_path / "vcgencmd"
    command.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pi = write(tmp_path / "pi", {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert look(pi).raspberry == 0x50005
    assert conditions(look(pi), look(pi))["machine"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert look(tmp_path / "elsewhere").raspberry is None


def test_raspberry_pi_without_the_command_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B"})).raspberry is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux has /proc")
def test_time_of_this_process_is_not_taken_for_that_of_others():
    first, begin_s = look(), time.process_time()
    while time.process_time() - begin_s < 0.2:
        pass
    second = look()
    shares, seconds = shares_between(first, second), second.at_s - first.at_s
    assert shares.own * seconds == pytest.approx(0.2, abs=0.05)
    assert shares.own + shares.others == pytest.approx(
        (second.processors.busy_s - first.processors.busy_s) / seconds, abs=shares.tick
    )


# -- the yardstick -----------------------------------------------------------------------------------------------------


def test_yardstick_is_the_shortest_of_its_blocks():
    lengths = [0.004, 0.0025, 0.09, 0.0026, 0.003, 0.0025001, 0.1, 0.003, 0.003]
    assert len(lengths) == YARDSTICK_TRIES
    ends = itertools.accumulate(itertools.chain.from_iterable((1.0, length) for length in lengths))
    assert clock_yardstick(lambda: next(ends)) == pytest.approx(0.0025)


def test_yardstick_keeps_the_core_busy_for_the_time_that_it_tells():
    begin_s = time.process_time()
    shortest_s = clock_yardstick()
    assert 0 < YARDSTICK_TRIES * shortest_s <= 1.01 * (time.process_time() - begin_s)
