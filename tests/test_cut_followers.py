"""What follows a cut: averages of the model and other copies of it, and the way back."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from cut_cases import PLAN, difference, loss_of, mask, network, train, twins
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import edgelean
from edgelean import surgery
from edgelean.errors import InputError, LawError
from edgelean.nn import LRU
from edgelean.shrink.cut import apply, cloned, put_back, saved, tensors_of
from edgelean.shrink.plan import Plan, Removal, Scale

IMAGES = Plan(
    (),
    (
        *(Removal(f"{layer}.{leaf}", 0, (1, 5)) for layer in (0, 1) for leaf in ("weight", "bias")),
        *(Removal(f"1.running_{leaf}", 0, (1, 5)) for leaf in ("mean", "var")),
        Removal("3.weight", 1, (1, 5)),
    ),
    {},
    0.0,
)


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 1)).double()


def image_step(model, optimizer, average, number, plan=None):
    torch.manual_seed(number)
    optimizer.zero_grad()
    model(torch.randn(4, 3, 6, 6).double()).square().mean().backward()
    if plan is not None:
        mask(model, [optimizer], plan, gradients=True)
    optimizer.step()
    if plan is not None:
        mask(model, [optimizer], plan, gradients=False)
    average.update_parameters(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"avg_fn": get_ema_avg_fn(0.8)},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.8)},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.8), "use_buffers": True},
        {"multi_avg_fn": get_swa_multi_avg_fn()},
    ],
    ids=["swa", "ema", "multi ema", "with buffers", "multi swa"],
)
def test_an_average_of_the_model_is_cut_along_and_goes_on_exactly(options):
    model = convolutions()
    # A convolution's bias before a batch norm has no gradient but rounding, which Adam would make large.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = AveragedModel(model, **options)
    for number in range(4):
        image_step(model, optimizer, average, number)
    twin, its_optimizer, its_average = twins(model, optimizer, average)
    objects = list(average.parameters())
    apply(model, IMAGES, optimizer, average)
    for each in (twin, its_average.module):
        mask(each, [its_optimizer], IMAGES, gradients=False)
    for number in range(4, 9):
        image_step(model, optimizer, average, number)
        image_step(twin, its_optimizer, its_average, number, IMAGES)
    assert average.module[0].out_channels == 6
    assert all(a is b for a, b in zip(objects, average.parameters(), strict=True))
    assert difference(model, twin, IMAGES) < 1e-12
    assert difference(average.module, its_average.module, IMAGES) < 1e-12
    assert average.n_averaged == 9


def test_a_copy_under_names_of_its_own_wrapper_follows_and_shares_what_it_shared():
    class Distilled(nn.Module):
        def __init__(self, student, teacher):
            super().__init__()
            self.student, self.teacher = student, teacher

    model = network()
    teacher = copy.deepcopy(model)
    teacher[4].weight = model[4].weight
    before = teacher(torch.ones(2, 6).double())
    apply(model, PLAN, Distilled(model, teacher))
    assert teacher[0].weight.shape == model[0].weight.shape == (7, 6)
    assert teacher[4].weight is model[4].weight
    assert teacher(torch.ones(2, 6).double()).shape == before.shape


@pytest.mark.parametrize(
    ("follower", "words"),
    [
        (nn.Linear(3, 3), "a Linear cannot follow the model: it holds no copy"),
        (network((6, 9, 8, 3)), "its 0.weight is .9, 6., the model's is .10, 6."),
    ],
)
def test_what_is_no_copy_is_refused_and_nothing_has_been_changed(follower, words):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, [optimizer], [0])
    before, state = cloned(tensors_of(model)), saved(optimizer).state
    with pytest.raises(InputError, match=words):
        apply(model, PLAN, optimizer, follower)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert all(torch.equal(state[0][key], value) for key, value in saved(optimizer).state[0].items())


@pytest.mark.parametrize(
    "removal",
    [
        Removal("9.weight", 0, (0,)),
        Removal("0.weight", 2, (0,)),
        Removal("0.weight", 0, (10,)),
        Removal("0.bias", 0, tuple(range(10))),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(removal):
    with pytest.raises(InputError, match=r"another model|leave nothing"):
        apply(network(), Plan((), (removal,), {}, 0.0))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.LBFGS])
def test_a_layer_with_another_basis_begins_anew_and_so_do_its_copies(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(LRU(4, 12), nn.Linear(4, 2)), torch.randn(3, 16, 4)
    optimizer, average = kind(model.parameters(), lr=1e-2), AveragedModel(model)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    notes = apply(model, Plan((), (), {"0": 5}, 0.0), optimizer, average).notes
    assert "copies of 0 begin anew" in notes[0]
    mine, other = (layer.system() for layer in (model[0], average.module[0]))
    assert all(torch.equal(getattr(mine, name), getattr(other, name)) for name in ("lam", "B", "C"))
    assert not torch.equal(average.module[0].D, model[0].D)  # the direct path has no states: its average goes on
    assert kind is torch.optim.LBFGS or model[0].D in optimizer.state
    entry = optimizer.state.get(model[0].B_re, {})
    assert bool(entry) == (kind is torch.optim.Adagrad)  # some versions of it make their state only when they are built
    assert all(value.shape in ((), (5, 4)) for value in entry.values())
    optimizer.step(closure)
    average.update_parameters(model)
    assert model[0].B_re.shape == average.module[0].B_re.shape == (5, 4)


# -- taking a cut back -------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=3, lr=0.3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_cut_that_is_taken_back_never_happened(kind):
    def step(model, optimizer, average, number):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            return loss

        optimizer.step(closure)
        average.update_parameters(model)

    results = []
    for cut in (False, True):
        model = network()
        optimizer = OPTIMIZERS[kind](model.parameters())
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        for number in range(4):
            step(model, optimizer, average, number)
        if cut:
            before = [(each, saved(each)) for each in (model, optimizer, average)]
            apply(model, PLAN, optimizer, average)
            for number in range(50, 53):
                step(model, optimizer, average, number)
            for each, contents in before:
                put_back(each, contents)
        for number in range(4, 7):
            step(model, optimizer, average, number)
        results.append([*model.parameters(), *average.parameters(), average.n_averaged])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Attentive(nn.Module):
    """Attention of four heads between two linear layers."""

    def __init__(self):
        super().__init__()
        self.enter, self.attend, self.leave = (
            nn.Linear(6, 16),
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        x = self.enter(x)
        return self.leave(self.attend(x, x, x, need_weights=False)[0])


def test_an_average_loses_heads_with_the_model_and_gets_them_back():
    torch.manual_seed(0)
    model, x = Attentive(), torch.randn(2, 5, 6)
    average = AveragedModel(model)
    whole, before = average(x), saved(average)
    places = tuple(range(4, 12))  # of the second head and the third
    rows = tuple(start + place for start in (0, 16, 32) for place in places)
    removals = (
        Removal("attend.in_proj_weight", 0, rows),
        Removal("attend.in_proj_bias", 0, rows),
        Removal("attend.out_proj.weight", 1, places),
    )
    apply(model, Plan((), removals, {}, 0.0, (Scale("attend", "num_heads", 4, 2),)), average)
    assert average.module.attend.num_heads == model.attend.num_heads == 2
    assert torch.allclose(average(x), model(x), atol=1e-6)
    assert not torch.allclose(average(x), whole, atol=1e-3)
    average.update_parameters(model)
    put_back(average, before)
    assert average.module.attend.num_heads == 4
    assert torch.allclose(average(x), whole, atol=1e-6)


# -- in the loop -------------------------------------------------------------------------------------------------------


def attached(metrics):
    """Train a small model under `edgelean.attach`; return it, its average, and the events."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5))
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=1e-3)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    x = torch.randn(64, 12)
    lean = edgelean.attach(
        model, optimizer, x[:8], "raspberry-pi-5", latency="60%", energy="60%", steps=30,
        validate=lambda: metrics(model), followers=(second, average),
    )  # fmt: skip
    for _ in range(30):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        optimizer.step()
        second.step()
        average.update_parameters(model)
        lean.step()
    return model, average, second, lean.events


def test_attach_cuts_every_follower_along():
    model, average, second, events = attached(lambda model: 1.0)
    cut = [event for event in events if event["event"] == "cut"]
    assert cut
    assert model[2].weight.shape[0] < 512
    assert [p.shape for p in average.parameters()] == [p.shape for p in model.parameters()]
    assert all(second.state[p]["momentum_buffer"].shape == p.shape for p in model[2].parameters())
    assert all(isinstance(event["notes"], (list, tuple)) for event in cut)


def test_a_rollback_in_the_loop_takes_every_follower_back():
    learning = itertools.chain([0.5], itertools.repeat(1.0))
    model, average, second, events = attached(lambda model: next(learning) * (model[2].weight.shape[0] == 512))
    assert "rollback" in {event["event"] for event in events}
    assert model[2].weight.shape == (512, 512)
    assert model[2].out_features == average.module[2].out_features == 512
    assert [p.shape for p in average.parameters()] == [p.shape for p in model.parameters()]
    assert all(second.state[p]["momentum_buffer"].shape == p.shape for p in model[2].parameters())


def test_a_cut_stays_while_the_metric_climbs_however_far_it_has_to():
    looks = itertools.count(1)
    model, *_, events = attached(lambda model: 1.0 if model[2].weight.shape[0] == 512 else 0.001 * next(looks))
    assert "rollback" not in {event["event"] for event in events}
    assert [event["event"] for event in events].count("cut") == 1
    assert model[2].weight.shape[0] < 512


def test_a_cut_that_the_law_refuses_leaves_gradients_as_they_were(monkeypatch):
    def refuse(*_):
        raise LawError("it is broken")

    seen = []
    monkeypatch.setattr(surgery, "_refit", refuse)  # comes after the cut
    hook = nn.Module.zero_grad
    monkeypatch.setattr(nn.Module, "zero_grad", lambda self: (seen.append(self[2].weight.grad), hook(self)))
    *_, events = attached(lambda model: 1.0)
    assert any("left alone" in event.get("reason", "") for event in events)
    assert all(gradient is not None and gradient.shape == (512, 512) for gradient in seen[1:])


def test_attach_refuses_a_follower_that_follows_nothing():
    model = network().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="cannot follow the model"):
        edgelean.attach(model, optimizer, torch.randn(2, 6), "raspberry-pi-5", steps=5, followers=(nn.Linear(2, 2),))
