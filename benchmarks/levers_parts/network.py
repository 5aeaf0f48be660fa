"""A ResNet of 0.3 million parameters that two cores can train."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import make_plan

WIDTH = 32


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, read: int, written: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(read, written, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(written)
        self.second = nn.Conv2d(written, written, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(written)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(read, written, 1, stride, bias=False), nn.BatchNorm2d(written))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, written, height / stride, width / stride]``."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResNet8(nn.Module):
    """Three stages of one block; stem and stages halve the image, so that a step of 128 images takes 50 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.stages = nn.Sequential(
            Block(WIDTH, WIDTH, 2),
            Block(WIDTH, 2 * WIDTH, 2),
            Block(2 * WIDTH, 4 * WIDTH, 2),
        )
        self.head = nn.Linear(4 * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 10]`` from images ``[n, 3, 32, 32]``."""
        return cast(Tensor, self.head(self.stages(self.stem(x)).mean((2, 3))))


def small_network(keep: dict[str, int], example: Tensor) -> nn.Module:
    """Return a network of the given widths that has learned nothing.

    Parameters
    ----------
    keep
        Channels of each axis.
    """
    network = ResNet8()
    anatomy = dissect(network, (example,))
    apply(network, make_plan(anatomy, keep, {name: range(axis.size) for name, axis in anatomy.axes.items()}, 0.0))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
    return network
