"""Percentiles, intervals and verdicts against the exact binomial distribution; the measuring loop on fake clocks."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgelean.target import latency as latency_module
from edgelean.target.latency import Patience, percentile_interval, time_calls, verdict

PERCENTILES = (10.0, 50.0, 90.0, 99.0)


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("count", [5, 30, 31, 400, 5000])
def test_interval_covers_the_true_percentile_as_often_as_it_says(count, percentile):
    ranks = percentile_interval([float(rank) for rank in range(1, count + 1)], percentile)
    if not ranks.closed:
        return
    under = binom(count, percentile / 100)
    # The true percentile lies between two order statistics exactly if so many samples are under it.
    coverage = under.cdf(ranks.high - 1) - under.cdf(ranks.low - 1)
    assert coverage >= 0.95
    assert under.cdf(ranks.high - 2) - under.cdf(ranks.low) < 0.95, "a narrower interval would have done"


@pytest.mark.parametrize(("percentile", "least"), [(50, 6), (90, 36), (99, 368)])
def test_interval_is_closed_only_with_enough_samples(percentile, least):
    assert not percentile_interval(range(least - 1), percentile).closed
    assert percentile_interval(range(least), percentile).closed


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200), st.sampled_from(PERCENTILES), st.randoms())
def test_interval_holds_its_value_and_knows_no_order(samples, percentile, shuffler):
    interval = percentile_interval(samples, percentile)
    assert interval.low <= interval.value <= interval.high
    assert sum(sample <= interval.value for sample in samples) >= percentile / 100 * len(samples) - 1e-9
    shuffled = list(samples)
    shuffler.shuffle(shuffled)
    assert percentile_interval(shuffled, percentile) == interval


@pytest.mark.parametrize(("percentile", "least"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_verdict_needs_as_many_samples_as_the_published_rule_with_one_over_the_limit(percentile, least):
    samples = [2.0] + [0.5] * (least - 1)
    assert verdict(samples, 1.0, percentile) == "met"
    assert verdict(samples[:-1], 1.0, percentile) == "undecided"


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("count", [1, 20, 333, 4000])
def test_verdict_agrees_with_the_exact_distribution(count, percentile):
    over_limit = binom(count, 1 - percentile / 100)
    for over in {0, 1, count // 10, count // 2, count - 1, count}:
        word = verdict([2.0] * over + [0.5] * (count - over), 1.0, percentile)
        chance = 0.01 * (1 + 1e-9)
        too_few, too_many = over_limit.cdf(over) <= chance, over_limit.sf(over - 1) <= chance
        assert word == ("met" if too_few else "not met" if too_many else "undecided")


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("count", [20, 700])
def test_verdict_on_a_model_exactly_at_its_budget_is_wrong_in_one_of_a_hundred(count, percentile):
    over_limit = binom(count, 1 - percentile / 100)
    words = [verdict([2.0] * over + [0.5] * (count - over), 1.0, percentile) for over in range(count + 1)]
    for word in ("met", "not met"):
        assert sum(over_limit.pmf(over) for over in range(count + 1) if words[over] == word) <= 0.01


def test_latency_equal_to_its_limit_is_within_it():
    assert verdict([1.0] * 50, 1.0, 50) == "met"


class Machine:
    """Calls of given durations on a clock of their own."""

    def __init__(self, durations_s):
        self.durations_s, self.now_s, self.calls = iter(durations_s), 0.0, 0

    def call(self):
        self.calls += 1
        self.now_s += next(self.durations_s)

    def clock(self):
        return self.now_s


def test_steady_machine_is_measured_no_longer_than_needed():
    machine = Machine(itertools.repeat(0.002))
    timing = time_calls(machine.call, 50, Patience(), machine.clock)
    assert timing.narrow
    assert timing.interval.value == pytest.approx(2.0)
    assert timing.spread == pytest.approx(0.0, abs=1e-9)
    assert 0.2 <= sum(timing.samples_ms) / 1e3 < 0.3


def test_noisy_machine_ends_at_the_cap_and_shows_it():
    noise = random.Random(4)
    machine = Machine(0.01 * noise.lognormvariate(0, 1) for _ in itertools.count())
    timing = time_calls(machine.call, 90, Patience(), machine.clock)
    assert not timing.narrow
    assert timing.interval.half_width > 0.03
    assert timing.spread > 0.1
    assert 0.8 <= sum(timing.samples_ms) / 1e3 < 1.2


def test_slowest_model_is_still_called_a_few_times():
    machine = Machine(itertools.repeat(7.0))
    timing = time_calls(machine.call, 50, Patience(), machine.clock)
    assert len(timing.samples_ms) == Patience().least_calls


def test_warm_up_goes_on_until_calls_are_steady_and_is_not_counted():
    falling = (0.1 * 0.7**i + 0.001 for i in range(12))
    machine = Machine(itertools.chain(falling, itertools.repeat(0.001)))
    timing = time_calls(machine.call, 99, Patience(), machine.clock)
    assert max(timing.samples_ms) < 5
    assert machine.calls > len(timing.samples_ms)


def test_time_spent_on_looking_at_the_samples_is_in_no_sample(monkeypatch):
    machine = Machine(0.002 if i % 2 else 0.003 for i in itertools.count())

    def slow_look(samples, percentile):
        machine.now_s += 0.05
        return percentile_interval(samples, percentile)

    monkeypatch.setattr(latency_module, "percentile_interval", slow_look)
    timing = time_calls(machine.call, 90, Patience(half_width=-1), machine.clock)
    assert max(timing.samples_ms) == pytest.approx(3.0)


def test_bistable_machine_does_not_warm_up_for_ever():
    machine = Machine(itertools.cycle([0.05, 0.1]))
    timing = time_calls(machine.call, 50, Patience(), machine.clock)
    assert timing.samples_ms
