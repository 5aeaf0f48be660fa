"""No label may get lost: what a rule does not hand on it has to freeze, to sum, or to take statistics over."""

from __future__ import annotations

import re

import pytest
import torch

from edgelean.shrink.labels import Labels, Value
from edgelean.shrink.rules import RULES, Call, unknown

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
    "swapdims": [((4, 6), 0, 1)],
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
    "expand_as": [((1, 6), (4, 6)), ((6,), (4, 6))],
    "reshape_as": [((1,), (1, 1)), ((4, 6), (2, 2, 6)), ((4, 6), (24,))],
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
    "einsum": [
        ("...i,oi->...o", [(2, 4, 6), (5, 6)]), ("b...i,bi", [(4, 3, 6), (4, 6)]),
        ("bi,ij->bj", [(4, 6), (6, 5)]), ("bi,bi->b", [(4, 6), (1, 6)]), ("bii->b", [(4, 6, 6)]),
    ],
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
    "_conj": [(torch.zeros(4, 6, dtype=torch.complex64),)],
    "imag": [(torch.zeros(4, 6, dtype=torch.complex64),)],
    "view_as_complex": [((4, 6, 2),)],
    "view_as_real": [(torch.zeros(4, 6, dtype=torch.complex64),)],
    "var_mean": [((4, 6), [1])],
    "std_mean": [((4, 6), [1])],
    "scatter": [((4, 6), 1, torch.zeros(4, 6).long(), (4, 6)), ((4, 6), 1, torch.zeros(3, 2).long(), 1.0)],
    "scatter_add": [((4, 6), 0, torch.zeros(3, 6).long(), (3, 6)), ((4, 6), 1, torch.zeros(3, 2).long(), (4, 6))],
    "scatter_reduce": [((4, 6), 0, torch.zeros(3, 6).long(), (3, 6), "amax")],
    "select_scatter": [((4, 6), (4,), 1, 2)],
    "slice_scatter": [((4, 6), (4, 2), 1, 1, 3), ((4, 6), (2, 6), 0, -2)],
    "index_add": [((4, 6), 0, int, (4, 6))],
    "index_copy": [((4, 6), 0, int, (4, 6))],
    "index_fill": [((4, 6), 0, int, 1.0)],
    "index_reduce": [((4, 6), 0, int, (4, 6), "amax")],
    "index_put": [((4, 6), [int], (4, 6)), ((4, 6), [int], (1, 6)), ((4, 6), [None, int], (4, 4))],
    "grid_sampler": [((2, 3, 4, 4), (2, 5, 5, 2), 0, 0, True)],
    "max_unpool2d": [((2, 3, 4, 4), torch.zeros(2, 3, 4, 4).long(), [8, 8])],
    "max_unpool3d": [((2, 3, 4, 4, 4), torch.zeros(2, 3, 4, 4, 4).long(), [8, 8, 8], [2, 2, 2], [0, 0, 0])],
    "embedding_bag": [((9, 6), int, int)],
    "bilinear": [((4, 6), (4, 5), (3, 6, 5), (3,))],
    "cdist": [((2, 4, 6), (2, 5, 6))],
    "cosine_similarity": [((4, 6), (4, 6), 1), ((2, 4, 6), (2, 1, 6), -1)],
    "pairwise_distance": [((4, 6), (4, 6)), ((4, 6), (4, 6), 2.0, 1e-6, True)],
    "_grouped_mm": [
        (torch.zeros(4, 16).bfloat16(), torch.zeros(2, 16, 8).bfloat16(), torch.zeros(2, dtype=torch.int32)),
    ],
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
    "_local_scalar_dense", "randn_like", "rand_like",
}  # fmt: skip
"""They make tensors, of the shape of another perhaps, or check some."""

NOT_OF_TORCH = {"grouped_mm_fallback"}
"""Operators of other packages; they have the rule of one of torch."""


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


@pytest.mark.parametrize("name", sorted({*RULES, *CALLS} - NO_TENSOR - NOT_OF_TORCH))
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
