"""CIFAR-10 as JPEG copies: decoded once, cropped and flipped batch by batch."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgelean.errors import MissingError

FILE = "cifar10_jpeg.npz"
IMAGES, TESTED = 16_000, 10_000
"""The first so many images of the training split, and the whole test split."""

BATCH, PADDING = 128, 4
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


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
        If EDGELEAN_DATA does not point to a folder that holds the file.
    """
    cached = Path(tempfile.gettempdir()) / f"edgelean-cifar10-{os.getuid()}-{IMAGES}-{TESTED}.npz"
    if not cached.exists():
        source = Path(os.environ.get("EDGELEAN_DATA", "")) / FILE
        if not source.is_file():
            raise MissingError(f"{FILE} is not in {source.parent}: set EDGELEAN_DATA to the folder that holds it")
        with np.load(source) as packed:
            arrays = {**_split(packed, "train", IMAGES), **_split(packed, "test", TESTED)}
        part = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, allow_pickle=False, **arrays)
        part.replace(cached)
    with np.load(cached) as arrays:
        return Images(*(torch.from_numpy(arrays[name]) for name in ("x_train", "y_train", "x_test", "y_test")))


def _split(packed: np.lib.npyio.NpzFile, split: str, count: int) -> dict[str, NDArray[Any]]:
    data, offsets = packed[f"jpeg_{split}"], packed[f"offset_{split}"]
    pixels = [_decoded(data[offsets[i] : offsets[i + 1]]) for i in range(count)]
    return {f"x_{split}": np.stack(pixels), f"y_{split}": packed[f"y_{split}"][:count].astype(np.int64)}


def _decoded(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
