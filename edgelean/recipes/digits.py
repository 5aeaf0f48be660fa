"""Handwritten digits and a residual network that is too big for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgelean.recipe import Data, ImageInput, Recipe
from edgelean.recipes._digits_data import digits_split

WIDTH = 48


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., Deep Residual Learning, 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, h, w]`` to ``[batch, outputs, h / stride, w / stride]``."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A stem, four residual blocks and a linear head: ``[batch, 1, 8, 8]`` to ``[batch, 10]``."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def load_data() -> Data:
    """Return the digits as images ``[1, 8, 8]``."""
    train, validation, test = (TensorDataset(x.unsqueeze(1), y) for x, y in digits_split())
    return Data(train, validation, test)


recipe = Recipe(
    name="digits",
    model=DigitsNet,
    data=load_data,
    loss=nn.functional.cross_entropy,
    metric="accuracy",
    epochs=30,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=1e-2,
    compare=True,
    labels=tuple("0123456789"),
    preparation=ImageInput(size=(8, 8), channels=1),
)
