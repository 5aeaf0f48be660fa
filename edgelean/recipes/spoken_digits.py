"""Spoken digits: raw audio at 8 kHz to one of ten words, the edge job of spotting keywords.

The Free Spoken Digit Dataset: six speakers, fifty recordings of each digit by each. Recordings 0 to 4 of each are its
standard test split; 5 to 9 are the validation split here, the others are trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from edgelean.nn import LRU, SequenceBlock, SequenceClassifier
from edgelean.recipe import AudioInput, Data, Recipe
from edgelean.recipes._files import arrays

FILE = "fsdd.npz"
SAMPLES = 8000
"""One second. 99 of 100 recordings are shorter."""

HOP, FRAME = 128, 304
"""Samples from one frame to the next, 16 ms, and in a frame."""

PIECE, STRIDE, PIECES = 64, 16, 16
"""Samples that a filter hears at once, from one such piece of a frame to the next, and how many there are."""

TEST, VALIDATION = range(0, 5), range(5, 10)
"""Which recordings of each speaker and digit."""

FASTER, NOISE = 0.1, 0.02
"""A recording that is trained on is up to this share faster or slower, and gets noise of up to this amplitude."""

WIDTH, STATES = 128, 192


class Ear(nn.Module):
    """Turns each frame ``[..., 304]`` into features ``[..., width]``: filters that move over it, and a linear map.

    The filters are a linear layer on overlapping pieces of the frame. As a convolution of one channel they would cost
    a CPU four times as much.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        filters = width // 2
        self.filters = nn.Linear(PIECE, filters, bias=False)
        self.norm1 = nn.BatchNorm1d(filters)
        self.join = nn.Linear(PIECES * filters, width, bias=False)
        self.norm2 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of each frame."""
        pieces = x.reshape(-1, FRAME).unfold(1, PIECE, STRIDE).reshape(-1, PIECE)
        inner = torch.relu(self.norm1(self.filters(pieces)))
        frames = inner.reshape(x.shape[:-1].numel(), -1)
        return torch.relu(self.norm2(self.join(frames))).reshape(*x.shape[:-1], -1)


class Listening(SequenceBlock):
    """A recurrent block without a shortcut: what hears the order of sounds has to stay, however small it becomes."""

    layer: LRU

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape."""
        return self._mix(self.layer(self.norm(inputs)))

    def step(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Advance by one time step ``[batch, width]``."""
        outputs, state = self.layer.step(self.norm(inputs), state)
        return self._mix(outputs), state


def speech_net(width: int = WIDTH, states: int = STATES) -> SequenceClassifier:
    """Return an ear, two recurrent layers, and a linear head on the mean over time.

    With its ``step`` the network hears a stream, frame by frame.
    """
    return SequenceClassifier(
        encoder=Ear(width),
        blocks=[SequenceBlock(LRU(width, states), dropout=0.1), Listening(LRU(width, states), dropout=0.1)],
        head=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)),
    )


@dataclass(frozen=True)
class Spoken(Dataset[tuple[Tensor, Tensor]]):
    """Recordings that are a little different each time: at another place, faster or slower, with noise.

    The random numbers are those of torch, so that a resumed training sees the same.
    """

    recordings: tuple[Tensor, ...]
    digits: Tensor

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        place, pace, loud = torch.rand(3).tolist()
        sound = self.recordings[index]
        length = round(len(sound) * (1 + FASTER * (2 * pace - 1)))
        sound = functional.interpolate(sound[None, None], length, mode="linear")[0, 0]
        return framed(placed(sound, place) + NOISE * loud * torch.randn(SAMPLES)), self.digits[index]


def framed(sound: Tensor) -> Tensor:
    """Return the frames ``[61, 304]`` of one second; its last 2 ms fill no frame."""
    return sound.unfold(0, FRAME, HOP).clone()


def placed(sound: Tensor, place: float) -> Tensor:
    """Return one second ``[8000]`` with a recording in it.

    Parameters
    ----------
    sound
        Samples ``[n]``. Of more than one second the first is kept.
    place
        Share of the silence that comes before a shorter one: 0.5 puts it in the middle.
    """
    sound = sound[:SAMPLES]
    silence = SAMPLES - len(sound)
    before = math.floor(place * (silence + 1)) if place < 1 else silence
    return functional.pad(sound, (before, silence - before))


def load_data() -> Data:
    """Return recordings of one second as frames ``[61, 304]``; their root mean square is 1 before silence is added.

    The training split varies them; the others have them in the middle.
    """
    packed = arrays(FILE, "audio", "offset", "y", "index")
    sounds = [_even(packed["audio"][start:end]) for start, end in pairwise(packed["offset"])]
    digits, which = torch.from_numpy(packed["y"].astype(np.int64)), packed["index"]
    test, validation = (np.flatnonzero(np.isin(which, split)) for split in (TEST, VALIDATION))
    train = np.flatnonzero(which >= VALIDATION.stop)

    def still(chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> TensorDataset:
        return TensorDataset(torch.stack([framed(placed(sounds[i], 0.5)) for i in chosen]), digits[chosen])

    return Data(Spoken(tuple(sounds[i] for i in train), digits[train]), still(validation), still(test))


def _even(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> Tensor:
    sound = torch.from_numpy(samples.astype(np.float32))
    return sound / sound.square().mean().sqrt().clamp(min=1.0)


recipe = Recipe(
    name="spoken-digits",
    model=speech_net,
    data=load_data,
    loss=nn.functional.cross_entropy,
    metric="accuracy",
    epochs=40,
    batch_size=32,
    learning_rate=3e-3,
    weight_decay=1e-2,
    compare=True,
    labels=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    preparation=AudioInput(rate_hz=8000, samples=SAMPLES, rms=1.0, frame=FRAME, hop=HOP),
)
