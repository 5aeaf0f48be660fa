"""A recipe: a small residual network on CIFAR-10, JPEG copies; reads cifar10_jpeg.npz in the folder EDGELEAN_DATA."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgelean.recipe import Data, ImageInput, Recipe
from edgelean.recipes._files import arrays
from edgelean.recipes.digits import ResidualBlock
from edgelean.recipes.scifar import DEVIATION, FILE, MEAN, NAMES, decoded

IMAGES = int(os.environ.get("SMALL_CIFAR_IMAGES", "12000"))
"""Of the training split; 1000 more are the validation split."""

VALIDATION, TESTED = 1000, 4000


class SmallResNet(nn.Module):
    """Three residual blocks behind a stem that halves the image."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks = ((width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1))
        self.blocks = nn.Sequential(*(ResidualBlock(*sizes) for sizes in blocks))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``[batch, 3, 32, 32]``."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def load_data() -> Data:
    """Return images with mean 0 and deviation 1 of each color."""
    packed = arrays(FILE, *NAMES)
    pixels, classes = decoded(packed, "train", IMAGES + VALIDATION), packed["y_train"][: IMAGES + VALIDATION]
    tested = decoded(packed, "test", TESTED), packed["y_test"][:TESTED]
    return Data(_split(pixels[:IMAGES], classes[:IMAGES]), _split(pixels[IMAGES:], classes[IMAGES:]), _split(*tested))


def _split(pixels: np.ndarray, classes: np.ndarray) -> TensorDataset:
    x = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return TensorDataset(x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes.astype(np.int64)))


recipe = Recipe(
    name="small-cifar",
    model=SmallResNet,
    data=load_data,
    loss=nn.functional.cross_entropy,
    epochs=8,
    batch_size=64,
    learning_rate=2e-3,
    weight_decay=5e-2,
    preparation=ImageInput(size=(32, 32), mean=MEAN, std=DEVIATION),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
