"""Each operator's rule: what goes together, what is left alone, and that no label is lost on the way."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.labels import Labels, Value, reshaped
from edgelean.shrink.prove import halved
from edgelean.shrink.rules import RULES, Call, unknown
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
    "an operator without a rule": lambda x: torch.special.entr(x.abs()),
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


# No label may get lost: what a rule does not hand on it has to freeze, to sum, or to take statistics over.

CALLS = {
    "add": [((4, 6), (4, 6)), ((4, 6), (6,)), ((4, 6), (4, 1))],
    "where": [(bool, (4, 6), (6,))],
    "prelu": [((4, 6), (6,))],
    "dropout": [((4, 6), 0.5, False)],
    "dropout_": [((4, 6), 0.5, False)],
    "alpha_dropout": [((4, 6), 0.5, False)],
    "feature_dropout": [((4, 6), 0.5, False)],
    "native_dropout": [((4, 6), 0.5, False)],
    "clamp": [((4, 6), 0.0, 1.0)],
    "clamp_": [((4, 6), 0.0, 1.0)],
    "threshold": [((4, 6), 0.0, 1.0)],
    "threshold_": [((4, 6), 0.0, 1.0)],
    "masked_fill": [((4, 6), bool, 1.0), ((4, 6), torch.zeros(6, dtype=torch.bool), 1.0)],
    "masked_fill_": [((4, 6), bool, 1.0)],
    "to": [((4, 6), torch.float64)],
    "type_as": [((4, 6), (1,))],
    "var": [((4, 6), [1])],
    "std": [((4, 6), [1])],
    "norm": [((4, 6), 2, [1])],
    "linalg_vector_norm": [((4, 6), 2, [1])],
    "lerp": [((4, 6), (4, 6), (4, 6))],
    "view": [((4, 6), [2, 2, 6]), ((4, 6), [24]), ((4, 6), [3, 8])],
    "reshape": [((4, 6), [4, 3, 2])],
    "_unsafe_view": [((4, 6), [4, 3, 2])],
    "unflatten": [((4, 6), 1, [3, 2])],
    "unsqueeze": [((4, 6), 1)],
    "permute": [((4, 6), [1, 0])],
    "transpose": [((4, 6), 0, 1)],
    "swapaxes": [((4, 6), 0, 1)],
    "movedim": [((4, 6, 3), [0, 1], [2, 0])],
    "moveaxis": [((4, 6, 3), 0, 2)],
    "cat": [([(4, 6), (4, 3)], 1), ([(4, 6), (3, 6)],)],
    "concat": [([(4, 6), (4, 3)], 1)],
    "stack": [([(4, 6), (4, 6)], 1)],
    "slice": [((4, 6), 1, 0, 6)],
    "narrow": [((4, 6), 1, 0, 6)],
    "select": [((4, 6), 1, 2)],
    "split": [((4, 6), 3, 1)],
    "split_with_sizes": [((4, 6), [2, 4], 1)],
    "chunk": [((4, 6), 2, 1)],
    "unsafe_chunk": [((4, 6), 2, 1)],
    "unsafe_split": [((4, 6), 3, 1)],
    "tensor_split": [((4, 6), 2, 1)],
    "pad": [((4, 6), [1, 1])],
    "constant_pad_nd": [((4, 6), [1, 1])],
    "roll": [((4, 6), [1], [0]), ((4, 6), [1])],
    "flip": [((4, 6), [1])],
    "expand": [((1, 6), [4, 6])],
    "broadcast_to": [((1, 6), [4, 6])],
    "repeat": [((4, 6), [2, 3])],
    "tile": [((4, 6), [2, 3])],
    "repeat_interleave": [((4, 6), 2, 1)],
    "unfold": [((4, 6), 1, 2, 1)],
    "im2col": [((2, 3, 4, 4), [2, 2], [1, 1], [0, 0], [2, 2])],
    "col2im": [((2, 12, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2])],
    "diag": [((4,),), ((4, 4),)],
    "pixel_shuffle": [((2, 8, 3, 3), 2)],
    "pixel_unshuffle": [((2, 2, 4, 4), 2)],
    "channel_shuffle": [((2, 8, 3, 3), 2)],
    "softmax": [((4, 6), 1)],
    "log_softmax": [((4, 6), 1)],
    "_softmax": [((4, 6), 1, False)],
    "_log_softmax": [((4, 6), 1, False)],
    "cumsum": [((4, 6), 0)],
    "cumprod": [((4, 6), 0)],
    "logcumsumexp": [((4, 6), 0)],
    "logsumexp": [((4, 6), [0])],
    "topk": [((4, 6), 2, 1)],
    "kthvalue": [((4, 6), 2, 1)],
    "argmax": [((4, 6), 1), ((4, 6),)],
    "max": [((4, 6),), ((4, 6), 1), ((4, 6), (4, 6))],
    "any": [((4, 6), 1)],
    "matmul": [((4, 6), (6, 5)), ((4, 6), (6,)), ((6,), (6, 5)), ((2, 4, 6), (2, 6, 5)), ((2, 4, 6), (6,))],
    "mm": [((4, 6), (6, 5))],
    "bmm": [((2, 4, 6), (2, 6, 5))],
    "addmm": [((5,), (4, 6), (6, 5))],
    "baddbmm": [((2, 4, 5), (2, 4, 6), (2, 6, 5))],
    "addbmm": [((4, 5), (2, 4, 6), (2, 6, 5))],
    "mv": [((4, 6), (6,))],
    "dot": [((6,), (6,))],
    "vdot": [((6,), (6,))],
    "inner": [((4, 6), (6,)), ((4, 6), (5, 6))],
    "outer": [((4,), (6,))],
    "ger": [((4,), (6,))],
    "einsum": [("bi,ij->bj", [(4, 6), (6, 5)]), ("bi,bi->b", [(4, 6), (1, 6)]), ("bii->b", [(4, 6, 6)])],
    "linear": [((4, 6), (5, 6), (5,))],
    "embedding": [((9, 6), int)],
    "conv1d": [((2, 4, 6), (5, 4, 3), (5,))],
    "conv2d": [((2, 4, 6, 6), (8, 2, 3, 3), (8,), [1, 1], [0, 0], [1, 1], 2), ((4, 6, 6), (8, 4, 3, 3))],
    "conv3d": [((2, 4, 6, 6, 6), (8, 4, 3, 3, 3))],
    "conv_transpose1d": [((2, 4, 6), (4, 5, 3), (5,))],
    "conv_transpose2d": [((2, 4, 6, 6), (4, 3, 3, 3), (6,), [1, 1], [0, 0], [0, 0], 2)],
    "conv_transpose3d": [((2, 4, 6, 6, 6), (4, 5, 3, 3, 3))],
    "batch_norm": [((4, 6), (6,), (6,), (6,), (6,), False, 0.1, 1e-5, False)],
    "_native_batch_norm_legit_no_training": [((4, 6), (6,), (6,), (6,), (6,), 0.1, 1e-5)],
    "instance_norm": [((2, 6, 5), (6,), (6,), None, None, True, 0.1, 1e-5, False)],
    "layer_norm": [((4, 6), [6], (6,), (6,)), ((4, 6), [4, 6], (4, 6))],
    "rms_norm": [((4, 6), [6], (6,))],
    "group_norm": [((2, 6, 5), 2, (6,), (6,))],
    "_weight_norm": [((4, 6, 3), (4, 1, 1), 0)],
    "gather": [((4, 6), 1, torch.zeros(4, 6).long()), ((4, 6), 1, torch.zeros(3, 2).long())],
    "index_select": [((4, 6), 1, int)],
    "index": [((4, 6), [None, int]), ((4, 6, 3), [int, None, int])],
    "glu": [((4, 6), 1)],
    "scaled_dot_product_attention": [
        ((2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7), (4, 5)), ((2, 4, 4, 6), (2, 1, 5, 6), (2, 1, 5, 6)),
    ],
    "lstm_cell": [((2, 5), [(2, 6), (2, 6)], (24, 5), (24, 6), (24,), (24,))],
    "gru_cell": [((2, 5), (2, 6), (18, 5), (18, 6), (18,), (18,))],
    "rnn_tanh_cell": [((2, 5), (2, 6), (6, 5), (6, 6), (6,), (6,))],
    "rnn_relu_cell": [((2, 5), (2, 6), (6, 5), (6, 6))],
    "lstm": [((2, 4, 5), [(1, 2, 6), (1, 2, 6)], [(24, 5), (24, 6), (24,), (24,)], True, 1, 0.0, False, False, True)],
    "gru": [((2, 4, 5), (1, 2, 6), [(18, 5), (18, 6), (18,), (18,)], True, 1, 0.0, False, False, True)],
    "rnn_tanh": [((2, 4, 5), (1, 2, 6), [(6, 5), (6, 6)], False, 1, 0.0, False, False, True)],
    "rnn_relu": [((2, 4, 5), (1, 2, 6), [(6, 5), (6, 6)], False, 1, 0.0, False, False, True)],
    "fft_rfft": [((4, 6),)],
}  # fmt: skip
"""Arguments by operator: a tuple of numbers is a tensor of that shape, ``int`` and ``bool`` one of such numbers.

Operators that are not named here are tried with one, two or three tensors, or with the sizes of a pool.
"""

TENSORS = [((4, 6),), ((4, 6), (4, 6)), ((4, 6), (4, 6), (4, 6)), ((4, 6), 1), (bool, bool)]
SPACES = {n: ((2, 3, *(6,) * n), [2] * n) for n in (1, 2, 3)}
PADS = {n: ((2, 3, *(6,) * n), [1] * 2 * n) for n in (1, 2, 3)}
DIMENSIONS = re.compile(r"[123](?=d)")
NO_TENSOR = {
    "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty", "scalar_tensor", "arange",
    "linspace", "tril_indices", "eye", "hann_window", "randn", "rand", "zeros_like", "ones_like", "full_like",
    "empty_like", "sym_size", "sym_constrain_range_for_size", "_assert_scalar", "_assert_tensor_metadata",
    "_local_scalar_dense",
}  # fmt: skip
"""They make tensors, of the shape of another perhaps, or check some."""


class Labelled:
    """Arguments of a call, as tensors without content and as values with labels."""

    def __init__(self, template):
        self.labels, self.values = Labels(), []
        pairs = [self.pair(item) for item in template]
        self.tensors, self.arguments = ([pair[i] for pair in pairs] for i in (0, 1))

    def pair(self, item):
        if isinstance(item, torch.Tensor):
            return self.value(item)
        if isinstance(item, tuple) and all(isinstance(size, int) for size in item):
            return self.value(torch.empty(item, device="meta"))
        if item in (int, bool):
            return self.value(torch.zeros((4, 6) if item is bool else (4,), dtype=torch.int64 if item is int else item))
        if isinstance(item, list):
            pairs = [self.pair(part) for part in item]
            return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return item, item

    def value(self, tensor):
        lines = tuple(self.labels.fresh(size) for size in tensor.shape)
        self.values.append(Value(tuple(tensor.shape), lines))
        return tensor.to("meta"), self.values[-1]


def called(name, template):
    """Return the labelled arguments and the flow of an operator; None where it does not take such arguments."""
    given = Labelled(template)
    try:
        found = getattr(torch.ops.aten, name)(*given.tensors)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AssertionError, AttributeError):
        return None
    outputs = found if isinstance(found, (tuple, list)) else [found]
    shapes = tuple(tuple(output.shape) for output in outputs)
    return given, RULES.get(name, unknown)(Call(given.labels, name, tuple(given.arguments), shapes))


def lost(given, flow):
    """Return the units that are neither handed on nor left alone nor summed by design."""

    def atoms(lines):
        return {
            atom for line in lines if line is not None for label in line.tolist() for atom in given.labels.atoms(label)
        }

    owners = [atoms(line for line, size in zip(v.labels, v.shape, strict=True) if size > 1) for v in given.values]
    contracted = {atom for i, own in enumerate(owners) for other in owners[i + 1 :] for atom in own & other}
    handed_on = atoms(line for output in flow.outputs for line in output.labels)
    return set().union(*owners) - handed_on - set(given.labels.frozen()) - atoms(flow.over) - contracted


@pytest.mark.parametrize("name", sorted({*RULES, *CALLS} - NO_TENSOR))
def test_a_rule_loses_no_label(name):
    space = [(PADS if "pad" in name else SPACES)[int(count)] for count in DIMENSIONS.findall(name)]
    templates = CALLS.get(name, [*TENSORS, *space, *((*sizes, False) for sizes in space)])
    found = [called(name, template) for template in templates]
    calls = [call for call in found if call is not None]
    assert calls, "say in CALLS with what arguments to try it"
    for given, flow in calls:
        assert not lost(given, flow)
        for output in flow.outputs:
            assert all(
                line is None or len(line) == size for line, size in zip(output.labels, output.shape, strict=True)
            )
