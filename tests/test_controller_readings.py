"""The controller and its readings: how many it takes, weather, dead time, and how it ends."""

from dataclasses import replace

import pytest
from controlled import SETTINGS, at, demanded, landed, modelled, noisy
from hypothesis import given
from hypothesis import strategies as st

from edgelean.control import (
    Observed,
    Standing,
    after_cut,
    due,
    endings,
    enough,
    exhausted,
    pooled,
    rolled_back,
    step,
)
from edgelean.control.controller import FRESH, LEAST_READINGS, MOST_READINGS
from edgelean.control.track import STORM


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
