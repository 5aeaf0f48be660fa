"""The report: what it holds, what it says, and what the page is made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import typer
from sample_report import CUTS, ROLLED_BACK, sample_check, sample_events, sample_report, sample_verdict
from typer.testing import CliRunner

from edgelean.cli.report import report as report_command
from edgelean.errors import InputError, MissingError
from edgelean.reading import Provenance
from edgelean.report import Report, numbers, read_report, story, write_report
from edgelean.report.axes import Spectrum
from edgelean.report.history import from_events
from edgelean.report.html import render
from edgelean.report.model import Side
from edgelean.report.plots import Line, Mark, Trend, draw_spectrum, draw_trend

HOSTILE = "<script>alert('$x$')</script>"


class Page(HTMLParser):
    """The page as a browser takes it apart: its elements, its ids, and the words of each table and figure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[str] = []
        self._open = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("table", "figure", "article"):
            self._open += 1
            self.blocks.append("")

    def handle_endtag(self, tag):
        if tag in ("table", "figure", "article"):
            self._open -= 1

    def handle_data(self, data):
        if self._open:
            self.blocks[-1] += data


def report_without_plots(**changes) -> Report:
    """A report that is rendered in no time, for tests that are not about its plots."""
    return sample_report(readings=(), epochs_history=(), full_size_history=(), spectra=(), **changes)


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample_report())


def test_report_survives_json_without_a_change():
    report = sample_report(verdicts=(sample_verdict(outcome="undecided", full_size=None),))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_report_with_a_missing_field_is_refused_with_the_name_of_the_field():
    plain = sample_report().to_json()
    del plain["lean"]["macs"]
    with pytest.raises(InputError, match=r"lean\.macs"):
        Report.from_json(plain)


def test_written_report_is_read_back_equal_and_leaves_no_other_file(tmp_path):
    write_report(report_without_plots(), tmp_path)
    assert read_report(tmp_path) == report_without_plots()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_reading_no_run_says_what_to_do(tmp_path):
    with pytest.raises(MissingError, match="no such folder"):
        read_report(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="not the folder of a run"):
        read_report(tmp_path)
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(MissingError, match="--resume"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"recipe": ')
    with pytest.raises(InputError, match=r"report\.json cannot be read"):
        read_report(tmp_path)


# -- the story ---------------------------------------------------------------------------------------------------------


def test_events_become_the_history_with_the_rolled_back_cut_marked():
    history = from_events(sample_events())
    assert [cut.step for cut in history.cuts] == [step for step, *_ in CUTS]
    assert [index for index, cut in enumerate(history.cuts) if not cut.kept] == [ROLLED_BACK]
    assert history.cuts[0].axes == (("stem", 32, 24), ("blocks.0.inner", 64, 48))
    assert len(history.epochs) == 30
    assert history.readings[0].latency_ms == 0.31


def test_two_rollbacks_take_back_the_two_last_cuts():
    cuts = [event for event in sample_events() if event["event"] == "cut"]
    back = {"event": "rollback", "step": 300, "metric_before": 0.9, "metric_now": 0.8}
    assert [cut.kept for cut in from_events([*cuts[:3], back, back]).cuts] == [True, False, False]


def test_refused_cut_takes_nothing_back():
    cuts = [event for event in sample_events() if event["event"] == "cut"]
    refused = {"event": "rollback", "step": 300, "reason": "the law is broken"}
    assert all(cut.kept for cut in from_events([*cuts, refused]).cuts)


def test_resumed_run_has_each_step_once():
    events = sample_events()
    first = [event for event in events if event["step"] <= 250]
    again = [{"event": "resume", "step": 200}, *(event for event in events if event["step"] > 200)]
    assert from_events([*first, *again]) == from_events(events)


def test_headline_of_a_run_that_fits():
    assert story.headline(sample_report()) == (
        "Fits: 0.148 ms of 0.150 ms, 0.0478 mJ of 0.0500 mJ, accuracy 98.3 % against 98.6 % full-size."
    )


def test_headline_of_a_missed_budget_names_it_first_and_by_how_much():
    report = sample_report(verdicts=(sample_verdict("energy", 0.04), sample_verdict("latency", 0.21)))
    assert story.headline(report).startswith("Does not fit: 0.210 ms of 0.150 ms (40 % over); 0.0400 mJ of 0.0500 mJ")
    assert story.outcome(report) == "not met"
    assert not report.met


def test_headline_of_an_undecided_budget_shows_the_interval():
    verdict = sample_verdict(outcome="undecided", value=0.149, low=0.146, high=0.153)
    report = sample_report(verdicts=(verdict,))
    assert story.headline(report).startswith("Undecided: 0.149 ms of 0.150 ms")
    assert "between 0.146 and 0.153 ms" in story.headline(report)
    assert story.outcome(report) == "undecided"
    assert not report.met


def test_headline_of_a_failed_check_names_the_file_and_the_reason():
    report = sample_report(checks=(sample_check(), sample_check("model.fp16.onnx", passed=False, reason="it is deaf")))
    assert story.headline(report).startswith("Not verified: model.fp16.onnx failed its check (it is deaf)")
    assert story.outcome(report) == "not met"
    assert not report.met


def test_missed_budget_outweighs_an_undecided_one():
    verdicts = (sample_verdict(outcome="undecided"), sample_verdict("energy", 0.08))
    assert story.headline(sample_report(verdicts=verdicts)).startswith("Does not fit: 0.0800 mJ")


@pytest.mark.parametrize("word", list(Provenance))
def test_origin_says_in_words_where_the_figures_come_from(word):
    verdicts = (sample_verdict(provenance=word), sample_verdict("energy", 0.04, provenance=word))
    assert story.origin(sample_report(verdicts=verdicts)).startswith(f"Latency and energy are {word}: ")


def test_origin_keeps_different_provenances_apart():
    verdicts = (sample_verdict(provenance=Provenance.MEASURED), sample_verdict("energy", 0.04))
    said = story.origin(sample_report(verdicts=verdicts))
    assert said == (
        "Latency is measured: measured on the board. "
        "Energy is modelled: computed from what is known of the board, not measured."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.against(0.14996, 0.15, "ms"), "0.14996 ms of 0.15000 ms"),
        (numbers.against(0.15, 0.15, "ms"), "0.150 ms of 0.150 ms"),
        (numbers.against(1234.5, 2000.0, "ms"), "1,234 ms of 2,000 ms"),
        (numbers.scaled((748_902, 219_866), "bytes"), ("749 kB", "220 kB")),
        (numbers.scaled((0.00134, 0.00081), "kWh"), ("1.340 Wh", "0.810 Wh")),
        (numbers.scaled((None, 54_118), "whole"), ("unknown", "54,118")),
        (numbers.percent(0.9972), "99.7 %"),
        (numbers.percent(1.0), "100 %"),
        (numbers.percent(0.013), "1.3 %"),
        (numbers.duration(71.2), "71 s"),
        (numbers.duration(725), "12 min 5 s"),
        (numbers.duration(11_520), "3 h 12 min"),
        (numbers.ratio(0.31, 0.148, "faster"), "2.09× faster"),
        (numbers.ratio(1.0, 1.5), "1.5× more"),
        (numbers.metric_text("accuracy", 0.9833), "98.3 %"),
        (numbers.metric_text("perplexity", 12.3456), "12.35"),
        (numbers.metric_change("accuracy", 0.986, 0.983), "−0.3 points"),
        (story.percentile_name(99), "99th percentile"),
        (story.percentile_name(50), "median"),
        (story.percentile_name(91), "91st percentile"),
    ],
)
def test_figure_reads_as(text, expected):
    assert text == expected


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_needs_nothing_from_outside(page):
    elements = Page(page).elements
    assert not [tag for tag, _ in elements if tag in ("script", "link", "img", "iframe", "object", "base")]
    targets = [value for _, attrs in elements for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert not re.search(r"@import|@font-face|url\((?!#)", page)


def test_page_escapes_what_users_named():
    report = report_without_plots(recipe=HOSTILE, metric_name=HOSTILE, notes=(HOSTILE,), refused=((HOSTILE, HOSTILE),))
    spectrum = replace(sample_report().spectra[0], axis=HOSTILE, unit=HOSTILE)
    cut = replace(report.cuts[0], axes=((HOSTILE, 8, 4),))
    layer = replace(report.layers[0], name=HOSTILE)
    text = render(replace(report, spectra=(spectrum,), cuts=(cut,), layers=(layer,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 9


def test_page_of_equal_reports_is_equal_whatever_was_drawn_before(page):
    render(sample_report(recipe="another", cuts=()))
    assert render(sample_report()) == page


def test_page_has_every_id_once_and_no_dangling_reference(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) == set(ids)


def test_plots_take_their_colours_from_the_page(page):
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 4 + 5
    assert not [plot for plot in plots if re.search(r"#[0-9a-f]{3,6}\b", plot)]
    assert all("var(--accent)" in plot for plot in plots)


@pytest.mark.parametrize("word", list(Provenance))
def test_every_table_card_and_plot_with_latency_or_energy_says_its_provenance(word):
    report = sample_report()
    text = render(
        replace(
            report,
            verdicts=tuple(replace(verdict, provenance=word) for verdict in report.verdicts),
            full_size=replace(report.full_size, provenance=word),
            lean=replace(report.lean, provenance=word),
            readings=tuple(replace(point, provenance=word, energy_provenance=word) for point in report.readings),
        )
    )
    blocks = [block for block in Page(text).blocks if re.search("latency|energy", block, re.IGNORECASE)]
    assert len(blocks) == 2 + 1 + 2 + 1  # cards, comparison, plots, cuts
    assert all(word in block for block in blocks)


def test_plots_of_mixed_provenance_each_say_their_own():
    report = sample_report()
    readings = tuple(replace(point, provenance=Provenance.MEASURED) for point in report.readings)
    text = render(replace(report, readings=readings, spectra=()))
    assert "ms, measured" in text
    assert "mJ, modelled" in text
    assert "ms, modelled" not in text


def test_unknown_figures_are_said_to_be_unknown():
    blank = Side(
        accuracy=None, accuracy_note="no full-size twin was trained", latency_ms=None, energy_mj=None,
        provenance=Provenance.MODELLED, parameters=None, macs=None, artifact_bytes=None, training_s=None,
        training_note="", training_kwh=None, training_co2_g=None,
    )  # fmt: skip
    report = sample_report(
        full_size=blank, lean=blank, verdicts=(), checks=(), epochs_history=(), full_size_history=(), readings=(),
        cuts=(), layers=(), spectra=(), timing={}, bundle=(), notes=(), refused=(), references=(),
    )  # fmt: skip
    assert {row.lean for row in story.comparison(report)} == {"unknown"}
    text = render(report)
    assert "no full-size twin was trained" in text
    assert "<svg" not in text


def test_cards_place_the_budget_where_it_belongs_on_the_bar():
    verdict = sample_verdict(value=0.155, limit=0.155, full_size=0.31)
    text = render(report_without_plots(verdicts=(verdict,)))
    assert re.search(r'class="fill" style="width:50\.0%"', text)
    assert re.search(r'class="tick budget" style="left:50\.0%"', text)
    assert re.search(r'class="tick full" style="left:100\.0%"', text)


def test_bundle_is_listed_with_short_hashes_and_the_commands_that_run_it(page):
    for file in sample_report().bundle:
        assert f'title="{file.sha256}">{file.sha256[:12]}<' in page
    assert "python run_onnx.py INPUT.npy --model model.fp16.onnx" in page


def test_share_of_control_and_measuring_is_printed(page):
    timing = {"training": 80.0, "control": 6.0, "measuring": 4.0, "other": 10.0}
    report = report_without_plots(timing=timing)
    assert story.overhead_text(report) == "Training took 80 % of the run, control and measuring 10 %."
    assert story.overhead_text(report) in render(report)


def _trend(**changes):
    line = Line("lean", (0.0, 50.0, 100.0), (0.3, 0.2, 0.1), "accent", held=True)
    marks = (Mark(20, 1, True), Mark(60, 2, False))
    return replace(Trend("t", "ms, modelled", (line,), marks, 100, 0.15, "budget"), **changes)


def _paths(svg: str, style: str) -> list[list[tuple[float, float]]]:
    found = [match for match in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg) if style in match[1]]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", data)] for data, _ in found]


def test_trend_draws_the_budget_at_its_height():
    svg = draw_trend(_trend())
    (budget,) = _paths(svg, "stroke: var(--ink)")
    (line,) = _paths(svg, "stroke: var(--accent)")
    heights = [y for _, y in line]
    (height,) = {y for _, y in budget}
    assert height == pytest.approx((min(heights) + 3 * max(heights)) / 4, abs=0.01)  # 0.15 between 0.1 and 0.3


def test_trend_marks_cuts_at_their_steps_and_rolled_back_ones_dashed():
    svg = draw_trend(_trend())
    (line,) = _paths(svg, "stroke: var(--accent)")
    start, end = line[0][0], line[-1][0]
    (back,) = _paths(svg, "stroke: var(--bad)")
    assert [x for x, _ in back] == 2 * [pytest.approx(start + 0.6 * (end - start), abs=0.01)]
    assert "stroke-dasharray" in next(path for path in svg.split("<path") if "stroke: var(--bad)" in path)
    marks = [path for path in _paths(svg, "stroke: var(--muted)") if len({x for x, _ in path}) == 1]
    assert [path[0][0] for path in marks] == [pytest.approx(start + 0.2 * (end - start), abs=0.01)]


def test_labels_at_the_same_height_do_not_cover_each_other():
    svg = draw_trend(_trend(budget=0.1))
    places = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:lean|budget)<', svg)]
    assert len(places) == 2
    assert abs(places[0] - places[1]) >= 13


def test_trend_of_one_flat_line_is_drawn():
    flat = Line("lean", (0.0, 10.0), (0.0, 0.0), "accent")
    assert "var(--accent)" in draw_trend(_trend(lines=(flat,), marks=(), budget=None, last_step=10))


@pytest.mark.parametrize("scores", [(0.3, 0.2, 0.1, 0.0, 0.0), (0.0, 0.0), (1e-12, float("nan")), (5.0,)])
def test_spectrum_shows_every_unit_even_without_energy(scores):
    svg = draw_spectrum("s", Spectrum("axis", "channels", scores, 1, "nats"))
    assert svg.count("<use") == len(scores)


def test_spectrum_draws_the_cutting_line_between_kept_and_cut_units():
    svg = draw_spectrum("s", Spectrum("axis", "states", (0.4, 0.3, 0.02, 0.01), 2, "Hankel singular value"))
    (line,) = _paths(svg, "stroke: var(--ink)")
    units = sorted(float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', svg))
    assert units[1] < line[0][0] < units[2]
    assert "2 kept" in svg
    assert "2 cut" in svg


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(report_command)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_report_command_prints_the_verdict_and_renders_the_page_anew(command, tmp_path):
    write_report(report_without_plots(), tmp_path)
    (tmp_path / "report.html").unlink()
    result = command(tmp_path)
    assert result.exit_code == 0
    assert "Fits: 0.148 ms of 0.150 ms" in result.output
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report_without_plots())


def test_report_command_prints_json_and_nothing_else(command, tmp_path):
    write_report(report_without_plots(), tmp_path)
    result = command(tmp_path, "--json")
    assert Report.from_json(json.loads(result.output)) == report_without_plots()


def test_report_command_opens_the_page(command, tmp_path, monkeypatch):
    write_report(report_without_plots(), tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert command(tmp_path, "--open").exit_code == 0
    assert opened == [(tmp_path / "report.html").resolve().as_uri()]


def test_report_command_on_a_folder_without_a_run_raises_what_is_missing(command, tmp_path):
    result = command(tmp_path)
    assert isinstance(result.exception, MissingError)
