"""The doctor shows everything, on any machine."""

import importlib
import json
import shutil
from collections import namedtuple

import pytest
import typer
from typer.testing import CliRunner

from edgelean.cli.doctor import LEAST_FREE_GB, doctor, examine

NAMES = {
    "python", "torch", "CUDA in torch", "onnxruntime", "tensorrt", "tensorrt_rtx",
    "sensor nvml", "sensor hwmon", "sensor rapl", "codecarbon", "disk",
}  # fmt: skip


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


def test_table_has_every_name(app):
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    for name in NAMES:
        assert name in result.stdout


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
