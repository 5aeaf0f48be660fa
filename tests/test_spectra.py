"""State space layers over the training: when their order has settled, their spectra, and the paper's rule for ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interruptions import assert_goes_on_to_the_same_model
from torch import nn

import edgelean
from edgelean import control
from edgelean.errors import InputError
from edgelean.nn import LRU
from edgelean.shrink.axes import Axis
from edgelean.shrink.balance import hankel_singular_values, truncate
from edgelean.shrink.ranks import states_for
from edgelean.shrink.scores.flow import Flow
from edgelean.spectra import MOMENTS, ROWS, Looks, Rule, allowed, attempts, orders, rows
from edgelean.training.checkpoint import load_newest
from edgelean.training.run import Run

RECIPE = str(Path(__file__).parent / "sequence_recipe.py")
LAYER = "blocks.0.layer"
RULE = {"hankel_tolerance": "0.05", "floor": "4"}
FREE = {"latency": "100%", "energy": "100%"}


class Observed:
    """A score that has seen what one layer reads, and prices its states at a thousandth of a nat each."""

    def __init__(self, layer, inputs):
        self.flows = {"": Flow(fisher=torch.ones(layer.width), inputs=inputs)} if inputs is not None else {}

    def removal_prices(self, axis, model):
        return ((), tuple(0.001 * gone for gone in range(axis.size + 1))) if self.flows else None


def seen(layer, seed=0):
    return Observed(layer, torch.randn(4, 30, layer.width, generator=torch.Generator().manual_seed(seed)))


def a_layer(seed=0, states=32):
    torch.manual_seed(seed)
    return LRU(4, states)


def axis_of(layer):
    """The states of a layer that is a model on its own; its path is empty."""
    axis = SimpleNamespace(
        name=".states", kind="states", size=layer.states, module=lambda: "", least=lambda floor: floor
    )
    return {axis.name: axis}


# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_order_of_the_states_is_that_of_the_energy_of_the_modes():
    layer = a_layer()
    (found,) = orders(layer, axis_of(layer), seen(layer)).values()
    assert len(found) == 32
    with torch.no_grad():
        layer.C_re[:, 5] = layer.C_im[:, 5] = 0
    (later,) = orders(layer, axis_of(layer), seen(layer)).values()
    assert later[5] == 0
    assert later[:5] == found[:5]


def test_states_that_change_places_are_not_settled_and_states_that_grow_alike_are():
    layer = a_layer()
    first = orders(layer, axis_of(layer), seen(layer))
    with torch.no_grad():
        layer.C_re *= 3
        layer.C_im *= 3
    grown = orders(layer, axis_of(layer), seen(layer))
    assert control.agreement(first, grown) == pytest.approx(1)
    with torch.no_grad():
        for parameter in (layer.C_re, layer.C_im):
            parameter.copy_(parameter.flip(1))
    assert control.agreement(first, orders(layer, axis_of(layer), seen(layer))) < 0.8


def test_a_layer_that_was_not_observed_has_no_order():
    layer = a_layer()
    assert orders(layer, axis_of(layer), Observed(layer, None)) == {}


# -- looks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3, 64, 65, 512, 4096])
def test_few_ranks_are_recorded_the_first_and_the_last_among_them(order):
    found = rows(order)
    assert len(found) <= ROWS
    assert (found[0], found[-1]) == (1, order)
    assert list(found) == sorted(set(found))
    assert found[:8] == tuple(range(1, min(order, 8) + 1))


@pytest.mark.parametrize(("steps", "looks"), [(1000, MOMENTS), (32, 32), (10, 10)])
def test_the_spectra_are_looked_at_so_often_however_long_the_training(steps, looks):
    due = [step for step in range(1, steps + 1) if Looks(steps, {"layer": 8}).due(step)]
    assert len(due) == looks
    assert due[-1] == steps
    assert not any(Looks(steps, {}).due(step) for step in range(1, steps + 1))


def test_a_look_records_the_values_that_a_layer_still_has():
    layer = a_layer(states=40)
    looks = Looks.of(layer, axis_of(layer), 100)
    whole = looks.look(layer, seen(layer).flows)[""]
    layer.load_system(truncate(layer.system(), 10).system)
    smaller = looks.look(layer, seen(layer).flows)[""]
    assert (whole["full"], whole["states"], len(whole["sigma"])) == (40, 40, len(rows(80)))
    assert (smaller["full"], smaller["states"]) == (40, 10)
    assert len(smaller["sigma"]) == sum(rank <= 20 for rank in rows(80))
    assert whole["sigma"] == sorted(whole["sigma"], reverse=True)


def test_a_look_at_what_cannot_be_computed_is_left_out():
    layer = a_layer()
    looks = Looks.of(layer, axis_of(layer), 100)
    assert looks.look(layer, {}) == {}
    with torch.no_grad():
        layer.nu_log.fill_(float("nan"))
    assert looks.look(layer, seen(layer).flows) == {}
    assert looks.look(nn.Linear(4, 4), seen(layer).flows) == {}


def test_a_layer_that_became_unstable_is_named():
    model = nn.ModuleDict({"lru": a_layer()})
    axis = SimpleNamespace(name="lru.states", kind="states", size=32, module=lambda: "lru", least=lambda floor: floor)
    with torch.no_grad():
        model["lru"].nu_log[3] = float("nan")
    score = seen(model["lru"])
    score.flows["lru"] = score.flows[""]
    with pytest.raises(InputError, match=r"^lru: state 3 "):
        orders(model, {axis.name: axis}, score)


# -- the paper's rule --------------------------------------------------------------------------------------------------


def test_attempts_are_evenly_spaced_in_the_window_and_leave_something_to_train():
    assert attempts((0.0, 0.1), 1000) == {25, 50, 75, 100}
    assert attempts((0.2, 0.6), 100) == {30, 40, 50, 60}
    assert attempts((0.0, 1.0), 100) == {25, 50, 75}
    assert attempts((0.0, 1.0), 2) == {1}  # a cut before the first step or after the last is none


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.4])
def test_a_layer_keeps_what_the_rule_says_of_its_spectrum_for_white_noise(tolerance):
    layer = a_layer(3)
    sigma = hankel_singular_values(layer.system())
    wanted = states_for(sigma, tolerance)
    keep, nats = allowed(layer, axis_of(layer).values(), seen(layer), Rule(tolerance, 1))
    assert keep == ({".states": wanted} if wanted < 32 else {})
    assert nats == pytest.approx(0.001 * (32 - wanted))


def test_the_rule_stops_at_the_floor_and_leaves_alone_what_was_not_observed():
    layer = a_layer(3)
    assert allowed(layer, axis_of(layer).values(), seen(layer), Rule(0.9, 12))[0] == {".states": 12}
    assert allowed(layer, axis_of(layer).values(), Observed(layer, None), Rule(0.9, 12)) == ({}, 0.0)
    assert allowed(nn.Linear(2, 2), [Axis("", "channels", 2, {})], seen(layer), Rule(0.9, 1)) == ({}, 0.0)


# -- a run -------------------------------------------------------------------------------------------------------------


def fit(out, **changes):
    return edgelean.fit(**{
        "recipe": RECIPE, "profile": "raspberry-pi-5", "out": out, "settings": RULE, **FREE, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run by the rule, with budgets that ask for nothing: its folder, its report, its events."""
    folder, events = tmp_path_factory.mktemp("fit") / "run", []
    report = fit(folder, on_event=events.append)
    return folder, report, events


def cuts_in(events):
    return [event for event in events if event["event"] == "cut"]


def test_the_rule_cuts_at_its_attempts_although_every_budget_is_met(run):
    _, report, events = run
    window = json.loads((run[0] / "run.json").read_text())["profile"]["control"]["window"]
    assert report.exit_code == 0
    assert cuts_in(events)
    assert {event["step"] for event in cuts_in(events)} <= attempts(tuple(window), report.steps)
    assert {(event["binding"], event["demand"]) for event in cuts_in(events)} == {("tolerance", 0.0)}
    assert {axis["axis"] for event in cuts_in(events) for axis in event["axes"]} == {f"{LAYER}.states"}
    assert report.lean.parameters < report.full_size.parameters
    assert report.checks[0].passed


def test_a_run_by_the_rule_that_is_interrupted_goes_on_to_the_same_model(run, tmp_path):
    folder, _, events = run
    cuts = cuts_in(events)
    assert len(cuts) > 1  # an attempt that the interrupted run has not made
    assert_goes_on_to_the_same_model(fit, folder, events, tmp_path / "run")
    told = Run.open(tmp_path / "run").events()
    assert [(each["step"], each["axes"]) for each in cuts_in(told)] == [(each["step"], each["axes"]) for each in cuts]


def test_every_truncation_is_told_with_what_it_was_known_to_cost_and_did_cost(run):
    _, report, events = run
    told = [each for event in cuts_in(events) for each in event["truncations"]]
    assert [(each["layer"], each["before"], each["after"]) for each in told] == [
        (LAYER, event["axes"][0]["before"], event["axes"][0]["after"]) for event in cuts_in(events)
    ]
    for each in told:
        assert each["certificate"] > 0
        assert each["worst"] > 0
        assert 0 <= each["energy"] < 0.1
    assert [each.worst for cut in report.cuts for each in cut.truncations] == [each["worst"] for each in told]


def test_the_report_has_the_spectra_over_the_training(run):
    folder, report, _ = run
    (evolution,) = report.evolutions
    steps = [look.step for look in evolution.looks]
    assert (evolution.layer, evolution.states) == (LAYER, 32)
    assert steps == sorted(steps)
    assert len(steps) >= MOMENTS // 2
    assert evolution.looks[-1].states == edgelean.load(folder).blocks[0].layer.states < 32
    assert all(len(look.sigma) == sum(rank <= 2 * look.states for rank in evolution.ranks) for look in evolution.looks)
    before_a_cut = {cut.step for cut in report.cuts}
    assert before_a_cut <= set(steps)
    page = (folder / "report.html").read_text()
    assert f"Hankel singular values of {LAYER} over the training steps" in page
    assert "worst frequency" in page


def test_the_gate_has_seen_the_states(run):
    values = load_newest(run[0] / "checkpoints" / "lean").values["loop"]
    assert f"{LAYER}.states" in values["order"]
