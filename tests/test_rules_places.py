"""Operators that write into places, transform, compare and sample; and what only the training reads."""

from __future__ import annotations

import pytest
import torch
from test_rules import WIDTH, Around, Images, assert_cut_is_masked
from torch import nn
from torch.nn import functional as F

from edgelean.errors import InputError
from edgelean.shrink import cut
from edgelean.shrink.axes import dissect
from edgelean.shrink.prove import halved
from edgelean.shrink.trace import trace


def written_in_place(x):
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out


def places(x):
    return torch.tensor([2, 0, 1, 1, 0]).view(1, -1, 1).expand(x.shape[0], -1, x.shape[2])


KEPT = {
    "writing into a part of zeros": written_in_place,
    "scattering in time": lambda x: torch.zeros_like(x).scatter_add(1, places(x), x),
    "the largest of what is scattered": lambda x: torch.zeros_like(x).scatter_reduce(1, places(x), x, "amax"),
    "adding at times": lambda x: x.index_add(1, torch.tensor([0, 0]), x[:, 1:3]),
    "writing at samples": lambda x: x.index_put((torch.tensor([1]),), 0.5 * x[:1]),
    "a transform in time": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=5, dim=1),
    "the largest of the units": lambda x: x * x.max(-1, keepdim=True).values,
    "likeness to the first time": lambda x: x * F.cosine_similarity(x, x[:, :1], -1).unsqueeze(-1),
    "distances": lambda x: torch.cdist(x, x) @ x,
}


@pytest.mark.parametrize("name", KEPT)
def test_units_pass_through(name):
    model, probe = Around(KEPT[name]), (torch.randn(2, 5, 6),)
    anatomy = dissect(model, probe)
    assert {axis.name: axis.size for axis in anatomy.axes.values()} == {"first": WIDTH}
    assert_cut_is_masked(model, anatomy, probe)


FROZEN = {
    "a transform over units": lambda x: torch.fft.fft(x).real,
    "scattering over units": lambda x: x.scatter(-1, torch.zeros(2, 5, 1, dtype=torch.int64), x[..., :1]),
    "units as pairs of numbers": lambda x: torch.view_as_complex(x.unflatten(-1, (4, 2))).abs().repeat(1, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_units_are_left_alone(name):
    anatomy = dissect(Around(FROZEN[name]), (torch.randn(2, 5, 6),))
    assert all(axis.size < WIDTH for axis in anatomy.axes.values())


SAMPLED = {
    "sampling": lambda x: F.grid_sample(x, torch.rand(2, 4, 4, 2, generator=torch.manual_seed(0)), align_corners=False),
    "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_channels_are_read_at_the_same_places(name):
    model, probe = Images(SAMPLED[name], WIDTH), (torch.randn(2, 3, 6, 6),)
    anatomy = dissect(model, probe)
    assert [axis.size for axis in anatomy.axes.values()] == [WIDTH]
    assert_cut_is_masked(model, anatomy, probe)


class Bags(nn.Module):
    """Numbers whose vectors are summed, and two branches that meet in a bilinear layer."""

    def __init__(self):
        super().__init__()
        self.bag, self.left, self.meet = nn.EmbeddingBag(9, 6, mode="sum"), nn.Linear(4, 5), nn.Bilinear(6, 5, 3)

    def forward(self, numbers, x):
        return self.meet(self.bag(numbers), self.left(x))


def test_a_bag_of_embeddings_and_a_bilinear_layer_lose_units():
    model, probe = Bags(), (torch.randint(0, 9, (2, 4)), torch.randn(2, 4))
    anatomy = dissect(model, probe)
    assert {axis.name: axis.size for axis in anatomy.axes.values()} == {"bag": 6, "left": 5}
    assert_cut_is_masked(model, anatomy, probe)


@pytest.mark.parametrize("both_ways", [False, True])
def test_an_lstm_that_projects_its_output_loses_hidden_units_and_places_of_the_projection(both_ways):
    class Projecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 8, 2, proj_size=4, batch_first=True, bidirectional=both_ways)
            self.head = nn.Linear(4 * (1 + both_ways), 2)

        def forward(self, x):
            y, (h, _) = self.lstm(x)
            return self.head(y) + h.sum()

    model, probe = Projecting(), (torch.randn(2, 5, 3),)
    anatomy = dissect(model, probe)
    assert sorted(axis.size for axis in anatomy.axes.values()) == [4, 8]
    assert_cut_is_masked(model, anatomy, probe)
    cut.apply(model, halved(anatomy))
    assert (model.lstm.hidden_size, model.lstm.proj_size) == (4, 2)


class Auxiliary(nn.Module):
    """A head that only the training has."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head, self.helper = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 2),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        hidden = torch.relu(self.norm(self.body(x)))
        return (self.head(hidden), self.helper(hidden)) if self.training else self.head(hidden)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_head_that_only_the_training_has_is_cut_along(samples):
    model, probe = Auxiliary().eval(), (torch.randn(samples, 4),)
    statistics = model.norm.running_mean.clone()
    anatomy = dissect(model, probe)
    assert torch.equal(model.norm.running_mean, statistics)
    assert not model.training
    assert_cut_is_masked(model, anatomy, probe)
    cut.apply(model, halved(anatomy))
    main, aside = model.train()(torch.randn(5, 4))
    assert (main.shape, aside.shape, model.helper.in_features) == ((5, 2), (5, 3), 4)


def test_where_the_training_cannot_be_traced_nothing_is_cut_that_it_might_read():
    class Choosing(Auxiliary):
        def forward(self, x):
            main, *aside = super().forward(x) if self.training else (super().forward(x),)
            return main * aside[0].sum() if aside and aside[0].sum().item() > -1e9 else main

    anatomy = dissect(Choosing().eval(), (torch.randn(2, 4),))
    assert not anatomy.axes
    assert any("the training reads" in refusal.why for refusal in anatomy.refused)


def test_a_graph_in_which_a_part_is_written_says_so_without_writing():
    model = Around(written_in_place)
    operators = {step.operator for step in trace(model, (torch.randn(2, 5, 6),)).steps}
    assert "copy_" not in operators
    assert "slice_scatter" in operators


class Quantised(nn.Linear):
    """Signs of the weights, times their mean size."""

    def forward(self, x):
        return F.linear(x, self.weight.sign() * self.weight.abs().mean(), self.bias)


def test_statistics_of_weights_are_taken_over_the_units_that_are_kept():
    model, probe = (
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Quantised(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        (torch.randn(2, 3),),
    )
    anatomy = dissect(model, probe)
    assert len(anatomy.axes) == 2
    assert anatomy.statistics == set(anatomy.axes)
    assert_cut_is_masked(model, anatomy, probe)


class Experts(nn.Module):
    """Rows sorted by expert, and a matrix for each expert."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 16, 8)), nn.Parameter(torch.randn(2, 8, 16))

    def forward(self, x):
        ends = torch.tensor([3, 5], dtype=torch.int32)
        hidden = F.grouped_mm(x.bfloat16(), self.first.bfloat16(), offs=ends).relu()
        return F.grouped_mm(hidden, self.second.bfloat16(), offs=ends).to(x.dtype)


def test_experts_lose_hidden_units_but_no_expert():
    anatomy = dissect(Experts(), (torch.randn(5, 16),))
    (axis,) = anatomy.axes.values()
    assert {slot: elements.shape for slot, elements in axis.slots.items()} == {
        ("first", 2): (8, 1),
        ("second", 1): (8, 1),
    }


def test_sizes_that_depend_on_the_data_are_refused_in_words():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.second(self.first(x[x[:, 0] > 0])).sum(0)

    with pytest.raises(InputError, match="whose shape depends on the values"):
        dissect(Chosen(), (torch.randn(3, 4),))
