"""Magnitude: how large the weights are that make and read a unit. For comparison."""

from __future__ import annotations

from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.shares import Shares, squared_norms


class Magnitude(Shares):
    """The squared L2 norm of the weights that make and read a unit, as a share of its axis.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf: Pruning filters for efficient ConvNets, ICLR 2017.
    """

    def worth(self, axis: Axis, model: nn.Module) -> Tensor:
        """Return squared norms, ``[size]``."""
        return squared_norms(axis, model)
