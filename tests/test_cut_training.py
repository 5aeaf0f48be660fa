"""Training goes on after a cut as if nothing had happened: parameters, gradients, precision, compiled code."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from cut_cases import PLAN, difference, loss_of, mask, network, removing, train, train_masked, twins
from torch import nn
from torch.nn.utils import parametrizations

from edgelean.errors import InputError, LawError
from edgelean.shrink import law
from edgelean.shrink.cut import apply, cloned, put_back, saved, tensors_of
from edgelean.shrink.followers import named_tensors
from edgelean.shrink.plan import Plan, Removal
from edgelean.shrink.wrappers import unwrapped

# -- parameters --------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is that of the head as well."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(3, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.embed((x[:, 0] > 0).long()))))


@pytest.mark.parametrize("names", [("embed.weight",), ("head.weight",), ("embed.weight", "head.weight")])
def test_shared_parameters_stay_shared_under_whatever_name_they_are_cut(names):
    torch.manual_seed(0)
    model = Tied().double()
    gone = (0, 6)
    slots = [(name, 1) for name in names] + [("mix.weight", 0), ("mix.weight", 1), ("mix.bias", 0)]
    plan = Plan((), tuple(Removal(name, dim, gone) for name, dim in slots), {}, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, [optimizer], range(3))
    twin, its_optimizer = twins(model, optimizer)
    apply(model, plan, optimizer)
    assert model.head.weight is model.embed.weight
    assert model.head.weight.shape == (3, 6)
    train(model, [optimizer], range(3, 6))
    train_masked(twin, [its_optimizer], plan, range(3, 6))
    assert difference(model, twin, plan) < 1e-12


def test_frozen_parameters_stay_frozen_and_every_group_and_optimizer_goes_on():
    model = network()
    model[2].weight.requires_grad_(False)
    decayed, plain = [model[0].weight], [model[0].bias, model[4].weight]
    first = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.3}, {"params": plain, "lr": 0.03}], lr=0.01)
    second = torch.optim.SGD([model[2].bias], lr=0.1, momentum=0.9)  # the bias of the last layer is in none
    train(model, [first, second], range(3))
    twin, *theirs = twins(model, first, second)
    model.zero_grad()
    apply(model, PLAN, first, second)
    assert not model[2].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    train(model, [first, second], range(3, 7))
    train_masked(twin, theirs, PLAN, range(3, 7))
    assert model[2].weight.grad is None
    assert first.param_groups[0]["weight_decay"] == 0.3
    assert difference(model, twin, PLAN) < 1e-12


def test_schedules_and_step_counts_do_not_notice_a_cut():
    rates = []
    for plan in (None, PLAN):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
        rates.append([])
        for step in range(12):
            train(model, [optimizer], [step])
            schedule.step()
            rates[-1].append((schedule.get_last_lr(), float(optimizer.state[model[0].weight]["step"])))
            if plan is not None and step == 5:
                apply(model, plan, optimizer)
    assert rates[0] == rates[1]


def test_gradients_of_one_micro_batch_are_kept_when_a_cut_comes_before_the_next():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin, its_optimizer = twins(model, optimizer)
    for each in (model, twin):
        loss_of(each, 0).backward()
    apply(model, PLAN, optimizer)
    mask(twin, [], PLAN, gradients=False)
    for each in (model, twin):
        loss_of(each, 1).backward()
    mask(twin, [], PLAN, gradients=True)
    optimizer.step()
    its_optimizer.step()
    assert difference(model, twin, PLAN) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128])
def test_a_graph_that_is_still_alive_does_not_stop_the_next_backward(dtype):
    model = nn.Sequential(nn.Linear(6, 10, dtype=dtype), nn.Tanh(), nn.Linear(10, 3, dtype=dtype))
    x = torch.randn(4, 6).to(dtype)
    alive = [model(x).abs().mean()]
    alive[0].backward()
    for units in ((1,), (2,)):
        apply(model, removing({0: units}))
        alive.append(model(x).abs().mean())
        alive[-1].backward()
    assert model[0].weight.grad.shape == (8, 6)
    assert model[0].weight.grad.dtype == dtype


def test_hooks_on_parameters_and_optimizers_survive():
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.register_hook(lambda gradient: seen.append(("before", gradient.shape)))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.grad.shape)))
    optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    alive = loss_of(model, 0)
    alive.backward()
    apply(model, PLAN, optimizer)
    seen.clear()
    train(model, [optimizer], [1])
    assert seen == [("before", (7, 6)), ("after", (7, 6)), "step"]


def test_memory_format_is_kept_in_parameters_gradients_and_moments():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)).mean().backward()
    optimizer.step()
    apply(model, removing({0: (1, 3)}), optimizer)
    weight = model[2].weight
    for tensor in (weight, weight.grad, optimizer.state[weight]["exp_avg"]):
        assert tensor.shape == (4, 6, 3, 3)
        assert tensor.is_contiguous(memory_format=torch.channels_last)


# -- parametrizations --------------------------------------------------------------------------------------------------


def old_weight_norm(module):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


NORMS = {"new": (parametrizations.weight_norm, "parametrizations.weight.original"), "old": (old_weight_norm, "weight_")}


def normed(kind):
    """Return a network with weight norms, a plan for it, and the same network with plain weights."""
    make, prefix = NORMS[kind]
    model = network()
    plain = copy.deepcopy(model)
    for layer in (0, 2, 4):
        make(model[layer])
        with torch.no_grad():
            gain = named_tensors(model)[f"{layer}.{prefix}{'0' if kind == 'new' else 'g'}"]
            gain.mul_(torch.rand_like(gain) + 0.5)
            model(torch.zeros(1, 6).double())
            plain[layer].weight.copy_(model[layer].weight)
    renamed = []
    for removal in PLAN.removals:
        layer, _, leaf = removal.tensor.partition(".")
        if leaf == "bias":
            renamed.append(removal)
        else:
            gain, direction = ("0", "1") if kind == "new" else ("g", "v")
            renamed += [Removal(f"{layer}.{prefix}{direction}", removal.dim, removal.indices)]
            renamed += [Removal(f"{layer}.{prefix}{gain}", 0, removal.indices)] if removal.dim == 0 else []
    return model, Plan((), tuple(renamed), {}, 0.0), plain


@pytest.mark.parametrize("kind", NORMS)
def test_a_weight_norm_is_cut_through_its_originals_and_leaves_the_weights_what_they_were(kind):
    model, plan, plain = normed(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, [optimizer], [0])
    x = torch.randn(5, 6).double()
    with torch.no_grad():
        model(x)
        for layer in (0, 2, 4):
            plain[layer].weight.copy_(model[layer].weight)
            plain[layer].bias.copy_(model[layer].bias)
    on_paper = law.outputs(model, law.masked(model, plan), (x,))
    expected = law.outputs(plain, law.masked(plain, PLAN), (x,))
    apply(model, plan, optimizer)
    assert model[2].weight.shape == (6, 7)
    assert law.deviation(expected, [model(x).detach()]) < 1e-12
    assert law.deviation(expected, on_paper) < 1e-12
    start = loss_of(model, 0).item()
    train(model, [optimizer], [0] * 5)
    assert loss_of(model, 0) < start


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (nn.utils.spectral_norm, "weight_orig"),
        (parametrizations.orthogonal, "parametrizations.weight.original"),
    ],
)
def test_a_weight_that_depends_on_all_of_its_matrix_is_refused_by_name(make, name):
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), make(nn.Linear(6, 6)))
    before = cloned(tensors_of(model))
    removals = (Removal("0.weight", 0, (1,)), Removal("0.bias", 0, (1,)), Removal(f"2.{name}", 1, (1,)))
    with pytest.raises(LawError, match=r"2\.weight has a (spectral_norm|orthogonal)"):
        apply(model, Plan((), removals, {}, 0.0))
    assert all(torch.equal(before[key], tensor) for key, tensor in tensors_of(model).items())


# -- precision ---------------------------------------------------------------------------------------------------------


def test_a_gradient_scaler_goes_on_with_its_bookkeeping():
    scales = []
    for plan in (None, PLAN):
        model = network().float()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        scales.append([])
        for step in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(8, 6)).float().square().mean()
            scaler.scale(loss).backward()
            if step == 6:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            if plan is not None and step == 4:
                apply(model, plan, optimizer)  # even between unscaling and the step
            before = model[4].weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, model[4].weight) == (step == 6)
            scales[-1].append(scaler.get_scale())
    assert scales[0] == scales[1]
    assert len(set(scales[0])) > 2


def test_a_cut_inside_autocast_leaves_no_cast_weight_behind():
    model = network().float()
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).sum().backward()
        apply(model, PLAN)
        inside = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inside, model(x))


def test_a_bfloat16_model_with_moments_in_single_precision_is_cut_and_taken_back_bit_for_bit():
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.randn(parameter.shape), "scale": torch.tensor(0.1)}
    whole, contents = saved(optimizer), saved(model)
    apply(model, PLAN, optimizer)
    entry = optimizer.state[model[2].weight]
    assert entry["momentum_buffer"].shape == model[2].weight.shape == (6, 7)
    assert entry["momentum_buffer"].dtype == torch.float32
    put_back(model, contents)
    put_back(optimizer, whole)
    for index, parameter in enumerate(model.parameters()):
        for key, value in optimizer.state[parameter].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, whole.state[index][key])


# -- wrapped models ----------------------------------------------------------------------------------------------------


class Chain(nn.Sequential):
    """Like its base, whose forward torch.compile leaves alone when it is called in place."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it itself
@pytest.mark.parametrize(("place", "cuts"), [("around", 10), ("in place", 2), ("inside", 2)])
def test_compiled_code_is_compiled_anew_after_every_cut_and_computes_the_right_thing(place, cuts):
    """Ten cuts, because torch gives up on a function after eight sets of shapes."""
    from torch._dynamo.utils import counters

    model = compiled = Chain(*network((6, 40, 8, 3)))
    plain = copy.deepcopy(model)
    if place == "around":
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    elif place == "in place":
        model.compile(backend="eager", fullgraph=True)
    else:
        model[2] = torch.compile(model[2], backend="eager")
    optimizer, its_optimizer = (torch.optim.Adam(each.parameters(), lr=0.01) for each in (model, plain))
    for cut in range(cuts):
        train(compiled, [optimizer], [cut])
        train(plain, [its_optimizer], [cut])
        plan = removing({0: (cut,)})
        apply(plain, plan, its_optimizer)
        if place == "inside":
            plan = Plan.from_json(json.loads(json.dumps(plan.to_json()).replace('"2.', '"2._orig_mod.')))
        notes = apply(compiled, plan, optimizer).notes
        assert any("torch.compile compiles the model anew" in note for note in notes)
        counters.clear()
        compiled(torch.randn(4, 6).double())
        assert counters["stats"]["unique_graphs"] == 1
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-9
    assert unwrapped(compiled) is model


def test_a_model_that_is_not_compiled_says_nothing():
    assert apply(network(), PLAN).notes == ()


class FullyShardedDataParallel(nn.Module):
    """Stands for the real one, which wants several processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrapper", [nn.DataParallel, FullyShardedDataParallel])
def test_wrappers_that_hold_no_whole_parameters_are_refused_by_name(wrapper):
    with pytest.raises(InputError, match=f"{wrapper.__name__} cannot be cut: .*use DistributedDataParallel"):
        apply(wrapper(network()), PLAN)


def test_parameters_spread_over_processes_are_refused():
    model = network()
    model[0].weight.placements = ()  # what a DTensor has
    with pytest.raises(InputError, match="DTensor"):
        apply(model, PLAN)
