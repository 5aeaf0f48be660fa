"""``edgelean calibrate`` on a target whose cost model is known."""

import importlib
import json

import pytest
from calibrations import NUMBERS, SimulatedTarget
from typer.testing import CliRunner

import edgelean.target.local
from edgelean.board import load_board
from edgelean.calibration import procedure
from edgelean.cli import app
from edgelean.errors import DeviceError, InputError

run = CliRunner().invoke
command = importlib.import_module("edgelean.cli.calibrate")  # the package has the function under this name


@pytest.fixture
def target(monkeypatch):
    """Every target that is opened is this one, and few and small kernels are measured."""
    simulated = SimulatedTarget()
    opened = []

    def open_target(spec, profile, board, routine):
        opened.append((spec, profile.precision, profile.batch, board.name))
        return simulated

    simulated.opened = opened
    monkeypatch.setattr(edgelean.target, "open_target", open_target)
    monkeypatch.setattr(command, "QUICK_SHARE", 0.1)
    monkeypatch.setattr(procedure, "LARGEST_S", 1e-4)
    return simulated


def test_a_board_file_is_written_that_predicts_like_the_board(target, tmp_path):
    out = tmp_path / "mine.toml"
    result = run(app, ["calibrate", "--quick", "--out", str(out), "--board", "raspberry-pi-5"])
    assert result.exit_code == 0, result.output
    board = load_board(out)
    assert board.calibration.fp32.conv.gflop_s.value == pytest.approx(NUMBERS["conv.gflop_s"], rel=0.3)
    assert board.power == load_board("raspberry-pi-5").power
    assert board.match == load_board("raspberry-pi-5").match
    assert out.read_text().startswith("# Written by: edgelean calibrate, target local, FP32.\n")
    assert target.opened == [("local", "fp32", 1, "raspberry-pi-5")]
    assert target.closed == 1


def test_a_machine_that_no_mark_tells_is_recognised_by_its_processor(target, tmp_path):
    out = tmp_path / "mine.toml"
    run(app, ["calibrate", "--quick", "--out", str(out)])
    assert load_board(out).match.processor == "a processor"


def test_every_parameter_is_printed_with_its_interval_and_every_network_with_its_error(target, tmp_path):
    result = run(app, ["calibrate", "--quick", "--out", str(tmp_path / "mine.toml")])
    for key in NUMBERS:
        assert key in result.output
    for words in ("95 % interval", "transformer", "residual network", "Median error", "No sensor measured energy"):
        assert words in result.output


def test_json_is_all_there_is_on_stdout(target, tmp_path):
    out = tmp_path / "mine.toml"
    result = run(app, ["calibrate", "--quick", "--json", "--out", str(out)])
    plain = json.loads(result.stdout)
    assert plain["file"] == str(out)
    assert len(plain["networks"]) == 8
    assert plain["calibration"]["conv"]["gflop_s"]["low"] > 0
    first = plain["networks"][0]
    assert first["error"] == pytest.approx(first["predicted_ms"] / first["measured_ms"] - 1)


def test_an_earlier_calibration_in_another_precision_is_kept(target, tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    run(app, ["calibrate", "--quick", "--out", str(first)])
    halved = SimulatedTarget(precision="fp16")
    target.read = halved.read
    result = run(app, ["calibrate", "--quick", "--out", str(second), "--board", str(first), "--precision", "fp16"])
    assert result.exit_code == 0, result.output
    calibration = load_board(second).calibration
    assert calibration.fp32 == load_board(first).calibration.fp32
    assert calibration.fp16 is not None


def test_nothing_is_measured_for_a_file_that_cannot_be_written(target, tmp_path):
    out = tmp_path / "mine.toml"
    out.write_text("precious")
    result = run(app, ["calibrate", "--quick", "--out", str(out)])
    assert isinstance(result.exception, InputError)
    assert "not overwritten" in str(result.exception)
    assert target.readings == []


def test_a_noisy_machine_ends_with_its_reason_and_writes_nothing(target, tmp_path):
    target.read = SimulatedTarget(noise=lambda reading: "others were at work").read
    out = tmp_path / "mine.toml"
    result = run(app, ["calibrate", "--quick", "--out", str(out)])
    assert isinstance(result.exception, DeviceError)
    assert result.exception.exit_code == 5
    assert "others were at work" in str(result.exception)
    assert not out.exists()
    assert target.closed == 1


def test_measured_energy_is_said_and_written(target, tmp_path):
    target.read = SimulatedTarget(with_energy=True).read
    out = tmp_path / "mine.toml"
    result = run(app, ["calibrate", "--quick", "--out", str(out)])
    assert "Energy per operation and byte was measured." in result.output
    assert load_board(out).calibration.fp32.idle_w.value == pytest.approx(10.0, rel=0.1)


def test_only_the_first_round_measures_energy_on_this_machine(monkeypatch):
    board = load_board("this-machine")
    local = edgelean.target.local.LocalTarget(board, board, "fp32", 1, sensor=object())
    monkeypatch.setattr(edgelean.target, "open_target", lambda *_, **__: local)
    rounds = command.open_rounds("local", board, "fp32", 3)
    assert [one.sensor is not None for one in rounds] == [True, False, False]
