"""Every decision of a run can be explained from its events, and the trade-offs that were seen are kept."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import sample_report
from typer.testing import CliRunner

from edgelean import control
from edgelean.cli import app
from edgelean.control import Observed
from edgelean.profile import ControlSettings
from edgelean.report.decisions import decisions
from edgelean.report.explanation import explained
from edgelean.report.front import TradeOff, front, nearest, seen
from edgelean.report.html import render
from edgelean.training.run import Run

FULL = {"latency": 4.0, "size": 4e5}
LIMITS = {"latency": 2.0, "size": 1e5}


def start(**changes):
    budgets = [{"quantity": name, "limit": limit, "unit": "", "percentile": 50} for name, limit in LIMITS.items()]
    axes = {"stem": 32, "block": 64}
    return {"event": "start", "step": 0, "budgets": budgets, "full_size": {"axes": axes}, "metric_name": "accuracy"}


def reading(step, latency, size, parameters=1000):
    return {"event": "reading", "step": step, "latency_ms": latency, "size_bytes": size, "parameters": parameters}


def demand(step, metric, latency, size, **changes):
    """An event as the loop records it: by the controller itself."""
    figures = {"latency": Observed(latency, latency, latency, 2 * latency), "size": Observed(size, size, size, size)}
    first = {name: Observed(full, full, full, full) for name, full in FULL.items()}
    settings = ControlSettings(largest_cut=0.1, **changes)
    asked, state = control.step(figures, step, control.init(settings, LIMITS, first, 1000))
    return {"event": "demand", "step": step, "metric": metric, **control.told(asked, figures, state)}


def cut(step, before, after, stem, **changes):
    axes = [{"axis": "stem", "before": 32, "after": stem}]
    event = {"event": "cut", "step": step, "binding": "size", "axes": axes, "nats": 0.01, "feasible": True}
    event |= {"metric_before": before, "metric_after": after, "predicted": {"latency": 6.0, "size": 3e5}}
    return event | {"prices": {"latency": 0.0, "size": 2e-6}} | changes


def rollback(step, now):
    return {"event": "rollback", "step": step, "reason": "it did not recover", "metric_now": now, "largest_cut": 0.1}


def events():
    return [
        start(),
        reading(0, 4.0, 4e5),
        demand(100, 0.80, 4.0, 4e5),
        cut(100, 0.80, 0.60, 24),
        reading(100, 3.0, 3e5, 800),
        demand(200, 0.85, 3.0, 3e5),
        cut(200, 0.85, 0.50, 16),
        reading(200, 2.0, 1e5, 500),
        rollback(300, 0.55),
        reading(300, 3.0, 3e5, 800),
        {"event": "epoch", "step": 400, "metric": 0.90, "epoch": 1, "loss": 0.1},
    ]


def test_a_decision_has_what_was_read_demanded_and_cut_and_what_it_cost():
    first, second = decisions(events())
    assert (first.step, first.kept, first.axes) == (100, True, (("stem", 32, 24),))
    assert (first.metric_before, first.metric_after, first.metric_recovered) == (0.80, 0.60, 0.85)
    size = next(one for one in first.seen if one.quantity == "size")
    assert (size.measured, size.budget, size.measured_after, size.predicted_after) == (4e5, 1e5, 3e5, 3e5)
    assert size.price == 2e-6
    assert first.clamp == "largest cut"
    assert (second.kept, second.metric_recovered, second.notes) == (False, 0.55, ("it did not recover",))


def test_the_words_have_every_figure():
    told = explained(decisions(events()), "accuracy")
    text = " ".join(part for each in told for _, part in each.parts)
    for figure in ("400 kB of 100 kB", "80.0 % before, 60.0 % right after, 85.0 % after recovery", "stem 32 → 24"):
        assert figure in text
    assert "would buy back 0.0020 nats (2.0 nats per MB)" in text
    assert "more of latency would buy nothing: others bind" in text
    assert [each.outcome for each in told] == ["kept", "rolled back"]


def test_a_cut_by_the_tolerance_has_no_demand_and_is_told_all_the_same():
    (told,) = decisions([start(), cut(50, 0.5, 0.4, 8, binding="tolerance")])
    assert told.binding == "tolerance"
    assert "Hankel" in told.reason


@pytest.mark.parametrize(
    ("latency", "when", "clamp"),
    [(4.0, 490, "largest cut"), (4.0, 0, "dead band"), (3.0, 0, "reference"), (1.9, 400, "")],
)
def test_the_clamp_that_held_is_named(latency, when, clamp):
    state = control.init(
        ControlSettings(dead_band=0.2, largest_cut=0.15), {"latency": 2.0}, {"latency": Observed(*[4.0] * 4)}, 1000
    )
    asked, after = control.step({"latency": Observed(*[latency] * 4)}, when, state)
    assert control.clamp_of(asked, after) == clamp


def test_what_is_too_close_to_call_is_read_again():
    state = control.init(ControlSettings(), {"latency": 2.0}, {"latency": Observed(4.0, 3.9, 4.1, 4.0)}, 1000)
    asked, after = control.step({"latency": Observed(1.99, 1.9, 2.08, 2.0)}, 490, state)
    assert control.clamp_of(asked, after) == "read again"


points = st.lists(
    st.builds(
        lambda step, metric, a, b: TradeOff(
            step=step, parameters=1, widths=(), metric=metric, costs={"latency": a, "size": b}
        ),
        st.integers(0, 9),
        st.integers(0, 5).map(lambda tenths: tenths / 10),
        st.integers(1, 5).map(float),
        st.integers(1, 5).map(float),
    ),
    min_size=1,
    max_size=12,
)


@given(points)
def test_the_front_has_all_that_nothing_beats_and_nothing_else(seen_points):
    def worse(a, b):
        keys = [(-p.metric, p.costs["latency"], p.costs["size"]) for p in (a, b)]
        return keys[0] != keys[1] and all(x >= y for x, y in zip(*keys, strict=True))

    kept = front(seen_points)
    assert all(not any(worse(p, q) for q in seen_points) for p in kept)
    assert all(any(worse(p, q) for q in kept) for p in seen_points if p not in kept)


@given(points, st.integers(1, 5), st.floats(0.0, 0.5))
def test_the_nearest_budgets_are_those_of_a_structure_that_is_accurate_enough(seen_points, limit, tolerance):
    limits = {"latency": float(limit), "size": float(limit)}
    first, *_ = nearest(seen_points, limits, tolerance, "r2")
    step = int(re.search(r"structure of step (\d+)", first).group(1))
    best = max(point.metric for point in seen_points)
    over = [max(p.costs.values()) for p in seen_points if p.metric >= best - tolerance]
    named = [max(p.costs.values()) for p in seen_points if p.step == step and p.metric >= best - tolerance]
    assert min(over) in named


def test_structures_are_seen_with_the_metric_that_they_came_to_also_those_that_were_taken_back():
    found = {point.step: point for point in seen(events())}
    assert {step: point.metric for step, point in found.items()} == {0: 0.80, 100: 0.90, 200: 0.55}
    assert {step: point.costs["size"] for step, point in found.items()} == {0: 4e5, 100: 3e5, 200: 1e5}
    assert [found[step].kept for step in (0, 100, 200)] == [True, True, False]
    assert found[200].widths == (("stem", 16),)


def test_what_would_have_been_feasible_is_said_in_words():
    hard, soft = nearest(seen(events()), LIMITS, 0.03, "accuracy")
    assert "latency 3 ms, size 300 kB (accuracy 90.0 %" in hard
    assert "held at step 200, with accuracy 55.0 %" in soft
    assert "at least 0.35" in soft


def test_the_page_has_decisions_and_trade_offs():
    found = sample_report(
        decisions=decisions(events()),
        front=front(seen(events())),
        nearest=nearest(seen(events()), LIMITS, 0.03, "accuracy"),
    )
    page = render(found)
    assert "<h2>Decisions</h2>" in page
    assert "<h2>What could be had</h2>" in page
    assert "The nearest budgets" in page.replace("\u00a0", " ")
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_run_is_explained_from_its_events_also_before_it_has_ended(tmp_path):
    run = Run.create(tmp_path / "run", {"recipe": None})
    for event in events():
        run.record(**event)
    run.close()
    shown = CliRunner().invoke(app, ["report", str(run.folder), "--explain"])
    assert shown.exit_code == 0, shown.output
    for text in ("step 100, cut 1, kept", "step 200, cut 2, rolled back", "largest cut"):
        assert text in shown.output
    told = json.loads(CliRunner().invoke(app, ["report", str(run.folder), "--explain", "--json"]).output)
    assert [each["metric_recovered"] for each in told] == [0.85, 0.55]
