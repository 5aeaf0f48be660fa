"""Scores: the predicted loss of a cut against the loss that held-out data really shows, and what the collecting costs.

Three networks (a residual CNN, a transformer, an LSTM that read the rows of an image) are trained on handwritten digits while every
score watches. Then axes are cut, one alone and all together, to many sizes, with and without refit, and the increase
of the loss on data that no training saw is compared with the prediction. Prints every figure beside its goal, and exits
1 when one is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.control import rank_correlation
from edgelean.loop import OBSERVE_EVERY
from edgelean.recipes.digits import DigitsNet
from edgelean.shrink import refit
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.scores import SCORES, Flow, Running, Score, open_score

BATCH = 64
EPOCHS, QUICK_EPOCHS = 6, 3
HELD_OUT = 2000
SINGLE_SHARES = (1 / 8, 1 / 4, 1 / 2)
PLAN_SHARES = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
PLANS, QUICK_PLANS = 40, 20
SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, side, side]`` and labels, for training and held out."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


def digits(samples: int) -> Digits:
    """Return MNIST at half its resolution from EDGELEAN_DATA, or the smaller digits of scikit-learn."""
    path = Path(os.environ.get("EDGELEAN_DATA", "")) / "mnist.npz"
    if path.is_file():
        arrays = np.load(path)
        images, labels = arrays["x_train"][: samples + HELD_OUT], arrays["y_train"][: samples + HELD_OUT]
        x = functional.avg_pool2d(torch.from_numpy(images).float().div(255).unsqueeze(1), 2)
        y = torch.from_numpy(labels).long()
        return Digits((x[:samples], y[:samples]), (x[samples:], y[samples:]))
    from edgelean.recipes._digits_data import digits_split

    train, validation, test = digits_split()
    held = [torch.cat(pair) for pair in zip(validation, test, strict=True)]
    return Digits((train[0].unsqueeze(1), train[1]), (held[0].unsqueeze(1), held[1]))


class Block(nn.Module):
    """Attention and an inner layer, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same."""
        y = self.norm1(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Rows of an image as a sequence: ``[batch, 1, side, side]`` to ten logits."""

    def __init__(self, side: int, width: int = 48) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(side, width), nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x[:, 0]) + self.place)).mean(1))
        return logits


class Recurrence(nn.Module):
    """Rows of an image through two layers of an LSTM, and an inner layer: ``[batch, 1, side, side]`` to ten logits."""

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        self.lstm, self.inner = nn.LSTM(side, width, 2, batch_first=True), nn.Linear(width, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(torch.relu(self.inner(self.lstm(x[:, 0])[0][:, -1])))
        return logits


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "cnn": lambda side: DigitsNet(16),
    "transformer": Transformer,
    "lstm": Recurrence,
}


@dataclass(frozen=True)
class Trained:
    """A trained network, and what the scores saw of it."""

    model: nn.Module
    anatomy: Anatomy
    scores: Mapping[str, Score]
    held_out: tuple[Tensor, Tensor]
    loss: float

    def observed(self, plan: Plan, flows: Mapping[str, Flow] | None) -> float:
        """Return by how much a cut raises the held-out loss; with flows after a refit."""
        found = {} if flows is None else refit.amounts(self.model, self.anatomy, plan, flows)
        cut = copy.deepcopy(self.model)
        apply(cut, plan)
        refit.add(cut, found, plan)
        return held_out_loss(cut, self.held_out) - self.loss


def held_out_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the mean loss in nats, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return float(functional.cross_entropy(model(data[0]), data[1]))


def train(build: Callable[[int], nn.Module], data: Digits, epochs: int, scores: Mapping[str, Score]) -> Trained:
    """Train a network while scores watch it as the loop lets them."""
    torch.manual_seed(SEED)
    x, y = data.train
    model = build(x.shape[-1])
    anatomy = dissect(model, (x[:8],))
    anatomy = prove(model, anatomy, (x[:8],)).applied(anatomy)
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for score in scores.values():
        score.watch(model, anatomy.axes)
    model.train()
    order = torch.cat([torch.randperm(len(x))[: len(x) // BATCH * BATCH] for _ in range(epochs)])
    for step, batch in enumerate(order.split(BATCH)):
        for score in scores.values():
            score.active = step % OBSERVE_EVERY == 0
        optimizer.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        for score in scores.values():
            if score.active:
                score.observe_gradients(model, anatomy.axes)
        optimizer.step()
        schedule.step()
    for score in scores.values():
        score.active = False
        score.release()
    return Trained(model, anatomy, scores, data.held_out, held_out_loss(model, data.held_out))
