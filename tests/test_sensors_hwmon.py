"""Jetson rails, read from trees of files that look like their sysfs under old and new kernels."""

import errno
import time
from pathlib import Path

import board_trees
import pytest
from board_trees import ORIN_NANO, ina3221, write

from edgelean.board import load_board
from edgelean.board.model import Sensors
from edgelean.errors import DeviceError
from edgelean.sensors import line_up
from edgelean.sensors.hwmon import find_rails, open_hwmon, usual_total
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract

NANO, NX = "jetson-orin-nano-8gb-super", "jetson-orin-nx-16gb"
AGX, THOR = "jetson-agx-orin-64gb", "jetson-thor-t5000"
HWMON1 = "sys/class/hwmon/hwmon1"


def rest():
    time.sleep(1e-3)


class TestHwmon(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path):
        board_trees.orin_nano(tmp_path)
        return Bench(open_hwmon(["VDD_IN"], tmp_path), rest, 6.0)


def unnamed(board: str):
    """A board of a user's own whose file names no rails."""
    return load_board(board).model_copy(update={"sensors": Sensors(backend="hwmon")})


@pytest.mark.parametrize(
    ("board", "tree", "watts"),
    [
        (NANO, board_trees.orin_nano, 6.0),
        (NX, board_trees.orin_nano, 6.0),
        (AGX, board_trees.agx_orin, 2.4 + 0.8 + 3.52),
        (AGX, board_trees.agx_orin_jetpack_7, 2.4 + 0.8 + 3.52),
        (THOR, board_trees.thor, 19.78),
        (THOR, board_trees.thor_module, 1.96 + 5.88 + 5.635),
        (THOR, board_trees.thor_asleep, -0.4 + 5.88 + 5.635),
        (NANO, board_trees.xavier_nx_jetpack_4, 4.1),
        (NANO, board_trees.xavier_nx_jetpack_5, 4.1),
        (None, board_trees.agx_xavier_jetpack_4, 19.0 * 0.35),
    ],
)
def test_total_of_a_board_is_its_input_or_the_right_sum_and_never_both(tmp_path, board, tree, watts):
    tree(tmp_path)
    if board is not None:
        assert line_up(load_board(board), tmp_path)[0].read_w() == pytest.approx(watts)
    assert line_up(unnamed(NANO), tmp_path)[0].read_w() == pytest.approx(watts)


def test_method_names_the_rails(tmp_path):
    board_trees.agx_orin(tmp_path)
    (sensor,) = line_up(load_board(AGX), tmp_path)
    assert "rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in sensor.method


def test_thor_has_the_sum_behind_its_input_in_line(tmp_path):
    board_trees.thor(tmp_path)
    first, second = line_up(load_board(THOR), tmp_path)
    assert "rail VIN," in first.method
    assert "rails VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0" in second.method


def test_unconnected_channels_and_shunt_sums_are_not_rails(tmp_path):
    board_trees.agx_orin(tmp_path)
    names = {rail.name for rail in find_rails(tmp_path)}
    assert names == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


def test_chip_that_sysfs_shows_twice_is_found_once(tmp_path):
    board_trees.orin_nano(tmp_path)
    assert [rail.name for rail in find_rails(tmp_path)] == list(ORIN_NANO)


def test_rails_of_no_known_family_have_no_usual_total(tmp_path):
    ina3221(tmp_path, HWMON1, {"VDD_5V_SSD": (5000, 100)})
    assert usual_total(find_rails(tmp_path)) == ()
    assert line_up(unnamed(NANO), tmp_path) == ()


@pytest.mark.parametrize(
    ("interval_ms", "samples", "settle_s"),
    [(7, 1, 0.035), (3, 512, 7.68), (430, 512, 2.15), (0, 1, 0.005)],
)
def test_chip_that_averages_gets_the_time_to_forget_what_was_before(tmp_path, interval_ms, samples, settle_s):
    ina3221(tmp_path, HWMON1, ORIN_NANO, interval_ms=interval_ms, samples=samples)
    assert open_hwmon(["VDD_IN"], tmp_path).settle_s == pytest.approx(settle_s)


def test_chip_of_unknown_averaging_gets_seconds_to_forget(tmp_path):
    board_trees.xavier_nx_jetpack_4(tmp_path)
    assert open_hwmon(["VDD_IN"], tmp_path).settle_s >= 1.0


def test_smallest_step_follows_from_the_shunt_and_the_voltage(tmp_path):
    board_trees.orin_nano(tmp_path)
    rail = find_rails(tmp_path)[0]
    assert rail.step_w == pytest.approx(5.0 * 40e-6 / 5e-3)


def test_missing_rail_is_named_with_those_that_are_there(tmp_path):
    board_trees.orin_nano(tmp_path)
    with pytest.raises(SensorError, match=r"VDD_SOC, wanted: VDD_CPU_CV.*board file"):
        open_hwmon(("VDD_SOC", "VDD_CPU_CV"), tmp_path)
    with pytest.raises(SensorError, match="wanted: none given"):
        open_hwmon((), tmp_path)
    with pytest.raises(SensorError, match="only Jetson boards have them"):
        open_hwmon(("VDD_IN",), tmp_path / "elsewhere")


def test_rail_that_vanishes_in_the_middle_is_a_device_error_with_its_file(tmp_path):
    ina3221(tmp_path, HWMON1, ORIN_NANO)
    sensor = open_hwmon(["VDD_IN"], tmp_path)
    current = tmp_path / HWMON1 / "curr1_input"
    with pytest.raises(DeviceError, match=r"VDD_IN vanished.*curr1_input.*dmesg"):
        sensor.over(lambda: current.unlink(missing_ok=True), 0.01)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("curr1_input", 0, r"VDD_IN read 0 W: no board needs nothing"),
        ("in1_input", 0, r"the rail VDD_IN has 0 V"),
        ("in1_input", "five", r"VDD_IN cannot be read.*five"),
    ],
)
def test_rail_that_reads_nothing_is_refused_by_name(tmp_path, file, value, message):
    ina3221(tmp_path, HWMON1, ORIN_NANO)
    write(tmp_path, f"{HWMON1}/{file}", value)
    with pytest.raises(SensorError, match=message):
        open_hwmon(["VDD_IN"], tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.EACCES, r"may not be read: sudo chmod a\+r .*in1_input"), (errno.EIO, "VDD_IN cannot be read")],
)
def test_rail_that_the_kernel_refuses_says_what_to_do(tmp_path, monkeypatch, code, message):
    ina3221(tmp_path, HWMON1, ORIN_NANO)
    read_text = Path.read_text

    def refused(self, *args, **kwargs):
        if self.name == "in1_input":
            raise OSError(code, "refused", str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(SensorError, match=message):
        open_hwmon(["VDD_IN"], tmp_path)
