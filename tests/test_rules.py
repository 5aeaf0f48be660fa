"""Each operator's rule: what goes together, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.labels import Labels, Value, reshaped
from edgelean.shrink.prove import halved
from edgelean.shrink.trace import trace

WIDTH = 8


class Around(nn.Module):
    """Two linear layers around an operator: units of the first that the second reads."""

    def __init__(self, operator, read=WIDTH):
        super().__init__()
        self.first, self.second, self.operator = nn.Linear(6, WIDTH), nn.Linear(read, 3), operator

    def forward(self, x):
        return self.second(self.operator(torch.tanh(self.first(x))))


KEPT = {
    "gelu": F.gelu,
    "a product with itself": lambda x: x * x.sigmoid(),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "addition of a number": lambda x: x + 1,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "to and back": lambda x: x.to(torch.float64).type_as(x),
    "a sum over time": lambda x: x.sum(1, keepdim=True) + x,
    "the largest over time": lambda x: x.max(dim=1).values,
    "sorting in time": lambda x: torch.sort(x, dim=1).values,
    "cumulative sum in time": lambda x: x.cumsum(1),
    "softmax over time": lambda x: x.softmax(1),
    "transposing twice": lambda x: x.transpose(1, 2).permute(0, 2, 1),
    "merging batch and time": lambda x: x.flatten(0, 1).unsqueeze(0),
    "turning the units round": lambda x: x.flip(-1),
    "rolling in time": lambda x: x.roll(1, 1),
    "padding in time": lambda x: F.pad(x, (0, 0, 1, 1)),
    "windows in time": lambda x: x.unfold(1, 2, 1).mean(-1),
    "picking times": lambda x: x[:, [0, 2]],
    "an average over windows": lambda x: F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2),
    "stacking": lambda x: torch.stack([x, x], 1).mean(1),
    "the larger of two": lambda x: torch.max(x, 0.5 * x),
    "concatenation in time": lambda x: torch.cat([x, x], 1),
    "zeros to start from": lambda x: torch.cat([torch.zeros_like(x), x], 1),
    "a norm without weights": lambda x: F.layer_norm(x, x.shape[-1:]),
    "a distance": lambda x: x / (1 + x.norm(dim=-1, keepdim=True)),
    "a mean over units": lambda x: x - x.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", KEPT)
def test_units_pass_through(name):
    model, probe = Around(KEPT[name]), (torch.randn(2, 5, 6),)
    anatomy = dissect(model, probe)
    assert {axis.name: axis.size for axis in anatomy.axes.values()} == {"first": WIDTH}
    assert_cut_is_masked(model, anatomy, probe)


def assert_cut_is_masked(model, anatomy, probe):
    plan = halved(anatomy)
    assert plan.cuts
    expected = law.Reference(model, trace(model, probe), probe).outputs(plan)
    assert law.deviation(expected, law.cut_outputs(model, plan, probe)) < law.TOLERANCE


FROZEN = {
    "softmax over units": lambda x: x.softmax(-1),
    "sorting units": lambda x: torch.sort(x, dim=-1).values,
    "cumulative sum over units": lambda x: x.cumsum(-1),
    "rolling units": lambda x: x.roll(1, -1),
    "rolling everything": lambda x: x.roll(1),
    "picking units": lambda x: x[..., [1, 0, 2, 3, 4, 5, 6, 7]],
    "weights of its own": lambda x: x * torch.arange(8.0),
    "a triangle": lambda x: x.tril(),
    "an operator without a rule": lambda x: torch.special.bessel_j0(x.abs()),
}


@pytest.mark.parametrize("name", FROZEN)
def test_units_are_left_alone(name):
    anatomy = dissect(Around(FROZEN[name]), (torch.randn(2, 5, 6),))
    assert not anatomy.axes
    assert any(refusal.what == "first.weight[0]" for refusal in anatomy.refused)


HALF = {
    "glu": (lambda x: F.glu(x), 4),
    "halves multiplied": (lambda x: torch.mul(*x.chunk(2, -1)), 4),
    "pairs averaged": (lambda x: x.unflatten(-1, (4, 2)).mean(-1), 4),
}


@pytest.mark.parametrize("name", HALF)
def test_elements_side_by_side_are_one_unit(name):
    operator, read = HALF[name]
    model = Around(operator, read=read)
    anatomy = dissect(model, (torch.randn(2, 5, 6),))
    (axis,) = [axis for axis in anatomy.axes.values() if ("second.weight", 1) in axis.slots]
    assert axis.size == read
    assert axis.slots["first.weight", 0].shape == (read, 2)


class Images(nn.Module):
    """Two convolutions around an operator."""

    def __init__(self, operator, read):
        super().__init__()
        self.first, self.operator, self.second = nn.Conv2d(3, WIDTH, 3, padding=1), operator, nn.Conv2d(read, 4, 1)

    def forward(self, x):
        return self.second(self.operator(torch.tanh(self.first(x))))


LAYERS = {
    "depthwise convolution": (nn.Conv2d(8, 8, 3, groups=8), 8, 8),
    "depthwise with a multiplier": (nn.Conv2d(8, 16, 3, groups=8), 16, 8),
    "grouped convolution": (nn.Conv2d(8, 12, 3, groups=2), 12, 4),
    "transposed convolution": (nn.ConvTranspose2d(8, 6, 2, 2), 6, 8),
    "depthwise transposed convolution": (nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8, 8),
    "batch norm": (nn.BatchNorm2d(8), 8, 8),
    "group norm": (nn.GroupNorm(2, 8), 8, 4),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), 8, 8),
    "pixel shuffle": (nn.PixelShuffle(2), 2, 2),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 32, 8),
    "channel shuffle": (nn.ChannelShuffle(2), 8, 4),
    "max pool": (nn.MaxPool2d(2), 8, 8),
    "upsampling": (nn.Upsample(scale_factor=2), 8, 8),
    "parametric relu": (nn.PReLU(8), 8, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_channels_go_through_a_layer(name):
    layer, read, units = LAYERS[name]
    model, probe = Images(layer, read).eval(), (torch.randn(2, 3, 6, 6),)
    anatomy = dissect(model, probe)
    (axis,) = [axis for axis in anatomy.axes.values() if ("first.weight", 0) in axis.slots]
    assert axis.size == units
    assert_cut_is_masked(model, anatomy, probe)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")  # torch.export on its own recurrent layers
def test_a_recurrence_has_one_unit_in_every_gate_layer_and_direction():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    model, probe = Net(), (torch.randn(2, 4, 5),)
    anatomy = dissect(model, probe)
    (axis,) = anatomy.axes.values()
    assert axis.size == 6
    assert axis.slots["lstm.weight_ih_l1_reverse", 0].shape == (6, 4)
    assert axis.slots["lstm.weight_ih_l1", 1].shape == axis.slots["head.weight", 1].shape == (6, 2)
    assert_cut_is_masked(model, anatomy, probe)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_in_a_loop_has_one_unit_in_every_gate(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = kind(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            state = x.new_zeros(x.shape[0], 6)
            state = (state, state) if kind is nn.LSTMCell else state
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.head(state[0] if kind is nn.LSTMCell else state)

    (axis,) = dissect(Net(), (torch.randn(2, 3, 5),)).axes.values()
    gates = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}[kind]
    assert axis.slots["cell.weight_hh", 0].shape == (6, gates)
    assert {("cell.weight_hh", 1), ("head.weight", 1)} <= set(axis.slots)


def test_the_scale_of_attention_holds_its_size_unless_it_is_given():
    def axes(scale):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.k, self.v, self.head = (nn.Linear(6, 8) for _ in range(4))
                self.head = nn.Linear(8, 3)

            def forward(self, x):
                return self.head(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), scale=scale))

        return {axis.name for axis in dissect(Net(), (torch.randn(2, 5, 6),)).axes.values()}

    assert axes(None) == {"v"}
    assert axes(0.3) == {"q", "v"}


def test_labels_that_contain_each_other_end_in_a_reason():
    labels = Labels()
    inner, outer, other = labels.fresh(2), labels.fresh(1), labels.fresh(1)
    whole = labels.product([labels.product([int(inner[0]), int(inner[1])]), int(outer[0])])
    around = labels.product([whole, int(other[0])])
    labels.join(whole, around)
    assert set(labels.frozen()) == {int(inner[0]), int(inner[1]), int(outer[0]), int(other[0])}


def test_units_of_different_kinds_that_a_view_mixes_go_together():
    labels = Labels()
    heads = reshaped(labels, Value((6,), (labels.fresh(6),)), (2, 3))
    flat = reshaped(labels, Value((2, 3), heads), (6,))[0]
    (_, mixed) = reshaped(
        labels, Value((12,), (torch.cat([torch.tensor(flat), torch.tensor(labels.fresh(6))]).numpy(),)), (2, 6)
    )
    assert all(labels.root(a) == labels.root(b) for a, b in zip(mixed, flat, strict=True))
    assert not labels.frozen()
