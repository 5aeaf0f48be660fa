"""Whole runs that choose a precision, or learn to compute in INT8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import assert_goes_on_to_the_same_model

import edgelean
from edgelean import pipeline
from edgelean.exporter.bundle import check_bundle
from edgelean.profile import Profile
from edgelean.report import read_report

HERE = Path(__file__).parent
ORIN = {"name": "orin", "board": "jetson-agx-orin-64gb", "batch": 256}


def fit(recipe, out, **changes):
    budgets = {"latency": changes.pop("latency")}
    profile = Profile.model_validate({**ORIN, "targets": ["onnx-fp32"], "budgets": budgets, **changes.pop("profile")})
    return edgelean.fit(str(HERE / recipe), profile, target="modelled", out=out, **changes)


@pytest.fixture(scope="module")
def auto(tmp_path_factory):
    """A run that chooses, its folder and its events; no precision is enough without a cut."""
    folder, events = tmp_path_factory.mktemp("auto") / "run", []
    fit("tiny_recipe.py", folder, latency="10%", profile={"precision": "auto"}, on_event=events.append)
    return folder, events


def test_a_run_chooses_its_precision_before_its_first_cut_and_says_why(auto):
    folder, events = auto
    (choice,) = (event for event in events if event["event"] == "precision")
    assert choice["step"] <= min(event["step"] for event in events if event["event"] == "cut")
    assert {option["precision"] for option in choice["options"]} == {"fp32", "fp16", "int8"}
    nats = {each["precision"]: each["cut_nats"] + max(each["rounding_nats"], 0) for each in choice["options"]}
    assert nats[choice["precision"]] == min(nats.values())
    assert any(choice["text"] in caveat for caveat in read_report(folder).caveats)


def test_the_file_in_the_chosen_precision_is_shipped_and_verified_and_the_verdict_is_on_it(auto):
    folder, events = auto
    chosen = next(event["precision"] for event in events if event["event"] == "precision")
    assert chosen != "fp32"
    checks = check_bundle(folder / "bundle")["checks"]
    assert {check["precision"] for check in checks} == {"fp32", chosen}
    assert all(check["passed"] for check in checks)
    (verdict,) = read_report(folder).verdicts
    assert verdict.outcome == "met"
    after = [event for event in events if event["event"] == "reading"][-1]
    assert verdict.value == pytest.approx(after["latency_ms"], rel=0.05)


def test_an_interrupted_run_keeps_the_precision_that_it_chose(auto, tmp_path):
    folder, events = auto

    def again(out, on_event):
        fit("tiny_recipe.py", out, latency="10%", profile={"precision": "auto"}, on_event=on_event)

    edgelean_resume(again, folder, events, tmp_path / "run")


def edgelean_resume(again, whole, events, folder):
    """The recipe is a file and the profile is in run.json, so the run can be resumed from its folder alone."""
    assert_goes_on_to_the_same_model(again, whole, events, folder)
    first, second = (Path(place) / "bundle" / "model.onnx" for place in (whole, folder))
    assert first.read_bytes() == second.read_bytes()


def test_a_network_learns_to_be_rounded_and_an_interrupted_one_learns_the_same(tmp_path):
    asked = {"precision": "int8", "targets": ["onnx-fp32", "tensorrt-int8"], "accuracy": {"int8_tail": 0.3}}

    def run(name, on_event=lambda event: None):
        fit("uneven_recipe.py", tmp_path / name, latency="100%", profile=asked, on_event=on_event)

    events = []
    run("whole", events.append)
    (rounding,) = (event for event in events if event["event"] == "rounding")
    assert rounding["on"]
    assert rounding["loss"]["drop"] > 0.02
    report = read_report(tmp_path / "whole")
    assert any("rounded to INT8" in caveat for caveat in report.caveats)
    check = next(check for check in report.checks if check.precision == "int8")
    assert check.metric_model - check.metric_artifact < 0.01

    def stop(event):
        if event["event"] == "epoch" and event["step"] > rounding["step"] + 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    pipeline.resume(tmp_path / "stopped")
    models = [edgelean.load(tmp_path / name).state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
