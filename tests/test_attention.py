"""FreeAttention computes what nn.MultiheadAttention computes, and can lose heads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgelean.nn.attention import FreeAttention, freed
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.prove import halved, prove
from edgelean.shrink.trace import trace

CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


def pair(**options):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(12, 3, **options).eval()
    return plain, freed(copy.deepcopy(plain))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": CAUSAL},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": CAUSAL.expand(6, 5, 5)},
        {"key_padding_mask": PADDING},
        {"key_padding_mask": PADDING, "attn_mask": CAUSAL},
    ],
    ids=["none", "causal", "added", "per head", "padding", "both"],
)
def test_free_attention_equals_the_one_of_torch(batch_first, need_weights, masks):
    plain, free = pair(batch_first=batch_first)
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    expected, weights = plain(x, x, x, need_weights=need_weights, **masks)
    found, own = free(x, x, x, need_weights=need_weights, **masks)
    assert torch.allclose(expected, found, atol=1e-6)
    assert (weights is None) == (own is None)
    assert weights is None or torch.allclose(weights, own, atol=1e-6)


def test_free_attention_crosses_from_another_sequence_of_another_width():
    plain, free = pair(batch_first=True, kdim=7, vdim=9, bias=False)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 4, 7), torch.randn(2, 4, 9)
    for each in (True, False):
        left, right = (m(q, k, v, average_attn_weights=each) for m in (plain, free))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(left, right, strict=True))
    single = plain(q[0], k[0], v[0])[0]
    assert torch.allclose(single, free(q[0], k[0], v[0])[0], atol=1e-6)


def test_freed_keeps_the_module_and_its_parameters():
    plain = nn.MultiheadAttention(12, 3)
    weight = plain.in_proj_weight
    model = nn.ModuleList([plain])
    freed(model)
    assert model[0] is plain
    assert isinstance(plain, FreeAttention)
    assert plain.in_proj_weight is weight


def test_attention_with_extra_keys_is_left_alone():
    model = nn.ModuleList([nn.MultiheadAttention(12, 3, add_bias_kv=True)])
    freed(model)
    assert type(model[0]) is nn.MultiheadAttention


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 12)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), 2)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_heads_places_and_widths_of_a_transformer_encoder_can_be_cut():
    model, x = Classifier().eval(), torch.randn(3, 5, 6)
    expected = model(x)
    found = dissect(model, (x,))
    assert torch.allclose(model(x), expected, atol=1e-6)
    anatomy = prove(model, found, (x,)).applied(found)
    assert sorted(axis.size for axis in anatomy.axes.values() if axis.kind == "channels") == [3, 3, 4, 4, 12, 20, 20]
    plan = halved(anatomy)
    reference = law.Reference(model, trace(model, (x,)), (x,)).outputs(plan)
    assert law.deviation(reference, law.cut_outputs(model, plan, (x,))) < 1e-9
