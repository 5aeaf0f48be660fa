"""Refit: least squares lets the readers do without what went."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.shrink import refit
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import make_plan
from edgelean.shrink.scores import Scores

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


class Redundant(nn.Module):
    """Of its 8 hidden units the last 4 are combinations of the first 4."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        with torch.no_grad():
            mix = torch.randn(4, 4)
            self.hidden.weight[4:] = mix @ self.hidden.weight[:4]
            self.hidden.bias[4:] = mix @ self.hidden.bias[:4] + 0.7

    def forward(self, x):
        return self.head(self.hidden(x))


def observed(model, x):
    anatomy = dissect(model, (x[:4],))
    scores = Scores()
    scores.watch(model, anatomy.axes)
    scores.active = True
    model.train()
    model(x).square().mean().backward()
    scores.release()
    return anatomy, scores


def refitted(model, x, keep, order, predict):
    """Cut and refit a model in evaluation mode; return its outputs before and after."""
    anatomy, scores = observed(model, x)
    model.eval()
    plan = make_plan(anatomy, keep, order, 0.0)
    with torch.no_grad():
        before = model(x)
        found = refit.amounts(model, anatomy, plan, scores.flows, predict)
        apply(model, plan)
        refit.add(model, found, plan)
        return before, model(x)


LAST_FOUR = {"hidden": [4, 5, 6, 7, 0, 1, 2, 3]}


def test_units_that_follow_from_others_cost_nothing_after_a_refit(monkeypatch):
    monkeypatch.setattr(refit, "RIDGE", 1e-9)
    before, after = refitted(Redundant(), X, {"hidden": 4}, LAST_FOUR, refit.by_least_squares)
    assert torch.allclose(before, after, atol=1e-3)


def test_the_mean_alone_keeps_the_mean_of_the_outputs():
    before, after = refitted(Redundant(), X, {"hidden": 4}, LAST_FOUR, refit.by_mean)
    assert torch.allclose(before.mean(0), after.mean(0), atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_least_squares_is_the_best_linear_repair():
    """Compared with a solver on the very outputs."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    hidden = torch.tanh(model[0](X)).detach()
    whole = model[2](hidden).detach()
    kept = torch.cat([hidden[:, 3:], torch.ones(len(X), 1)], 1)
    best = kept @ torch.linalg.lstsq(kept, whole).solution
    order = {"0": range(8)}
    before, after = refitted(model, X, {"0": 5}, order, refit.by_least_squares)
    assert (after - before).square().sum() == pytest.approx(float((best - whole).square().sum()), rel=0.02)


def test_a_convolution_is_refitted_at_every_position_of_its_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = 2 * model[0].weight[:3], 2 * model[0].bias[:3]
    x = torch.randn(64, 2, 6, 6)
    before, after = refitted(model, x, {"0": 3}, {"0": [3, 4, 5, 0, 1, 2]}, refit.by_least_squares)
    without = nn.functional.conv2d(model[0](x), model[1].weight, model[1].bias)
    assert torch.allclose(after, without)
    assert (after - before).norm() < 0.01 * before.norm()


def test_where_batch_norm_follows_its_running_mean_takes_the_mean_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias.add_(3.0)
    for _ in range(200):
        model(X)
    before, after = refitted(model, X, {"0": 5}, {"0": range(8)}, refit.by_mean)
    assert torch.allclose(before.mean(0), after.mean(0), atol=0.05 * float(before.std()))
