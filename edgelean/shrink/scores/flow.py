"""What has been observed of one module: moments of what it reads, and what the loss says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FORGETTING = 0.7

RIDGE = 1e-3
"""Of the mean variance; keeps the prediction of a unit from leaning on differences of units that are nearly alike."""

OBSERVED = ("mean", "square", "second", "between", "doubt", "fisher", "summed", "inputs", "size")
PER_FEATURE = ("mean", "square", "second", "between", "fisher", "summed")


@dataclass
class Flow:
    """What has been observed of one module.

    Attributes
    ----------
    mean, square
        Running moments of what it reads, ``[features]``.
    second
        Running second moments of pairs of features, ``[features, features]``; None where there are too many.
    between
        The same of the means over each sample, or only the squares of each feature where there are too many.
    doubt
        One over the number of positions that the moments rest on, older ones counting less.
    fisher
        Running Fisher information of the loss at what it reads or, for a state space layer, writes, ``[features]``.
    summed
        Running Fisher information of the loss at what it reads if that is moved alike at all positions of a sample, in
        pairs of features or, where there are too many, for each.
    inputs
        The last sequences that a state space layer read, ``[batch, time, width]``.
    size
        The positions that a sample has: height and width of what a convolution reads, steps of a sequence.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    second: Tensor | None = None
    between: Tensor | None = None
    doubt: Tensor | None = None
    fisher: Tensor | None = None
    summed: Tensor | None = None
    inputs: Tensor | None = None
    size: Tensor | None = None

    @property
    def space(self) -> tuple[int, ...]:
        """The positions that a sample has: height and width of what a convolution reads, steps of a sequence."""
        return () if self.size is None else tuple(self.size.tolist())

    def variance(self) -> Tensor | None:
        """Return the centred variance of each feature."""
        if self.mean is None or self.square is None:
            return None
        return (self.square - self.mean.square()).clamp_min(0)

    def parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Return covariance and Fisher information of the means of samples, and of what differs within a sample.

        In pairs of features, in float64; None where those were not observed.
        """
        if self.mean is None or self.second is None or self.between is None or self.summed is None:
            return None
        middle = torch.outer(self.mean, self.mean)
        whole, between = ((each - middle).double().cpu() for each in (self.second, self.between))
        return (between, self.summed.double().cpu()), (whole - between, torch.diag(self.loose().double().cpu()))

    def loose(self) -> Tensor:
        """Return the Fisher information at what differs within a sample, ``[features]``."""
        assert self.fisher is not None
        assert self.summed is not None
        assert self.size is not None
        return (self.fisher - _diagonal(self.summed) / self.size.prod()).clamp_min(0)

    def energy(self) -> Tensor | None:
        """Return half the variance times the Fisher information of each feature, ``[features]``, in both parts."""
        if self.mean is None or self.square is None or self.between is None or self.summed is None:
            return None
        between = _diagonal(self.between) - self.mean.square()
        within = self.square - _diagonal(self.between)
        return 0.5 * (between.clamp_min(0) * _diagonal(self.summed) + within.clamp_min(0) * self.loose())

    def blend(self, name: str, fresh: Tensor) -> None:
        """Take a new observation into one of the moments."""
        old = getattr(self, name)
        known = old is not None and old.shape == fresh.shape
        setattr(self, name, torch.lerp(fresh, old, FORGETTING) if known else fresh.clone())

    def blend_pairs(self, name: str, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """Take the products of pairs of features into one of the moments, in the precision of the rows.

        There are many pairs, so that product, sum and blending are one pass over them.

        Parameters
        ----------
        left, right
            ``[rows, features]``; the products are summed over the rows.
        scale
            What the sum is multiplied with.
        """
        old, features = getattr(self, name), left.shape[1]
        known = old is not None and old.shape == (features, features)
        past, share = (old, FORGETTING) if known else (left.new_zeros(features, features), 0.0)
        with torch.autocast(left.device.type, enabled=False):
            setattr(self, name, torch.addmm(past, left.T, right, beta=share, alpha=(1 - share) * scale))

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

    def features(self) -> int | None:
        """Return how many features have been observed; None while nothing has been."""
        if self.fisher is not None:
            return len(self.fisher)
        return None if self.inputs is None else self.inputs.shape[-1]

    def keep(self, left: list[int]) -> None:
        """Drop all features but some."""
        for name in PER_FEATURE:
            moment = getattr(self, name)
            if moment is not None:
                setattr(self, name, moment[left] if moment.ndim == 1 else moment[left][:, left])
        if self.inputs is not None:
            self.inputs = self.inputs[..., left]


def _diagonal(moment: Tensor) -> Tensor:
    return moment if moment.ndim == 1 else moment.diagonal()
