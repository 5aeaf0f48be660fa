"""Sequential MNIST: a digit read pixel by pixel, 784 steps, by one linear recurrent unit with 256 states.

The set-up is that of Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space
models", 2026: one block, 8 features, 256 states, batches of 50, no weight decay. Two things differ: the block has a
layer norm in the place of a batch norm, and 20 epochs with a larger learning rate stand for their 167 with a small
one. On a core of a CPU an epoch takes some six minutes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgelean.nn import LRU, SequenceBlock, SequenceClassifier
from edgelean.recipe import Data, ImageInput, Recipe
from edgelean.recipes._files import arrays

FILE = "mnist.npz"
WIDTH, STATES = 8, 256
VALIDATION = 5000
"""The last so many images of the training split."""


def pixel_net(width: int = WIDTH, states: int = STATES, dropout: float = 0.1) -> SequenceClassifier:
    """Return an embedding, a recurrent block, and a linear head on the mean over time."""
    return SequenceClassifier(
        encoder=nn.Linear(1, width),
        blocks=[SequenceBlock(LRU(width, states), dropout)],
        head=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)),
    )


def load_data() -> Data:
    """Return the images as sequences ``[784, 1]``, row by row, in 0..1; the validation split is of the training one."""
    packed = arrays(FILE, "x_train", "y_train", "x_test", "y_test")

    def split(of: str, chosen: slice) -> TensorDataset:
        pixels = packed[f"x_{of}"][chosen].reshape(-1, 784, 1).astype(np.float32) / 255
        return TensorDataset(torch.from_numpy(pixels), torch.from_numpy(packed[f"y_{of}"][chosen].astype(np.int64)))

    return Data(
        split("train", slice(None, -VALIDATION)), split("train", slice(-VALIDATION, None)), split("test", slice(None))
    )


recipe = Recipe(
    name="smnist",
    model=pixel_net,
    data=load_data,
    loss=nn.functional.cross_entropy,
    metric="accuracy",
    epochs=20,
    batch_size=50,
    learning_rate=4e-3,
    weight_decay=0.0,
    labels=tuple("0123456789"),
    preparation=ImageInput(size=(28, 28), channels=1),
)
