"""What a person sees during and after a run: lines, the live picture, the summary."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from sample_report import CUTS, ROLLED_BACK, sample_check, sample_events, sample_report, sample_verdict

from edgelean.cli.display import LineDisplay, line_of, open_display
from edgelean.cli.live import LiveDisplay, Scene, advance, draw
from edgelean.cli.summary import print_summary
from edgelean.reading import Provenance
from edgelean.report.history import from_events


def _console(width: int = 80, height: int = 24, **options) -> Console:
    return Console(width=width, height=height, file=io.StringIO(), record=True, **options)


def _scene(last_step: int = 600) -> Scene:
    scene = Scene()
    for event in sample_events():
        if event["step"] <= last_step:
            scene = advance(scene, event)
    return scene


def _lines(scene: Scene, width: int = 80, height: int = 24) -> list[str]:
    console = _console(width, height)
    console.print(draw(scene, console))
    return console.export_text().splitlines()


# -- lines -------------------------------------------------------------------------------------------------------------


def test_lines_are_one_an_event_even_for_unknown_kinds_and_long_words():
    events = [
        *sample_events(),
        {"event": "checkpoint", "step": 600, "time_s": 80.0, "path": "checkpoints/" + 200 * "x"},
        {"event": "novelty", "step": 600, "time_s": 80.0, "words": "one\ntwo"},
    ]
    console = _console()
    with LineDisplay(console) as display:
        for event in events:
            display.on_event(event)
    lines = console.export_text().splitlines()
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert line.startswith(f"step {event['step']} {event['event']}: ")


def test_line_of_a_cut_says_what_went_and_what_it_cost():
    cut = next(event for event in sample_events() if event["event"] == "cut")
    assert line_of(cut) == (
        "step 60 cut: stem 32 -> 24, blocks.0.inner 64 -> 48; predicted 0.0040 nats; metric 0.848 -> 0.838"
    )


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, "0.310 ms, 0.121 mJ (modelled), 186442 parameters"),
        ({"provenance": "measured"}, "0.310 ms (measured), 0.121 mJ (modelled), 186442 parameters"),
        ({"energy_mj": None}, "0.310 ms (modelled), energy unknown, 186442 parameters"),
    ],
)
def test_line_of_a_reading_carries_each_provenance(changes, ending):
    reading = next(event for event in sample_events() if event["event"] == "reading")
    assert line_of(reading | changes) == f"step 0 reading: {ending}"


def test_line_of_the_training_energy_says_how_it_was_found():
    spent = {"event": "energy", "step": 0, "chapter": "lean", "seconds": 71.2, "kwh": 0.00081, "method": "estimated"}
    assert line_of(spent) == "step 0 energy: lean training took 71 s, 810 mWh (estimated)"
    assert "unknown (estimated)" in line_of(spent | {"kwh": None})


def test_line_of_a_spectrum_says_how_many_states_each_layer_has():
    layers = {"a": {"full": 64, "states": 48, "sigma": [2.0, 1.0]}, "b": {"full": 64, "states": 64, "sigma": [3.0]}}
    event = {"event": "spectrum", "step": 30, "layers": layers}
    assert line_of(event) == "step 30 spectrum: a 48 of 64 states, b 64 of 64 states"


def test_line_of_a_verdict_names_outcome_and_provenance():
    verdict = next(event for event in sample_events() if event["event"] == "verdict")
    assert line_of(verdict) == "step 600 verdict: latency met: 0.148 ms of 0.150 ms (modelled)"


def test_line_prints_square_brackets_as_they_are():
    console = _console()
    LineDisplay(console).on_event({"event": "wait", "step": 1, "time_s": 0.1, "reason": "[red]not a colour[/red]"})
    assert "[red]not a colour[/red]" in console.export_text()


def test_terminal_gets_the_picture_and_everything_else_lines():
    assert isinstance(open_display(_console(force_terminal=True)), LiveDisplay)
    assert isinstance(open_display(_console(force_terminal=False)), LineDisplay)
    assert isinstance(open_display(_console(force_terminal=True, _environ={"TERM": "dumb"})), LineDisplay)


def test_quiet_console_gets_nothing():
    console = _console(force_terminal=True, quiet=True)
    with open_display(console) as display:
        for event in sample_events():
            display.on_event(event)
    assert console.file.getvalue() == ""


# -- the live picture --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 24)])
def test_picture_fits_the_terminal_at_every_event(width, height):
    scene = Scene()
    for event in sample_events():
        scene = advance(scene, event)
        lines = _lines(scene, width, height)
        assert len(lines) < height
        assert max(map(cell_len, lines)) <= width


def test_picture_of_many_cuts_keeps_the_last_ones_and_fits():
    cut = next(event for event in sample_events() if event["event"] == "cut")
    scene = _scene(0)
    for number in range(40):
        scene = advance(scene, cut | {"step": 1000 + number})
    lines = _lines(scene)
    assert len(lines) < 24
    assert any(" 1039 " in line for line in lines)
    assert not any(" 1001 " in line for line in lines)


def test_picture_shows_both_quantities_against_their_budgets_with_provenance():
    lines = _lines(_scene(0))
    (latency,) = [line for line in lines if line.startswith("latency")]
    (energy,) = [line for line in lines if line.startswith("energy")]
    assert "0.310 of 0.150 ms" in latency
    assert "0.1210 of 0.0500 mJ" in energy
    assert latency.split()[-1] == energy.split()[-1] == "modelled"


def test_bar_has_the_budget_mark_at_its_share_of_full_size():
    (line,) = [line for line in _lines(_scene(0), width=140) if line.startswith("latency")]
    bar = line[9 : line.index("╿") + 1]
    assert bar.index("┃") / (len(bar) - 1) == pytest.approx(0.15 / 0.31, abs=0.01)


def test_scene_agrees_with_the_history_of_the_report():
    scene, history = _scene(), from_events(sample_events())
    assert [cut.kept for cut in scene.cuts] == [cut.kept for cut in history.cuts]
    assert scene.widths["stem"] == (32, 16)
    assert scene.widths["blocks.2.inner"] == (64, 32)
    assert scene.parameters == history.readings[-1].parameters


def test_rolled_back_cut_is_shown_as_such_and_gives_its_widths_back():
    step = CUTS[ROLLED_BACK][0]
    assert _scene(step).widths["stem"] == (32, 8)
    after = _scene(step + 30)
    assert after.widths["stem"] == (32, 16)
    assert any("rolled back" in line and f" {step} " in line for line in _lines(after))


def test_refused_cut_takes_no_other_cut_back():
    refused = {"event": "rollback", "step": 70, "time_s": 9.0, "reason": "the law is broken", "largest_cut": 0.1}
    scene = advance(_scene(60), refused)
    assert scene.cuts[0].kept
    assert "the law is broken" in scene.news


def test_picture_estimates_the_time_that_is_left():
    scene = replace(_scene(300), time_s=40.0)
    console = _console(100)
    console.print(draw(scene, console, seconds_since=5.0))
    assert "35 s left" in console.export_text()


def test_picture_shows_names_with_brackets_as_they_are():
    start = sample_events()[0] | {"recipe": "[bold]mine"}
    cut = next(event for event in sample_events() if event["event"] == "cut")
    scene = advance(advance(Scene(), start), cut | {"axes": [{"axis": "[red]a", "before": 8, "after": 4}]})
    text = "\n".join(_lines(scene))
    assert "[bold]mine" in text
    assert "[red]a 8→4" in text


def test_energy_that_nothing_can_tell_is_said_to_be_unknown():
    start = sample_events()[0]
    start = start | {"full_size": start["full_size"] | {"energy_mj": None}, "budgets": start["budgets"][:1]}
    lines = _lines(advance(Scene(), start))
    assert any(line.startswith("energy") and "unknown on this target" in line for line in lines)


def test_training_of_the_full_size_model_is_news_and_leaves_the_figures_of_the_lean_one():
    before = _scene()
    epoch = next(event for event in sample_events() if event["event"] == "epoch")
    after = advance(before, epoch | {"event": "full_size_epoch", "metric": 0.5})
    assert "full-size" in after.news
    assert "epoch 1/30, accuracy 50.0 %" in after.news
    assert replace(after, news=before.news) == before


def test_live_display_leaves_the_last_picture_on_the_screen():
    console = _console(force_terminal=True)
    with open_display(console) as display:
        for event in sample_events():
            display.on_event(event)
    last = console.file.getvalue().split("edgelean")[-1]
    assert "ended after 98 s" in last
    assert "0.148 of 0.150 ms" in last


# -- the summary -------------------------------------------------------------------------------------------------------


def _summary(report, width: int = 80) -> list[str]:
    console = _console(width)
    print_summary(console, report, Path("runs/digits"))
    return console.export_text().splitlines()


def test_summary_fits_80_columns_and_names_the_report():
    lines = _summary(sample_report())
    assert max(map(cell_len, lines)) <= 80
    assert any(line.split() == ["report", "runs/digits/report.html"] for line in lines)
    assert any(line.split() == ["bundle", "runs/digits/bundle"] for line in lines)


@pytest.mark.parametrize("word", list(Provenance))
def test_summary_gives_every_latency_and_energy_row_its_provenance(word):
    report = sample_report()
    report = replace(
        report,
        verdicts=tuple(replace(verdict, provenance=word) for verdict in report.verdicts),
        full_size=replace(report.full_size, provenance=word),
        lean=replace(report.lean, provenance=word),
    )
    rows = [line for line in _summary(report) if line.lower().startswith(("latency", "energy")) and "  " in line]
    assert len(rows) == 4
    assert all(word in row for row in rows)


def test_summary_says_met_not_met_and_undecided_in_words():
    verdicts = (sample_verdict(outcome="undecided", low=0.14, high=0.16), sample_verdict("energy", 0.08))
    rows = [
        line.split() for line in _summary(sample_report(verdicts=verdicts)) if line.startswith(("latency", "energy"))
    ]
    assert "undecided" in rows[0]
    assert rows[1][-3:] == ["not", "met", "modelled"]


def test_summary_names_a_failed_check():
    lines = _summary(sample_report(checks=(sample_check(passed=False, reason="another class wins"),)))
    assert "model.onnx failed: another class wins" in lines


def test_lines_tell_memory_and_size_with_their_provenance_and_what_a_further_unit_would_buy():
    reading = {"event": "reading", "step": 9, "latency_ms": 0.2, "energy_mj": None, "provenance": "measured"}
    held = {
        "memory_bytes": 13_400.0,
        "memory_provenance": "modelled",
        "size_bytes": 9_930,
        "size_provenance": "measured",
    }
    line = line_of({**reading, **held, "parameters": 5})
    assert line.endswith("5 parameters, memory 13.4 kB (modelled), size 9.93 kB (measured)")
    cut = {"event": "cut", "step": 9, "axes": [], "nats": 0.1, "metric_before": 0.9, "metric_after": 0.8}
    told = line_of({**cut, "prices": {"latency": 0.25, "energy": 0.0, "size": 2e-6}})
    assert "a further ms of latency would buy 0.25 nats; a further MB of size would buy 2.0 nats" in told
    assert "energy" not in told


def test_a_budget_on_the_accuracy_shows_what_the_metric_may_not_fall_below():
    budgets = [{"quantity": "accuracy_loss", "limit": 2.0, "unit": "points", "percentile": 50}]
    start, *_ = (event for event in sample_events() if event["event"] == "start")
    scene = advance(Scene(), {**start, "budgets": [*start["budgets"], *budgets]})
    for event in ({"event": "demand", "reason": "", "metric": 0.90}, {"event": "demand", "reason": "", "metric": 0.85}):
        scene = advance(scene, {"step": 60, "time_s": 1.0, **event})
    scene = replace(scene, metric=0.88, metric_name="accuracy")
    assert "accuracy 88.0 % validation (at least 88.0 %)" in "\n".join(_lines(scene, width=120))
