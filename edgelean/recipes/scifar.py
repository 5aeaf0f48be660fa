"""Sequential CIFAR-10: an image read pixel by pixel, 1024 steps of three colors, by linear recurrent units.

The images are JPEG copies, so figures are not those of the original ones. The network has a quarter of the width and a
third of the states of that of Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space
models", 2026; it wants a GPU all the same.
"""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgelean.nn import LRU, SequenceBlock, SequenceClassifier
from edgelean.recipe import Data, ImageInput, Recipe
from edgelean.recipes._files import Arrays, arrays

FILE = "cifar10_jpeg.npz"
NAMES = tuple(f"{what}_{split}" for what in ("jpeg", "offset", "y") for split in ("train", "test"))
"""The arrays of the file: JPEG files one after the other, where each begins, and its class."""

WIDTH, STATES, BLOCKS = 128, 128, 6
VALIDATION = 5000
"""The last so many images of the training split."""

MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
"""Of each color over the training split."""


def color_net(width: int = WIDTH, states: int = STATES, blocks: int = BLOCKS) -> SequenceClassifier:
    """Return an embedding, recurrent blocks, and a linear head on the mean over time."""
    return SequenceClassifier(
        encoder=nn.Linear(3, width),
        blocks=[SequenceBlock(LRU(width, states), dropout=0.1) for _ in range(blocks)],
        head=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)),
    )


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images as sequences ``[1024, 3]``, row by row, with mean 0 and deviation 1 of each color.

    Parameters
    ----------
    pixels
        Bytes, ``[n, 32, 32, 3]``; they become numbers when they are read, which takes a quarter of the memory.
    classes
        Shape ``[n]``.
    """

    def __init__(self, pixels: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
        self.pixels, self.classes = torch.from_numpy(pixels), torch.from_numpy(classes.astype(np.int64))
        self._mean, self._deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sequence = self.pixels[index].reshape(-1, 3).float() / 255
        return (sequence - self._mean) / self._deviation, self.classes[index]


def decoded(packed: Arrays, split: str, count: int | None = None) -> NDArray[np.uint8]:
    """Return the pixels ``[n, 32, 32, 3]`` of a split, or of its first ``count`` images."""
    from PIL import Image

    data, offsets = packed[f"jpeg_{split}"], packed[f"offset_{split}"][: None if count is None else count + 1]
    files = (io.BytesIO(data[start:end].tobytes()) for start, end in pairwise(offsets))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def load_data() -> Data:
    """Return the images as sequences; the validation split is of the training one."""
    packed = arrays(FILE, *NAMES)
    pixels, classes = decoded(packed, "train"), packed["y_train"]
    return Data(
        Images(pixels[:-VALIDATION], classes[:-VALIDATION]),
        Images(pixels[-VALIDATION:], classes[-VALIDATION:]),
        Images(decoded(packed, "test"), packed["y_test"]),
    )


recipe = Recipe(
    name="scifar",
    model=color_net,
    data=load_data,
    loss=nn.functional.cross_entropy,
    metric="accuracy",
    epochs=100,
    batch_size=50,
    learning_rate=1e-3,
    weight_decay=5e-2,
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    preparation=ImageInput(size=(32, 32), mean=MEAN, std=DEVIATION, layout="channels last"),
)
