"""The whole flow for state space layers: states of a bank and of a dense system go; an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import assert_goes_on_to_the_same_model

import edgelean
from edgelean.profile import load_profile
from edgelean.recipe import load_recipe

RECIPE = str(Path(__file__).parent / "states_recipe.py")


def fit(out, **changes):
    profile = load_profile("raspberry-pi-5")
    # The latency of so short sequences is mostly launches, which no state saves.
    control = profile.control.model_copy(
        update={"window": (0.2, 0.7), "events": 3, "wait": 0.2, "floor": 4, "margin": 0.0}
    )
    # So little training is noise to the guard.
    accuracy = profile.accuracy.model_copy(update={"cut_tolerance": 1.0})
    profile = profile.model_copy(update={"control": control, "accuracy": accuracy, "targets": ("onnx-fp32",)})
    return edgelean.fit(
        recipe=RECIPE, profile=profile, latency="96%", energy="96%", target="modelled", out=out, **changes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: its folder, its report, its events."""
    folder, events = tmp_path_factory.mktemp("fit") / "run", []
    report = fit(folder, on_event=events.append)
    return folder, report, events


@pytest.mark.slow
def test_states_that_cost_least_go_by_the_law_until_the_budgets_are_met(run):
    _, report, _ = run
    assert report.exit_code == 0
    assert report.cuts
    assert all(cut.law_error < 1e-3 for cut in report.cuts)
    states = {layer.name: layer.after for layer in report.layers if layer.name.endswith(".states")}
    assert states.keys() == {"blocks.0.states", "blocks.1.states"}
    assert min(states.values()) < 64


@pytest.mark.slow
def test_the_exported_model_and_the_loaded_one_are_as_accurate_as_the_trained_one(run):
    folder, report, _ = run
    assert all(check.passed for check in report.checks)
    model, (x, y) = edgelean.load(folder), load_recipe(RECIPE).data()[2].tensors
    assert {f"blocks.{i}.states": layer.states for i, layer in enumerate(model.blocks)}.items() <= {
        (layer.name, layer.after) for layer in report.layers
    }
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).double().mean())
    assert accuracy == pytest.approx(report.lean.accuracy)


@pytest.mark.slow
def test_a_run_interrupted_after_states_went_goes_on_to_the_same_model(run, tmp_path):
    folder, _, events = run
    assert_goes_on_to_the_same_model(fit, folder, events, tmp_path / "run")
