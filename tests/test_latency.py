"""Percentiles, intervals and verdicts against the exact binomial distribution; the measuring loop on fake clocks."""

import itertools
import random
from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, betaincc, betaln
from scipy.stats import binom

from edgelean.target import latency as latency_module
from edgelean.target.latency import (
    Patience,
    Timing,
    disagreement,
    percentile_interval,
    pooled,
    time_calls,
    verdict,
)

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


def words_of(count, over, percentile):
    return verdict([2.0] * over + [0.5] * (count - over), 1.0, percentile)


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("count", [1, 20, 333, 4000])
def test_verdict_is_the_bet_of_a_gambler_who_has_won_a_hundred_times_the_stake(count, percentile):
    allowed = 1 - percentile / 100
    for over in sorted({0, 1, count // 20, count // 10, count // 2, count - 1, count}):
        # The likelihood ratio to ``allowed``, integrated over all smaller (all larger) shares over the limit.
        scale = betaln(over + 1, count - over + 1) - over * log(allowed) - (count - over) * log(1 - allowed)
        with np.errstate(divide="ignore"):
            rarer = scale + np.log(betainc(over + 1, count - over + 1, allowed)) - log(allowed)
            oftener = scale + np.log(betaincc(over + 1, count - over + 1, allowed)) - log(1 - allowed)
        expected = "met" if rarer >= log(100) else "not met" if oftener >= log(100) else "undecided"
        assert words_of(count, over, percentile) == expected


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("wrong", ["met", "not met"])
def test_verdict_that_is_looked_at_after_every_call_is_wrong_in_one_of_a_hundred_models(percentile, wrong):
    """The exact chance that a model just beyond (or just within) its limit is ever called met (or not met)."""
    share = 1 - percentile / 100 if wrong == "met" else percentile / 100  # of the calls that speak against the verdict
    alive = np.array([1.0])  # the chance of each number of such calls, with no wrong verdict so far
    caught, least = 0.0, 0
    for count in range(1, 801):
        alive = np.append(alive, 0.0) * (1 - share) + np.insert(alive, 0, 0.0) * share
        while words_of(count, least if wrong == "met" else count - least, percentile) == wrong:
            caught += alive[least]
            alive[least] = 0.0
            least += 1
    assert 0.0005 < caught <= 0.01


@pytest.mark.parametrize("share", [0.35, 0.65])
def test_verdict_on_a_model_clearly_beside_its_limit_comes_and_is_right(share):
    outcomes = binom.ppf(np.linspace(0.01, 0.99, 25), 400, share)
    right = "met" if share < 0.5 else "not met"
    assert {words_of(400, int(over), 50) for over in outcomes} == {right}


@pytest.mark.parametrize(("percentile", "least"), [(50, 9), (90, 62), (99, 644)])
def test_verdict_needs_some_calls_before_it_is_met(percentile, least):
    assert words_of(least - 1, 0, percentile) == "undecided"
    assert words_of(least, 0, percentile) == "met"


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from(PERCENTILES))
def test_verdict_does_not_get_worse_with_fewer_calls_over_the_limit(count, over, percentile):
    order = ["met", "undecided", "not met"]
    over = min(over, count)
    fewer = words_of(count, max(over - 1, 0), percentile)
    assert order.index(fewer) <= order.index(words_of(count, over, percentile))


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


def test_time_that_the_clock_itself_takes_is_in_no_sample():
    machine = Machine(itertools.repeat(0.0005))

    def slow_clock():
        machine.now_s += 1e-5
        return machine.now_s

    timing = time_calls(machine.call, 50, Patience(), slow_clock)
    assert timing.samples_ms == pytest.approx([0.5] * len(timing.samples_ms))


def noisy_machine(seed):
    noise = random.Random(seed)
    return Machine(0.001 * noise.lognormvariate(0, 0.2) for _ in itertools.count())


def test_known_limit_lets_the_loop_go_on_until_there_is_a_verdict_or_the_time_is_up():
    free = Patience(least_s=0.02, half_width=0.5)
    near, beyond = 1.03, 1.6
    without = time_calls((machine := noisy_machine(1)).call, 50, free, machine.clock)
    assert verdict(without.samples_ms, near, 50) == "undecided"
    longer = time_calls((machine := noisy_machine(1)).call, 50, replace(free, limit_ms=near), machine.clock)
    assert verdict(longer.samples_ms, near, 50) == "met"
    clear = time_calls((machine := noisy_machine(1)).call, 50, replace(free, limit_ms=beyond), machine.clock)
    assert len(clear.samples_ms) == len(without.samples_ms)
    hopeless = time_calls((machine := noisy_machine(1)).call, 50, replace(free, limit_ms=1.0), machine.clock)
    assert sum(hopeless.samples_ms) / 1e3 >= free.cap_s


def test_interval_that_ended_the_loop_still_covers_the_truth():
    """When to stop depends on the width alone, so the coverage hardly suffers from it."""
    covered = 0
    for seed in range(300):
        machine = noisy_machine(seed)
        interval = time_calls(machine.call, 50, Patience(warm_up_s=0.01, least_s=0.02), machine.clock).interval
        covered += interval.low <= 1.0 <= interval.high
    assert covered >= 0.93 * 300


def timing_of(*samples):
    return Timing(samples, percentile_interval(samples, 50), narrow=True)


@given(
    st.lists(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60), min_size=1, max_size=6),
    st.sampled_from(PERCENTILES),
)
def test_interval_of_all_repeats_holds_the_percentile_of_each(repeats, percentile):
    timings = [timing_of(*samples) for samples in repeats]
    together = pooled(timings, percentile)
    everything = percentile_interval([sample for samples in repeats for sample in samples], percentile)
    assert together.value == everything.value
    each = [percentile_interval(samples, percentile).value for samples in repeats]
    assert together.low == min(everything.low, *each)
    assert together.high == max(everything.high, *each)


def test_repeats_disagree_by_how_far_the_median_of_one_is_off_that_of_all():
    assert disagreement([timing_of(1.0, 1.0, 1.0)]) == 0.0
    assert disagreement([timing_of(*[1.0] * 5), timing_of(*[1.0] * 5), timing_of(*[1.2] * 5)]) == pytest.approx(0.2)
    assert disagreement([timing_of(*[1.0] * 5), timing_of(*[0.9] * 4)]) == pytest.approx(0.1)
