"""CIFAR-10 as JPEG copies: decoded once, cropped and flipped batch by batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgelean.recipes._files import Arrays, arrays
from edgelean.recipes.scifar import DEVIATION, FILE, MEAN, NAMES, decoded

IMAGES, TESTED = 16_000, 10_000
"""The first so many images of the training split, and the whole test split."""

BATCH, PADDING = 128, 4


@dataclass(frozen=True)
class Images:
    """Pixels ``[n, 32, 32, 3]`` as bytes, and classes ``[n]``."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training images of one epoch in random order, each at a random place and perhaps mirrored."""
        random = torch.Generator().manual_seed(seed * 1009 + epoch)
        order = torch.randperm(len(self.x_train), generator=random)
        for chosen in torch.split(order, BATCH)[: len(order) // BATCH]:
            yield normalised(moved(self.x_train[chosen], random)), self.y_train[chosen]


def normalised(pixels: Tensor) -> Tensor:
    """Return ``[n, 3, 32, 32]`` with mean 0 and deviation 1 per color, the colors innermost in memory."""
    return ((pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2)


def moved(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Return each image moved by up to 4 pixels, its border black, and half of them mirrored."""
    count, height, width, _ = pixels.shape
    padded = torch.nn.functional.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING))
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=random)
    across = torch.arange(width).expand(count, width)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(mirrored, across.flip(1), across) + left
    rows = torch.arange(height) + top
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def load_images() -> Images:
    """Return the images; they are decoded the first time and kept in the folder for temporary files.

    Raises
    ------
    MissingError
        If EDGELEAN_DATA does not name a folder that holds the file.
    """
    cached = Path(tempfile.gettempdir()) / f"edgelean-cifar10-{os.getuid()}-{IMAGES}-{TESTED}.npz"
    if not cached.exists():
        packed = arrays(FILE, *NAMES)
        unpacked = {**_split(packed, "train", IMAGES), **_split(packed, "test", TESTED)}
        part = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, allow_pickle=False, **unpacked)
        part.replace(cached)
    with np.load(cached) as found:
        return Images(*(torch.from_numpy(found[name]) for name in ("x_train", "y_train", "x_test", "y_test")))


def _split(packed: Arrays, split: str, count: int) -> Arrays:
    classes = packed[f"y_{split}"][:count].astype(np.int64)
    return {f"x_{split}": decoded(packed, split, count), f"y_{split}": classes}
