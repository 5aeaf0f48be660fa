"""The command line: exit codes, messages, and nothing half-written."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
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


def test_ctrl_c_leaves_a_run_that_can_be_resumed_and_says_how(tmp_path):
    command = [sys.executable, "-m", "edgelean", *FIT, "--set", "epochs=40"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored in what a shell runs in the background
    )
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run").rglob("000003")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    how = re.search(r"edgelean (fit --resume \S+)", errors).group(1)
    assert "Traceback" not in errors
    done = edgelean(tmp_path, *how.split())
    assert done.returncode == 0, done.stderr
    assert "resume" in done.stdout


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
