"""Axes are proved on the model's own code: what has to follow is found, what cannot be cut is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgelean.errors import LawError
from edgelean.shrink import cut, law
from edgelean.shrink.attributes import Attribute, numbers_of, set_numbers
from edgelean.shrink.axes import dissect
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import halved, prove
from edgelean.shrink.trace import trace

X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Keeps its sizes in numbers of its own, as most attention does."""

    def __init__(self, width=24, heads=4):
        super().__init__()
        self.heads, self.places, self.inner = heads, width // heads, width
        self.scale = self.places**-0.5
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.places).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1)
        together = (weights @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], self.inner)
        return self.out(together)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(24), Attention()
        self.up, self.down, self.head = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


class Embedded(Net):
    """The same behind a layer of its own, so that the width of the model is free."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 24)

    def forward(self, x):
        return super().forward(self.embed(x))


def proved(model, x=X):
    torch.manual_seed(0)
    model.eval()
    found = dissect(model, (x,))
    return found, prove(model, found, (x,))


def test_prove_finds_the_numbers_that_follow_the_heads():
    _, proof = proved(Net())
    assert set(proof.attributes["attention.q.heads"]) == {
        Attribute("attention", "heads"),
        Attribute("attention", "inner"),
    }


def test_prove_ties_the_places_that_one_number_gives():
    found, proof = proved(Net())
    anatomy = proof.applied(found)
    (places,) = (axis for axis in anatomy.axes.values() if axis.size == 6)
    assert {"attention.q.weight", "attention.k.weight", "attention.v.weight"} <= {name for name, _ in places.slots}
    assert Attribute("attention", "places") in places.attributes


def test_numbers_that_do_not_follow_stay():
    model = Embedded()
    found, proof = proved(model)
    (width,) = (axis for axis in proof.applied(found).axes.values() if axis.size == 24)
    assert ("embed.weight", 0) in width.slots
    assert width.attributes == ()


def test_prove_leaves_the_model_as_it_is():
    model = Embedded()
    before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, numbers_of(model)
    proved(model)
    assert numbers_of(model) == numbers
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.norm.normalized_shape == (24,)


def test_every_proved_axis_can_be_cut_at_once():
    model = Embedded()
    found, proof = proved(model)
    anatomy = proof.applied(found)
    assert {axis.size for axis in anatomy.axes.values() if axis.kind == "channels"} == {24, 4, 6, 40}
    plan = halved(anatomy)
    expected = law.Reference(model, trace(model, (X,)), (X,)).outputs(plan)
    assert law.deviation(expected, law.cut_outputs(model, plan, (X,))) < 1e-9


def test_width_behind_a_layer_norm_means_statistics_over_what_is_kept():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    anatomy = dissect(model, (x,))
    plan = make_plan(anatomy, {"0": 5}, {"0": range(8)}, 0.0)
    kept = slice(3, 8)
    hidden = nn.functional.linear(x, model[0].weight[kept], model[0].bias[kept])
    hidden = nn.functional.layer_norm(hidden, (5,), model[1].weight[kept], model[1].bias[kept])
    by_hand = nn.functional.linear(hidden, model[2].weight[:, kept], model[2].bias)
    (expected,) = law.Reference(model, trace(model, (x,)), (x,)).outputs(plan)
    assert torch.allclose(expected, by_hand.detach(), rtol=1e-12)
    (found,) = law.cut_outputs(model, plan, (x,))
    assert torch.allclose(found, by_hand.detach(), rtol=1e-12)


class HoldsOn(nn.Module):
    """Has a width written into its code."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.free = nn.Linear(24, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.free(torch.relu(self.two(torch.relu(self.one(x)).reshape(-1, 16))))


def test_an_axis_whose_width_is_in_the_code_is_refused_by_name_and_the_others_are_not():
    found, proof = proved(HoldsOn(), torch.randn(4, 24))
    anatomy = proof.applied(found)
    assert set(proof.refused) == {"one"}
    assert "16" in proof.refused["one"] or "shape" in proof.refused["one"]
    assert set(anatomy.axes) == {"two"}
    assert "one" in {refusal.what for refusal in anatomy.refused}


def test_layers_that_repeat_share_one_answer():
    model = nn.Sequential(*(Attention() for _ in range(3)), nn.Linear(24, 3))
    _, proof = proved(model)
    for layer in range(3):
        assert {a.path for a in proof.attributes[f"{layer}.q.heads"]} == {str(layer)}


def test_a_cut_that_removes_the_wrong_units_breaks_the_law():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4, 6)
    anatomy = dissect(model, (x,))
    right = make_plan(anatomy, {"0": 5}, {"0": range(8)}, 0.0)
    wrong = make_plan(anatomy, {"0": 5}, {"0": [0, 1, 3, 2, 4, 5, 6, 7]}, 0.0)
    mixed = type(right)(right.cuts, (*right.removals[:2], *wrong.removals[2:]), {}, 0.0)
    expected = law.Reference(model, trace(model, (x,)), (x,)).outputs(right)
    with pytest.raises(LawError, match="differs from the masked model"):
        law.check(expected, law.cut_outputs(model, mixed, (x,)))


def test_numbers_of_a_model_can_be_put_back():
    model = Attention()
    before = numbers_of(model)
    model.heads, model.inner = 3, 18
    set_numbers(model, before)
    assert (model.heads, model.inner) == (4, 24)


class Shared(nn.Module):
    """Layers that read one configuration, in every call."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(24, config.inner), nn.Linear(config.inner, 24)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)).view(*x.shape[:2], self.config.inner))


def test_a_number_that_layers_share_ties_their_widths():
    config = SimpleNamespace(inner=40, layers=2)
    model = nn.Sequential(Shared(config), Shared(config), nn.Linear(24, 3))
    found, proof = proved(model)
    (inner,) = (axis for axis in proof.applied(found).axes.values() if axis.kind == "channels")
    assert {("0.up.weight", 0), ("1.up.weight", 0)} <= set(inner.slots)
    cut.apply(model, make_plan(proof.applied(found), {inner.name: 7}, {inner.name: range(40)}, 0.0))
    assert (config.inner, config.layers) == (7, 2)
    assert model(X).shape == (3, 5, 3)


class Joined(nn.Module):
    """Holds the sum of two widths, and each of them in a tuple."""

    def __init__(self):
        super().__init__()
        self.both, self.parts = 28, (20, 8)
        self.one, self.two, self.out = nn.Linear(24, 20), nn.Linear(24, 8), nn.Linear(28, 3)

    def forward(self, x):
        joined = torch.cat([self.one(x), self.two(x)], -1).view(-1, self.both)
        a, b = joined.split(self.parts, -1)
        return self.out(torch.cat([torch.relu(a), b], -1))


def test_a_number_that_is_a_sum_follows_each_of_its_parts():
    model = Joined()
    found, proof = proved(model)
    anatomy = proof.applied(found)
    cut.apply(model, make_plan(anatomy, {"one": 11, "two": 6}, {"one": range(20), "two": range(8)}, 0.0))
    assert (model.both, model.parts) == (17, (11, 6))


def test_a_cut_of_nested_numbers_is_taken_back_by_name():
    model = Joined()
    before, tensors = numbers_of(model), cut.cloned(cut.tensors_of(model))
    found, proof = proved(model)
    cut.apply(model, make_plan(proof.applied(found), {"one": 11}, {"one": range(20)}, 0.0))
    cut.restore(model, tensors, json.loads(json.dumps(before)))
    assert (model.both, model.parts) == (28, (20, 8))
    assert numbers_of(model) == before


class Scaled(nn.Module):
    """Holds its width twice: as a size, and in a factor that must not follow."""

    def __init__(self):
        super().__init__()
        self.size, self.root = 16, 16
        self.one, self.two = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)).reshape(-1, self.size) * self.root**-0.5)


def test_a_number_that_is_no_size_does_not_follow():
    _, proof = proved(Scaled())
    assert proof.attributes["one"] == (Attribute("", "size"),)


class Remembers(nn.Module):
    """Keeps what it computed for the next call."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.seen = nn.Linear(24, 16), nn.Linear(16, 3), None

    def forward(self, x):
        y = torch.relu(self.one(x))
        if self.seen is None:
            self.seen = torch.ones_like(y)
        return self.two(y * self.seen)


def test_trials_leave_nothing_behind_in_a_model_that_remembers():
    model = Remembers().eval()
    assert law.misfit(model, Plan((), (), {}, 0.0), (X,)) == ""
    assert model.seen is None


class Standardised(nn.Module):
    """A convolution whose weights are standardised over what they read, as batch norm of one sample does it."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Linear(8, 2)

    def forward(self, x):
        weight = self.two.weight
        flat = nn.functional.batch_norm(weight.reshape(1, weight.shape[0], -1), None, None, training=True)
        x = nn.functional.conv2d(torch.relu(self.one(x)), flat.reshape_as(weight), self.two.bias)
        return self.head(x.mean((2, 3)))


def test_standardised_weights_are_standardised_over_what_is_kept():
    found, proof = proved(Standardised(), torch.randn(2, 3, 8, 8))
    assert proof.refused == {}
    assert set(proof.applied(found).axes) == {"one", "two"}


class Quantised(nn.Linear):
    """Weights in steps, whose size is learned for every output."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.step = nn.Parameter(torch.full((outputs, 1), 0.05))

    def forward(self, x):
        rounded = (self.weight / self.step).clamp(-7, 7)
        rounded = rounded + (rounded.round() - rounded).detach()
        return nn.functional.linear(x, rounded * self.step, self.bias)


def test_a_quotient_of_what_is_masked_is_zero():
    torch.manual_seed(0)
    model = nn.Sequential(Quantised(24, 16), nn.ReLU(), Quantised(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    anatomy = dissect(model, (X,))
    proof = prove(model, anatomy, (X,))
    assert not proof.refused
    assert {name: axis.size for name, axis in proof.applied(anatomy).axes.items()} == {"0": 16, "2": 12}


class Composed(nn.Module):
    """Uses operators that others are behind, and sums with dots."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(24, 16), nn.Linear(24, 12), nn.Linear(28, 20)
        self.weight, self.head = nn.Parameter(torch.randn(20, 10)), nn.Linear(10, 3)

    def forward(self, x):
        joined = torch.concatenate([self.one(x), self.two(x)], -1)
        length = torch.linalg.norm(joined, dim=-1, keepdim=True) + 1
        y = torch.sin_(self.out(joined / length).swapdims(1, 2).mT)
        return self.head(torch.einsum("...i,io->...o", y, self.weight))


def test_operators_that_others_are_behind_and_sums_with_dots_are_followed():
    torch.manual_seed(0)
    found, proof = proved(Composed().eval(), X)
    sizes = {axis.size for axis in proof.applied(found).axes.values()}
    assert not proof.refused
    assert sizes == {16, 12, 20, 10}


class TwoNames(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.one, self.out = nn.Linear(24, 16), nn.Linear(16, 3)
        self.again = self.one

    def forward(self, x):
        return self.out(torch.relu(self.one(x)) + self.again(x))


def test_a_module_with_two_names_stays_as_it_is():
    model = TwoNames()
    weight = model.one.weight
    found, proof = proved(model)
    assert proof.refused == {}
    assert set(found.axes) == {"one"}
    assert model.one.weight is weight


class Exported(nn.Module):
    """Reads a number of its own only where it is exported, as grouped attention does."""

    def __init__(self):
        super().__init__()
        self.inner, self.one, self.two = 16, nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x):
        y = torch.relu(self.one(x))
        return self.two(y.reshape(-1, self.inner) if torch.compiler.is_exporting() else y.flatten(0, 1))


def test_numbers_that_only_the_export_reads_follow():
    _, proof = proved(Exported())
    assert proof.attributes["one"] == (Attribute("", "inner"),)
