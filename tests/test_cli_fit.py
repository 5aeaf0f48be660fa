"""The command line: exit codes, messages, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = str(Path(__file__).parent / "tiny_recipe.py")
FIT = ("fit", TINY, "--profile", "raspberry-pi-5", "--latency", "50%", "--energy", "60%", "--out", "run")


def edgelean(folder, *arguments):
    command = [sys.executable, "-m", "edgelean", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "jetson-orion"), "jetson-orin"),
        (("--profile", "broken.toml"), "broken.toml"),
        (("--latency", "0ms"), "must be above 0"),
        (("--latency", "1ns"), "write a number and a unit"),
        (("--latency", "1us"), "below anything that can be reached"),
        (("--target", "ssh://-oProxyCommand=x"), "ssh://[user@]host"),
        (("--target", "moon"), "use local, modelled or ssh://"),
        (("--set", "epochs"), "KEY=VALUE"),
        (("--set", "speed=9"), "cannot be set"),
        (("missing.py",), "does not exist"),
        (("raises.py",), "ValueError: no such weights"),
        (("forward.py",), "the model fails on a batch of the training data: Sequential cannot run"),
        (("lazy.py",), "whose parameters have no shape yet (11.weight"),
        (("--set", "protect=10,head"), "has no module 'head': at the top there are 0, 1"),
    ],
)
def test_bad_input_ends_with_one_message_exit_code_2_and_nothing_written(tmp_path, arguments, message):
    (tmp_path / "broken.toml").write_text("board = [")
    (tmp_path / "raises.py").write_text("raise ValueError('no such weights')")
    (tmp_path / "forward.py").write_text(Path(TINY).read_text().replace("nn.Linear(32, 10)", "nn.Linear(31, 10)"))
    (tmp_path / "lazy.py").write_text(Path(TINY).read_text().replace("nn.Linear(32, 10)", "nn.LazyLinear(10)"))
    before = sorted(path.name for path in tmp_path.iterdir())
    recipe = () if arguments[0].endswith(".py") else (TINY,)
    profile = () if "--profile" in arguments else ("--profile", "raspberry-pi-5")
    done = edgelean(tmp_path, "fit", *recipe, *profile, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "site-packages" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_json_prints_the_report_and_nothing_else(tmp_path):
    done = edgelean(tmp_path, *FIT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "report.json").read_text())
    assert done.stderr == ""
    again = edgelean(tmp_path, "report", "run")
    assert "Fits" in again.stdout
    assert edgelean(tmp_path, *FIT).returncode == 2  # the folder holds a run


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path):
    for arguments in (("report", "."), ("fit", "--resume", ".")):
        done = edgelean(tmp_path, *arguments)
        assert done.returncode == 2
        assert "not the folder of a run" in done.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    done = edgelean(tmp_path, *FIT)
    assert done.returncode == 2
    assert "run" in done.stderr
