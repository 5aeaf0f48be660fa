"""The law: a cut model computes what the uncut model computes with the removed units masked to zero."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from zoo import ZOO, Recurrent, make

from edgelean.errors import InputError, LawError
from edgelean.nn import LRU
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply, cloned, restore, tensors_of
from edgelean.shrink.plan import Plan, Removal, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.refit import add, amounts
from edgelean.shrink.trace import trace


def random_plan(model, example, share=0.4):
    """Remove a random share of every axis."""
    found = dissect(model, example)
    anatomy = prove(model, found, example).applied(found)
    order = {axis.name: torch.randperm(axis.size).tolist() for axis in anatomy.axes.values()}
    keep = {axis.name: max(1, round((1 - share) * axis.size)) for axis in anatomy.axes.values()}
    return make_plan(anatomy, keep, order, 0.0)


def train_step(model, optimizer, example):
    optimizer.zero_grad()
    loss = model(*example).square().mean()
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", ZOO)
def test_cut_model_computes_what_the_masked_model_computes(name):
    model, example = make(name)
    plan = random_plan(model, example)
    expected = law.Reference(model, trace(model, example), example).outputs(plan)
    whole = law.outputs(model, tensors_of(model), example)
    apply(model, plan)
    found = law.outputs(model, tensors_of(model), example)
    assert law.check(expected, found) < 1e-12
    assert law.deviation(whole, found) > 1e-3  # the cut did something


@pytest.mark.parametrize("name", ZOO)
def test_training_goes_on_with_the_same_parameter_objects(name):
    model, example = make(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = train_step(model, optimizer, example)  # alive during the cut, as in a user's loop
    parameters = list(model.parameters())
    apply(model, random_plan(model, example), optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    before = [parameter.detach().clone() for parameter in parameters]
    train_step(model, optimizer, example)
    assert loss.isfinite()
    changed = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True) if b.grad.abs().max() > 0]
    assert changed
    assert all(changed)


def test_moments_and_gradients_are_cut_like_their_parameters():
    model, example = make("plain_cnn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_step(model, optimizer, example)
    weight = model[4].weight
    whole = {key: value.clone() for key, value in optimizer.state[weight].items()}
    gradient = weight.grad.clone()
    apply(model, Plan((), (Removal("4.weight", 0, (0, 5)), Removal("4.weight", 1, (3,))), {}, 0.0), optimizer)
    rows = [i for i in range(24) if i not in (0, 5)]
    columns = [i for i in range(16) if i != 3]
    assert torch.equal(optimizer.state[weight]["exp_avg"], whole["exp_avg"][rows][:, columns])
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], whole["exp_avg_sq"][rows][:, columns])
    assert torch.equal(weight.grad, gradient[rows][:, columns])
    assert optimizer.state[weight]["step"] == whole["step"]


def test_attributes_of_modules_follow_the_cut():
    model, example = make("separable")
    apply(model, random_plan(model, example))
    for module in (model.expand, model.depthwise, model.squeeze, model.excite, model.project):
        assert module.out_channels == len(module.weight)
        assert module.in_channels == module.weight.shape[1] * module.groups
    assert model.depthwise.groups == model.expand.out_channels == model.excite.out_channels


def test_a_plan_survives_json_and_can_be_replayed():
    model, example = make("residual")
    twin, _ = make("residual")
    plan = random_plan(model, example)
    apply(model, plan)
    apply(twin, Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    assert (
        law.deviation(law.outputs(model, tensors_of(model), example), law.outputs(twin, tensors_of(twin), example)) == 0
    )


def test_a_cut_that_breaks_the_law_is_found():
    model, example = make("mlp")
    plan = random_plan(model, example)
    expected = law.outputs(model, law.masked(model, plan), example)
    wrong = [
        r if (r.tensor, r.dim) != ("2.weight", 1) else Removal(r.tensor, r.dim, tuple(range(len(r.indices))))
        for r in plan.removals
    ]
    apply(model, Plan(plan.cuts, tuple(wrong), {}, 0.0))
    with pytest.raises(LawError, match="differs from the masked model"):
        law.check(expected, law.outputs(model, tensors_of(model), example))


def test_restore_takes_a_cut_back():
    model, example = make("separable")
    before, saved = law.outputs(model, tensors_of(model), example), cloned(tensors_of(model))
    apply(model, random_plan(model, example))
    restore(model, saved)
    assert law.deviation(before, law.outputs(model, tensors_of(model), example)) == 0
    assert model.depthwise.groups == 16


def test_restore_refuses_the_tensors_of_another_model():
    model, _ = make("mlp")
    other, _ = make("dense")
    with pytest.raises(InputError, match="another model"):
        restore(model, tensors_of(other))


def test_truncated_layer_computes_what_its_reduced_system_computes():
    model, example = Recurrent(), (torch.randn(2, 32, 1),)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = train_step(model, optimizer, example)
    layer, read = model.block.layer, torch.randn(4, 32, 8)
    parameters = list(model.parameters())
    plan = Plan((), (), {"block.layer": 6}, 0.0)
    reduction = apply(model, plan, optimizer, read={"block.layer": read}).reductions["block.layer"]
    assert layer.states == len(layer.nu_log) == 6
    assert law.check_states(layer, reduction, read) < 1e-4
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert layer.B_re not in optimizer.state  # another basis: its moments mean nothing any more
    assert model.head.weight in optimizer.state
    train_step(model, optimizer, example)
    assert loss.isfinite()


def test_states_are_balanced_for_what_the_layer_really_reads():
    read = torch.randn(8, 64, 1) * torch.tensor([1.0, 0.5, 0.0, 0.0]) + 0.3  # one direction, and not centred
    errors = []
    for recorded in ({}, {"0": read}):
        torch.manual_seed(3)
        layer = LRU(4, 24)
        before = layer(read)
        apply(nn.Sequential(layer), Plan((), (), {"0": 4}, 0.0), read=recorded)
        errors.append((layer(read) - before).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_a_truncated_layer_that_computes_something_else_is_refused():
    layer = LRU(4, 12)
    reduction = apply(nn.Sequential(layer), Plan((), (), {"0": 6}, 0.0)).reductions["0"]
    with torch.no_grad():
        layer.C_re.mul_(1.1)
    with pytest.raises(LawError, match="differs"):
        law.check_states(layer, reduction, torch.randn(2, 32, 4))


@pytest.mark.parametrize("name", ["mlp", "plain_cnn", "residual"])
def test_units_that_never_change_are_removed_without_any_effect(name):
    """A unit with no variance has no price: its mean goes into the next bias or running mean, and nothing is lost."""
    model, example = make(name)
    anatomy = dissect(model, example)
    axis = {"mlp": "0", "plain_cnn": "4", "residual": "blocks.0.conv1"}[name]
    plan = make_plan(anatomy, {axis: anatomy.axes[axis].size - 3}, {axis: range(3)}, 0.0)
    for tensor, dim in ((r.tensor, r.dim) for r in plan.removals):
        leaf = tensor.rpartition(".")[2]
        if dim == 0 and leaf == "weight":  # constant output: no weights, some bias
            tensors_of(model)[tensor].data[:3] = 0
        if leaf == "bias":
            tensors_of(model)[tensor].data[:3] = torch.tensor([0.7, 1.3, 2.0])
    whole = law.outputs(model, tensors_of(model), example)
    seen = (torch.randn(64, *example[0].shape[1:]),)
    repairs = amounts(model, trace(model, seen), plan, [seen], dict(model.named_parameters()))
    apply(model, plan)
    plain = law.distance(whole, law.outputs(model, tensors_of(model), example))
    add(model, repairs, plan)
    refitted = law.distance(whole, law.outputs(model, tensors_of(model), example))
    # Zero padding: at the border of an image a convolution sees less of the mean than in the middle.
    assert refitted < (1e-5 if name == "mlp" else 0.5 * plain)
    assert plain > 0


def test_a_model_that_holds_on_to_single_precision_is_checked_in_single_precision():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 5)

        def forward(self, x):
            return self.second(torch.relu(self.first(x) @ torch.eye(16)))

    model, example = Single(), (torch.randn(4, 6),)
    plan = Plan((), (Removal("first.weight", 0, (2,)), Removal("first.bias", 0, (2,))), {}, 0.0)
    found = law.outputs(model, law.masked(model, plan), example)
    assert found[0].dtype == torch.float32
    assert law.check(found, [found[0] * (1 + 1e-6)]) > 0
    with pytest.raises(LawError):
        law.check(found, [found[0] * 1.01])
