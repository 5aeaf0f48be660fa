"""Scores: predicted loss in nats."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import Recurrent, make

from edgelean.control import rank_correlation
from edgelean.recipes._digits_data import digits_split
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.plan import make_plan
from edgelean.shrink.scores.energy import Energy


def observe(scores, model, x, y, steps=1):
    """Run training steps without an optimizer: the moments come from forward and backward alone."""
    scores.active = True
    model.train()
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
    scores.active = False


@pytest.fixture
def trained():
    """A small network on real digits, trained for a moment."""
    (x, y), _, _ = digits_split()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_price_is_half_the_variance_times_the_fisher_information(trained):
    model, x, y = trained
    axes = dissect(model, (x[:4],)).axes
    scores = Energy()
    scores.watch(model, axes)
    observe(scores, model, x, y)
    hidden = torch.relu(model[1](x.flatten(1))).detach().requires_grad_()
    losses = nn.functional.cross_entropy(model[3](hidden), y, reduction="none")
    per_sample = torch.autograd.grad(losses.sum(), hidden)[0]
    expected = 0.5 * hidden.var(0, unbiased=False) * per_sample.square().mean(0)
    assert scores.unit_prices(axes["1"], model).float() == pytest.approx(expected.detach(), rel=1e-3)


def test_price_orders_units_like_the_loss_that_their_removal_costs(trained):
    model, x, y = trained
    anatomy = dissect(model, (x[:4],))
    scores = Energy()
    scores.watch(model, anatomy.axes)
    observe(scores, model, x, y)
    prices = scores.unit_prices(anatomy.axes["1"]).tolist()
    mean = torch.relu(model[1](x.flatten(1))).mean(0)
    observed = []
    for unit in range(32):
        plan = make_plan(anatomy, {"1": 31}, {"1": [unit]}, 0.0)
        masked = law.masked(model, plan)
        # The price is that of the centred activation: the mean goes into the next bias.
        masked["3.bias"] = masked["3.bias"] + model[3].weight[:, unit].detach() * mean[unit].detach()
        observed.append(float(nn.functional.cross_entropy(torch.func.functional_call(model, masked, (x,)), y)))
    assert rank_correlation(prices, observed) > 0.8


def test_units_go_from_the_cheapest_and_prices_add_up():
    model, example = make("residual")
    axes = dissect(model, example).axes
    scores = Energy()
    scores.watch(model, axes)
    observe(scores, model, torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,)))
    order, running = scores.removal_prices(axes["blocks.2.conv1"], model)
    units = scores.unit_prices(axes["blocks.2.conv1"])
    assert sorted(order) == list(range(16))
    assert units[list(order)].tolist() == sorted(units.tolist())
    assert running[0] == 0
    assert running[-1] == pytest.approx(float(units.sum()))


def test_states_are_priced_by_the_energy_that_truncation_discards():
    model = Recurrent()
    axes = dissect(model, (torch.randn(2, 32, 1),)).axes
    scores = Energy()
    scores.watch(model, axes)
    observe(scores, model, torch.randn(8, 32, 1), torch.randint(0, 5, (8,)))
    _, running = scores.removal_prices(axes["block.lru.states"], model)
    assert len(running) == 17
    assert running[0] == 0
    assert list(running) == sorted(running)
    assert running[-1] > 0


def test_collecting_scores_changes_neither_outputs_nor_gradients():
    model, example = make("residual")
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    observe(Energy(), model, x, y)
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    scores = Energy()
    scores.watch(model, dissect(model, example).axes)
    observe(scores, model, x, y)
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, model.parameters(), strict=True))
    scores.release()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_moments_of_units_that_stay_survive_a_cut():
    model, example = make("residual")
    anatomy = dissect(model, example)
    axis = anatomy.axes["blocks.2.conv1"]
    scores = Energy()
    scores.watch(model, anatomy.axes)
    observe(scores, model, torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,)))
    before = scores.unit_prices(axis)
    order = [2, 5, *(i for i in range(16) if i not in (2, 5))]
    scores.forget(make_plan(anatomy, {axis.name: 14}, {axis.name: order}, 0.0), anatomy.axes)
    left = [i for i in range(16) if i not in (2, 5)]
    assert scores.flows["blocks.2.conv2"].fisher.shape == (14,)
    flow = scores.flows["blocks.2.conv2"]
    assert torch.allclose(0.5 * (flow.variance() * flow.fisher).double(), before[left])
