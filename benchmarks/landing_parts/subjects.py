"""What is trained: five recipes of five kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.levers_parts.images import load_images, normalised
from benchmarks.levers_parts.network import ResNet8
from edgelean.recipe import Data, Recipe, load_recipe
from edgelean.recipes._digits_data import digits_split

IMAGES, QUICK_IMAGES, HELD_OUT = 15_000, 3_000, 1_000
"""Images that are trained on, and those after them that validate. They are JPEG copies of CIFAR-10."""


class Attention(nn.Module):
    """Self-attention of several heads, and the hidden layer after it, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, tokens, width]``."""
        read = self.before(x)
        parts = [
            each(read).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        ]
        x = x + self.out(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.hidden(self.after(x)))


class SmallViT(nn.Module):
    """A vision transformer of 16 tokens, 8 x 8 pixels each."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 10]`` from images ``[n, 3, 32, 32]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return cast(Tensor, self.head(self.norm(self.layers(tokens)).mean(1)))


class RowReader(nn.Module):
    """Two layers of LSTM that read a digit row by row."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 10]`` from rows ``[n, 8, 8]``."""
        return cast(Tensor, self.head(self.lstm(x)[0][:, -1]))


def cifar(images: int) -> Data:
    """Return the images, normalised, without augmentation; a tenth of the test split is enough for the landing."""
    found = load_images()
    x, y = found.x_train, found.y_train
    train = TensorDataset(normalised(x[:images]), y[:images])
    validation = TensorDataset(normalised(x[IMAGES : IMAGES + HELD_OUT]), y[IMAGES : IMAGES + HELD_OUT])
    return Data(train, validation, TensorDataset(normalised(found.x_test[:1000]), found.y_test[:1000]))


def rows() -> Data:
    """Return the digits as eight rows of eight pixels."""
    return Data(*(TensorDataset(x.reshape(-1, 8, 8), y) for x, y in digits_split()))


def subjects(quick: bool) -> dict[str, Recipe]:
    """Return the recipes by their names; the quick ones learn less."""
    images = partial(cifar, QUICK_IMAGES if quick else IMAGES)
    vision: dict[str, Callable[[], nn.Module]] = {
        "resnet on cifar-10 (jpeg)": ResNet8,
        "vit on cifar-10 (jpeg)": SmallViT,
    }
    loss = functional.cross_entropy
    made = [
        replace(load_recipe("digits"), epochs=6 if quick else 20, compare=False),
        replace(load_recipe("digits-sequence"), epochs=6 if quick else 20, compare=False),
        *(
            Recipe(model=model, data=images, loss=loss, name=name, batch_size=64, epochs=3 if quick else 8)
            for name, model in vision.items()
        ),
        Recipe(model=RowReader, data=rows, loss=loss, name="lstm on rows of digits", epochs=8 if quick else 25),
    ]
    return {recipe.name: recipe for recipe in made}
