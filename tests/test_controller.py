import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.control import (
    ControllerState,
    Observed,
    Standing,
    after_cut,
    all_met,
    due,
    endings,
    enough,
    exhausted,
    gate_open,
    init,
    pooled,
    rolled_back,
    step,
)
from edgelean.control.controller import FRESH, LEAST_READINGS, MOST_READINGS
from edgelean.control.track import ALARMS, PATIENCE, PROOFS, STORM, reference
from edgelean.errors import InputError
from edgelean.profile import ControlSettings

STEPS = 1000
SETTINGS = ControlSettings()


def modelled(value):
    return Observed(value, value, value, value)


def noisy(value, half, cost=None):
    return Observed(value, value - half, value + half, value if cost is None else cost)


def at(latency, limit=1.0, settings=SETTINGS, **others):
    """Return a state for one latency budget, and for what other quantities are given as (start, limit)."""
    start = {"latency": latency} | {name: first for name, (first, _) in others.items()}
    return init(settings, {"latency": limit} | {name: last for name, (_, last) in others.items()}, start, STEPS)


def demanded(state, when, **observations):
    return step(observations, when, state)


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


def landed(value=0.95):
    state = at(noisy(4.0, 0.02))
    for _ in range(PROOFS):
        _, state = demanded(state, max(300, state.due_at), latency=noisy(value, 0.02, cost=1.0))
    return state


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


def on_its_way(value=2.0, half=0.02):
    """Return a state that knows a structure of cost 1 well."""
    state = at(noisy(4.0, 0.04, cost=2.0))
    _, state = demanded(state, 100, latency=noisy(4.0, 0.04, cost=2.0))
    return after_cut({"latency": noisy(value, half, cost=1.0)}, 100, state)


def test_what_throttles_is_not_cut_for_and_the_run_goes_on_when_it_has_passed():
    state = on_its_way()
    for _ in range(3):
        when = state.due_at
        demand, state = demanded(state, when, latency=noisy(2.6, 0.02, cost=1.0))
        assert demand.fraction == 0
        assert "waited for" in demand.reason
        assert state.due_at - when < state.pace.spacing
    calm, _ = demanded(state, state.due_at, latency=noisy(2.0, 0.02, cost=1.0))
    assert calm.fraction > 0
    assert calm.reference < 2.0


def test_a_new_level_that_lasts_is_believed():
    state = on_its_way()
    for _ in range(STORM + 1):
        demand, state = demanded(state, state.due_at, latency=noisy(2.6, 0.02, cost=1.0))
    assert demand.fraction > 0
    assert state.tracks["latency"].value == pytest.approx(2.6, rel=0.02)


def test_surprises_that_are_unlike_each_other_do_not_make_a_new_level():
    state = on_its_way()
    for value in (2.6, 3.2, 2.6, 3.2, 2.6, 3.2, 2.6, 3.2, 2.6, 3.2, 2.6):
        demand, state = demanded(state, state.due_at, latency=noisy(value, 0.02, cost=1.0))
        assert demand.fraction == 0


def test_weather_in_one_quantity_holds_the_cuts_for_the_other():
    state = at(noisy(4.0, 0.04, cost=2.0), energy=(noisy(4.0, 0.04, cost=2.0), 1.0))
    usual = {"latency": noisy(2.0, 0.02, cost=1.0), "energy": noisy(2.0, 0.02, cost=1.0)}
    state = after_cut(usual, 100, demanded(state, 100, **usual)[1])
    demand, _ = demanded(state, state.due_at, **usual | {"energy": noisy(2.8, 0.02, cost=1.0)})
    assert demand.fraction == 0
    assert demanded(state, state.due_at, **usual)[0].fraction > 0


def test_nothing_is_cut_on_readings_of_the_structure_before_the_cut():
    state = at(noisy(4.0, 0.04))
    _, state = demanded(state, 100, latency=noisy(4.0, 0.04))
    old = replace(noisy(4.0, 0.04), stale=True)
    state = after_cut({"latency": old}, 100, state)
    while state.due_at < 240:
        demand, state = demanded(state, state.due_at, latency=old)
        assert demand.fraction == 0
        assert "before the cut" in demand.reason
    fresh, state = demanded(state, state.due_at, latency=noisy(3.0, 0.03))
    assert fresh.fraction > 0
    assert state.delay >= 140


def test_the_first_readings_of_a_structure_are_not_decided_on_before_it_has_recovered():
    state = at(noisy(4.0, 0.04))
    _, state = demanded(state, 100, latency=noisy(4.0, 0.04))
    ready = state.due_at
    state = after_cut({"latency": replace(noisy(4.0, 0.04), stale=True)}, 100, state)
    assert state.due_at < ready
    demand, state = demanded(state, state.due_at, latency=noisy(3.0, 0.03))
    assert demand.fraction == 0
    assert state.due_at >= ready


def test_readings_that_lag_let_the_reference_look_further_ahead():
    state = at(modelled(4.0))
    prompt, _ = demanded(state, 150, latency=modelled(3.0))
    lagging, _ = demanded(replace(state, delay=3 * state.pace.spacing), 150, latency=modelled(3.0))
    assert lagging.reference < prompt.reference


def test_a_small_cut_is_given_less_time_to_recover_but_no_less_than_was_asked_for():
    def pause(**settings):
        state = at(modelled(1.2), settings=SETTINGS.model_copy(update=settings))
        demand, after = demanded(state, 600, latency=modelled(1.1))
        assert 0 < demand.fraction < 0.1
        return after.due_at - 600

    spacing = at(modelled(1.2)).pace.spacing
    assert spacing / 2 <= pause() < spacing
    assert pause(recovery_steps=spacing) == spacing


def test_what_the_model_alone_tells_needs_no_second_reading():
    assert enough([{"latency": modelled(2.0)}], 100, at(modelled(4.0)))


@given(st.floats(0.002, 0.3))
def test_an_event_takes_at_least_two_readings_and_ends_in_the_end(half):
    state, readings = at(noisy(4.0, 0.04)), [{"latency": noisy(1.0, half, cost=1.0)}]
    while not enough(readings, 300, state):
        readings.append(readings[0])
    assert LEAST_READINGS <= len(readings) <= MOST_READINGS
    spread = pooled(readings)["latency"].spread
    assert spread <= FRESH or len(readings) == MOST_READINGS


def test_a_met_budget_is_watched_by_one_reading_until_the_last_event_judges_it_anew():
    state, seen = landed(), {"latency": noisy(0.95, 0.1, cost=1.0)}
    assert enough([seen], state.due_at, state)
    assert not enough([seen, seen], state.pace.last, state)


def test_the_last_event_is_never_left_out():
    state = landed()
    while state.due_at < state.pace.last:
        _, state = demanded(state, state.due_at, latency=noisy(0.95, 0.02, cost=1.0))
    assert state.due_at == state.pace.last
    _, state = demanded(state, state.due_at, latency=noisy(0.95, 0.02, cost=1.0))
    assert not due(state.due_at, state)


@given(st.lists(st.floats(0.8, 1.2), min_size=2, max_size=12))
def test_pooled_readings_lie_among_them_and_are_surer_than_each(values):
    seen = pooled([{"latency": noisy(value, 0.1 * value, cost=1.0)} for value in values])["latency"]
    assert min(values) - 1e-9 <= seen.measured <= max(values) + 1e-9
    assert seen.spread == pytest.approx(seen.measured * 0.1 / 1.96 / len(values) ** 0.5)
    assert seen.count == len(values)


def test_readings_that_are_low_by_chance_do_not_draw_the_mean_down():
    pair = pooled([{"latency": noisy(value, 0.2 * value)} for value in (0.8, 1.2)])["latency"]
    assert pair.measured == pytest.approx(1.0)


def test_intervals_that_are_too_narrow_are_found_out():
    def half_after(values):
        state = at(noisy(4.0, 0.02))
        for value in values:
            pair = [{"latency": noisy(value * factor, 0.01, cost=1.0)} for factor in (0.98, 1.02)]
            _, state = step(pooled(pair), state.due_at, state)
        return state.tracks["latency"].modesty

    assert half_after([2.0] * 4) > 3
    state = at(noisy(4.0, 0.02))
    same = [{"latency": noisy(2.0, 0.01, cost=1.0)}] * 2
    assert step(pooled(same), 100, state)[1].tracks["latency"].modesty == 1.0


def test_with_nothing_left_to_cut_nothing_is_demanded_and_the_budget_is_named_out_of_reach():
    _, state = demanded(at(modelled(4.0)), 300, latency=modelled(2.0))
    state = exhausted(state)
    demand, state = demanded(state, state.due_at, latency=modelled(2.0))
    ending = endings(state, {})["latency"]
    assert demand.fraction == 0
    assert ending.standing is Standing.NOT_MET
    assert not ending.reachable
    assert "nothing is left to cut" in ending.reason


def test_a_rollback_gives_back_what_there_is_to_cut():
    state = rolled_back(exhausted(at(modelled(4.0))), 300)
    assert demanded(state, 600, latency=modelled(3.0))[0].fraction > 0


def test_a_budget_below_the_smallest_model_is_named_out_of_reach():
    state = at(modelled(4.0))
    for cost in (3.5, 3.0, 2.5, 2.2):
        _, state = demanded(state, state.due_at, latency=Observed(cost, cost, cost, cost))
    ending = endings(state, {"latency": 2.0})["latency"]
    assert ending.standing is Standing.NOT_MET
    assert not ending.reachable
    assert "out of reach" in ending.reason
    assert endings(state, {"latency": 0.2})["latency"].reachable


def test_every_ending_tells_its_reason():
    def reason(state):
        ending = endings(state, {})["latency"]
        return str(ending.standing), ending.reason

    assert reason(landed()) == ("met", "the readings are surely within the budget")
    undecided = demanded(at(noisy(4.0, 0.02)), 600, latency=noisy(0.98, 0.08))[1]
    assert reason(undecided)[0] == "undecided"
    assert "too close to call" in reason(undecided)[1]
    stormy = demanded(on_its_way(), 200, latency=noisy(2.6, 0.02, cost=1.0))[1]
    assert reason(stormy)[0] == "undecided"
    assert "+30 % off" in reason(stormy)[1]
    late = demanded(at(modelled(4.0)), 900, latency=modelled(2.0))[1]
    assert reason(late)[0] == "not met"
    assert "the training ended before" in reason(late)[1]
    unread = after_cut({"latency": replace(modelled(4.0), stale=True)}, 900, late)
    assert "no reading" in reason(unread)[1]
    assert "recovers from no cut" in reason(replace(late, given_up=True))[1]
