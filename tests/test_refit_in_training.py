"""Refit in training: what is left of the training decides whether a cut is refitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgelean
from edgelean.profile import load_profile


def weights_around_cuts(refit_steps, steps=30):
    """Train a small model to its budgets; return its last weight before and after each event that cut it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(64, 12)
    profile = load_profile("raspberry-pi-5")
    profile = profile.model_copy(update={"control": profile.control.model_copy(update={"refit_steps": refit_steps})})
    lean = edgelean.attach(model, optimizer, x[:8], profile, latency="60%", energy="60%", steps=steps)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        optimizer.step()
        before = model[4].weight.detach().clone()
        lean.step()
        if model[4].weight.shape != before.shape:
            found.append((before, model[4].weight.detach().clone()))
    return found


def moved(before, after):
    """Tell whether some weight after a cut is none of those before it."""
    return not torch.isin(after, before).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refit_steps", "expected"), [(10, False), (load_profile("raspberry-pi-5").control.refit_steps, True)]
)
def test_cuts_are_refitted_only_when_few_enough_steps_follow(refit_steps, expected):
    """By default those of a training as short as this are; else means are put right, and no weight."""
    cuts = weights_around_cuts(refit_steps)
    assert cuts
    assert {moved(before, after) for before, after in cuts} == {expected}
