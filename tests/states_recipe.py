"""A recipe that trains in seconds: digits read four pixels at a time, by two state space layers of too many states."""

from torch import nn
from torch.utils.data import TensorDataset

import edgelean
from edgelean.nn import S4D, S5, SequenceClassifier
from edgelean.recipes._digits_data import digits_split

WIDTH = 8


def model():
    return SequenceClassifier(
        nn.Linear(4, WIDTH), [S4D(WIDTH, 128), S5(WIDTH, 128)], nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))
    )


def data():
    return tuple(
        TensorDataset(x[:size].reshape(-1, 16, 4), y[:size])
        for (x, y), size in zip(digits_split(), (512, 96, 96), strict=True)
    )


recipe = edgelean.Recipe(
    model=model, data=data, loss=nn.functional.cross_entropy, epochs=4, batch_size=32, learning_rate=8e-3
)
