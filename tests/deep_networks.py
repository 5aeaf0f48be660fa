"""Networks with residual branches of all kinds, each with an input and the names of its blocks."""

from __future__ import annotations

import torch
from torch import nn
from zoo import Recurrent, Transformer

from edgelean.recipes.digits import DigitsNet


class Inverted(nn.Module):
    """An inverted residual block: no activation behind the sum."""

    def __init__(self, width, scaled=False):
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.project, self.norm2 = nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5)) if scaled else 1

    def forward(self, x):
        y = torch.relu(self.depthwise(nn.functional.relu6(self.norm1(self.expand(x)))))
        return self.norm2(self.project(y)) * self.scale + x


class ReadElsewhere(nn.Module):
    """What the branch makes is also read by the head."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.back, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.inner(x))
        return self.head(x + self.back(y)) * y


class Masked(nn.Module):
    """A layer that returns a tuple, and attention that also reads a mask made of the input."""

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x, mask=None):
            q, k, v = self.qkv(x).chunk(3, -1)
            weights = (q @ k.transpose(-1, -2) + mask).softmax(-1)
            return self.out(weights @ v), weights

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(self.Attend() for _ in range(2))

    def forward(self, x):
        mask = (x.mean(-1) < 0).unsqueeze(1) * -5.0
        x = self.stem(x)
        for layer in self.layers:
            x = nn.functional.layer_norm(x + layer(x, mask=mask)[0], (8,))
        return self.head(x)


class Residual(nn.Module):
    """A module that is nothing but a block."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.back = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        return x + self.back(torch.tanh(self.inner(x)))


def cnn(*blocks):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def encoder(norm_first, dropout=0.1):
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout, batch_first=True, norm_first=norm_first)
    return nn.Sequential(
        nn.Linear(6, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )


LAYERS = [f"1.layers.{i}.{last}.block" for i in range(2) for last in ("self_attn.out_proj", "linear2")]

DEEP = {
    "resnet": (lambda: DigitsNet(8), (4, 1, 8, 8), [f"blocks.{i}.conv2.block" for i in (0, 1, 3)]),
    "inverted": (lambda: cnn(Inverted(8), Inverted(8)), (4, 3, 8, 8), [f"{i}.project.block" for i in (2, 3)]),
    "scaled": (lambda: cnn(Inverted(8, scaled=True)), (4, 3, 8, 8), ["2.project.block"]),
    "pre_norm": (lambda: encoder(norm_first=True), (4, 5, 6), LAYERS),
    "post_norm": (lambda: encoder(norm_first=False), (4, 5, 6), LAYERS),
    "gated": (Transformer, (4, 7), ["attend.out.block", "down.block"]),
    "state_space": (Recurrent, (4, 32, 1), ["block.gate.block"]),
    "masked": (Masked, (4, 5, 4), [f"layers.{i}.out.block" for i in range(2)]),
}
"""Maker, input shape, and the blocks that can go."""


def make_deep(name):
    """Return a network with batch statistics of its own, and an input."""
    torch.manual_seed(1)
    maker, shape, _ = DEEP[name]
    model = maker()
    model.train()
    for _ in range(3):
        model(torch.randn(shape))
    return model, (torch.randn(shape),)
