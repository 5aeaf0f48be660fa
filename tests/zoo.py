"""Small networks whose axes are known, each with an input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgelean.nn import LRUBlock
from edgelean.recipes.digits import DigitsNet


def mlp() -> nn.Module:
    """Two hidden layers of 24 and 16."""
    return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 5))


def plain_cnn() -> nn.Module:
    """Convolutions, pooling, and a flatten that gives every channel four features of the linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


class Separable(nn.Module):
    """A depthwise convolution between two pointwise ones, with a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.depthwise(self.expand(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate).mean((2, 3))


class Dense(nn.Module):
    """Concatenation: the second convolution reads the input and what the first one made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.second(torch.cat([x, torch.relu(self.first(x))], 1)).mean((2, 3))


class Grouped(nn.Module):
    """A grouped convolution: the same place in every group goes together."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.grouped, self.after = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, groups=4), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.grouped(torch.relu(self.before(x))))).mean((2, 3))


class Normalised(nn.Module):
    """Layer norm takes statistics over the width, so the width has to stay; the inner width is free."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.inner, self.back, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.back(torch.relu(self.inner(self.norm(x)))))


class Recurrent(nn.Module):
    """A residual block with a linear recurrent unit."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.block, self.head = nn.Linear(1, 8), LRUBlock(8, 16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.encode(x)).mean(1))


IMAGES = (4, 3, 8, 8)
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "mlp": (mlp, (4, 12), {"0": 24, "2": 16}),
    "plain_cnn": (plain_cnn, IMAGES, {"0": 16, "4": 24}),
    "separable": (Separable, IMAGES, {"expand": 16, "squeeze": 8}),
    "dense": (Dense, IMAGES, {"stem": 8, "first": 12}),
    "grouped": (Grouped, IMAGES, {"before": 4, "grouped": 6}),
    "normalised": (Normalised, (4, 6), {"inner": 24}),
    "residual": (lambda: DigitsNet(8), (4, 1, 8, 8), {
        "stem.0": 8, "blocks.0.conv1": 8, "blocks.1.conv1": 8,
        "blocks.2.conv1": 16, "blocks.2.conv2": 16, "blocks.3.conv1": 16,
    }),
}  # fmt: skip
"""Maker, input shape, and the axes that there are: by name, with their units."""


def make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network with batch statistics of its own, and an input."""
    torch.manual_seed(1)
    maker, shape, _ = ZOO[name]
    model = maker()
    model.train()
    for _ in range(3):
        model(torch.randn(shape))
    return model, (torch.randn(shape),)
