"""Where the time goes."""

from __future__ import annotations

import itertools

from edgelean.stopwatch import Stopwatch


def test_an_inner_phase_pauses_the_outer_one_and_all_add_up():
    ticks = itertools.count()
    watch = Stopwatch(lambda: float(next(ticks)))
    with watch.phase("training"), watch.phase("control"):
        pass
    seconds = watch.seconds()
    assert seconds == {"other": 2.0, "training": 2.0, "control": 1.0}
