"""Residual blocks go as a whole: cut = the branch at zero, and nothing of them is left anywhere."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from deep_networks import DEEP, ReadElsewhere, Residual, cnn, encoder, make_deep
from torch import nn
from torch.optim.swa_utils import AveragedModel

from edgelean.control import Choice, allocate
from edgelean.errors import InputError
from edgelean.exporter.onnx import export_onnx
from edgelean.nn.attention import freed
from edgelean.nn.bypass import Bypass, Skip, Zeros
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.bypass import detours_of, modules_of, put_in, take_out
from edgelean.shrink.cut import apply, put_back, saved, tensors_of
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.scores import Scores
from edgelean.shrink.trace import trace
from edgelean.target.onnx_graph import operators_of


def anatomy_of(model, example):
    found = dissect(model, example)
    return prove(model, found, example).applied(found)


def blocks_of(anatomy):
    return [axis.name for axis in anatomy.axes.values() if axis.kind == "blocks"]


def removing(anatomy, blocks, half=False):
    """Return a plan that takes blocks out, and half of every other axis if asked for."""
    keep = {name: -(-axis.size // 2) for name, axis in anatomy.axes.items() if half and axis.kind == "channels"}
    order = {name: range(axis.size) for name, axis in anatomy.axes.items()}
    return make_plan(anatomy, {**keep, **dict.fromkeys(blocks, 0)}, order, 0.0)


def compared(model, example, plan):
    """Cut a model; return how far it is from the graph with the branches at zero, and from the uncut model."""
    expected = law.Reference(model, trace(model, example), example).outputs(plan)
    whole = law.outputs(model, tensors_of(model), example)
    apply(model, plan)
    found = law.outputs(model, tensors_of(model), example)
    return law.check(expected, found), law.deviation(whole, found)


@pytest.fixture(scope="module", params=DEEP)
def case(request):
    """A network, an input, and its anatomy."""
    model, example = make_deep(request.param)
    return request.param, model, example, anatomy_of(model, example)


def test_blocks_are_found(case):
    name, _, _, anatomy = case
    assert blocks_of(anatomy) == DEEP[name][2]


@pytest.mark.parametrize("half", [False, True], ids=["alone", "with channels"])
def test_without_a_block_a_model_computes_what_it_computes_with_the_branch_at_zero(case, half):
    _, model, example, anatomy = case
    for blocks in (blocks_of(anatomy)[:1], blocks_of(anatomy)):
        error, effect = compared(copy.deepcopy(model), example, removing(anatomy, blocks, half))
        assert error < law.TOLERANCE
        assert effect > 1e-3  # the cut did something


def test_costs_without_a_block_are_those_of_the_model_without_it(case):
    _, model, example, anatomy = case
    model, keep = copy.deepcopy(model), {blocks_of(anatomy)[-1]: 0}
    parameters, predicted = anatomy.structure.parameters(keep), anatomy.structure.operators(keep)
    apply(model, removing(anatomy, keep))
    real = dissect(model, example).structure
    assert sizes(predicted) == sizes(real.operators({}))
    assert parameters == real.parameters({})
    assert len(predicted) < len(anatomy.structure.operators({}))


@pytest.mark.parametrize("name", ["resnet", "masked"])
def test_nothing_of_a_block_is_left_in_the_exported_file(name, tmp_path):
    model, example = make_deep(name)
    anatomy = anatomy_of(model, example)
    keep, before = {blocks_of(anatomy)[0]: 0}, exported(model, example, tmp_path)
    predicted, launches = anatomy.structure.operators(keep), len(anatomy.structure.operators({}))
    apply(model, removing(anatomy, keep))
    after = exported(model, example, tmp_path)
    assert len(before) - len(after) >= launches - len(predicted) > 0
    assert sum(o.flops for o in after) == pytest.approx(sum(o.flops for o in predicted))


def exported(model, example, folder):
    return operators_of(export_onnx(model, example, folder / "model.onnx", metadata={}), batch=len(example[0]))


def sizes(operators):
    return sorted((operator.kind, operator.flops, operator.elements) for operator in operators)


def test_blocks_that_are_left_go_later_and_axes_inside_of_those_that_went_are_gone():
    model, example = make_deep("pre_norm")
    found = dissect(model, example)
    proof = prove(model, found, example)
    anatomy = proof.applied(found)
    first, *others = blocks_of(anatomy)
    apply(model, removing(anatomy, [first]))
    left = proof.applied(dissect(model, example))
    assert blocks_of(left) == others
    gone = {name for name in anatomy.axes if name not in left.axes}
    assert gone == {name for name in anatomy.axes if name.startswith("1.layers.0.self_attn")}
    assert first in gone
    assert len(gone) > 1
    error, _ = compared(model, example, removing(left, others))
    assert error < law.TOLERANCE
    assert not list(model[1].layers[0].self_attn.parameters())


def test_a_branch_that_is_read_elsewhere_is_no_block():
    assert dissect(ReadElsewhere(), (torch.randn(2, 8),)).blocks == ()


def test_a_sum_of_two_branches_is_no_block():
    model = cnn(Projected())
    assert dissect(model, (torch.randn(2, 3, 8, 8),)).blocks == ()


class Projected(nn.Module):
    """A shortcut with a projection."""

    def __init__(self):
        super().__init__()
        self.branch, self.shortcut = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def test_a_block_whose_code_calls_its_layers_twice_is_refused_and_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.stem(x)
            x = x + torch.relu(self.again(x))
            return self.head(x + torch.relu(self.again(x)))

    anatomy = anatomy_of(Twice(), (torch.randn(2, 6),))
    assert not blocks_of(anatomy)
    assert sum("called more than once" in refusal.why or "differs" in refusal.why for refusal in anatomy.refused) == 2


def trained(model, optimizer, example, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(*example).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9),
}


def with_followers(name, make):
    model, example = make_deep(name)
    half = len(list(model.parameters())) // 2
    parameters = list(model.parameters())
    optimizer = make([{"params": parameters[:half]}, {"params": parameters[half:], "weight_decay": 0.1}])
    trained(model, optimizer, example)
    return model, example, optimizer, AveragedModel(model)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_of_a_block_leave_the_optimizer_and_the_average(optimizer):
    model, example, optimizer, average = with_followers("resnet", OPTIMIZERS[optimizer])
    anatomy = anatomy_of(model, example)
    before = list(model.parameters())
    apply(model, removing(anatomy, blocks_of(anatomy)[:1]), optimizer, average)
    left = list(model.parameters())
    known = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(left) < len(before)
    assert set(known) == set(left) == set(optimizer.state)
    assert all(parameter.grad is None for parameter in set(before) - set(left))
    assert dict(average.module.named_parameters()).keys() == dict(model.named_parameters()).keys()
    trained(model, optimizer, example)
    average.update_parameters(model)


def test_lbfgs_keeps_what_it_knows_of_the_parameters_that_are_left():
    model, example = make_deep("gated")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-2, max_iter=3)

    def step():
        optimizer.zero_grad()
        loss = model(*example).square().mean()
        loss.backward()
        return loss

    optimizer.step(step)
    anatomy = anatomy_of(model, example)
    apply(model, removing(anatomy, ["attend.out.block"]), optimizer)
    count = sum(parameter.numel() for parameter in optimizer.param_groups[0]["params"])
    (state,) = optimizer.state.values()
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert all(len(direction) == count for direction in state.get("old_dirs", ()))
    optimizer.step(step)


def test_a_block_that_comes_back_is_the_same_objects_with_their_state():
    model, example, optimizer, average = with_followers("pre_norm", OPTIMIZERS["AdamW"])
    anatomy = anatomy_of(model, example)
    modules, groups = modules_of(model), [list(group["params"]) for group in optimizer.param_groups]
    contents = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    moments = {parameter: state["exp_avg"].clone() for parameter, state in optimizer.state.items()}
    kept = [(each, saved(each)) for each in (model, optimizer, average)]
    apply(model, removing(anatomy, blocks_of(anatomy)[:3], half=True), optimizer, average)
    trained(model, optimizer, example)
    for follower, before in kept:
        put_back(follower, before)
    assert all(module is modules[path] for path, module in modules_of(model).items())
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        assert all(mine is earlier for mine, earlier in zip(group["params"], before, strict=True))
    assert all(torch.equal(tensor, contents[name]) for name, tensor in tensors_of(model).items())
    assert all(torch.equal(state["exp_avg"], moments[p]) for p, state in optimizer.state.items())
    assert tensors_of(average.module).keys() == contents.keys()
    trained(model, optimizer, example)


def test_which_modules_went_is_told_by_the_model_and_does_the_same_to_another():
    model, example = make_deep("pre_norm")
    other = freed(copy.deepcopy(model))
    anatomy = anatomy_of(model, example)
    plan = removing(anatomy, blocks_of(anatomy)[1:])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    apply(model, plan)
    gone = take_out(other, detours_of(model))
    assert len(gone) == len(list(make_deep("pre_norm")[0].parameters())) - len(list(model.parameters()))
    found, expected = (law.outputs(each, tensors_of(each), example) for each in (other, model))
    assert law.deviation(expected, found) == 0


def test_a_plan_with_blocks_of_another_model_is_refused():
    model, example = make_deep("gated")
    plan = removing(anatomy_of(model, example), ["down.block"])
    other, its_example = make_deep("resnet")
    with pytest.raises(InputError, match=r"there is no block down\.block"):
        law.Reference(other, trace(other, its_example), its_example).outputs(plan)


def test_bypasses_return_what_the_module_returned_and_know_its_attributes():
    x = torch.randn(2, 3)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = nn.ModuleDict({"attend": attention})
    modules = modules_of(model)
    assert torch.equal(Skip(0)(x), x)
    assert Skip(3)(None, hidden=x)[0] is x
    assert Zeros(2)(x)[1] is None
    assert not Zeros(0)(x).any()
    gone = take_out(model, detours_of_kind(model, "attend"))
    assert len(gone) == len(list(attention.parameters()))
    assert isinstance(model["attend"], Bypass)
    assert model["attend"].batch_first
    assert put_in(model, modules)
    assert model["attend"] is attention


def detours_of_kind(model, path):
    from edgelean.shrink.bypass import Detour

    return [Detour(path, "zeros", 2)]


def observed(model, example, anatomy, loss):
    scores = Scores()
    scores.watch(model, anatomy.axes)
    scores.active = True
    model.train()
    loss(model(*example)).backward()
    scores.release()
    return scores


def one_module():
    """Return a network of which a block is a module of its own, and that module: what it adds is out - in."""
    model = nn.Sequential(nn.Linear(6, 8), Residual(8), nn.Linear(8, 3))
    return model, model[1], lambda size: lambda module, arguments, out: arguments[0] + size * (out - arguments[0])


def modules_in_a_layer():
    """Return a network of which a block is some modules of a layer, and the last of them: it gives what is added."""
    model = nn.Sequential(encoder(norm_first=True, dropout=0.0), nn.Flatten(), nn.Linear(15, 3))
    last = model[0][1].layers[0].dropout2
    return model, last, lambda size: lambda module, arguments, out: size * out


@pytest.mark.parametrize(("make", "shape", "place"), [(one_module, (6, 6), 0), (modules_in_a_layer, (6, 5, 6), 1)])
def test_price_of_a_block_is_the_fisher_form_of_what_it_adds(make, shape, place):
    torch.manual_seed(0)
    model, module, scaled = make()
    x = torch.randn(shape)
    anatomy = anatomy_of(model, (x,))
    scores = observed(model, (x,), anatomy, lambda out: out.square().sum(1).mean())
    _, (stays, price) = scores.removal_prices(anatomy.axes[blocks_of(anatomy)[place]], model)
    # The same sample by sample: the slope of its loss in the size of the branch.
    size = torch.ones((), requires_grad=True)
    module.register_forward_hook(scaled(size))
    losses = model(x).square().sum(1)
    slopes = torch.stack([torch.autograd.grad(loss, size, retain_graph=True)[0] for loss in losses])
    assert stays == 0
    assert price == pytest.approx(0.5 * float(slopes.square().mean()), rel=1e-3)


def test_where_launches_dominate_the_allocator_takes_a_block_and_elsewhere_channels():
    model, example = make_deep("resnet")
    anatomy = anatomy_of(model, example)
    blocks = blocks_of(anatomy)
    choices = [Choice(name, 1, 1, 0, (0.0, 0.01)) for name in blocks]
    for name, axis in anatomy.axes.items():
        if axis.kind == "channels":
            choices.append(Choice(name, axis.size, 1, 1, tuple(0.002 * k for k in range(axis.size + 1))))

    def taken(launch, per_flop):
        def cost(keep):
            operators = anatomy.structure.operators(keep)
            return {"latency": launch * len(operators) + per_flop * sum(o.flops for o in operators)}

        keep = allocate(choices, cost, {"latency": 0.8 * cost({})["latency"]}).keep
        return [name for name in blocks if keep[name] == 0], [
            n for n, k in keep.items() if 0 < k < anatomy.axes[n].size
        ]

    gone, narrower = taken(launch=1.0, per_flop=0.0)
    assert gone
    assert not narrower
    gone, narrower = taken(launch=0.0, per_flop=1.0)
    assert narrower
