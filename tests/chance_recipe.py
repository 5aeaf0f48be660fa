"""A recipe that trains in a blink, and draws random numbers from everywhere: dropout, numpy, and Python itself."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import edgelean
from edgelean.recipes._digits_data import digits_split


class Shaken(Dataset):
    """Digits with noise from numpy on them, some of them dimmed."""

    def __init__(self, x, y):
        self.x, self.y = x.flatten(1), y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.from_numpy(np.random.standard_normal(64).astype(np.float32))  # noqa: NPY002 -- as people do
        return self.x[index] * random.choice([0.5, 1.0]) + 0.1 * noise, self.y[index]


def model():
    return nn.Sequential(
        nn.Linear(64, 192), nn.ReLU(), nn.Dropout(0.1), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10)
    )  # fmt: skip


def data():
    train, validation, test = (Shaken(x[:96], y[:96]) for x, y in digits_split())
    shuffled = DataLoader(train, 16, shuffle=True, generator=torch.Generator().manual_seed(7))
    return shuffled, validation, test


recipe = edgelean.Recipe(model=model, data=data, loss=nn.functional.cross_entropy, epochs=4, learning_rate=3e-3)
