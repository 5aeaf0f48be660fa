"""What the report tells of state space layers: their spectra over the training, and what each truncation cost."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from sample_report import sample_events, sample_evolution, sample_report

from edgelean.report import Report, story
from edgelean.report.axes import Evolution, LayerWidth, Look
from edgelean.report.history import evolutions, from_events
from edgelean.report.html import render
from edgelean.report.plots import Mark, draw_evolution
from edgelean.shrink.certificate import Truncation
from edgelean.spectra import rows

HOSTILE = "<script>alert('$x$')</script>"


def truncation(**changes):
    fields = {"layer": "lru", "before": 64, "after": 32, "gain": 2.0, "certificate": 0.5, "worst": 0.1, "energy": 1e-3}
    return Truncation(**(fields | changes))


def plain_report(**changes) -> Report:
    """A report that is rendered in no time."""
    return sample_report(readings=(), epochs_history=(), full_size_history=(), spectra=(), **changes)


def areas(svg):
    """The shaded areas of the plot, without its key, which nothing clips: opacity to corners, one path a shade."""
    found = {}
    for corners, style in re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: var\(--accent\)([^"]*)"', svg):
        opacity = float(style.removeprefix("; opacity: ") or 1)
        found[opacity] = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", corners)]
    return found


# -- what is read out of the events ------------------------------------------------------------------------------------


def test_events_become_the_spectra_of_each_layer_in_order():
    def seen(step, **layers):
        return {"event": "spectrum", "step": step, "layers": layers}

    first, later = {"full": 3, "states": 3, "sigma": [3.0, 2.0]}, {"full": 3, "states": 1, "sigma": [2.5]}
    events = [seen(10, a=first), {"event": "epoch", "step": 15}, seen(20, a=later, b=first)]
    assert evolutions(events, rows) == (
        Evolution("a", 3, rows(6), (Look(10, 3, (3.0, 2.0)), Look(20, 1, (2.5,)))),
        Evolution("b", 3, rows(6), (Look(20, 3, (3.0, 2.0)),)),
    )
    assert evolutions(sample_events(), rows) == ()


def test_a_cut_event_brings_its_truncations_and_older_ones_have_none():
    (cut, *_) = [event for event in sample_events() if event["event"] == "cut"]
    assert from_events([cut]).cuts[0].truncations == ()
    told = cut | {"truncations": [vars(truncation())]}
    assert from_events([told]).cuts[0].truncations == (truncation(),)


def test_report_with_spectra_survives_json_without_a_change():
    cuts = (replace(sample_report().cuts[0], truncations=(truncation(),)),)
    report = plain_report(cuts=cuts, evolutions=(sample_evolution(),))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


# -- the words ---------------------------------------------------------------------------------------------------------


def test_a_selective_layer_is_told_to_have_no_certificate_and_why():
    layers = (LayerWidth("blocks.0.layer.selected", 16, 4), LayerWidth("head", 8, 8))
    report = plain_report(layers=layers)
    assert story.selective_text(report).startswith("blocks.0.layer is selective: the recurrence depends on the input")
    assert "no certificate" in render(report)
    assert story.selective_text(plain_report(layers=layers[1:])) == ""


def test_a_truncation_is_told_in_shares_of_the_gain_of_its_layer():
    cuts = sample_report().cuts
    report = plain_report(cuts=(cuts[0], replace(cuts[1], truncations=(truncation(),))))
    (row,) = story.truncations(report)
    assert (row.cut, row.layer, row.states) == (2, "lru", "64 → 32")
    assert (row.certificate, row.worst, row.energy) == ("25 %", "5 %", "0.1 %")


@pytest.mark.parametrize(
    ("certificate", "gain", "words"),
    [(90.0, 2.0, "45×"), (1e-9, 2.0, "< 1e-6 %"), (0.0, 2.0, "< 1e-6 %"), (1.0, 0.0, "< 1e-6 %"), (2.0, 2.0, "100 %")],
)
def test_shares_far_above_and_far_below_one_have_words_of_their_own(certificate, gain, words):
    known = truncation(certificate=certificate, gain=gain)
    cuts = (replace(sample_report().cuts[0], truncations=(known,)),)
    assert story.truncations(plain_report(cuts=cuts))[0].certificate == words


def test_the_page_has_the_section_only_where_there_are_state_space_layers():
    assert "<h2>States</h2>" not in render(plain_report())
    page = render(plain_report(evolutions=(sample_evolution(),)))
    assert "<h2>States</h2>" in page
    assert "What each truncation was known to cost" not in page
    cuts = (replace(sample_report().cuts[0], truncations=(truncation(),)),)
    assert "What each truncation was known to cost" in render(plain_report(cuts=cuts))


def test_a_layer_that_went_with_its_block_is_said_to_be_gone():
    gone = LayerWidth("blocks.0.layer.states", 32, 0)
    page = render(plain_report(evolutions=(sample_evolution(),), layers=(gone,)))
    assert "over the training steps, went with its block" in page
    assert "over the training steps, 16 of 32 states" in render(plain_report(evolutions=(sample_evolution(),)))


def test_the_name_of_a_layer_cannot_break_the_page():
    cuts = (replace(sample_report().cuts[0], truncations=(truncation(layer=HOSTILE),)),)
    page = render(plain_report(cuts=cuts, evolutions=(sample_evolution(HOSTILE),)))
    assert "<script" not in page
    assert page.count("&lt;script") >= 3


# -- the heat map ------------------------------------------------------------------------------------------------------


def test_darker_areas_are_larger_values_and_nothing_is_drawn_above_what_a_layer_keeps():
    found = areas(draw_evolution("e", sample_evolution(), (), 600))
    assert len(found) >= 8
    # Heights in an SVG grow downwards: the largest values lie at the bottom.
    lowest = [max(y for _, y in found[opacity]) for opacity in sorted(found, reverse=True)]
    assert lowest == sorted(lowest, reverse=True)
    left, right = min(x for each in found.values() for x, _ in each), max(x for each in found.values() for x, _ in each)
    early = min(y for each in found.values() for x, y in each if x < left + (right - left) / 6)
    late = min(y for each in found.values() for x, y in each if x > right - (right - left) / 6)
    assert early < late


def test_the_line_ends_at_the_states_that_are_left():
    svg = draw_evolution("e", sample_evolution(), (Mark(100, 1, True),), 600)
    assert "16 of 32" in svg
    assert ">1</text>" in svg
    assert "training step" in svg


@pytest.mark.parametrize("sigma", [(0.0, 0.0), (math.nan, 1.0), (1.0, 1e-300)])
def test_values_that_have_no_place_on_a_logarithmic_scale_are_left_blank(sigma):
    evolution = Evolution("layer", 1, (1, 2), (Look(10, 1, sigma),))
    found = areas(draw_evolution("e", evolution, (), 10))
    assert sum(len(each) for each in found.values()) == 4 * sum(value == 1.0 for value in sigma)


def test_a_long_training_of_a_large_layer_takes_no_more_than_a_photograph():
    ranks = rows(1024)
    noisy = [[10 ** (-rank / 100 + 0.5 * math.sin(7 * rank + step)) for rank in ranks] for step in range(48)]
    looks = tuple(Look(100 * step, 512, tuple(values)) for step, values in enumerate(noisy, start=1))
    assert len(draw_evolution("e", Evolution("layer", 512, ranks, looks), (), 4800)) < 250_000
