"""A recipe with a state space layer that trains in a second: a quarter of the digits, row by row."""

from torch import nn
from torch.utils.data import TensorDataset

import edgelean
from edgelean.nn import LRU, SequenceBlock, SequenceClassifier
from edgelean.recipes._digits_data import digits_split


def model():
    return SequenceClassifier(
        encoder=nn.Linear(8, 8),
        blocks=[SequenceBlock(LRU(8, 32))],
        head=nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10)),
    )


def data():
    train, validation, test = digits_split()
    return tuple(
        TensorDataset(x[:size].reshape(-1, 8, 8), y[:size])
        for (x, y), size in ((train, 320), (validation, 96), (test, 96))
    )


recipe = edgelean.Recipe(
    model=model, data=data, loss=nn.functional.cross_entropy, epochs=8, batch_size=32, learning_rate=5e-3
)
