"""The doctor shows everything, on any machine."""

import importlib
import json
import shutil
from collections import namedtuple

import pytest
import typer
from fake_driver import install
from typer.testing import CliRunner

from edgelean import sensors
from edgelean.cli import tables
from edgelean.cli.doctor import LEAST_FREE_GB, doctor, examine
from edgelean.sensors import Probe

NAMES = {
    "python", "torch", "CUDA in torch", "onnxruntime", "tensorrt", "tensorrt_rtx",
    "sensor nvml", "sensor hwmon", "sensor rapl", "sensor pmic", "codecarbon", "disk",
}  # fmt: skip
TRUSTED = Probe(
    "nvml counter",
    True,
    "NVIDIA H100 80GB HBM3 (GPU-3f0d6b0c-5a0c-4d1e-9a55-0d8f5c1f7a11), driver 590.48.01",
    tick_ms=100.26,
    resolution="1 mJ",
    trust="yes: read from tick to tick, within 3% of the power",
)
ROOT_ONLY = Probe(
    "rapl",
    False,
    "/sys/class/powercap/intel-rapl:0/energy_uj may only be read by root",
    "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj",
    trust="no: /sys/class/powercap/intel-rapl:0/energy_uj may only be read by root",
)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch):
    install(monkeypatch).fail("nvmlInitWithFlags", code=9)


@pytest.fixture
def two_sensors(monkeypatch):
    monkeypatch.setattr(sensors, "probe_sensors", lambda: (TRUSTED, ROOT_ONLY))


@pytest.fixture
def app():
    one_command = typer.Typer()
    one_command.command()(doctor)
    return one_command


def test_every_line_that_is_not_ready_says_what_was_found_and_how_to_get_it():
    checks = examine()
    assert {check.name for check in checks} == NAMES
    for check in checks:
        assert check.detail
        assert "\n" not in check.detail
        assert check.ready or check.remedy


def test_json_is_the_table_and_nothing_else(app):
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0
    assert {check["name"] for check in json.loads(result.stdout)} == NAMES


def test_tables_have_every_name(app):
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    for name in NAMES:
        assert name.removeprefix("sensor ") in result.stdout


def test_json_of_a_sensor_has_tick_resolution_and_trust_as_fields(app, two_sensors):
    result = CliRunner().invoke(app, ["--json"])
    trusted, root_only = (check for check in json.loads(result.stdout) if check["name"].startswith("sensor"))
    assert trusted == {
        "name": "sensor nvml counter",
        "ready": True,
        "detail": TRUSTED.detail,
        "remedy": "",
        "tick_ms": 100.26,
        "resolution": "1 mJ",
        "trust": TRUSTED.trust,
    }
    assert (root_only["ready"], root_only["tick_ms"]) == (False, None)
    assert root_only["remedy"] == ROOT_ONLY.remedy
    assert root_only["trust"].startswith("no:")


def test_row_of_a_sensor_has_tick_resolution_and_trust_or_else_the_remedy(app, two_sensors):
    lines = CliRunner().invoke(app, []).stdout.splitlines()
    counter = next(i for i, line in enumerate(lines) if "nvml counter" in line)
    assert lines[counter].split()[:8] == ["yes", "nvml", "counter", "100", "ms", "1", "mJ", "NVIDIA"]
    assert lines[counter + 1].strip() == f"Trust: {TRUSTED.trust}"
    rapl = next(i for i, line in enumerate(lines) if " rapl " in line)
    assert lines[rapl].split()[:3] == ["no", "rapl", "/sys/class/powercap/intel-rapl:0/energy_uj"]
    assert lines[rapl + 1].strip() == f"-> {ROOT_ONLY.remedy}"


def test_tables_fit_a_terminal_of_100_columns_and_a_command_stays_on_one_line(app, two_sensors, monkeypatch):
    monkeypatch.setattr(tables, "PIPE_COLUMNS", 100)
    lines = CliRunner().invoke(app, []).stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert f"-> {ROOT_ONLY.remedy}" in {line.strip() for line in lines}


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ImportError("no such module"), "not installed"),
        (OSError("libnvinfer.so.10: cannot open\nshared object file"), "OSError: libnvinfer.so.10: cannot open"),
    ],
)
def test_missing_or_broken_package_is_a_line_and_not_a_crash(monkeypatch, error, detail):
    def broken(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    check = next(check for check in examine() if check.name == "tensorrt")
    assert not check.ready
    assert check.detail == detail
    assert "pip install" in check.remedy


def test_disk_without_space_is_not_ready(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**6))
    check = next(check for check in examine() if check.name == "disk")
    assert not check.ready
    assert f"{LEAST_FREE_GB:g} GB" in check.detail
