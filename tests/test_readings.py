"""Readings in a run: what can be compared, what is read, and what happens when a device fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import edgelean
from edgelean import pipeline
from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.errors import DeviceError
from edgelean.profile import load_profile
from edgelean.reading import Figure, Provenance, Reading, incomparable
from edgelean.stopwatch import Stopwatch
from edgelean.target import open_target
from edgelean.target.modelled import ModelledTarget
from edgelean.target.onnx_graph import operators_of

TINY = str(Path(__file__).parent / "tiny_recipe.py")
FIGURE = Figure(1.0, 1.0, 1.0, "ms", Provenance.MEASURED, "a clock")


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"power mode": "15W"}, {"power mode": "MAXN"}, "the power mode was 15W and is now MAXN"),
        ({"runtime": "a"}, {"runtime": "b"}, "the runtime was a and is now b"),
        ({"power mode": "15W"}, {}, ""),
        ({"load average": "1"}, {"load average": "2"}, ""),
    ],
)
def test_readings_compare_unless_a_condition_that_both_have_differs(first, second, why):
    one, other = (Reading(FIGURE, None, 1, 50, conditions=each) for each in (first, second))
    assert incomparable(one, other) == why


def test_a_run_stops_when_the_power_mode_changes_and_can_be_resumed(tmp_path, monkeypatch):
    read, seen = ModelledTarget.read, []

    def changing(self, candidate):
        seen.append(candidate)
        mode = "15W" if len(seen) < 4 else "MAXN"
        return replace(read(self, candidate), conditions={"power mode": mode})

    monkeypatch.setattr(ModelledTarget, "read", changing)
    with pytest.raises(DeviceError, match=r"power mode was 15W and is now MAXN.*resume") as stop:
        edgelean.fit(TINY, "raspberry-pi-5", latency="70%", energy="70%", out=tmp_path / "run")
    assert stop.value.exit_code == 5
    monkeypatch.setattr(ModelledTarget, "read", read)
    assert pipeline.resume(tmp_path / "run").exit_code == 0


class Attends(nn.Module):
    """Its attention is one operator in the trace and many in the exported file."""

    def __init__(self):
        super().__init__()
        self.embed, self.attend, self.head = (
            nn.Linear(6, 12),
            nn.MultiheadAttention(12, 3, batch_first=True),
            nn.Linear(12, 3),
        )

    def forward(self, x):
        y = self.embed(x)
        return self.head(self.attend(y, y, y, need_weights=False)[0].mean(1))


def test_a_model_whose_trace_does_not_tell_its_costs_is_read_as_its_file():
    profile = load_profile("raspberry-pi-5")
    board = load_board(profile.board)
    bench = Bench(Attends(), (torch.randn(4, 5, 6),), profile, open_target("modelled", profile, board), Stopwatch())
    file = bench.target.predict(operators_of(bench._exported("fp32"), profile.batch)).latency_ms
    traced = bench.target.predict(bench.anatomy.structure.operators({})).latency_ms
    assert traced < 0.98 * file
    assert bench.read().latency.value == pytest.approx(file)


@pytest.mark.parametrize(("apart", "reads"), [(0.0, 0), (1.0, 1)])
def test_the_artifact_is_read_before_the_end_where_it_could_cost_more_than_its_trace_tells(monkeypatch, apart, reads):
    found, read = [], Bench.read_artifact
    monkeypatch.setattr(Bench, "apart", lambda bench, reading: {"latency": apart, "energy": apart})
    monkeypatch.setattr(Bench, "read_artifact", lambda bench: found.append(bench) or read(bench))
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    budgets = {"latency": "100%", "energy": "100%"}
    attached = edgelean.attach(model, optimizer, x, "raspberry-pi-5", steps=20, target="modelled", **budgets)
    for _ in range(20):
        nn.functional.cross_entropy(model(x), torch.arange(4) % 3).backward()
        optimizer.step()
        attached.step()
    assert len(found) == reads
