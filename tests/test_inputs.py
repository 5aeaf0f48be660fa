"""Models and probe batches that cannot be used are refused by name, with what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.errors import InputError
from edgelean.shrink.inputs import checked_inputs


class Dividing(nn.Linear):
    def forward(self, x):
        return super().forward(x) / (x - x)


class Silent(nn.Linear):
    def forward(self, x):
        return None


class Own(nn.Linear):
    def forward(self, x):
        return x.reshape(3, 7)


def holed():
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("nan"))
    return model


CONV = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
CASES = {
    "channels": (CONV, torch.rand(2, 1, 8, 8), ["0 (Conv2d) wants [batch, 3, height, width] of float32"]),
    "dtype": (CONV, torch.zeros(2, 3, 8, 8, dtype=torch.int64), ["0 (Conv2d) wants", "of int64"]),
    "features": (nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 2)), torch.rand(2, 4), ["1 (Linear) wants [..., 6]"]),
    "tokens": (nn.Sequential(nn.Embedding(9, 4)), torch.rand(2, 3), ["whole numbers (int64) from 0 to 8"]),
    "sequence": (nn.GRU(5, 8, batch_first=True), torch.rand(2, 7, 4), ["the GRU itself wants [batch, time, 5]"]),
    "own": (Own(4, 3), torch.rand(2, 4), ["test_inputs.py", "return x.reshape(3, 7)", "RuntimeError"]),
    "arguments": (nn.Linear(4, 3), (torch.rand(2, 4), torch.rand(2, 4)), ["cannot run on a batch", "TypeError"]),
    "no tensors": (nn.Linear(4, 3), [[1.0, 2.0]], ["have to be tensors", "found list"]),
    "array": (nn.Linear(4, 3), torch.rand(2, 4).numpy(), ["have to be tensors", "found ndarray"]),
    "nothing": (nn.Linear(4, 3), (), ["have to be tensors", "found nothing"]),
    "no batch": (nn.Linear(4, 3), torch.tensor(1.0), ["the first dimension of each example input is the batch", "[]"]),
    "empty batch": (nn.Linear(4, 3), torch.rand(0, 4), ["at least one", "[0, 4]"]),
    "device": (nn.Linear(4, 3), torch.rand(2, 4, device="meta"), ["on cpu", "on meta", ".to('cpu')"]),
    "no parameters": (nn.ReLU(), torch.rand(2, 4), ["has no parameters"]),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), torch.rand(2, 4), ["0.weight", "call the model once on a batch"]),
    "not finite": (Dividing(4, 4), torch.rand(2, 4), ["8 of 8 outputs", "division by zero"]),
    "weights not finite": (holed(), torch.rand(2, 4), ["weight holds such numbers itself"]),
    "no outputs": (Silent(4, 3), torch.rand(2, 4), ["returns no tensor"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_named(case):
    model, example, words = CASES[case]
    with pytest.raises(InputError) as caught:
        checked_inputs(model, example)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "site-packages" not in str(caught.value)


def test_a_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (x,) = checked_inputs(model, torch.rand(5, 4))
    assert x.shape == (5, 4)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
