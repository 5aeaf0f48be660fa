"""The controller and the allocator against simulated plants that are not as the cost model says."""

import json
import math
import random
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgelean.control import (
    Choice,
    ControllerState,
    Observed,
    all_met,
    allocate,
    due,
    init,
    reachable,
    rolled_back,
    step,
)
from edgelean.profile import ControlSettings

AXES, STEP, STEPS = 8, 8, 1000
SETTINGS = ControlSettings()


@dataclass(frozen=True)
class World:
    """A chain of convolutions whose true latency and energy differ from the predicted ones.

    `lie`: the cost of each layer is wrong by a factor of its own, up to this. `offset`: share of the full-size output
    that no cut reduces. `noise`: of a reading, as a share. `drift`: rise of the output over the first quarter.
    """

    seed: int
    share: float
    noise: float = 0.0
    lie: float = 1.0
    offset: float = 0.1
    drift: float = 0.0
    gain: float = 1.0
    quantities: tuple[str, ...] = ("latency", "energy")
    sizes: tuple[int, ...] = field(init=False)
    work: dict = field(init=False)
    true: dict = field(init=False)
    prices: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self):
        rng = random.Random(self.seed)
        layers = range(AXES + 1)
        set_field = object.__setattr__
        set_field(self, "sizes", tuple(STEP * rng.randint(4, 16) for _ in range(AXES)))
        set_field(self, "work", {name: [rng.lognormvariate(0, 0.5) for _ in layers] for name in self.quantities})
        wrong = {name: [self.lie ** rng.uniform(-1, 1) for _ in layers] for name in self.quantities}
        set_field(self, "true", {n: [a * b for a, b in zip(self.work[n], wrong[n], strict=True)] for n in self.work})
        scores = [sorted(rng.lognormvariate(0, 1.5) for _ in range(size)) for size in self.sizes]
        set_field(self, "prices", tuple((0.0, *accumulate(each)) for each in scores))

    @property
    def whole(self):
        return {f"a{i}": size for i, size in enumerate(self.sizes)}

    @property
    def limits(self):
        return {name: self.share * self.output(name, self.whole, STEPS) for name in self.quantities}

    def cost(self, keep):
        return {name: _total(work, keep) for name, work in self.work.items()}

    def output(self, name, keep, when):
        part = _total(self.true[name], keep) / _total(self.true[name], self.whole)
        return self.gain * (part * (1 - self.offset) + self.offset) * (1 + self.drift * min(1, 4 * when / STEPS))

    def used(self, keep):
        """Return the true output of the worst quantity as a share of its budget."""
        return max(self.output(name, keep, STEPS) / limit for name, limit in self.limits.items())

    def choices(self, keep):
        found = []
        for (axis, size), prices in zip(self.whole.items(), self.prices, strict=True):
            gone = size - keep[axis]
            found.append(Choice(axis, keep[axis], STEP, STEP, tuple(price - prices[gone] for price in prices[gone:])))
        return found

    def smallest(self):
        return {choice.axis: choice.levels[-1] for choice in self.choices(self.whole)}

    def read(self, keep, when, rng):
        costs, seen = self.cost(keep), {}
        for name in self.quantities:
            value = self.output(name, keep, when) * max(0.2, 1 + rng.gauss(0, self.noise))
            half = 1.96 * self.noise * value
            seen[name] = Observed(value, value - half, value + half, costs[name])
        return seen


def _total(work, keep):
    widths = [4, *(keep[f"a{i}"] for i in range(AXES)), 10]
    return sum(each * (a * b / 4096 + 0.05) for each, (a, b) in zip(work, pairwise(widths), strict=True))


@dataclass
class Outcome:
    """How a run ended, and what happened on the way."""

    used: float
    met: bool
    cuts: int = 0
    cuts_after_met: int = 0
    cuts_within_budget: int = 0
    feasible: bool = True
    given_up: bool = False


def run(world, accepts=lambda before, after: True):
    """Run a training of `STEPS` steps; a cut that is not accepted is rolled back before the next event."""
    rng = random.Random(world.seed + 1)
    keep, out = world.whole, Outcome(math.inf, met=False)
    state = init(SETTINGS, world.limits, world.read(keep, 0, rng), STEPS)
    ever_met = False
    for when in range(STEPS):
        if not due(when, state):
            continue
        state = ControllerState.from_json(json.loads(json.dumps(state.to_json())))
        demand, state = step(world.read(keep, when, rng), when, state)
        out.met = all_met(demand)
        ever_met |= out.met
        if demand.fraction == 0:
            continue
        allocation = allocate(world.choices(keep), world.cost, demand.targets)
        out.feasible = allocation.feasible
        if not accepts(keep, allocation.keep):
            state = rolled_back(state, when)
        elif allocation.keep != keep:
            out.cuts += 1
            out.cuts_after_met += ever_met
            out.cuts_within_budget += world.used(keep) <= 1
            keep = dict(allocation.keep)
    out.used, out.given_up = world.used(keep), state.given_up
    return out


def worlds(number, **fixed):
    """Return plants with gains, offsets, drifts and budgets of all kinds."""
    for seed in range(number):
        rng = random.Random(seed)
        yield World(
            seed,
            share=rng.choice([0.3, 0.5, 0.7]),
            offset=rng.uniform(0, 0.2),
            gain=math.exp(rng.uniform(math.log(0.3), math.log(3))),
            quantities=("latency", "energy") if seed % 2 else ("latency",),
            **{"drift": 0.03 * rng.random(), **fixed},
        )


@pytest.mark.parametrize("lie", [1.0, 3.0])
def test_without_noise_every_plant_lands_on_its_budget_from_above(lie):
    for world in worlds(30, lie=lie, drift=0.0):
        out = run(world)
        assert out.met, world
        assert 0.85 <= out.used <= 1.0, world
        assert out.cuts <= 10, world
        assert out.cuts_after_met == out.cuts_within_budget == 0, world


@pytest.mark.parametrize(("noise", "lie", "least", "most"), [(0.02, 1.0, 0.9, 1.01), (0.02, 3.0, 0.85, 1.01)])
def test_with_a_little_noise_and_drift_every_plant_lands_on_its_budget(noise, lie, least, most):
    for world in worlds(30, noise=noise, lie=lie):
        out = run(world)
        assert out.met, world
        assert least <= out.used <= most, world
        assert out.cuts <= 10, world
        assert out.cuts_after_met == 0, world


# Derandomised: what noise may do has no sharp bound, and a suite must not fail by chance.
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.3, 0.95),
    noise=st.floats(0, 0.02),
    lie=st.floats(1, 3),
    offset=st.floats(0, 0.3),
    drift=st.floats(0, 0.05),
    gain=st.floats(0.3, 3),
)
def test_plants_of_every_kind_land_on_their_budget(seed, **kind):
    world = World(seed, **kind)
    assume(world.used(world.smallest()) < 0.95)
    out = run(world)
    assert out.met
    assert 0.85 <= out.used <= 1.01
    assert out.cuts <= 10
    assert out.cuts_after_met <= 1


@pytest.mark.parametrize("lie", [1.0, 3.0])
def test_with_much_noise_nearly_all_plants_land_near_their_budget(lie):
    outcomes = [run(world) for world in worlds(30, noise=0.1, lie=lie)]
    assert sum(out.met for out in outcomes) >= 28
    assert sum(0.8 <= out.used <= 1.05 for out in outcomes) >= 28
    assert sum(out.cuts_after_met > 0 for out in outcomes) <= 1
    assert sorted(out.cuts for out in outcomes)[15] <= 8


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("lie", [1.0, 3.0])
def test_what_no_cut_can_reach_is_never_called_met(noise, lie):
    for seed in range(12):
        world = World(seed, share=0.4, offset=0.5, noise=noise, lie=lie)
        assert world.used(world.smallest()) > 1.05
        out = run(world)
        assert not out.met, world
        assert not out.feasible, world


@pytest.mark.parametrize("share", [0.12, 0.95])
def test_very_tight_and_very_loose_budgets_are_met(share):
    for seed in range(15):
        world = World(seed, share=share, offset=0.02)
        if world.used(world.smallest()) < 0.95:
            out = run(world)
            assert out.met, world
            assert 0.85 <= out.used <= 1.0, world


def test_half_of_the_output_out_of_reach_takes_a_few_cuts_more():
    for seed in range(15):
        out = run(World(seed, share=0.7, offset=0.5))
        assert out.met
        assert 0.85 <= out.used <= 1.0
        assert out.cuts <= 10


def test_the_reachable_minimum_is_what_the_smallest_structure_costs():
    world = World(0, share=0.5)
    assert reachable(world.choices(world.whole), world.cost) == world.cost(world.smallest())


def test_a_guard_that_takes_large_cuts_back_gets_there_in_small_ones():
    def mild(before, after):
        return sum(after.values()) >= 0.9 * sum(before.values())

    outcomes = [run(World(seed, share=0.7, offset=0.0), mild) for seed in range(10)]
    assert sum(out.met for out in outcomes) >= 8
    assert all(out.used <= 1 for out in outcomes if out.met)


def test_a_guard_that_takes_every_cut_back_ends_the_cutting():
    out = run(World(0, share=0.5), lambda before, after: False)
    assert out.given_up
    assert not out.met
    assert out.cuts == 0
