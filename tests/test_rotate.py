"""Free bases: found by trial, turned without a change, balanced so that a truncation costs its tail."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from zoo import Attention

from edgelean import surgery
from edgelean.nn.attention import freed
from edgelean.shrink import law, rotate
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.gramians import Balanced, balanced, priced
from edgelean.shrink.plan import make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.recent import Recent
from edgelean.shrink.scores import Scores
from edgelean.shrink.wrappers import Ranks
from edgelean.stopwatch import Stopwatch

HEADS, SHARED, PLACES = 4, 2, 6


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Apart(nn.Module):
    """Projections of their own for queries, keys and values; several heads of queries share one of keys."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(8, HEADS * PLACES), nn.Linear(8, SHARED * PLACES)
        self.value, self.out = nn.Linear(8, SHARED * PLACES), nn.Linear(HEADS * PLACES, 8)

    def forward(self, x):
        q, k, v = (
            part(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, heads in ((self.query, HEADS), (self.key, SHARED), (self.value, SHARED))
        )
        k, v = (part.repeat_interleave(HEADS // SHARED, 1) for part in (k, v))
        mixed = (q @ k.transpose(-1, -2) * 0.4).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class InPlace(nn.Module):
    """The module that holds the projections is given a tensor that it overwrites."""

    def __init__(self):
        super().__init__()
        self.apart = Overwriting()

    def forward(self, x):
        return self.apart(x.clone())


class Overwriting(Apart):
    def forward(self, x):
        out = super().forward(x)
        return x.mul_(0.5).add_(out)


class Caching(nn.Module):
    """The module that holds the projections fills a list, and reads from it what it was filled with before."""

    def __init__(self):
        super().__init__()
        self.apart = Reading()

    def forward(self, x):
        return self.apart(x, Cache())


class Cache:
    def __init__(self):
        self.calls = 0.0


class Reading(Apart):
    def forward(self, x, cache):
        cache.calls += 1.0
        return super().forward(x) / cache.calls


class Transposed(nn.Module):
    """Two linear layers with nothing between them, the second with its weight the other way round."""

    def __init__(self):
        super().__init__()
        self.down, self.weight, self.bias = nn.Linear(8, 5), nn.Parameter(drawn(5, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return (self.down(x) / 2) @ self.weight + self.bias


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def between(*layers):
    """Return something that the model's input and output do not touch, nor a linear layer without a bend."""
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), *layers, nn.Tanh(), nn.Linear(8, 3)).eval()


FREE = {
    "attention": (lambda: between(Apart()), {"2.query": SHARED, "2.value": SHARED}),
    "packed attention": (lambda: between(Packed()), {"2.attention.2": 4}),
    "factors": (lambda: between(Transposed()), {"2": 1}),
    "rotary embedding": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), Attention(), nn.Tanh(), nn.Linear(16, 3)).eval(),
        {},
    ),
    "input changed in place": (lambda: between(InPlace()), {"2.apart.query": SHARED, "2.apart.value": SHARED}),
    "cache handed on": (lambda: between(Caching()), {"2.apart.query": SHARED, "2.apart.value": SHARED}),
    "something between": (lambda: between(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)), {}),
    "a norm between": (lambda: between(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 8)), {}),
}
PROBE = (drawn(3, 5, 8),)


def taken_apart(kind):
    torch.manual_seed(0)
    model = freed(FREE[kind][0]())
    found = dissect(model, PROBE)
    anatomy = prove(model, found, PROBE).applied(found)
    names = [name for name in FREE[kind][1] if name in anatomy.axes]
    return model, anatomy, rotate.bases(model, anatomy, names, PROBE)


@pytest.mark.parametrize("kind", FREE)
def test_what_can_be_turned_is_found_by_trial(kind):
    _, anatomy, bases = taken_apart(kind)
    assert {name for name, axis in anatomy.axes.items() if axis.free} == set(FREE[kind][1])
    assert {name: len(basis) for name, basis in bases.items()} == FREE[kind][1]


def test_trials_run_the_module_that_holds_the_axis_and_not_the_model(monkeypatch):
    runs, outputs = [], law.outputs
    monkeypatch.setattr(law, "outputs", lambda model, *given: (runs.append(type(model)), outputs(model, *given))[1])
    model, _, bases = taken_apart("attention")
    runs.clear()
    again = rotate.bases(model, dissect(model, PROBE), bases, PROBE)
    assert again == bases
    # As it is, once to see each kind of axis called, and once to prove each.
    assert runs.count(nn.Sequential) == 1 + 2 * len(bases) < len(runs)


def random_turns(anatomy, bases):
    turns = {}
    for name, basis in bases.items():
        size = anatomy.axes[name].size
        matrices = [torch.eye(size, dtype=torch.float64) + 0.3 * drawn(size, size, seed=i).double() for i in range(9)]
        turns[name] = [rotate.Turn(pair, m, torch.linalg.inv(m)) for pair, m in zip(basis, matrices, strict=False)]
    return turns


TURNING = ("attention", "packed attention", "factors")


@pytest.mark.parametrize("kind", TURNING)
def test_a_turned_model_computes_what_it_did_and_its_gradients_turn_along(kind):
    model, anatomy, bases = taken_apart(kind)
    model = model.double()
    turns, twin, x = random_turns(anatomy, bases), copy.deepcopy(model), PROBE[0].double()
    changed = rotate.turned(anatomy.axes, turns, dict(model.named_parameters()))
    with torch.no_grad():
        for name, tensor in changed.items():
            dict(twin.named_parameters())[name].copy_(tensor)
    for each in (model, twin):
        each(x).square().sum().backward()
    assert torch.allclose(model(x), twin(x), rtol=1e-9, atol=1e-12)
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {**before, **rotate.turned_gradients(anatomy.axes, turns, before)}
    assert changed.keys() <= expected.keys()
    assert all(torch.allclose(p.grad, expected[name], atol=1e-9) for name, p in twin.named_parameters())


def test_a_truncation_costs_the_tail_and_no_rank_does_better():
    """Two linear layers are one matrix: the best of lower rank is that of its singular values (Eckart and Young)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3 * 8)).eval()
    x = drawn(512, 8) * torch.linspace(0.2, 2, 8)
    anatomy = dissect(model, (x[:4],))
    bases = rotate.bases(model, anatomy, ["0"], (x[:4],))
    found = balanced(model, anatomy, bases, (x,))["0"]
    with torch.no_grad():
        centred = x[-128:].double() - x[-128:].double().mean(0)
        outputs = centred @ model[0].weight.double().T @ model[1].weight.double().T
        best = 0.5 * torch.linalg.svdvals(outputs)[:6].square() / len(outputs)
    assert torch.allclose(torch.tensor(found.values, dtype=torch.float64), best, rtol=0.25)
    truncated = rotate.turned(anatomy.axes, {"0": found.turns}, tensors_of(model))
    first, second = truncated["0.weight"][:3], truncated["1.weight"][:, :3]
    error = 0.5 * float((outputs - centred @ first.T @ second.T).square().sum()) / len(outputs)
    assert float(best[3:].sum()) * (1 - 1e-9) <= error <= 1.1 * float(best[3:].sum())


@pytest.mark.parametrize("kind", TURNING)
def test_a_balanced_model_computes_what_it_did(kind):
    model, anatomy, bases = taken_apart(kind)
    found = balanced(model, anatomy, bases, (drawn(64, 5, 8),))
    assert found.keys() == bases.keys()
    contents = {name: tensor.double() for name, tensor in tensors_of(model).items()}
    changed = rotate.turned(anatomy.axes, {name: each.turns for name, each in found.items()}, contents)
    outputs = [law.outputs(model, each, PROBE) for each in (contents, contents | changed)]
    assert law.deviation(*outputs) < 1e-9
    for each in found.values():
        assert list(each.values) == sorted(each.values, reverse=True)
        assert sum(each.values) <= each.plain * 1.01 * len(each.turns[0].matrix)


def test_balanced_prices_have_the_scale_of_the_scores():
    def axis(plain, *values):
        return Balanced((), plain, values)

    found = {"value": axis(10.0, 3.0, 1.0), "query": axis(20.0, 8.0, 2.0)}
    prices = priced(found, {"value": ((0, 1), (0.0, 0.02, 0.05)), "other": ((0,), (0.0, 7.0))})
    assert prices["value"][0] == (1, 0)
    assert prices["value"][1] == pytest.approx((0.0, 0.005, 0.02))
    assert prices["query"][1] == pytest.approx((0.0, 0.01, 0.05))
    assert priced(found, {"other": ((0,), (0.0, 7.0))}) == {}


def operated(kind):
    """Halve the free axes of a model in training; return it, its twin, its average, and what the operation needs."""
    model, anatomy, _ = taken_apart(kind)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scores, recent = Scores(), Recent()
    scores.watch(model, anatomy.axes)
    recent.watch(model, PROBE)
    scores.active = recent.active = True
    model.train()
    for seed in range(3):
        functional.mse_loss(model(drawn(32, 5, 8, seed=seed)), torch.zeros(32, 5, 3)).backward()
        optimizer.step()
    scores.active = recent.active = False
    bench = SimpleNamespace(model=model, anatomy=anatomy, probe=PROBE, stopwatch=Stopwatch())
    bench.expected = lambda plan: law.outputs(model, law.masked(model, plan), PROBE)
    patient = surgery.Patient(bench, model, (optimizer, average), Ranks(None))
    before = copy.deepcopy(model), copy.deepcopy(average)
    found = surgery.balance(patient, recent.inputs())
    names = [name for name in FREE[kind][1] if name in found]
    keep = {name: anatomy.axes[name].size // 2 for name in names}
    order = {name: tuple(reversed(range(anatomy.axes[name].size))) for name in names}
    plan = make_plan(anatomy, keep, order, 0.0)
    turns = {name: found[name].turns for name in names}
    operation = surgery.operate(patient, plan, scores, surgery.Repair(recent.inputs()), turns)
    return before, (model, average), operation, optimizer, scores


@pytest.mark.parametrize("kind", ["attention", "packed attention"])
def test_a_cut_in_the_balanced_basis_keeps_the_law_and_nearly_the_outputs_in_copies_too(kind):
    before, after, operation, optimizer, _ = operated(kind)
    assert operation.error < 1e-9
    assert any("balanced basis" in note for note in operation.notes)
    x = drawn(16, 5, 8, seed=9)
    for whole, lean in zip(before, after, strict=True):
        with torch.no_grad():
            expected, found = whole.eval()(x), lean.eval()(x)
        assert (found - expected).norm() < 0.25 * (expected - expected.mean((0, 1))).norm()
    assert sum(p.numel() for p in after[0].parameters()) < sum(p.numel() for p in before[0].parameters())
    after[0].train()
    after[0](x).square().mean().backward()
    optimizer.step()


def test_the_optimizer_forgets_what_has_another_basis_and_nothing_else():
    _, (model, _), _, optimizer, scores = operated("attention")
    steps = {name: optimizer.state.get(p, {}).get("step") for name, p in model.named_parameters()}
    turned = {"2.query", "2.key", "2.value"}
    assert {name.rpartition(".")[0] for name, step in steps.items() if step is None} - {"2.out"} == turned
    assert steps["2.out.bias"] == 3
    assert scores.flows["2.out"].mean is None
