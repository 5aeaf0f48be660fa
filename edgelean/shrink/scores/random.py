"""Chance: what every score has to beat. For comparison."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.shares import Shares, squared_norms


@dataclass
class Random(Shares):
    """A number that is drawn for each unit once, by the seed and the name of its axis, as a share of its axis.

    Units whose weights are all zero go first: whoever removes those takes no risk.
    """

    seed: int = 0

    def watch(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Draw the numbers, and put hooks on the model as any score does."""
        super().watch(model, axes)
        for name, axis in ((name, axis) for name, axis in axes.items() if axis.kind == "channels"):
            generator = torch.Generator().manual_seed((self.seed + zlib.crc32(name.encode())) % 2**63)
            self.units.setdefault(name, torch.rand(axis.size, generator=generator, dtype=torch.float64))

    def worth(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return the numbers of the units, ``[size]``."""
        drawn = self.units.get(axis.name)
        return None if drawn is None else drawn.cpu() * (squared_norms(axis, model) > 0)
