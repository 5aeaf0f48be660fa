"""The power chip of a Raspberry Pi 5, with what its command really prints."""

import stat

import pytest

from edgelean.sensors import pmic
from edgelean.sensors.pmic import input_power_w, open_pmic, parse_rails
from edgelean.sensors.window import SensorError
from edgelean.testing.sensor_contract import Bench, SensorContract

# Four busy cores of a Raspberry Pi 5 Model B; the two last lines have a voltage and no current.
BUSY = """ 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""
BUSY_W = 1.1451 * 7.2398 + 0.5879


class SteadyBoard:
    """A board that always says the same, on a clock that its work moves."""

    now_s = 0.0

    def work(self, seconds: float = 0.002) -> None:
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s


class TestPmic(SensorContract):
    @pytest.fixture
    def bench(self):
        board = SteadyBoard()
        return Bench(open_pmic(lambda: BUSY, board.clock), board.work, BUSY_W, clock=board.clock, sleep=board.work)


def test_rails_with_voltage_and_current_are_paired_by_name():
    rails = parse_rails(BUSY)
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(6.22421 * 0.861733)
    assert rails["DDR_VDDQ"] == pytest.approx(0.0666672 * 0.6014646)
    assert not {"EXT5V", "BATT"} & set(rails)


def test_power_at_the_plug_is_on_the_fitted_line():
    assert input_power_w({"A": 2.0, "B": 1.0}) == pytest.approx(3.0 * 1.1451 + 0.5879)
    assert input_power_w(parse_rails(BUSY)) == pytest.approx(BUSY_W, rel=1e-4)


def test_method_says_that_the_line_was_fitted_to_one_board():
    assert "12 rails" in open_pmic(lambda: BUSY).method
    assert "a fit to one board" in open_pmic(lambda: BUSY).method


@pytest.mark.parametrize("said", ['error=1 error_msg="Command not registered"', "", "VDD_CORE_A current(7)=0.5A\n"])
def test_board_without_such_a_chip_is_refused_with_what_it_said(said):
    with pytest.raises(SensorError, match="the power of no rail") as caught:
        open_pmic(lambda: said)
    assert said.strip() in str(caught.value)
    assert "only a Raspberry Pi 5" in caught.value.remedy


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a vcgencmd on the path that runs a line of shell."""

    def install(line):
        script = tmp_path / "vcgencmd"
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return install


def test_command_is_asked_for_its_adc(command, tmp_path):
    (tmp_path / "said").write_text(BUSY)
    command(f'[ "$*" = pmic_read_adc ] && cat {tmp_path}/said')
    sensor = open_pmic()
    assert sensor.name == "pmic"
    assert sensor.read_w() == pytest.approx(BUSY_W, rel=1e-4)


def test_command_that_is_missing_says_where_it_is_from(command):
    with pytest.raises(SensorError, match=r"no command vcgencmd.*only a Raspberry Pi has it"):
        open_pmic()


@pytest.mark.parametrize(
    "line",
    ["echo 'VCHI initialization failed' >&2; exit 255", 'echo "Can\'t open device file: /dev/vcio"; exit 255'],
)
def test_user_who_may_not_ask_gets_the_one_command_that_grants_it(command, line):
    command(line)
    with pytest.raises(SensorError, match=r"(VCHI init|/dev/vcio).*sudo usermod -aG video"):
        open_pmic()


def test_command_that_hangs_is_not_waited_for_for_ever(command, monkeypatch):
    monkeypatch.setattr(pmic, "TIMEOUT_S", 0.05)
    command("exec sleep 5")
    with pytest.raises(SensorError, match=r"pmic_read_adc.*timed out"):
        open_pmic()
