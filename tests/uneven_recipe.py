"""A recipe whose network has channels of very uneven size: rounding its activations after the training costs a lot."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from edgelean import Recipe

CHANNELS = 32


class Uneven(nn.Module):
    """Two linear layers; what the second reads is between a hundredth and a hundred times what the first wrote."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(64, CHANNELS), nn.Linear(CHANNELS, 10)
        size = torch.logspace(-2, 2, CHANNELS)
        self.register_buffer("size", size)
        with torch.no_grad():
            self.outer.weight /= size

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)) * self.size)


def data():
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(x[part], y[part]) for part in (order[:1000], order[1000:1400], order[1400:])]


recipe = Recipe(
    name="uneven", model=Uneven, data=data, loss=nn.functional.cross_entropy, epochs=20, batch_size=32,
    learning_rate=1e-2, weight_decay=0.0,
)  # fmt: skip
