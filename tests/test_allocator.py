import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelean.control.allocator import Choice, allocate, reachable
from edgelean.errors import InputError


def convex(rng, size, scale=1.0):
    scores = sorted(rng.lognormvariate(0, 1.5) for _ in range(size))
    return (0.0, *itertools.accumulate(scale * score / 1000 for score in scores))


def network(seed, axes=4, levels=6, plateau=1):
    """Return axes of a chain of convolutions, and its cost: inputs times outputs, padded to a plateau, per layer."""
    rng = random.Random(seed)
    sizes = [8 * rng.randint(3, levels) for _ in range(axes)]
    work = {name: [rng.lognormvariate(0, 0.7) for _ in range(axes + 1)] for name in ("latency", "energy")}

    def cost(keep):
        widths = [12, *(-(-keep[f"a{i}"] // plateau) * plateau for i in range(axes)), 10]
        layers = [1e-3 * a * b + 0.3 for a, b in itertools.pairwise(widths)]
        return {name: sum(w * layer for w, layer in zip(each, layers, strict=True)) for name, each in work.items()}

    choices = [Choice(f"a{i}", z, 8, 8, convex(rng, z, rng.lognormvariate(0, 1))) for i, z in enumerate(sizes)]
    return choices, cost


def whole(choices):
    return {choice.axis: choice.size for choice in choices}


def fewest_nats(choices, cost, targets):
    """Return the optimum, by trying everything."""
    best = math.inf
    for kept in itertools.product(*(choice.levels for choice in choices)):
        nats = sum(choice.prices[choice.size - k] for choice, k in zip(choices, kept, strict=True))
        if nats < best:
            costs = cost({choice.axis: k for choice, k in zip(choices, kept, strict=True)})
            if all(costs[name] <= target for name, target in targets.items()):
                best = nats
    return best


instances = st.builds(
    lambda seed, plateau: network(seed, plateau=plateau), st.integers(0, 10_000), st.sampled_from([1, 16])
)


@settings(deadline=None)
@given(instances, st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_targets_hold_whenever_everything_at_its_floor_would_hold_them(instance, first, second):
    choices, cost = instance
    full, least = cost(whole(choices)), reachable(choices, cost)
    targets = {"latency": first * full["latency"], "energy": second * full["energy"]}
    found = allocate(choices, cost, targets)
    assert found.feasible == all(least[name] <= targets[name] for name in targets)
    if found.feasible:
        assert all(found.cost_after[name] <= targets[name] * (1 + 1e-6) for name in targets)


@settings(deadline=None)
@given(instances, st.floats(0.3, 1.0))
def test_what_it_returns_is_consistent(instance, share):
    choices, cost = instance
    full = cost(whole(choices))
    found = allocate(choices, cost, {"latency": share * full["latency"]})
    assert found.cost_before == full
    assert found.cost_after == cost(found.keep)
    assert found.nats == pytest.approx(sum(c.prices[c.size - found.keep[c.axis]] for c in choices))
    for choice in choices:
        kept = found.keep[choice.axis]
        assert choice.floor <= kept <= choice.size
        assert kept == choice.size or kept % choice.step == 0


def test_it_gives_up_hardly_more_than_the_optimum():
    gaps = []
    for seed in range(60):
        choices, cost = network(seed, plateau=16 if seed % 3 == 0 else 1)
        full = cost(whole(choices))
        names = ("latency",) if seed % 2 else ("latency", "energy")
        targets = {name: (0.4 + 0.5 * (seed % 11) / 11) * full[name] for name in names}
        best = fewest_nats(choices, cost, targets)
        if 0 < best < math.inf:
            gaps.append(allocate(choices, cost, targets).nats / best - 1)
    assert len(gaps) > 40
    assert sum(gaps) / len(gaps) < 0.02
    assert sorted(gaps)[int(0.9 * len(gaps))] < 0.05
    assert max(gaps) < 0.25


@settings(deadline=None)
@given(instances, st.floats(0.4, 0.95))
def test_nothing_is_given_up_that_the_targets_do_not_need(instance, share):
    choices, cost = instance
    targets = {"latency": share * cost(whole(choices))["latency"]}
    found = allocate(choices, cost, targets)
    for choice in choices:
        at = choice.levels.index(found.keep[choice.axis])
        if found.feasible and at and choice.prices[choice.size - choice.levels[at]] > 0:
            back = {**found.keep, choice.axis: choice.levels[at - 1]}
            assert cost(back)["latency"] > targets["latency"]


def test_a_plateau_is_crossed_and_not_stopped_on():
    choices = [Choice("a", 64, 8, 8, tuple(0.001 * k for k in range(65)))]
    found = allocate(choices, lambda keep: {"latency": float(-(-keep["a"] // 32))}, {"latency": 1.0})
    assert found.keep == {"a": 32}
    assert found.feasible


def test_an_axis_that_saves_nothing_is_left_alone_however_cheap():
    choices = [Choice("idle", 64, 8, 8, (0.0,) * 65), Choice("busy", 64, 8, 8, tuple(map(float, range(65))))]
    found = allocate(choices, lambda keep: {"latency": float(keep["busy"])}, {"latency": 40.0})
    assert found.keep == {"idle": 64, "busy": 40}


def test_dead_units_go_first():
    choices = [Choice("dead", 64, 8, 8, (0.0,) * 65), Choice("live", 64, 8, 8, tuple(map(float, range(65))))]
    found = allocate(choices, lambda keep: {"latency": keep["dead"] + 3.0 * keep["live"]}, {"latency": 210.0})
    assert found.keep["live"] == 64
    assert found.nats == 0


def test_targets_that_hold_already_cost_nothing():
    choices, cost = network(3)
    found = allocate(choices, cost, cost(whole(choices)))
    assert found.keep == whole(choices)
    assert found.nats == 0


def test_what_is_out_of_reach_is_said_and_tried():
    choices, cost = network(5)
    least = reachable(choices, cost)
    found = allocate(choices, cost, {"latency": 0.9 * least["latency"]})
    assert not found.feasible
    assert found.cost_after["latency"] == pytest.approx(least["latency"])


def test_a_size_between_two_steps_is_brought_to_a_step_first():
    assert Choice("a", 30, 8, 9, (0.0,) * 31).levels == (30, 24, 16)
    assert Choice("a", 6, 8, 8, (0.0,)).levels == (6,)


def test_a_large_network_takes_a_modest_number_of_costs():
    choices, cost = network(0, axes=20, levels=16)
    asked = []

    def counted(keep):
        asked.append(keep)
        return cost(keep)

    targets = {name: 0.65 * full for name, full in cost(whole(choices)).items()}
    assert allocate(choices, counted, targets).feasible
    assert len(asked) < 1500


@pytest.mark.parametrize("prices", [(0.0, 1.0), (1.0,) * 17, (0.0, *(2.0 - 0.1 * k for k in range(16)))])
def test_prices_that_make_no_sense_are_refused(prices):
    with pytest.raises(InputError, match=r"Axis stem.*prices"):
        Choice("stem", 16, 8, 8, prices)


def test_prices_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="Check the scores"):
        Choice("stem", 16, 8, 8, (0.0, *(math.nan for _ in range(16))))


def test_questions_that_make_no_sense_are_refused():
    choices, cost = network(1)
    with pytest.raises(InputError, match="same name"):
        allocate([choices[0], choices[0]], cost, {"latency": 1.0})
    with pytest.raises(InputError, match="memory"):
        allocate(choices, cost, {"memory": 1.0})
    with pytest.raises(InputError, match="above 0"):
        allocate(choices, cost, {"latency": 0.0})


def test_it_is_plain_json():
    choices, cost = network(2)
    found = allocate(choices, cost, {"latency": 0.7 * cost(whole(choices))["latency"]})
    assert json.loads(json.dumps(found.to_json()))["keep"] == found.keep


@settings(deadline=None)
@given(instances, st.floats(0.4, 0.95), st.floats(0.4, 1.5))
def test_a_price_is_the_most_that_a_step_back_would_buy_which_its_target_forbids(instance, first, second):
    choices, cost = instance
    full = cost(whole(choices))
    targets = {"latency": first * full["latency"], "energy": second * full["energy"]}
    found = allocate(choices, cost, targets)
    expected = dict.fromkeys(targets, 0.0)
    for choice in choices:
        at = choice.levels.index(found.keep[choice.axis])
        for level in choice.levels[max(0, at - 4) : at]:
            costs = cost({**found.keep, choice.axis: level})
            nats = choice.prices[choice.size - choice.levels[at]] - choice.prices[choice.size - level]
            for name, target in targets.items():
                over = costs[name] - found.cost_after[name]
                if costs[name] > target * (1 + 1e-9) and over > 1e-9 * costs[name]:
                    expected[name] = max(expected[name], nats / over)
    assert found.prices == pytest.approx(expected)


def test_a_budget_that_binds_nothing_has_no_price():
    choices, cost = network(3)
    full = cost(whole(choices))
    prices = allocate(choices, cost, {"latency": 0.6 * full["latency"], "energy": 2 * full["energy"]}).prices
    assert prices["energy"] == 0 < prices["latency"]
