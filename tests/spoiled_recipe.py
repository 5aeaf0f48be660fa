"""The recipe of residual blocks with a metric that is good for the whole model only."""

import dataclasses

import deep_recipe
from torch import nn

from edgelean.nn.bypass import Bypass

MADE = []


def model():
    MADE.append(deep_recipe.model())
    return MADE[-1]


def metric(output, target):
    full = sum(p.numel() for p in deep_recipe.model().parameters())
    left = sum(p.numel() for p in MADE[-1].parameters())
    return 0.9 if left == full and not any(isinstance(part, Bypass) for part in MADE[-1].modules()) else 0.1


recipe = dataclasses.replace(
    deep_recipe.recipe, model=model, metric=metric, loss=nn.functional.cross_entropy, epochs=12
)
