"""Which of the two forms of a sequence model is chosen for a board, and what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_report import sample_report

from edgelean.delivery import _chosen, _compared
from edgelean.reading import Figure, Provenance, Reading
from edgelean.report import Report, story
from edgelean.report.html import render
from edgelean.report.model import FormFigures
from edgelean.verifier import ArtifactCheck

STEPS = 10


def reading(latency_ms, energy_mj=None):
    def figure(value, unit):
        return Figure(value, 0.9 * value, 1.1 * value, unit, Provenance.MEASURED, "with a stopwatch")

    energy = None if energy_mj is None else figure(energy_mj, "mJ")
    return Reading(figure(latency_ms, "ms"), energy, batch=1, percentile=50)


def check(form, passed=True):
    return ArtifactCheck(
        file=f"model.{form}.onnx", precision="fp32", runtime="", samples=1, metric_name="accuracy", metric_model=1.0,
        metric_artifact=1.0, agreement=1.0, rel_l2=0.0, passed=passed, reason="", form=form,
    )  # fmt: skip


def compared(whole, step, checks):
    """The figures of both forms for their readings, and the files and feeds of which the step form was read."""
    asked = []

    def read_files(files, feeds):
        asked.append((files, feeds()))
        return step

    steps = SimpleNamespace(length=STEPS, feeds=lambda: "one step and the state")
    files = {"fp32": Path("model.step.onnx")}
    found = _compared(SimpleNamespace(read_files=read_files), steps, files, whole, checks)
    assert asked == [(files, "one step and the state")]
    return found


@pytest.mark.parametrize(("step_ms", "chosen"), [(0.09, "step"), (0.1, "sequence"), (0.2, "sequence")])
def test_the_form_that_takes_less_time_for_a_sequence_is_chosen(step_ms, chosen):
    forms = compared(reading(1.0, 4.0), reading(step_ms, 0.5), [check("sequence"), check("step")])
    assert _chosen(forms) == chosen
    assert [each.form for each in forms if each.chosen] == [chosen]


def test_a_form_that_failed_its_check_is_not_chosen():
    for bad, left in (("step", "sequence"), ("sequence", "step")):
        checks = [check(form, passed=form != bad) for form in ("sequence", "step")]
        for step_ms in (0.01, 1.0):
            assert _chosen(compared(reading(1.0), reading(step_ms), checks)) == left


def test_what_a_step_takes_counts_once_for_every_time_step():
    whole, step = compared(reading(1.0, 4.0), reading(0.2, 0.5), [check("sequence"), check("step")])
    assert (whole.latency_ms, whole.call_ms, whole.energy_mj, whole.steps) == (1.0, 1.0, 4.0, STEPS)
    assert (step.latency_ms, step.call_ms, step.energy_mj, step.steps) == (2.0, 0.2, 5.0, STEPS)
    assert (step.low_ms, step.high_ms) == pytest.approx((1.8, 2.2))
    assert step.method == "with a stopwatch; one time step, times 10"
    assert (whole.files, step.files) == (("model.sequence.onnx",), ("model.step.onnx",))
    assert step.provenance is Provenance.MEASURED


def test_without_an_energy_there_is_none():
    _, step = compared(reading(1.0), reading(0.2), [check("sequence"), check("step")])
    assert step.energy_mj is None


def forms(chosen="sequence"):
    costs = {"sequence": (0.33, 0.33), "step": (10.84, 0.169)}
    return tuple(
        FormFigures(
            form=form, files=(f"model.{form}.onnx",), steps=64, latency_ms=whole, low_ms=whole, high_ms=whole,
            call_ms=call, energy_mj=2.0, provenance=Provenance.MODELLED, method="by a formula", chosen=form == chosen,
        )
        for form, (whole, call) in costs.items()
    )  # fmt: skip


def test_both_forms_of_a_sequence_model_are_told_with_the_chosen_one():
    report = sample_report(form="sequence", forms=forms())
    sentence = story.form_text(report)
    assert "64 steps takes 0.330 ms as a whole and 10.8 ms step by step, modelled" in sentence
    assert sentence.endswith("chosen for the board: the whole sequence.")
    assert [row[-1] for row in story.form_rows(report)] == ["chosen", ""]
    page = render(report)
    assert "model.step.onnx" in page
    assert sentence in page
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.to_json()["form"] == "sequence"


def test_a_model_of_one_form_has_no_word_about_forms():
    assert story.form_text(sample_report()) == ""
    assert "Two forms" not in render(sample_report())
