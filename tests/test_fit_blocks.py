"""The whole flow where launches are what costs: residual blocks go, a run that is interrupted goes on without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import assert_goes_on_to_the_same_model

import edgelean
from edgelean import pipeline
from edgelean.profile import load_profile
from edgelean.recipe import load_recipe
from edgelean.shrink.bypass import detours_of
from edgelean.training.checkpoint import load_newest

DEEP = str(Path(__file__).parent / "deep_recipe.py")


def fit(out, **changes):
    one_at_a_time = load_profile("jetson-orin").model_copy(update={"batch": 1, "targets": ("onnx-fp32",)})
    return edgelean.fit(**{
        "recipe": DEEP, "profile": one_at_a_time, "latency": "60%", "energy": "70%", "target": "modelled", "out": out,
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: its folder, its report, its events."""
    folder, events = tmp_path_factory.mktemp("fit") / "run", []
    report = fit(folder, on_event=events.append)
    return folder, report, events


def tried(events):
    return [axis["axis"] for event in events if event["event"] == "cut" for axis in event["axes"] if axis["after"] == 0]


def gone(events):
    """Return the blocks that did not come back."""
    kept = []
    for event in events:
        if event["event"] == "cut":
            kept.append([axis["axis"] for axis in event["axes"] if axis["after"] == 0])
        elif event["event"] == "rollback":
            kept.pop()
    return [axis for axes in kept for axis in axes]


def test_blocks_go_until_the_budgets_are_met(run):
    _, report, events = run
    assert report.exit_code == 0
    assert gone(events)
    assert all(name.endswith(".block") for name in gone(events))
    assert all(cut.law_error < 1e-9 for cut in report.cuts)
    assert report.checks[0].passed
    assert {layer.name for layer in report.layers if layer.after == 0} >= set(gone(events))


def test_loaded_model_is_without_the_blocks(run):
    folder, report, events = run
    model = edgelean.load(folder)
    x, y = load_recipe(DEEP).data()[2].tensors
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).double().mean())
    assert len(detours_of(model)) == len(gone(events))
    assert sum(parameter.numel() for parameter in model.parameters()) == report.lean.parameters
    assert accuracy == pytest.approx(report.lean.accuracy)


def test_a_run_interrupted_after_a_block_went_goes_on_to_the_same_model(run, tmp_path):
    folder, _, events = run
    assert_goes_on_to_the_same_model(fit, folder, events, tmp_path / "run")


def test_a_block_that_the_network_misses_comes_back_also_in_a_run_that_was_interrupted(tmp_path):
    """A recipe whose metric collapses as soon as the model shrinks: the cut is pending when the run is interrupted."""
    recipe = Path(DEEP).with_name("spoiled_recipe.py")
    last, pending = [], []

    def stop(event):
        if event["event"] == "epoch":
            if pending:  # the checkpoint of an epoch is written after its event
                raise KeyboardInterrupt
            pending.extend(kind for kind in last[-1:] if kind == "cut")
        if event["event"] in ("cut", "rollback"):
            last.append(event["event"])

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", recipe=str(recipe), on_event=stop)
    values = load_newest(tmp_path / "run" / "checkpoints" / "lean").values
    assert values["loop"]["pending"]["detours"] == []
    later = []
    report = pipeline.resume(tmp_path / "run", on_event=later.append)
    assert "rollback" in [event["event"] for event in later]
    blocks = tried(later)
    assert len(blocks) > 1
    assert len(set(blocks)) == len(blocks)  # none goes a second time
    assert dict(report.refused).keys() >= set(blocks)
    assert report.lean.parameters == report.full_size.parameters
    assert not detours_of(edgelean.load(tmp_path / "run"))
