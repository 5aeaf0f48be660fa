"""A run that is interrupted after its first cut, and what has to come of it."""

from __future__ import annotations

import pytest
import torch

import edgelean
from edgelean import pipeline


def assert_goes_on_to_the_same_model(fit, whole, events, folder):
    """Interrupt a run after its first cut, resume it, and compare it with one that was left alone.

    Parameters
    ----------
    fit
        Starts the run in a folder, with a function that takes its events.
    whole, events
        Folder and events of the run that was left alone.
    folder
        Of the run that is interrupted.
    """
    first = next(event["step"] for event in events if event["event"] == "cut")

    def stop(event):
        if event["event"] == "epoch" and event["step"] > first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(folder, on_event=stop)
    pipeline.resume(folder)
    left_alone, resumed = (edgelean.load(each).state_dict() for each in (whole, folder))
    assert left_alone.keys() == resumed.keys()
    assert all(torch.equal(left_alone[name], resumed[name]) for name in left_alone)
