import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.control import plant as plant_module
from edgelean.control.plant import (
    LEAST_ELASTICITY,
    MOST_DOUBT,
    Plant,
    anchored,
    cost_for,
    deviation,
    furthest,
    identify,
    new_plant,
    output,
    surprise,
)
from edgelean.errors import InputError

COSTS = (0.9, 0.75, 0.75, 0.6, 0.45)
shares = st.floats(0.1, 1.0)


def seen(costs, measured, spread=0.0):
    plant = new_plant(costs[0], measured[0], spread)
    for cost, value in zip(costs[1:], measured[1:], strict=True):
        plant = identify(plant, cost, value, spread)
    return plant


def test_one_reading_makes_the_output_proportional_to_the_cost():
    plant = new_plant(4.0, 2.0)
    assert output(plant, 1.0) == pytest.approx(0.5)
    assert cost_for(plant, 1.0) == pytest.approx(2.0)


def test_a_cost_model_that_is_right_stays_as_it_is():
    plant = seen([3.0 * c for c in COSTS], [3.0 * c for c in COSTS])
    assert (plant.gain, plant.offset) == pytest.approx((1.0, 0.0), abs=1e-9)


@given(gain=st.floats(0.3, 3), offset=st.floats(0, 0.4), costs=st.lists(shares, min_size=2, max_size=8, unique=True))
def test_an_exact_line_is_hit_where_it_was_read_last(gain, offset, costs):
    measured = [gain * (cost + offset) for cost in costs]
    assert output(seen(costs, measured), costs[-1]) == pytest.approx(measured[-1], rel=0.01)


def test_the_offset_of_a_line_is_learned():
    costs = np.linspace(1, 0.5, 6)
    plant = seen(costs, 0.7 * costs + 0.3)
    assert output(plant, 0.4) == pytest.approx(0.7 * 0.4 + 0.3, rel=0.03)
    assert cost_for(plant, 0.58) == pytest.approx(0.4, rel=0.05)


def test_without_forgetting_it_is_regularised_least_squares(monkeypatch):
    monkeypatch.setattr(plant_module, "TURN", 0.0)
    monkeypatch.setattr(plant_module, "DRIFT", 0.0)
    rng = np.random.default_rng(0)
    costs, spread = rng.uniform(0.3, 1, 12), 0.05
    measured = 0.8 * costs + 0.2 + rng.normal(0, spread, 12)
    start = new_plant(1.0, 1.0, spread)
    plant, noise = start, []
    for cost, value in zip(costs, measured, strict=True):
        noise.append(spread / value * output(plant, cost))
        plant = identify(plant, cost, value, spread)
    (aa, ab, bb) = start.covariance
    prior = np.linalg.inv([[aa, ab], [ab, bb]])
    rows = np.stack([costs, np.ones(12)], axis=1)
    weighted = rows.T / np.square(noise)
    batch = np.linalg.solve(prior + weighted @ rows, prior @ [1.0, 0.0] + weighted @ measured)
    assert (plant.gain, plant.offset) == pytest.approx(tuple(batch), rel=1e-9)


def test_readings_of_one_structure_are_averaged():
    rng = np.random.default_rng(1)
    measured = 2.0 + rng.normal(0, 0.1, 16)
    plant = seen([1.0] * 16, measured, spread=0.1)
    assert abs(output(plant, 1.0) - 2.0) < 0.06
    assert deviation(plant, 1.0) < 0.5 * deviation(new_plant(1.0, 2.0, 0.1), 1.0)


def test_it_is_less_sure_of_a_structure_that_it_has_not_read():
    plant = seen([1.0, 0.8], [1.0, 0.85], spread=0.01)
    assert deviation(plant, 0.4) > deviation(plant, 0.6) > deviation(plant, 0.8)


def test_a_bend_of_the_line_is_believed_as_soon_as_it_is_read():
    plant = seen([1.0, 0.8, 0.6, 0.4], [1.0, 0.8, 0.6, 0.56], spread=0.01)
    assert abs(output(plant, 0.4) - 0.56) <= 1.96 * deviation(plant, 0.4)


def test_an_output_that_does_not_answer_asks_for_no_endless_cut():
    plant = seen([1.0, 0.9, 0.8, 0.7], [1.0, 1.01, 1.0, 1.02], spread=0.01)
    assert cost_for(plant, 0.9 * output(plant, 0.7)) >= 0.79 * 0.7


def test_a_drift_is_followed():
    plant = seen([1.0] * 40, 1.0 + 0.005 * np.arange(40), spread=0.01)
    assert output(plant, 1.0) == pytest.approx(1.195, rel=0.02)


@given(st.lists(st.tuples(shares, st.floats(0.05, 5)), min_size=1, max_size=12), st.floats(0, 0.5))
def test_whatever_is_read_the_slope_stays_usable(readings, spread):
    plant = new_plant(1.0, 1.0, spread)
    for cost, measured in readings:
        plant = identify(plant, cost, measured, spread)
        aa, ab, bb = plant.covariance
        assert 0 <= aa <= max(MOST_DOUBT, 0.5) ** 2 + 1e-9
        assert aa * bb - ab * ab >= -1e-9
    here = output(plant, cost)
    elasticity = plant.gain * plant.cost / (here or 1.0)
    assert here == 0 or elasticity >= LEAST_ELASTICITY - 1e-9
    assert 0 <= cost_for(plant, 0.5 * here) <= cost * (1 + 1e-9)


@given(st.floats(0.2, 0.95), st.floats(0, 3))
def test_caution_asks_for_a_smaller_step(share, caution):
    plant = seen([1.0, 0.8], [1.0, 0.9], spread=0.02)
    wanted = share * output(plant, 0.8)
    assert cost_for(plant, wanted) <= cost_for(plant, wanted, caution) <= 0.8 + 1e-9


def test_readings_that_fit_are_no_surprise_and_throttled_ones_are():
    plant = seen([1.0, 0.8, 0.8, 0.6, 0.6], [1.0, 0.8, 0.8, 0.6, 0.6], spread=0.01)
    assert abs(surprise(plant, 0.6, 0.6, 0.01)) < 0.5
    assert surprise(plant, 0.6, 0.75, 0.01) > 5
    assert surprise(plant, 0.6, 0.45, 0.01) < -5


def test_surprises_of_a_line_that_holds_are_as_rare_as_of_a_normal_distribution():
    rng = np.random.default_rng(2)
    plant, found = new_plant(1.0, 1.0, 0.05), []
    for _ in range(400):
        value = 1 + rng.normal(0, 0.05)
        found.append(surprise(plant, 1.0, value, 0.05))
        plant = identify(plant, 1.0, value, 0.05)
    assert np.mean(np.abs(found) > 2.5) < 0.03
    assert 0.7 < np.std(found) < 1.1


@given(st.floats(0.5, 2.0))
def test_an_anchored_line_gives_the_reading_and_all_other_structures_change_by_the_same_factor(factor):
    plant = seen([1.0, 0.8, 0.6], [1.0, 0.85, 0.75], spread=0.01)
    moved = anchored(plant, 0.6, factor * output(plant, 0.6), 0.02)
    assert output(moved, 0.6) == pytest.approx(factor * output(plant, 0.6))
    assert output(moved, 0.3) == pytest.approx(factor * output(plant, 0.3))
    assert deviation(moved, 0.6) >= 0.99 * 0.02


@given(st.floats(0.3, 0.7), st.floats(0, 3))
def test_the_furthest_cut_stays_above_its_bound_and_is_smaller_the_surer_it_has_to_be(bound, sureness):
    plant = seen([1.0, 0.8], [1.0, 0.8], spread=0.01)
    cost = furthest(plant, bound, sureness)
    assert bound - 1e-6 <= output(plant, cost) <= output(plant, 0.8) + 1e-9
    assert furthest(plant, bound, sureness + 1) >= cost
    assert furthest(plant, bound, 0.0) == pytest.approx(cost_for(plant, bound), rel=1e-4)


def test_nothing_can_be_cut_surely_from_what_is_not_surely_above_the_bound():
    plant = seen([1.0, 0.8], [1.0, 0.8], spread=0.1)
    assert furthest(plant, 0.79, 2.0) == pytest.approx(0.8, rel=1e-4)


@given(st.floats(0.3, 3.0))
def test_the_inverse_undoes_the_output(cost):
    plant = seen([1.0, 0.8, 0.5], [2.0, 1.7, 1.2])
    assert cost_for(plant, output(plant, cost)) == pytest.approx(cost)


def test_an_output_below_the_offset_asks_for_no_negative_cost():
    plant = seen([1.0, 0.8, 0.6], [1.0, 0.9, 0.8])
    assert cost_for(plant, 0.01) == 0


@pytest.mark.parametrize(("cost", "measured", "spread"), [(0, 1, 0), (1, -1, 0), (float("nan"), 1, 0), (1, 1, -0.1)])
def test_a_reading_that_cannot_be_is_refused(cost, measured, spread):
    with pytest.raises(InputError, match="reading"):
        new_plant(cost, measured, spread)
    with pytest.raises(InputError, match="reading"):
        identify(new_plant(1, 1), cost, measured, spread)


def test_it_survives_json():
    plant = seen([1.0, 0.8], [2.0, 1.7], spread=0.1)
    assert Plant.from_json(json.loads(json.dumps(plant.to_json()))) == plant
