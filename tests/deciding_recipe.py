"""A recipe whose model decides by what it computes: torch.export cannot trace it whole."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgelean
from edgelean.recipes._digits_data import digits_split


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, x):
        h = self.body(x)
        if h.isnan().any():
            h = torch.zeros_like(h)
        return self.head(h)


def data():
    sizes = (256, 96, 96)
    return tuple(
        TensorDataset(x[:size].unsqueeze(1), y[:size]) for (x, y), size in zip(digits_split(), sizes, strict=True)
    )


recipe = edgelean.Recipe(
    model=Deciding, data=data, loss=nn.functional.cross_entropy, epochs=8, batch_size=32, learning_rate=3e-3,
    protect=["head"],
)  # fmt: skip
