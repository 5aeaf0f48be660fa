import math

from hypothesis import given
from hypothesis import strategies as st

from edgelean.control.guard import Guard, recovered

metrics = st.floats(0, 1)


@given(metrics, metrics, st.floats(0, 0.2))
def test_a_metric_has_recovered_when_it_lost_no_more_than_the_tolerance(before, now, tolerance):
    assert recovered(before, now, tolerance) == (now >= before - tolerance)


def test_a_metric_that_is_not_a_number_has_not_recovered():
    assert not recovered(0.5, math.nan, 1.0)
    assert not Guard(0.1).accepts(math.nan)


def test_small_losses_do_not_add_up_unseen():
    guard, metric, kept = Guard(tolerance=0.03).seen(0.95), 0.95, 0
    while guard.accepts(metric - 0.02):
        metric, kept = metric - 0.02, kept + 1
        guard = guard.seen(metric)
    assert kept == 1


@given(st.lists(metrics, min_size=1))
def test_the_guard_remembers_the_best_metric(seen):
    guard = Guard(0.05)
    for metric in [*seen, math.nan]:
        guard = guard.seen(metric)
    assert guard.best == max(seen)


def test_before_any_metric_was_seen_every_number_is_accepted():
    assert Guard(0.03).accepts(0.1)


@given(metrics, st.lists(metrics, min_size=1))
def test_a_metric_climbs_while_it_is_higher_than_ever_since_the_cut(right_after, looks):
    guard, best = Guard(0.05).seen(1.0).after_cut(right_after), right_after
    for metric in looks:
        assert guard.climbs(metric) == (metric > best)
        best = max(best, metric)
        guard = guard.after_cut(best)


def test_nothing_climbs_where_no_cut_waits_or_no_metric_is_known():
    assert not Guard(0.05).seen(0.1).climbs(0.9)
    assert not Guard(0.05).after_cut(math.nan).climbs(0.9)
    assert not Guard(0.05).after_cut(0.2).climbs(math.nan)
