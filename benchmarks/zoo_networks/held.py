"""Networks that hold their sizes in the ways in which people do: configurations, dictionaries, tuples, functions."""

# ruff: noqa: D102  the networks are what users write; their names say what they are
# A module that is called returns whatever; users do not cast it.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo_networks.network import Network, classics


@dataclass(frozen=True)
class Settings:
    """What every layer of a transformer reads its sizes from."""

    width: int = 32
    heads: int = 4
    places: int = 8
    inner: int = 80


class ConfiguredBlock(nn.Module):
    """Reads its sizes from a configuration that all layers share, in every call."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self.before, self.after = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.heads * config.places)
        self.out = nn.Linear(config.heads * config.places, config.width)
        self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        y = self.qkv(self.before(x)).view(*x.shape[:2], 3, c.heads, c.places)
        q, k, v = (part.transpose(1, 2) for part in y.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2)
        x = x + self.out(mixed.reshape(*x.shape[:2], c.heads * c.places))
        y = F.gelu(self.up(self.after(x))).view(-1, c.inner)
        return x + self.down(y).view(*x.shape[:2], -1)


class Configured(nn.Module):
    """A transformer whose layers share one configuration."""

    def __init__(self) -> None:
        super().__init__()
        config = Settings()
        self.embed, self.head = nn.Linear(6, config.width), nn.Linear(config.width, 3)
        self.blocks = nn.ModuleList(ConfiguredBlock(config) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class InDictionary(nn.Module):
    """Holds its sizes in a dictionary, and splits by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {"stem": 24, "parts": [8, 4, 12]}
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.tall, self.deep = nn.Conv2d(4, 16, (5, 1), padding=(2, 0)), nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).reshape(x.shape[0], self.sizes["stem"], *x.shape[2:])
        a, b, c = torch.split(x, self.sizes["parts"], 1)
        return self.head(torch.relu(self.wide(a) + self.tall(b) + self.deep(c)).mean((2, 3)))


class Shape(NamedTuple):
    """The shape that a vector is made into."""

    channels: int
    side: int


class Unfolded(nn.Module):
    """A generator that unflattens by a tuple of its own and by nn.Unflatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Shape(32, 4)
        self.project = nn.Linear(16, 32 * 16)
        self.up = nn.ConvTranspose2d(32, 24, 4, 2, 1)
        self.squeeze = nn.Sequential(nn.Flatten(2), nn.Linear(64, 6), nn.Flatten(), nn.Linear(144, 40))
        self.grow = nn.Sequential(nn.Linear(40, 12 * 9), nn.ReLU(), nn.Unflatten(1, (12, 3, 3)), nn.Conv2d(12, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.project(x)).view(-1, self.first.channels, self.first.side, self.first.side)
        return self.grow(torch.relu(self.squeeze(torch.relu(self.up(x)))))


class PlainNorm(nn.Module):
    """A layer norm of one's own over the channels of an image, with its shape in a tuple."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalized_shape = (channels,)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Normed(nn.Module):
    """Convolutions with norms of one's own, and one of torch without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 24, 4, 4), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.norm, self.up, self.down = PlainNorm(24), nn.Conv2d(24, 96, 1), nn.Conv2d(96, 24, 1)
        self.last, self.head = nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm(self.mix(x)))))
        return self.head(self.last(x.mean((2, 3))))


class Counted(nn.Module):
    """Keeps the sum of the widths that it joins, and where the second begins."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = 20, 12, 32
        self.one, self.two = nn.Linear(8, 20), nn.Linear(8, 12)
        self.mix, self.out = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([torch.relu(self.one(x)), torch.tanh(self.two(x))], -1).view(-1, self.both)
        a, b = joined[:, : self.left], joined[:, self.left :]
        return self.out(torch.relu(self.mix(torch.cat([a.sigmoid(), b], -1))))


def _folded(x: Tensor, size: int) -> Tensor:
    return x.reshape(-1, size)


class Partial(nn.Module):
    """Holds a function with a size bound to it, and a namespace of sizes; its weights are bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = SimpleNamespace(wide=40)
        self.fold = partial(_folded, size=40)
        self.weights = nn.ParameterList(nn.Parameter(0.3 * torch.randn(*s)) for s in ((40, 10), (40, 40), (6, 40)))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.weights
        x = torch.einsum("bi,oi->bo", x, first).relu().reshape(-1, self.sizes.wide)
        x = self.fold(x)
        return F.linear(F.linear(x, second).relu(), last)


class Recurring(nn.Module):
    """A GRU cell whose first state is made from a number that a dictionary of settings holds."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.cell, self.head = nn.GRUCell(5, settings["hidden"]), nn.Linear(settings["hidden"], 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.settings["hidden"])
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


NETWORKS: tuple[Network, ...] = classics(
    shared_configuration=lambda: (Configured(), (torch.randn(2, 5, 6),)),
    sizes_in_a_dictionary=lambda: (InDictionary(), (torch.randn(2, 3, 12, 12),)),
    sizes_in_tuples=lambda: (Unfolded(), (torch.randn(2, 16),)),
    norms_of_its_own=lambda: (Normed(), (torch.randn(2, 3, 32, 32),)),
    sum_of_widths=lambda: (Counted(), (torch.randn(3, 8),)),
    bare_parameters=lambda: (Partial(), (torch.randn(3, 10),)),
    recurring=lambda: (Recurring({"hidden": 24}), (torch.randn(2, 4, 5),)),
)
