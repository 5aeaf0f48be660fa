"""What has been observed of one module: moments of what it reads, and what the loss says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FORGETTING = 0.7

RIDGE = 1e-3
"""Of the mean variance; keeps the prediction of a unit from leaning on differences of units that are nearly alike."""

OBSERVED = ("mean", "square", "second", "doubt", "fisher", "inputs", "size")
PER_FEATURE = ("mean", "square", "fisher")


@dataclass
class Flow:
    """What has been observed of one module.

    Attributes
    ----------
    mean, square
        Running moments of what it reads, ``[features]``.
    second
        Running second moments of pairs of features, ``[features, features]``; None where there are too many.
    doubt
        One over the number of positions that the moments rest on, older ones counting less.
    fisher
        Running Fisher information of the loss at what it reads or, for a state space layer, writes, ``[features]``.
    inputs
        The last sequences that a state space layer read, ``[batch, time, width]``.
    size
        Height and width (or the like) of what a convolution reads.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    second: Tensor | None = None
    doubt: Tensor | None = None
    fisher: Tensor | None = None
    inputs: Tensor | None = None
    size: Tensor | None = None

    @property
    def space(self) -> tuple[int, ...]:
        """Height and width (or the like) of what a convolution reads; empty for other modules."""
        return () if self.size is None else tuple(self.size.tolist())

    def variance(self) -> Tensor | None:
        """Return the centred variance of each feature."""
        if self.mean is None or self.square is None:
            return None
        return (self.square - self.mean.square()).clamp_min(0)

    def covariance(self) -> Tensor | None:
        """Return the covariance of pairs of features in float64, ``[features, features]``; None where not observed."""
        if self.second is None or self.mean is None:
            return None
        return (self.second - torch.outer(self.mean, self.mean)).double()

    def blend(self, name: str, fresh: Tensor) -> None:
        """Take a new observation into one of the moments."""
        old = getattr(self, name)
        setattr(self, name, fresh.clone() if old is None else torch.lerp(fresh, old, FORGETTING))

    def count(self, positions: int) -> None:
        """Take note of how many positions the last observation had."""
        if self.doubt is None:
            self.doubt = torch.tensor(1 / positions)
        else:
            self.doubt = FORGETTING**2 * self.doubt + (1 - FORGETTING) ** 2 / positions

    def tensors(self) -> dict[str, Tensor]:
        """Return what has been observed, by name."""
        return {key: value for key in OBSERVED if (value := getattr(self, key)) is not None}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned earlier."""
        for name in OBSERVED:
            setattr(self, name, tensors.get(name))

    def keep(self, left: list[int]) -> None:
        """Drop all features but some."""
        for name in PER_FEATURE:
            moment = getattr(self, name)
            setattr(self, name, None if moment is None else moment[left])
        if self.second is not None:
            self.second = self.second[left][:, left]
