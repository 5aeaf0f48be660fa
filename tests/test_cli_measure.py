"""``edgelean measure``: what a person and a program see of a measurement, and how it ends."""

import json
import subprocess
import sys

import pytest
import small_onnx
from typer.testing import CliRunner

from edgelean import cli, measuring
from edgelean.cli.measure import to_json
from edgelean.errors import DeviceError, InputError
from edgelean.measuring import Wishes, measure_file
from edgelean.sensors import Energy
from edgelean.sensors.protocol import EnergyProtocol
from edgelean.target import local as local_module
from edgelean.target.latency import Patience
from edgelean.target.local import Routine

ENERGY = EnergyProtocol(window_s=0.005, idle_s=0.01, longest_delay_s=0.001, warm_up_s=0.0)
QUICK = Routine(2, 1, 0.0, 0.0, Patience(warm_up_s=0.01, least_s=0.02, cap_s=0.05), ENERGY)


@pytest.fixture
def model(tmp_path):
    return small_onnx.save_perceptron(tmp_path / "model.onnx")


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(measuring, "THOROUGH", QUICK)
    monkeypatch.setattr("edgelean.target.probe_this_machine", lambda board: board)
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "")
    monkeypatch.setattr(local_module, "energy_disturbance", lambda *_: "")
    monkeypatch.setattr(local_module, "doubts", lambda *_: "")


def run(*arguments):
    return CliRunner().invoke(cli.app, ["measure", *map(str, arguments)])


class Sensor:
    """Every window has another power, so that the figures have intervals."""

    name, method = "sensor", "a sensor of a test"

    def __init__(self):
        self.windows = 0

    def over(self, work, seconds):
        self.windows += 1
        return Energy(10.0 + self.windows % 3, 1.0, 10, self.method)


@pytest.mark.usefixtures("quiet")
def test_person_sees_percentiles_energy_origin_verdicts_and_conditions(model, monkeypatch):
    monkeypatch.setattr("edgelean.target.find_sensor", lambda *_, **__: Sensor())
    result = run(model, "--latency", "1s", "--energy", "1mJ", "--batch", "2")
    assert result.exit_code == 3, result.output
    for words in ("median", "p90", "p99", "energy, gross", "energy, net of idle", "measured", "2 per call"):
        assert words in result.output
    lines = result.output.splitlines()
    (met,) = [line for line in lines if line.startswith("latency, median") and "met" in line]
    assert met.split()[-1] == "met"
    assert any(line.startswith("energy ") and line.endswith("not met") for line in map(str.rstrip, lines))
    for condition in ("processor", "runtime", "threads", "precision", "a sensor of a test"):
        assert condition in result.output


@pytest.mark.usefixtures("quiet")
def test_program_gets_the_same_as_json_and_nothing_else(model, monkeypatch):
    monkeypatch.setattr("edgelean.target.find_sensor", lambda *_, **__: Sensor())
    result = run(model, "--latency", "1s", "--energy", "1000J", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert result.stderr == ""
    assert found["reading"]["latency"]["provenance"] == "measured"
    assert {entry["percentile"] for entry in found["percentiles"]} >= {50, 90}
    assert [(verdict["quantity"], verdict["outcome"]) for verdict in found["verdicts"]] == [
        ("latency", "met"),
        ("energy", "met"),
    ]
    assert found["exit_code"] == 0


def test_json_is_the_whole_measurement(model):
    found = measure_file(model, "jetson-orin", Wishes(target="modelled"))
    plain = json.loads(json.dumps(to_json(found)))
    assert (plain["model"], plain["profile"], plain["target"]) == (str(model), "jetson-orin", "modelled")
    assert plain["board"] == found.board.name
    assert plain["reading"]["latency"]["value"] == found.reading.latency.value
    assert plain["percentiles"] == []


def test_budget_that_is_a_share_is_said_to_have_no_verdict(model):
    result = run(model, "--target", "modelled", "--profile", "jetson-orin", "--latency", "50%", "--energy", "1J")
    assert result.exit_code == 0, result.output
    assert "No verdict on latency: 50% is a share of a full-size model" in result.output


@pytest.mark.parametrize("shape", ["input", "input=", "input=0x3", "input=3xx3", "=3", "input=-1"])
def test_shape_that_is_none_is_refused(model, shape):
    result = run(model, "--shape", shape)
    assert isinstance(result.exception, InputError)
    assert "NAME=3x224x224" in str(result.exception)


def test_noisy_machine_prints_no_number(model, monkeypatch):
    monkeypatch.setattr(measuring, "THOROUGH", QUICK)
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "a neighbour: ask it to stop")
    result = run(model, "--json")
    assert isinstance(result.exception, DeviceError)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.onnx"], 2, "does not exist"),
        (["model.onnx", "--shape", "input=7"], 2, "dimension 1 is 6"),
        (["model.onnx", "--target", "modelled", "--profile", "jetson-orin", "--latency", "1us"], 3, ""),
    ],
)
def test_command_ends_with_one_message_and_its_exit_code(tmp_path, model, arguments, code, message):
    command = [sys.executable, "-m", "edgelean", "measure", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert message in done.stderr
    assert (done.stderr.count("\n") == 1) == bool(message)
    assert "Traceback" not in done.stderr
