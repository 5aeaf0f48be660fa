"""Small networks whose axes are known, each with an input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from edgelean.nn import LRU, SequenceBlock
from edgelean.recipes.digits import DigitsNet


def mlp() -> nn.Module:
    """Two hidden layers of 24 and 16."""
    return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 5))


def plain_cnn() -> nn.Module:
    """Convolutions, pooling, and a flatten that gives every channel four features of the linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


class Separable(nn.Module):
    """A depthwise convolution between two pointwise ones, with a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.depthwise(self.expand(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate).mean((2, 3))


class Dense(nn.Module):
    """Concatenation: the second convolution reads the input and what the first one made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.second(torch.cat([x, torch.relu(self.first(x))], 1)).mean((2, 3))


class Grouped(nn.Module):
    """A grouped convolution: the same place in every group goes together."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.grouped, self.after = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, groups=4), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.grouped(torch.relu(self.before(x))))).mean((2, 3))


class Normalised(nn.Module):
    """Layer norm takes statistics over the width: over what is left of it once it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.inner, self.back, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.back(torch.relu(self.inner(self.norm(x)))))


class Recurrent(nn.Module):
    """A residual block with a linear recurrent unit."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.block, self.head = nn.Linear(1, 8), SequenceBlock(LRU(8, 16)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.encode(x)).mean(1))


class Shuffled(nn.Module):
    """Channel shuffle between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.first = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 1, groups=2)
        self.second, self.after = nn.Conv2d(24, 16, 3, padding=1, groups=2), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.before(x)))
        n, _, h, w = x.shape
        x = x.view(n, 2, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.after(torch.relu(self.second(x))).mean((2, 3))


class SplitAndJoined(nn.Module):
    """A split in halves, of which one goes through a block, and a concatenation of all."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.block, self.after = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.before(x)).chunk(2, 1)
        return self.after(torch.cat([a, b, torch.relu(self.block(b))], 1)).mean((2, 3))


class UpAndDown(nn.Module):
    """A transposed convolution, a group norm, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.up, self.after = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(15, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.inner(torch.relu(self.down(x)))))
        return self.after(torch.cat([torch.relu(self.up(y)), x], 1)).mean((2, 3))


class WeightNormed(nn.Module):
    """Two layers of which the first is length times direction."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = weight_norm(nn.Linear(6, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Hidden(nn.Module):
    """The outputs of a recurrence of two layers in both directions, or its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers, self.head = kind(6, 8, 2, bidirectional=True, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0].mean(1))


class Attention(nn.Module):
    """Heads of queries that share keys and values, with rotary embedding; one projection, taken apart in chunks."""

    def __init__(self, heads: int = 4, shared: int = 2, places: int = 6) -> None:
        super().__init__()
        self.heads, self.shared, self.places = heads, shared, places
        self.qkv, self.out = nn.Linear(16, (heads + 2 * shared) * places), nn.Linear(heads * places, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        sizes = [self.heads * self.places, self.shared * self.places, self.shared * self.places]
        q, k, v = (part.view(n, t, -1, self.places).transpose(1, 2) for part in self.qkv(x).split(sizes, -1))
        q, k = self.turned(q), self.turned(k)
        k, v = (part.repeat_interleave(self.heads // self.shared, 1) for part in (k, v))
        y = ((q @ k.transpose(-1, -2)) * 0.4).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))

    def turned(self, x: Tensor) -> Tensor:
        """Return places turned by an angle that grows with time."""
        angles = torch.arange(x.shape[-2])[:, None] * torch.linspace(0.1, 1, self.places // 2).repeat(2)
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


class Transformer(nn.Module):
    """An embedding that is the head as well, and a block with attention and a gated inner layer between norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Embedding(20, 16), Attention()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.RMSNorm(16), nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed((x.abs() * 7).long().clamp(0, 19))
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        return self.head(self.norm3(x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))))


IMAGES = (4, 3, 8, 8)
Entries = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]]

ZOO: Entries = {
    "mlp": (mlp, (4, 12), {"0": 24, "2": 16}),
    "plain_cnn": (plain_cnn, IMAGES, {"0": 16, "4": 24}),
    "separable": (Separable, IMAGES, {"expand": 16, "squeeze": 8}),
    "dense": (Dense, IMAGES, {"stem": 8, "first": 12}),
    "grouped": (Grouped, IMAGES, {"before": 4, "grouped": 6}),
    "normalised": (Normalised, (4, 6), {"embed": 16, "inner": 24}),
    "shuffled": (Shuffled, IMAGES, {"before": 8, "first": 6, "second": 8}),
    "up_and_down": (UpAndDown, IMAGES, {"down": 8, "inner": 4, "up": 12}),
    "weight_normed": (WeightNormed, (4, 6), {"first": 16}),
    "residual": (lambda: DigitsNet(8), (4, 1, 8, 8), {
        "stem.0": 8, "blocks.0.conv1": 8, "blocks.1.conv1": 8,
        "blocks.2.conv1": 16, "blocks.2.conv2": 16, "blocks.3.conv1": 16,
    }),
}  # fmt: skip
"""Maker, input shape, and the axes that there are: by name, with their units."""

WIDER: Entries = {
    **ZOO,
    "split_and_joined": (SplitAndJoined, IMAGES, {"before": 8, "block": 8}),
    "lstm": (lambda: Hidden(nn.LSTM), (4, 7, 6), {"layers": 8}),
    "gru": (lambda: Hidden(nn.GRU), (4, 7, 6), {"layers": 8}),
    "transformer": (Transformer, (4, 7), {"attend.out": 16, "attend.qkv": 2, "gate": 24}),
}
"""The same with networks whose code holds on to numbers: the axes that are left when every axis was proved."""


def make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network with batch statistics of its own, and an input."""
    torch.manual_seed(1)
    maker, shape, _ = WIDER[name]
    model = maker()
    model.train()
    for _ in range(3):
        model(torch.randn(shape))
    return model, (torch.randn(shape),)
