"""Axes are proved on the model's own code: what has to follow is found, what cannot be cut is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.errors import LawError
from edgelean.shrink import law
from edgelean.shrink.attributes import Attribute, numbers_of, set_numbers
from edgelean.shrink.axes import dissect
from edgelean.shrink.plan import make_plan
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
