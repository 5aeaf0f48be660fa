"""Runs beside one another: what is best, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import sample_report
from typer.testing import CliRunner

from edgelean.cli import app
from edgelean.errors import InputError
from edgelean.reading import Provenance
from edgelean.report import write_report
from edgelean.report.compare import Contender, compare, rows
from edgelean.report.pareto import draw_pareto, render_comparison
from edgelean.training.run import write_json

CONDITIONS = {"processor": "Cortex-A78AE", "runtime": "tensorrt 10.3", "power mode": "30W", "precision": "fp16"}


def contender(name, accuracy=0.98, latency_ms=0.15, batch=1, **changes):
    report = sample_report(environment=CONDITIONS | changes.pop("conditions", {}), **changes)
    lean = dataclasses.replace(report.lean, latency_ms=latency_ms, accuracy=accuracy)
    checks = tuple(dataclasses.replace(check, metric_artifact=accuracy) for check in report.checks)
    return Contender(name, dataclasses.replace(report, lean=lean, checks=checks), batch)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=2, max_size=9))
def test_the_best_are_those_that_nothing_beats(figures):
    found = compare([contender(str(i), a / 5, b / 10) for i, (a, b) in enumerate(figures)])
    lean = [point for point in found.points if point.outcome is not None]
    everything = [(point.metric, -point.latency_ms) for point in found.points]
    for point in lean:
        beaten = any(
            a >= point.metric and b >= -point.latency_ms and (a, b) != (point.metric, -point.latency_ms)
            for a, b in everything
        )
        assert point.best is not beaten
    assert any(point.best for point in found.points)


def test_full_size_models_are_there_once_and_numbers_are_those_of_the_plot():
    found = compare([contender("a"), contender("b", latency_ms=0.2)])
    assert [(point.number, point.name) for point in found.points] == [(1, "a"), (2, "b"), (3, "full-size digits")]
    assert [point.outcome for point in found.points] == ["met", "met", None]


def test_the_metric_is_that_of_the_file_in_the_precision_that_was_read():
    one = contender("a")
    checks = [
        dataclasses.replace(check, metric_artifact=0.5 if check.precision == "fp16" else 0.9)
        for check in one.report.checks
    ]
    changed = dataclasses.replace(one, report=dataclasses.replace(one.report, checks=tuple(checks)))
    assert compare([changed, contender("b")]).points[0].metric == 0.5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"conditions": {"power mode": "15W"}}, "the power mode was 30W and is now 15W"),
        ({"conditions": {"runtime": "tensorrt 11.0"}}, "the runtime was tensorrt 10.3 and is now tensorrt 11.0"),
        ({"board": "Raspberry Pi 5"}, "the board was Jetson AGX Orin 64GB and is now Raspberry Pi 5"),
        ({"metric_name": "r2"}, "the metric was accuracy and is now r2"),
        ({"batch": 8}, "the batch was 1 and is now 8"),
    ],
)
def test_what_was_read_under_other_conditions_is_refused(changes, why):
    with pytest.raises(InputError, match=re.escape(f"a and b cannot be compared: {why}")):
        compare([contender("a"), contender("b", **changes)])


def test_measured_and_modelled_are_not_compared():
    other = contender("b")
    lean = dataclasses.replace(other.report.lean, provenance=Provenance.MEASURED)
    other = dataclasses.replace(other, report=dataclasses.replace(other.report, lean=lean))
    with pytest.raises(InputError, match="the provenance was modelled and is now measured"):
        compare([contender("a"), other])


def test_another_precision_is_what_one_wants_to_compare():
    found = compare([contender("a"), contender("b", conditions={"precision": "fp32"})])
    assert [point.precision for point in found.points] == ["fp16", "fp32", ""]


def test_one_run_is_no_comparison():
    with pytest.raises(InputError, match="needs two runs at least"):
        compare([contender("a")])


def test_the_page_needs_nothing_else_and_shows_names_as_they_are():
    found = compare([contender("<script>alert(1)</script>"), contender("b", 0.9, 0.1)])
    page = render_comparison(found)
    assert page == render_comparison(found)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert page.count("<tr") == 1 + len(rows(found))


def test_every_model_whose_metric_is_known_has_its_number_in_the_plot():
    found = compare([contender("a"), contender("b", 0.9, 0.1)])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", draw_pareto(found))
    assert {str(point.number) for point in found.points} <= set(texts)


@pytest.fixture
def two(tmp_path):
    """The folders of two runs."""
    for name, latency_ms in (("a", 0.15), ("b", 0.12)):
        (tmp_path / name).mkdir()
        write_report(contender(name, latency_ms=latency_ms).report, tmp_path / name)
        write_json(tmp_path / name / "run.json", {"profile": {"batch": 4}})
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_the_command_prints_a_table_or_json_and_writes_the_page(two, tmp_path):
    done = CliRunner().invoke(app, ["compare", *two, "--html", str(tmp_path / "c.html")])
    assert done.exit_code == 0, done.output
    assert "batch of 4" in done.stdout
    assert "<svg" in (tmp_path / "c.html").read_text()
    plain = json.loads(CliRunner().invoke(app, ["compare", *two, "--json"]).stdout)
    assert [point["latency_ms"] for point in plain["points"][:2]] == [0.15, 0.12]
