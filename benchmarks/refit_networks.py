"""The trained networks of `benchmarks/refit.py`, and the data that they are trained on."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Split:
    """Inputs and their classes."""

    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Data:
    """What a network learns, and what it is judged by; in words as well."""

    name: str
    train: Split
    test: Split


@dataclass(frozen=True)
class Case:
    """A network, the data it learns, and for how long."""

    name: str
    make: Callable[[tuple[int, ...]], nn.Module]
    data: Callable[[int], Data]
    samples: int
    epochs: int
    rate: float


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, channels, height, width]``."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        out: Tensor = functional.relu(y + self.around(x))
        return out


class Attention(nn.Module):
    """Heads with projections of their own for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.places, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, time, width]``."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class Layer(nn.Module):
    """A transformer layer with norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, time, width]``."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.back(functional.gelu(self.wide(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Reads the rows of an image one after the other."""

    def __init__(self, rows: int, pixels: int, width: int = 64, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(pixels, width), nn.Parameter(0.02 * torch.randn(rows, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, classes]``."""
        logits: Tensor = self.head(self.norm(self.layers(self.embed(x.squeeze(1)) + self.places)).mean(1))
        return logits


def mlp(shape: tuple[int, ...]) -> nn.Module:
    """Return three hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(int(np.prod(shape)), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def cnn(shape: tuple[int, ...]) -> nn.Module:
    """Return convolutions with batch norm, and two linear layers."""

    def stage(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    side = shape[-1] // 4
    return nn.Sequential(
        *stage(shape[0], 16), nn.MaxPool2d(2), *stage(16, 32), nn.MaxPool2d(2), *stage(32, 32),
        nn.Flatten(), nn.Linear(32 * side**2, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def residual(shape: tuple[int, ...]) -> nn.Module:
    """Return a ResNet of three stages."""
    stem = nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, 1 if shape[-1] < 16 else 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    )
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def transformer(shape: tuple[int, ...]) -> nn.Module:
    """Return three layers with four heads of 16 places each."""
    return Transformer(shape[-2], shape[-1])


def _folder() -> Path:
    return Path(os.environ.get("EDGELEAN_DATA", "no such folder"))


def images(samples: int) -> Data:
    """Return MNIST, or the digits of scikit-learn where it is not there."""
    file = _folder() / "mnist.npz"
    if not file.exists():
        return digits()
    with np.load(file) as found:
        train, test = (
            Split(
                torch.from_numpy(found[f"x_{part}"]).float()[:, None] / 255 - 0.1307,
                torch.from_numpy(found[f"y_{part}"]).long(),
            )
            for part in ("train", "test")
        )
    return Data("MNIST", Split(train.inputs[:samples], train.classes[:samples]), test)


def photos(samples: int) -> Data:
    """Return CIFAR-10 as JPEG copies, or the digits of scikit-learn where it is not there."""
    file = _folder() / "cifar10_jpeg.npz"
    if not file.exists():
        return digits()
    with np.load(file) as found:
        train, test = (
            Split(
                _decoded(found[f"jpeg_{part}"], found[f"offset_{part}"], many),
                torch.from_numpy(found[f"y_{part}"][:many]).long(),
            )
            for part, many in (("train", samples), ("test", 5000))
        )
    return Data("CIFAR-10 as JPEG copies", train, test)


def _decoded(data: np.ndarray, offsets: np.ndarray, samples: int) -> Tensor:
    pairs = pairwise(offsets[: samples + 1])
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB")) for a, b in pairs])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.45


def digits() -> Data:
    """Return the digits of scikit-learn; every fourth is for the test."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16 - 0.3, torch.tensor(classes)
    test = torch.arange(len(x)) % 4 == 0
    return Data("digits of scikit-learn", Split(x[~test], y[~test]), Split(x[test], y[test]))


def batches(split: Split, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch of shuffled batches."""
    for chosen in torch.split(torch.randperm(len(split.inputs), generator=generator), size):
        yield split.inputs[chosen], split.classes[chosen]


def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of a split that a network gets right, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        pairs = zip(torch.split(split.inputs, 500), torch.split(split.classes, 500), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return right / len(split.inputs)


CASES = (
    Case("MLP", mlp, images, 20_000, 6, 2e-3),
    Case("CNN with batch norm", cnn, images, 10_000, 3, 3e-3),
    Case("transformer", transformer, images, 10_000, 6, 2e-3),
    Case("residual CNN", residual, photos, 10_000, 6, 4e-3),
)

QUICK = (
    Case("MLP", mlp, images, 10_000, 4, 2e-3),
    Case("CNN with batch norm", cnn, images, 5_000, 2, 3e-3),
    Case("transformer", transformer, images, 5_000, 5, 2e-3),
    Case("residual CNN", residual, photos, 5_000, 5, 4e-3),
)
"""The same, trained on less."""
