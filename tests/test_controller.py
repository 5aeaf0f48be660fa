"""The controller: what it demands, when, and of which budget."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from controlled import SETTINGS, STEPS, at, demanded, landed, modelled, noisy
from hypothesis import given
from hypothesis import strategies as st

from edgelean.control import (
    ControllerState,
    Observed,
    Standing,
    all_met,
    due,
    gate_open,
    init,
    rolled_back,
    step,
)
from edgelean.control.track import ALARMS, PATIENCE, PROOFS, STORM, reference
from edgelean.errors import InputError


def test_the_reference_decays_from_the_start_to_the_aim_in_ever_smaller_steps():
    track = at(modelled(4.0)).tracks["latency"]
    path = [reference(track, SETTINGS.margin, gone / 10) for gone in range(11)]
    falls = [earlier - later for earlier, later in pairwise(path)]
    assert path[0] == pytest.approx(4.0)
    assert path[-1] == pytest.approx(1.0 - SETTINGS.margin)
    assert all(earlier > later > 0 for earlier, later in pairwise(falls))
    assert reference(track, SETTINGS.margin, 7.0) == pytest.approx(path[-1])


@given(st.floats(1.1, 50), st.integers(50, 980))
def test_no_cut_is_larger_than_the_largest(excess, when):
    demand, _ = demanded(at(modelled(excess)), when, latency=modelled(excess))
    assert 0 < demand.fraction <= SETTINGS.largest_cut + 1e-12


@given(st.floats(1.05, 50), st.integers(50, 980))
def test_no_cut_aims_below_the_budget_less_the_margin(excess, when):
    demand, _ = demanded(at(modelled(excess)), when, latency=modelled(excess))
    assert demand.targets["latency"] >= 1 - SETTINGS.margin - 1e-9
    assert demand.targets["latency"] >= demand.reference - 1e-9


def test_after_the_window_the_whole_excess_is_demanded_within_the_clamp():
    demand, _ = demanded(at(modelled(1.2)), 600, latency=modelled(1.2))
    assert demand.reference == pytest.approx(1 - SETTINGS.margin)
    assert 0.4 * (1 - 0.97 / 1.2) < demand.fraction < 1 - 0.97 / 1.2


@pytest.mark.parametrize("when", [50, 300, 900])
def test_a_met_budget_demands_nothing(when):
    demand, _ = demanded(at(modelled(4.0)), when, latency=modelled(0.999))
    assert demand.fraction == 0
    assert all_met(demand)
    assert "met" in demand.reason


def test_an_interval_that_reaches_over_the_budget_does_not_count_as_met():
    demand, _ = demanded(at(modelled(4.0)), 300, latency=noisy(0.99, 0.02))
    assert demand.standings == {"latency": Standing.UNDECIDED}
    assert not all_met(demand)


def test_a_budget_that_looks_met_is_read_again_soon_and_then_settled_by_a_small_cut():
    state, when, fractions = at(noisy(4.0, 0.02)), 600, []
    while not any(fractions):
        demand, state = demanded(state, when, latency=noisy(0.98, 0.08))
        fractions.append(demand.fraction)
        assert state.due_at - when < state.pace.spacing or demand.fraction > 0
        when = state.due_at
    assert 2 <= len(fractions) <= PATIENCE + 1
    assert 0 < fractions[-1] < 0.1


def test_a_budget_that_is_surely_within_is_met_once_it_was_seen_twice():
    _, state = demanded(at(noisy(4.0, 0.02)), 300, latency=noisy(0.95, 0.02, cost=1.0))
    second, state = demanded(state, state.due_at, latency=noisy(0.95, 0.02, cost=1.0))
    assert PROOFS == 2
    assert second.standings["latency"] is Standing.MET
    assert "met" in second.reason


def test_a_met_budget_is_not_lost_by_the_weather_but_by_what_lasts():
    state, fractions = landed(), []
    for _ in range(STORM + ALARMS + 2):
        demand, state = demanded(state, state.due_at, latency=noisy(1.3, 0.02, cost=1.0))
        fractions.append(demand.fraction)
    assert set(fractions[:STORM]) == {0.0}
    assert fractions[-1] > 0


def test_a_met_budget_that_may_have_been_lost_is_undecided_and_not_cut_for():
    state = landed(0.97)
    for _ in range(12):
        demand, state = demanded(state, state.due_at, latency=noisy(1.004, 0.02, cost=1.0))
        assert demand.fraction == 0
    assert demand.standings["latency"] is Standing.UNDECIDED


def test_a_modelled_figure_above_a_met_budget_is_believed_at_once():
    _, state = demanded(at(modelled(4.0)), 300, latency=modelled(0.95))
    demand, _ = demanded(state, 700, latency=modelled(1.1))
    assert demand.fraction > 0


def test_a_cut_within_the_dead_band_waits_while_the_reference_is_on_its_way():
    state = at(modelled(4.0))
    ahead = state.pace.gone(200 + state.pace.spacing)
    near = 1.01 * reference(state.tracks["latency"], SETTINGS.margin, ahead)
    demand, _ = demanded(state, 200, latency=modelled(near))
    assert demand.fraction == 0
    assert demand.targets["latency"] == near
    assert demand.standings["latency"] is Standing.NOT_MET


def test_no_dead_band_keeps_a_budget_from_being_met_in_the_end():
    settings = SETTINGS.model_copy(update={"dead_band": 0.3})
    demand, _ = demanded(at(modelled(4.0), settings=settings), 600, latency=modelled(1.05))
    assert demand.fraction > 0


def test_the_binding_budget_is_the_one_furthest_over():
    state = at(modelled(4.0), energy=(modelled(20.0), 10.0))
    assert demanded(state, 600, latency=modelled(1.3), energy=modelled(14.0))[0].binding == "energy"
    assert demanded(state, 600, latency=modelled(1.5), energy=modelled(14.0))[0].binding == "latency"


def test_a_quantity_within_its_budget_may_only_not_grow():
    state = at(modelled(4.0), energy=(modelled(20.0), 10.0))
    demand, _ = demanded(state, 600, latency=modelled(1.3), energy=modelled(9.0))
    assert demand.binding == "latency"
    assert demand.targets["energy"] == 9.0
    assert demand.targets["latency"] < 1.3


def test_a_cost_model_that_is_wrong_by_a_factor_asks_for_the_same_share():
    wrong = Observed(2.0, 2.0, 2.0, cost=6.0)
    right, other = (demanded(at(seen), 100, latency=seen)[0] for seen in (modelled(2.0), wrong))
    assert other.fraction == pytest.approx(right.fraction)


def test_events_come_within_the_window_of_cuts_and_keep_their_spacing():
    state = at(modelled(4.0))
    assert not due(49, state)
    assert due(50, state)
    demand, state = demanded(state, 50, latency=modelled(4.0))
    assert demand.fraction > 0
    assert not due(50 + state.pace.spacing - 1, state)
    assert due(50 + state.pace.spacing, state)
    assert not due(STEPS, state)


def test_recovery_steps_widen_the_spacing():
    settings = SETTINGS.model_copy(update={"recovery_steps": 200})
    _, state = demanded(at(modelled(4.0), settings=settings), 50, latency=modelled(4.0))
    assert state.due_at == 250


def test_the_gate_opens_when_the_scores_have_settled_or_the_wait_is_over():
    state = at(modelled(4.0))
    assert not gate_open(60, None, state)
    assert not gate_open(60, SETTINGS.settled - 0.01, state)
    assert gate_open(60, SETTINGS.settled, state)
    assert gate_open(round(SETTINGS.wait * STEPS), None, state)


def test_a_rollback_halves_the_largest_cut_and_forgives_the_delay():
    _, state = demanded(at(modelled(4.0)), 400, latency=modelled(4.0))
    back = rolled_back(state, 450)
    before, _ = demanded(state, 500, latency=modelled(4.0))
    after, _ = demanded(back, 500, latency=modelled(4.0))
    assert back.clamps.largest_cut == SETTINGS.largest_cut / 2
    assert after.reference > before.reference
    assert after.fraction < before.fraction
    assert back.due_at == 450 + state.pace.spacing


def test_after_enough_rollbacks_it_gives_up():
    state, rollbacks = at(modelled(4.0)), 0
    while not state.given_up:
        state, rollbacks = rolled_back(state, 100 + rollbacks), rollbacks + 1
    assert state.clamps.largest_cut < SETTINGS.dead_band
    assert rollbacks == 5
    assert not due(state.due_at, state)


@given(st.floats(0.5, 5), st.floats(0, 0.3), st.integers(50, 900))
def test_the_state_survives_json_and_goes_on_as_before(value, half, when):
    _, state = demanded(at(modelled(4.0), energy=(modelled(2.0), 1.0)), 60, latency=noisy(3, 0.1), energy=modelled(1.5))
    state = rolled_back(state, 61)
    stored = ControllerState.from_json(json.loads(json.dumps(state.to_json())))
    assert stored == state
    now = {"latency": noisy(value, half), "energy": modelled(1.2)}
    assert step(now, when, stored) == step(now, when, state)


def test_the_demand_is_plain_json_and_tells_its_reason():
    demand, _ = demanded(at(modelled(4.0)), 100, latency=modelled(4.0))
    plain = json.loads(json.dumps(demand.to_json()))
    assert plain["demand"] == demand.fraction
    assert plain["standings"] == {"latency": "not met"}
    assert "latency 4 ms of 1 ms" in plain["reason"]


def test_a_step_changes_nothing_in_the_state_it_was_given():
    state = at(modelled(4.0))
    copy = replace(state, tracks=dict(state.tracks))
    demanded(state, 100, latency=modelled(3.0))
    assert state == copy


def test_a_budget_without_a_reading_is_refused():
    with pytest.raises(InputError, match="budget for energy"):
        init(SETTINGS, {"energy": 1.0}, {"latency": modelled(1.0)}, STEPS)
    with pytest.raises(InputError, match="budget for latency"):
        step({}, 100, at(modelled(4.0)))


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_cannot_be_is_refused(limit):
    with pytest.raises(InputError, match="above 0"):
        at(modelled(1.0), limit=limit)


def test_no_budget_at_all_is_refused():
    with pytest.raises(InputError, match="needs a budget"):
        init(SETTINGS, {}, {"latency": modelled(1.0)}, STEPS)
