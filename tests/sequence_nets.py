"""Small sequence models, one for each kind of layer."""

from __future__ import annotations

import torch
from torch import nn

from edgelean.nn import LRU, S4D, S5, Mamba, SequenceBlock, SequenceClassifier, SequenceRegressor

WIDTH = 4
FEATURES = 2
LAYERS = {
    "LRU": lambda: LRU(WIDTH, 5),
    "S5": lambda: S5(WIDTH, 6),
    "S4D": lambda: S4D(WIDTH, 6),
    "Mamba": lambda: Mamba(WIDTH, 3),
}


def sequence_model(kind, answers="mean", seed=0, features=FEATURES):
    """A classifier by the mean over time or the last step, or with ``"none"`` a regressor for each step."""
    torch.manual_seed(seed)
    parts = nn.Linear(features, WIDTH), [SequenceBlock(LAYERS[kind]())], nn.Linear(WIDTH, 3)
    made = SequenceRegressor(*parts) if answers == "none" else SequenceClassifier(*parts, answers)
    return made.eval()
