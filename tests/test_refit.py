"""Refit: what is left of a network does, as nearly as least squares can, what the whole one did."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgelean import surgery
from edgelean.shrink import law, refit
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import Plan, Removal, make_plan
from edgelean.shrink.reference import in_batches
from edgelean.shrink.trace import trace
from edgelean.shrink.wrappers import Ranks

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repaired(model, plan, x, trained=None, ridges=(1e-9,)):
    """Return a copy of a model that is cut and refitted."""
    model.eval()
    names = dict(model.named_parameters()) if trained is None else trained
    found = refit.amounts(model, trace(model, (x,)), plan, [(x,)], names, ridges)
    lean = copy.deepcopy(model)
    apply(lean, plan)
    refit.add(lean, found, plan)
    return lean


def difference(model, lean, x):
    """Return the root mean square difference of the outputs, relative to the outputs."""
    with torch.no_grad():
        before, after = model.eval()(x), lean.eval()(x)
    return float((after - before).norm() / before.norm())


def halved(model, x, *names):
    anatomy = dissect(model.eval(), (x[:4],))
    keep = {name: anatomy.axes[name].size // 2 for name in names or anatomy.axes}
    order = {name: range(axis.size - 1, -1, -1) for name, axis in anatomy.axes.items()}
    return make_plan(anatomy, keep, order, 0.0)


class Redundant(nn.Module):
    """Of its 8 hidden units the last 4 are combinations of the first 4; something reads them."""

    def __init__(self, reader):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.reader = nn.Linear(6, 8), reader
        with torch.no_grad():
            mix = torch.randn(4, 4)
            self.hidden.weight[4:] = mix @ self.hidden.weight[:4]
            self.hidden.bias[4:] = mix @ self.hidden.bias[:4] + 0.7

    def forward(self, x):
        return self.reader(self.hidden(x))


class Transposed(nn.Module):
    """A linear layer with its weight the other way round, as some language models have it."""

    def __init__(self, features):
        super().__init__()
        self.weight, self.bias = nn.Parameter(drawn(features, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Sliced(nn.Module):
    """Two products with slices of one parameter, called as functions."""

    def __init__(self, features):
        super().__init__()
        self.both, self.bias = nn.Parameter(drawn(6, features)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        (first, second), (one, two) = self.both.chunk(2), self.bias.split(3)
        return functional.linear(x, first, one).tanh() + functional.linear(x, second, two)


class Signal(nn.Module):
    """Features as the channels of a short signal, read by a convolution."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        return self.convolution(x.unsqueeze(-1).expand(-1, -1, 5)).mean(-1)


class Pictures(nn.Module):
    """Features as the channels of a picture."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        return self.convolution(x[:, :, None, None].expand(-1, -1, 3, 4)).mean((2, 3))


READERS = {
    "a linear layer": lambda: nn.Linear(8, 3),
    "a product without a bias, behind it a batch norm": lambda: nn.Sequential(
        nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3)
    ),
    "a transposed weight": lambda: Transposed(8),
    "slices of a parameter": lambda: Sliced(8),
    "a signal's convolution": lambda: Signal(nn.Conv1d(8, 3, 3)),
    "a picture's convolution": lambda: Pictures(nn.Conv2d(8, 3, (1, 3), padding="same")),
}


@pytest.mark.parametrize("reader", READERS)
def test_units_that_follow_from_others_cost_nothing_whatever_reads_them(reader):
    model = Redundant(READERS[reader]())
    lean = repaired(model, halved(model, X, "hidden"), X)
    assert lean.hidden.weight.shape == (4, 6)
    assert difference(model, lean, X) < 1e-4


def test_the_projections_of_an_attention_are_refitted():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            x = x.unflatten(0, (-1, 4))
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    model = Redundant(Attending())
    plan = halved(model, X, "hidden")
    assert repaired(model, plan, X).reader.attention.in_proj_weight.shape == (24, 4)
    assert difference(model, repaired(model, plan, X), X) < 1e-4


def test_a_grouped_convolution_is_refitted_group_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten())
    with torch.no_grad():  # the last two of each group of four are twice the first two
        for start in (0, 4):
            model[0].weight[start + 2 : start + 4] = 2 * model[0].weight[start : start + 2]
            model[0].bias[start + 2 : start + 4] = 2 * model[0].bias[start : start + 2] + 1
    x = drawn(64, 2, 6, 6)
    assert difference(model, repaired(model, halved(model, x, "0"), x), x) < 1e-4


def test_least_squares_is_the_best_linear_repair():
    """Compared with a solver on the very outputs."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    hidden = torch.tanh(model[0](X)).detach()
    whole, kept = model[2](hidden).detach(), torch.cat([hidden[:, :4], torch.ones(len(X), 1)], 1)
    best = float((kept @ torch.linalg.lstsq(kept, whole).solution - whole).norm() / whole.norm())
    assert difference(model, repaired(model, halved(model, X), X), X) == pytest.approx(best, rel=0.05)


def test_a_convolution_is_fitted_with_its_whole_kernel():
    """Compared with a solver on its patches; what each position alone could tell is not enough."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    x = drawn(64, 1, 9, 9)
    hidden = torch.relu(model[0](x)).detach()
    whole = model[2](hidden).detach().movedim(1, -1).flatten(0, 2)
    patches = functional.unfold(hidden[:, :4], 3).movedim(1, -1).flatten(0, 1)
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    best = float((patches @ torch.linalg.lstsq(patches, whole).solution - whole).norm() / whole.norm())
    assert difference(model, repaired(model, halved(model, x), x), x) == pytest.approx(best, rel=0.05)


def test_later_layers_make_up_for_what_earlier_ones_could_not():
    """The last layer is the best for what the cut layers before it really give, of which all outputs are left."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    lean = repaired(model, halved(model, X, "0"), X)
    with torch.no_grad():
        hidden = torch.cat([lean[:4](X), torch.ones(len(X), 1)], 1)
        whole = model(X)
    best = float((hidden @ torch.linalg.lstsq(hidden, whole).solution - whole).norm() / whole.norm())
    assert difference(model, lean, X) == pytest.approx(best, rel=0.1)


def test_a_batch_norm_takes_over_the_statistics_that_it_sees_now():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4, momentum=None), nn.ReLU(), nn.Linear(4, 2))  # fmt: skip  # noqa: E501  one layer after the other
    model.train()(X)  # without momentum the running statistics are those of the batch
    lean = repaired(model, halved(model, X, "0"), X)
    with torch.no_grad():
        seen = lean[:3](X)
    assert torch.allclose(lean[3].running_mean, seen.mean(0), atol=1e-5)
    assert torch.allclose(lean[3].running_var, seen.var(0), rtol=1e-4)


def test_without_a_ridge_only_means_are_kept():
    model = Redundant(nn.Linear(8, 3))
    lean = repaired(model, halved(model, X, "hidden"), X, ridges=())
    with torch.no_grad():
        assert torch.allclose(model(X).mean(0), lean(X).mean(0), atol=1e-5)
        assert torch.equal(lean.reader.weight, model.reader.weight[:, :4])


def test_frozen_parameters_stay_what_they_are():
    model = Redundant(nn.Linear(8, 3))
    plan = halved(model, X, "hidden")
    lean = repaired(model, plan, X, trained={"reader.bias"})
    assert torch.equal(lean.reader.weight, model.reader.weight[:, :4])
    assert not torch.equal(lean.reader.bias, model.reader.bias)


def test_where_only_biases_may_change_the_mean_of_every_layer_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    biases = {"0.bias", "2.bias", "4.bias"}
    lean = repaired(model, halved(model, X), X, trained=biases)
    with torch.no_grad():
        assert torch.allclose(model(X).mean(0), lean(X).mean(0), atol=1e-5)


def test_a_weight_that_is_used_elsewhere_as_well_stays_what_it_is():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.mix = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.tanh(self.mix(self.embed(x))))

    model = Tied()
    gone = (2, 5)
    slots = (("embed.weight", 1), ("mix.weight", 0), ("mix.bias", 0), ("mix.weight", 1))
    plan = Plan((), tuple(Removal(name, dim, gone) for name, dim in slots), {}, 0.0)
    lean = repaired(model, plan, torch.arange(9).repeat(8))
    left = [i for i in range(8) if i not in gone]
    assert lean.head.weight is lean.embed.weight
    assert torch.equal(lean.embed.weight, model.embed.weight[:, left])
    assert not torch.equal(lean.mix.weight, model.mix.weight[left][:, left])


def operated(model, plan, repairs):
    """Cut a model and add amounts to it and to a copy, as an operation does."""
    twin = copy.deepcopy(model)
    bench = SimpleNamespace(model=model, probe=(X[:8],))
    patient = surgery.Patient(bench, model, (), Ranks(None))
    whole = law.outputs(model, dict(model.named_parameters()), bench.probe)
    for each in (model, twin):
        apply(each, plan)
    distance = law.distance(whole, law.outputs(model, dict(model.named_parameters()), bench.probe))
    surgery._refit(patient, [(model, repairs), (twin, repairs)], plan, whole, distance)
    return model, twin


def test_amounts_that_bring_the_outputs_nearer_are_kept_in_the_network_and_its_copies():
    model = Redundant(nn.Linear(8, 3))
    before, plan = copy.deepcopy(model), halved(model, X, "hidden")
    good = refit.amounts(model, trace(model, (X,)), plan, [(X,)], dict(model.named_parameters()), (1e-9,))
    for lean in operated(model, plan, good):
        assert difference(before, lean, X) < 1e-4


def test_amounts_that_take_the_outputs_further_away_are_taken_back():
    model = Redundant(nn.Linear(8, 3))
    before, plan = copy.deepcopy(model), halved(model, X, "hidden")
    for lean in operated(model, plan, {"reader.bias": torch.full((3,), 100.0)}):
        assert torch.equal(lean.reader.bias, before.reader.bias)


def test_samples_in_batches_give_the_amounts_that_all_of_them_at_once_give():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))  # fmt: skip  # noqa: E501  one layer after the other
    x, names = drawn(64, 2, 8, 8), dict(model.eval().named_parameters())
    plan, found = halved(model, x), trace(model, (x[:16],))
    at_once = refit.amounts(model, trace(model, (x,)), plan, [(x,)], names)
    by_batch = refit.amounts(model, found, plan, in_batches(found, (x,)), names)
    assert by_batch.keys() == at_once.keys()
    for name, amount in at_once.items():
        assert torch.allclose(by_batch[name], amount, rtol=1e-3, atol=1e-4), name


def test_batches_are_of_the_traced_size_and_leave_out_the_oldest_samples():
    found = trace(nn.Linear(6, 3), (X[:32],))
    assert torch.equal(torch.cat([x for (x,) in in_batches(found, (X[:70],))]), X[6:70])
    assert in_batches(found, (X[:31],)) == []
    assert in_batches(found, (drawn(64, 7),)) == []
