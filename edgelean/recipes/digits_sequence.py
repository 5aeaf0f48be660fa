"""Handwritten digits read pixel by pixel, and a linear recurrent unit with more states than they need."""

from __future__ import annotations

from torch import nn
from torch.utils.data import TensorDataset

from edgelean.nn import LRU, SequenceBlock, SequenceClassifier
from edgelean.recipe import Data, ImageInput, Recipe
from edgelean.recipes._digits_data import digits_split

WIDTH = 32
STATES = 256


def sequence_net(width: int = WIDTH, states: int = STATES) -> SequenceClassifier:
    """Return an embedding, a recurrent block, and a linear head on the mean over time."""
    return SequenceClassifier(
        encoder=nn.Linear(1, width),
        blocks=[SequenceBlock(LRU(width, states))],
        head=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)),
    )


def load_data() -> Data:
    """Return the digits as sequences ``[64, 1]``: the pixels row by row."""
    train, validation, test = (TensorDataset(x.reshape(-1, 64, 1), y) for x, y in digits_split())
    return Data(train, validation, test)


recipe = Recipe(
    name="digits-sequence",
    model=sequence_net,
    data=load_data,
    loss=nn.functional.cross_entropy,
    metric="accuracy",
    epochs=25,
    batch_size=32,
    learning_rate=4e-3,
    weight_decay=1e-2,
    compare=True,
    labels=tuple("0123456789"),
    preparation=ImageInput(size=(8, 8), channels=1),
)
