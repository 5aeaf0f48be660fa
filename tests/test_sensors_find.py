"""Which sensors a board has in line, what becomes of the run when one dies, and what the doctor is told about each."""

import pytest
from board_trees import agx_orin, ina3221, orin_nano, rapl_zone, thor, write, xavier_nx_jetpack_4
from fake_driver import install

from edgelean.board import load_board
from edgelean.errors import DeviceError
from edgelean.sensors import SensorChain, find_sensor, line_up, probe_sensors
from edgelean.sensors.find import measure_tick
from edgelean.sensors.nvml import SENSORS, find_gpu

COUNTER, NOT_SUPPORTED = "nvmlDeviceGetTotalEnergyConsumption", 3
RTX, PI = load_board("rtx-4090"), load_board("raspberry-pi-5")
HERE = load_board("this-machine")


@pytest.fixture
def driver(monkeypatch):
    driver = install(monkeypatch)
    driver.name("NVIDIA GeForce RTX 4090")
    return driver


@pytest.fixture
def no_driver(monkeypatch):
    """A machine without a GPU, whatever the machine has that runs this test."""
    install(monkeypatch).fail("nvmlInitWithFlags", code=9)


@pytest.fixture
def raspberry(tmp_path, monkeypatch):
    """A vcgencmd that tells one rail of 2 W."""
    lines = ("#!/bin/sh", "echo 'VDD_CORE_A current(7)=2.5A'", "echo 'VDD_CORE_V volt(15)=0.8V'")
    script = write(tmp_path, "bin/vcgencmd", "\n".join(lines))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")


def running(driver, watts=60.0):
    """A clock that goes on by a millisecond whenever somebody looks at it, while the GPU draws around so many watts."""

    def clock():
        driver.draw(watts * (1.2 if int(driver.now_s * 10) % 3 else 0.6), 1e-3)
        return driver.now_s

    return clock


def methods(sensors):
    return [sensor.method for sensor in sensors]


def test_gpu_has_its_counter_then_its_power_then_its_averaged_power(driver):
    counter, instant, average = methods(line_up(RTX, clock=running(driver)))
    assert counter.startswith("NVML energy counter of NVIDIA GeForce RTX 4090 (GPU-0)")
    assert counter.endswith("a tick is 100 ms")
    assert "instantaneous" in instant
    assert "averaged over 1 s" in average


def test_counter_that_stands_still_or_is_refused_is_not_in_line(driver):
    driver.set(frozen=1)
    assert len(line_up(RTX, clock=running(driver))) == 2
    driver.set(frozen=0)
    driver.fail(COUNTER, code=NOT_SUPPORTED)
    assert len(line_up(RTX, clock=running(driver))) == 2


def test_another_gpu_than_that_of_the_board_is_not_read(driver):
    driver.name("NVIDIA GeForce RTX 3060")
    assert line_up(RTX, clock=running(driver)) == ()
    assert find_sensor(RTX, clock=running(driver)) is None


@pytest.mark.parametrize("board", [HERE, RTX])
def test_what_the_model_runs_on_is_what_is_read(driver, tmp_path, board):
    file = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)

    def clock():
        file.write_text(f"{int(file.read_text()) + 200_000}\n")
        driver.draw(60.0, 5e-3)
        return driver.now_s

    on_gpu, on_cpu = (line_up(board, tmp_path, device, clock) for device in ("gpu", "cpu"))
    assert [sensor.name for sensor in on_gpu] == ["nvml"] * 3
    assert [sensor.name for sensor in on_cpu] == ["rapl"]
    by_default = line_up(board, tmp_path, clock=clock)
    assert methods(by_default) == methods(on_cpu if board is HERE else on_gpu)


def test_counter_of_a_virtual_machine_that_stands_still_is_no_sensor(tmp_path):
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    times = iter(range(1_000))
    assert find_sensor(HERE, tmp_path, clock=lambda: 0.1 * next(times)) is None


def test_raspberry_pi_is_read_by_its_power_chip_as_a_board_and_as_this_machine(raspberry, tmp_path):
    for board in (PI, HERE):
        (sensor,) = line_up(board, tmp_path)
        assert sensor.name == "pmic"
        assert sensor.read_w() == pytest.approx(1.1451 * 2.0 + 0.5879)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_jetson_as_this_machine_is_read_as_a_whole(no_driver, tmp_path, device):
    xavier_nx_jetpack_4(tmp_path)
    (sensor,) = line_up(HERE, tmp_path, device)
    assert "rail VDD_IN," in sensor.method


def test_machine_without_sensors_has_none(no_driver, tmp_path):
    for board in (HERE, PI, RTX, load_board("jetson-orin-nano-8gb-super")):
        assert find_sensor(board, tmp_path) is None


def test_gpu_whose_counter_dies_goes_on_with_its_power_and_says_so(driver):
    chain = SensorChain([driver.timed(open_sensor(find_gpu(), driver.clock)) for open_sensor in SENSORS])
    work = driver.work([(0.002, 90.0)])
    assert chain.over(work, 0.3).watts == pytest.approx(90.0, rel=0.01)
    driver.fail(COUNTER, code=999)
    energy = chain.over(work, 0.3)
    assert energy.watts == pytest.approx(90.0, rel=0.05)
    assert energy.method.startswith("since NVML energy counter")
    assert f"{COUNTER} of NVIDIA GeForce RTX 4090 (GPU-0): Unknown" in energy.method
    assert "instantaneous" in energy.method


def test_gpu_that_is_lost_for_good_ends_the_line_with_a_remedy(driver):
    chain = SensorChain([driver.timed(open_sensor(find_gpu(), driver.clock)) for open_sensor in SENSORS])
    driver.set(lost=1)
    with pytest.raises(DeviceError, match=r"no sensor is left.*GPU is lost.*restart the machine"):
        chain.over(driver.work([(0.002, 90.0)]), 0.3)


def test_thor_whose_input_monitor_dies_goes_on_with_the_sum_or_stops_as_it_was_told(tmp_path):
    thor(tmp_path)
    board = load_board("jetson-thor-t5000")
    chain, strict = (find_sensor(board, tmp_path, on_loss) for on_loss in ("next", "stop"))
    (tmp_path / "sys/class/hwmon/hwmon5/power1_input").unlink()
    energy = chain.over(lambda: None, 0.01)
    assert energy.watts == pytest.approx(1.96 + 5.88 + 5.635)
    assert "VIN vanished" in energy.method
    with pytest.raises(DeviceError, match=r"lost in the middle.*VIN vanished"):
        strict.over(lambda: None, 0.01)


def test_tick_is_the_usual_time_between_two_changes():
    times = iter(range(10_000))
    now_ms = 0.0

    def clock():
        nonlocal now_ms
        now_ms = float(next(times))
        return now_ms / 1e3

    assert measure_tick(lambda: now_ms // 20, clock) == pytest.approx(0.020, abs=0.002)
    assert measure_tick(lambda: 7.0, clock) is None


def probes_by_name(root, clock=None):
    probes = probe_sensors(root) if clock is None else probe_sensors(root, clock)
    return {probe.name: probe for probe in probes}


def test_machine_without_any_says_of_each_why_and_what_to_do(no_driver, tmp_path):
    probes = probes_by_name(tmp_path)
    assert set(probes) == {"nvml", "hwmon", "rapl", "pmic"}
    for probe in probes.values():
        assert not probe.usable
        assert probe.remedy
        assert probe.trust == f"no: {probe.detail}"


def test_probe_of_a_gpu_has_tick_resolution_and_trust_of_all_it_can_tell(driver, tmp_path):
    probes = probes_by_name(tmp_path, running(driver))
    for kind in ("counter", "instant", "average"):
        assert probes[f"nvml {kind}"].usable
        assert probes[f"nvml {kind}"].tick_ms == pytest.approx(100.0, rel=0.05)
    assert "RTX 4090 (GPU-0), driver 590.48.01" in probes["nvml counter"].detail
    assert probes["nvml counter"].resolution == "1 mJ"
    assert probes["nvml instant"].resolution == "1 mW"
    assert probes["nvml counter"].trust.startswith("yes: read from tick to tick, within")
    assert probes["nvml instant"].trust.startswith("yes: it may see only a part of the time")
    assert probes["nvml average"].trust.startswith("with care: it averages; the work runs for 1.3 s")


def test_counter_that_contradicts_the_power_is_to_be_used_with_care(driver, tmp_path):
    driver.set(gain=1.7)
    trust = probes_by_name(tmp_path, running(driver))["nvml counter"].trust
    assert trust.startswith("with care: it counts")
    assert "compare like with like" in trust


def test_what_a_gpu_does_not_tell_or_does_not_move_is_no_sensor(driver, tmp_path):
    driver.set(frozen=1)
    driver.fail("nvmlDeviceGetFieldValues 186", code=NOT_SUPPORTED)
    probes = probes_by_name(tmp_path, running(driver))
    assert not probes["nvml counter"].usable
    assert "stands still" in probes["nvml counter"].trust
    assert not probes["nvml instant"].usable
    assert "use the hwmon rails" in probes["nvml instant"].remedy
    assert probes["nvml average"].trust.startswith("with care: it did not move")


def test_counter_without_a_power_to_compare_with_is_trusted_by_its_ticks(driver, tmp_path):
    driver.fail("nvmlDeviceGetFieldValues", code=NOT_SUPPORTED)
    assert "no power to compare it with" in probes_by_name(tmp_path, running(driver))["nvml counter"].trust


def test_probe_of_a_jetson_has_the_interval_and_the_step_of_its_chip(no_driver, tmp_path):
    orin_nano(tmp_path)
    probe = probes_by_name(tmp_path)["hwmon"]
    assert probe.usable
    assert (probe.tick_ms, probe.resolution) == (7.0, "40 mW")
    assert probe.detail == "VDD_IN of VDD_IN, VDD_CPU_GPU_CV, VDD_SOC"
    assert probe.trust.startswith("yes")
    agx_orin(tmp_path / "agx")
    assert probes_by_name(tmp_path / "agx")["hwmon"].resolution == f"{(20 + 20 + 5) * 8} mW"


def test_probe_of_an_old_or_unknown_jetson_says_what_is_not_known(no_driver, tmp_path):
    xavier_nx_jetpack_4(tmp_path / "old")
    old = probes_by_name(tmp_path / "old")["hwmon"]
    assert (old.usable, old.tick_ms, old.resolution) == (True, None, "not known")
    assert old.trust.startswith("with care: its averaging is not known")
    ina3221(tmp_path, "sys/class/hwmon/hwmon1", {"VDD_5V_SSD": (5000, 100)})
    unknown = probes_by_name(tmp_path)["hwmon"]
    assert not unknown.usable
    assert "VDD_5V_SSD: which of them are the whole board is not known" in unknown.detail
    assert "sensors.total_rail" in unknown.remedy


def test_probe_of_rapl_has_its_tick_and_of_a_dead_one_its_end(no_driver, tmp_path):
    file = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    looks = iter(range(100_000))

    def clock():
        look = next(looks)
        file.write_text(f"{5 + look // 10 * 61}\n")
        return look * 1e-4

    probe = probes_by_name(tmp_path, clock)["rapl"]
    assert probe.usable
    assert probe.tick_ms == pytest.approx(1.0, rel=0.2)
    assert probe.trust == "yes: read from tick to tick"
    still = iter(range(100_000))
    assert "stands still" in probes_by_name(tmp_path, lambda: next(still) * 1e-2)["rapl"].trust


def test_probe_of_a_raspberry_pi_says_how_its_figures_came_about(no_driver, raspberry, tmp_path):
    probe = probes_by_name(tmp_path)["pmic"]
    assert probe.usable
    assert probe.tick_ms == 100.0
    assert probe.trust.startswith("with care: scaled to the plug")


def test_sensor_that_dies_while_it_is_probed_is_a_row_and_not_a_crash(driver, tmp_path):
    driver.set(lost_at_s=0.5)
    probe = probes_by_name(tmp_path, running(driver))["nvml counter"]
    assert not probe.usable
    assert "GPU is lost" in probe.detail
