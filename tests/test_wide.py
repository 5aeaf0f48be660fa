"""Tensors that count as float64 and are converted where they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgelean.shrink import law
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.wide import SMALL, Wide, wide, zeroed


def large(*shape: int) -> Tensor:
    torch.manual_seed(0)
    tensor = torch.randn(*shape)
    assert tensor.numel() >= SMALL
    return tensor


def test_a_large_tensor_is_not_copied_and_counts_as_float64() -> None:
    tensor = large(64, 96)
    held = wide(tensor)
    assert isinstance(held, Wide)
    with torch._C.DisableTorchFunctionSubclass():
        assert held.data_ptr() == tensor.data_ptr()
    assert held.dtype == torch.float64
    assert held.shape == (64, 96)


@pytest.mark.parametrize(
    "compute",
    [
        lambda w: w @ torch.ones(96, 3, dtype=torch.float64),
        lambda w: nn.functional.linear(torch.ones(2, 96, dtype=torch.float64), w),
        lambda w: torch.cat([w, w]),
        lambda w: w.view(8, -1)[1:3].T,
        lambda w: nn.functional.embedding(torch.tensor([3, 5]), w),
        lambda w: 1 / (w.mT + 9),
    ],
)
def test_every_operator_sees_float64(compute: Callable[[Tensor], Tensor]) -> None:
    tensor = large(64, 96)
    found = compute(wide(tensor))
    assert type(found) is Tensor
    assert found.dtype == torch.float64
    assert torch.equal(found, compute(tensor.double()))


def test_zeros_are_seen_and_the_original_stays() -> None:
    tensor = large(64, 96)
    before = tensor.clone()
    masked = zeroed(zeroed(wide(tensor), 0, [1, 7]), 1, [3])
    expected = tensor.double()
    expected[[1, 7]], expected[:, 3] = 0, 0
    assert torch.equal(masked + 0, expected)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("tensor", [torch.arange(5000), torch.ones(3), torch.ones(5000, dtype=torch.float64)])
def test_other_tensors_are_plain_and_zeroed_in_a_copy(tensor: Tensor) -> None:
    before = tensor.clone()
    held = zeroed(wide(tensor), 0, [2])
    assert type(held) is Tensor
    assert held[2] == 0
    assert torch.equal(tensor, before)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(80, 64), nn.LSTM(64, 64, batch_first=True)
        self.attend = nn.MultiheadAttention(64, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = self.lstm(self.embed(tokens))
        x = self.layer(x + self.attend(x, x, x)[0])
        return x, self.embed.weight


def test_a_model_computes_what_its_copy_in_float64_does_and_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    parameters = dict(model.named_parameters())
    tokens = torch.randint(0, 80, (2, 5))
    with torch.no_grad():
        expected = [output.detach() for output in copy.deepcopy(model).double()(tokens)]
    found = law.outputs(model, tensors_of(model), (tokens,))
    assert all(type(output) is Tensor and output.dtype == torch.float64 for output in found)
    assert law.deviation(expected, found) < 1e-12
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
