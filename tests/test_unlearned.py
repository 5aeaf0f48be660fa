"""Nothing is cut from a network that has not learned anything yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgelean import control
from edgelean.control import Guard
from edgelean.profile import ControlSettings
from edgelean.progress import UNLEARNED, Progress


def progress(guard, step):
    """Return what a loop of 1,000 steps remembers whose next event is due at a step."""
    start = {"latency": control.Observed(2.0, 1.9, 2.1, 1.0)}
    state = control.init(ControlSettings(), {"latency": 1.0}, start, 1000)
    return Progress(replace(state, due_at=step), None, guard)


def after(*metrics):
    guard = Guard(tolerance=0.03)
    for metric in metrics:
        guard = guard.seen(metric)
    return guard


@pytest.mark.parametrize("metrics", [(0.10,), (0.10, 0.11), (0.10, 0.08, 0.12)])
def test_a_metric_that_has_not_risen_tells_of_no_learning(metrics):
    assert progress(after(*metrics), step=100).knows_nothing


def test_a_metric_that_rose_tells_of_learning_also_when_it_falls_again():
    assert not progress(after(0.10, 0.30, 0.11), step=100).knows_nothing


def test_without_a_metric_nothing_waits_for_one():
    assert not progress(Guard(0.03), step=100).knows_nothing


def test_a_network_that_knew_everything_before_is_cut_after_a_share_of_the_window():
    begins, ends = (1000 * share for share in ControlSettings().window)
    end = begins + UNLEARNED * (ends - begins)
    assert progress(after(0.99), step=int(end) - 1).knows_nothing
    assert not progress(after(0.99), step=int(end) + 1).knows_nothing
