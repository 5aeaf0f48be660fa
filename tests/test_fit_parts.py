"""The whole flow for a model that torch.export cannot trace whole, with a part that the user protects."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgelean
from edgelean import pipeline
from edgelean.errors import InputError
from edgelean.exporter.bundle import check_bundle
from edgelean.job import asked_before
from edgelean.training.run import Run

RECIPE = Path(__file__).parent / "deciding_recipe.py"
LINE = "(`if h.isnan().any():`) decides by the value of a tensor"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, events = tmp_path_factory.mktemp("parts") / "run", []
    report = edgelean.fit(
        str(RECIPE), "raspberry-pi-5", latency="60%", energy="70%", out=folder, on_event=events.append
    )
    return folder, report, events


def test_budgets_are_met_and_the_artifact_is_verified(run):
    _, report, _ = run
    assert report.exit_code == 0
    assert report.lean.parameters < report.full_size.parameters


def test_how_it_was_taken_apart_and_exported_is_said_once_in_the_log_and_in_the_report(run):
    folder, report, events = run
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert list(report.caveats) == notes
    assert len(notes) == 2
    assert all(LINE in note for note in notes)
    assert "(body, head)" in notes[0]
    assert "recording one path" in notes[1]
    assert "recording one path" in (folder / "report.html").read_text()
    assert notes[1] in check_bundle(folder / "bundle")["notes"]


def test_what_is_protected_is_whole_and_stands_in_run_json_and_report(run):
    folder, report, _ = run
    assert json.loads((folder / "run.json").read_text())["protect"] == ["head"]
    assert ("head.0", "protected by the user") in report.refused
    assert [layer.name for layer in report.layers] == ["body.0", "body.3"]
    lean = edgelean.load(folder)
    assert lean.head[0].out_features == 24
    assert lean.body[3].out_channels < 64


def test_a_resumed_run_protects_what_it_protected(run, tmp_path):
    folder, report, _ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    newest = max((copy / "checkpoints" / "lean").iterdir())
    shutil.rmtree(newest)
    again = pipeline.resume(copy)
    assert again.refused == report.refused
    assert [layer.after for layer in again.layers] == [layer.after for layer in report.layers]
    assert asked_before(Run.open(copy)).recipe.protect == ("head",)


def test_axes_shows_the_parts_and_why_the_whole_was_not_traced(tmp_path):
    command = [sys.executable, "-m", "edgelean", "axes", str(RECIPE), "--protect", "body.[36]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0 axes" in done.stdout
    assert done.stdout.count("protected by the user") == 3
    assert "if h.isnan().any():" in done.stdout
    assert "torch.where" in done.stdout
    assert done.stderr == ""


class OnePath(nn.Module):
    """Some samples take another path than others."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x) if x[0, 0] > 0 else -self.net(x)


def test_a_model_that_takes_several_paths_is_refused_before_training(tmp_path):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
    recipe = edgelean.Recipe(
        model=OnePath, data=lambda: (data, data, data), loss=nn.functional.cross_entropy, name="paths", epochs=1
    )
    with pytest.raises(InputError, match="recorded path gives other outputs than the model"):
        edgelean.fit(recipe, "raspberry-pi-5", latency="90%", energy="90%", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_attach_protects_and_refuses_what_it_cannot_use():
    model = OnePath()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="has no module 'nte': did you mean net"):
        edgelean.attach(model, optimizer, torch.rand(4, 8), "raspberry-pi-5", steps=10, protect="nte")
    with pytest.raises(InputError, match=r"wants \[\.\.\., 8\]"):
        edgelean.attach(model, optimizer, torch.rand(4, 7), "raspberry-pi-5", steps=10)
