"""What the training itself took: summed from the events, taken apart in the report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_report import sample_report

from edgelean.report import story
from edgelean.report.footprint import certainty, footprint
from edgelean.report.history import extrapolated, spent_on
from edgelean.report.html import render
from edgelean.report.model import EnergyPart, LawCost, Report


def _energy(chapter, seconds, **parts):
    kwh = sum(kwh for kwh, _ in parts.values()) if parts else None
    told = {name: {"kwh": kwh, "how": how} for name, (kwh, how) in parts.items()}
    method = "codecarbon" if parts else "not known"
    return {"event": "energy", "step": 0, "chapter": chapter, "seconds": seconds, "kwh": kwh, "parts": told,
            "method": method}  # fmt: skip


def test_energy_of_a_resumed_training_is_summed_by_component_and_by_how_it_is_known():
    events = [
        _energy("lean", 10, cpu=(0.1, "measured"), ram=(0.02, "estimated")),
        _energy("full-size", 99, cpu=(9.0, "measured")),
        _energy("lean", 5, cpu=(0.05, "estimated"), ram=(0.01, "estimated")),
    ]
    spent = spent_on(events, "lean")
    assert spent.seconds == 15
    assert spent.kwh == pytest.approx(0.18)
    parts = {(part.component, part.how): part.kwh for part in spent.parts}
    assert parts == pytest.approx(
        {("cpu", "measured"): 0.1, ("cpu", "estimated"): 0.05, ("ram", "estimated"): 0.03}
    )  # fmt: skip
    assert spent.method == "codecarbon"


def test_part_of_a_training_whose_energy_nobody_read_is_said_to_be_missing():
    events = [_energy("lean", 10), _energy("lean", 5, cpu=(0.1, "estimated"))]
    assert spent_on(events, "lean").kwh == pytest.approx(0.1)
    assert "10 s of the training are not in it" in spent_on(events, "lean").method
    assert spent_on(events[:1], "lean").kwh is None
    assert spent_on([], "lean").method == "not known"


def test_full_size_training_that_was_not_done_is_an_estimate_from_the_pace_before_the_first_cut():
    events = [
        {"event": "cut", "step": 60, "step_s": 0.2},
        {"event": "cut", "step": 90, "step_s": 0.1},
        _energy("lean", 50, cpu=(0.5, "measured"), gpu=(0.0, "unknown"), ram=(0.1, "estimated")),
    ]
    spent = extrapolated(events, "lean", 600)
    assert spent.seconds == pytest.approx(120)
    assert [(part.component, part.how) for part in spent.parts] == [("cpu", "estimated"), ("ram", "estimated")]
    assert spent.kwh == pytest.approx(0.6 * 120 / 50)
    assert extrapolated(events[2:], "lean", 600) is None
    assert extrapolated(events[:2], "lean", 600).kwh is None


def _with_parts(full, lean, **changes):
    report = sample_report(readings=(), epochs_history=(), full_size_history=(), spectra=(), **changes)
    sides = {
        name: replace(side, training_parts=parts, training_kwh=sum(part.kwh for part in parts) if parts else None)
        for name, side, parts in (("full_size", report.full_size, full), ("lean", report.lean, lean))
    }
    return replace(report, **sides)


@pytest.mark.parametrize(
    ("hows", "word"),
    [
        (("measured", "measured"), "measured"),
        (("estimated",), "estimated"),
        (("measured", "estimated"), "partly estimated"),
        (("estimated", "unknown"), "estimated, without the GPU"),
        (("measured", "estimated", "unknown"), "partly estimated, without the GPU"),
        ((), ""),
    ],
)
def test_sum_of_parts_is_as_certain_as_the_least_certain_of_them(hows, word):
    assert certainty(EnergyPart("cpu", how, 1.0) for how in hows) == word


def test_total_of_the_training_energy_says_that_it_is_partly_estimated():
    row = next(row for row in story.comparison(sample_report()) if row.label == "Training energy")
    assert row.provenance == "partly estimated"
    co2 = next(row for row in story.comparison(sample_report()) if row.label == "Training CO₂")
    assert "the mean of the world" in co2.note


def test_footprint_lists_components_and_sums_of_both_sides_in_one_unit():
    lines = [(line.label, line.how, line.full, line.lean) for line in footprint(sample_report()).lines]
    assert lines == [
        ("GPU", "measured", "0.780 Wh", "0.470 Wh"),
        ("processor", "estimated", "0.410 Wh", "0.250 Wh"),
        ("memory", "estimated", "0.150 Wh", "0.090 Wh"),
        ("all measured", "", "0.780 Wh", "0.470 Wh"),
        ("all estimated", "", "0.560 Wh", "0.340 Wh"),
        ("together", "partly estimated", "1.340 Wh", "0.810 Wh"),
        ("CO₂", "partly estimated", "637 mg", "385 mg"),
    ]


def test_bars_of_the_footprint_have_one_scale_and_widths_that_add_up():
    full, lean = footprint(sample_report()).bars
    assert sum(segment.width for segment in full.segments) == pytest.approx(100, abs=0.05)
    assert sum(segment.width for segment in lean.segments) == pytest.approx(100 * 0.81 / 1.34, abs=0.05)
    assert [segment.how for segment in full.segments] == ["measured", "estimated", "estimated"]


def test_page_shows_the_parts_of_the_training_energy_and_what_the_electricity_stands_for():
    page = render(sample_report())
    assert "What the training took" in page
    assert "Of what the lean model took, 42\u00a0% is estimated." in page
    assert 'title="GPU, measured"' in page
    assert "because the profile names neither a country nor a number" in page


def test_training_that_is_estimated_altogether_says_so():
    parts = (EnergyPart("cpu", "estimated", 0.7), EnergyPart("ram", "estimated", 0.3))
    sentence = footprint(_with_parts(parts, parts)).sentence
    assert "All of this is estimated, nothing measured." in sentence
    assert "At full size it would have taken 1.00 kWh" in sentence


def test_training_that_is_measured_altogether_is_not_hatched_and_has_no_sums_of_estimates():
    parts = (EnergyPart("cpu", "measured", 0.7),)
    shown = footprint(_with_parts(parts, parts))
    assert not shown.has_estimates
    assert "estimated" not in shown.sentence
    assert [line.label for line in shown.lines] == ["processor", "together", "CO₂"]
    assert "hatched" not in render(_with_parts(parts, parts))


def test_gpu_that_could_not_be_read_is_named_and_comes_on_top():
    lean = (EnergyPart("cpu", "measured", 0.7), EnergyPart("gpu", "unknown", 0.0))
    shown = footprint(_with_parts((), lean))
    assert "Its GPU could not be read, and comes on top." in shown.sentence
    assert ("GPU", "unknown", "unknown") in [(line.label, line.how, line.lean) for line in shown.lines]
    assert [bar.label for bar in shown.bars] == ["lean"]


def test_run_whose_energy_nobody_read_has_no_footprint():
    report = _with_parts((), ())
    assert footprint(report) is None
    assert "What the training took" not in render(report)


def test_what_the_law_costs_is_a_figure_of_its_own_and_part_of_the_control():
    timing = {"training": 80.0, "control": 6.0, "law": 1.0, "measuring": 3.0, "other": 10.0}
    report = sample_report(timing=timing, law=LawCost(1.0, 0.0125))
    assert story.overhead_text(report) == (
        "Training took 80 % of the run, control and measuring 10 %. "
        "Holding every cut against the law took 1.0 s of it, 1.2 % of the training of the lean model."
    )
    assert story.overhead_text(report) in render(report)
    assert report.to_json()["law"] == {"seconds": 1.0, "share": 0.0125}
    assert Report.from_json(report.to_json()) == report
