"""Taylor: what the loss would change to first order if all weights of a unit became zero, squared. For comparison."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.collect import Scores, remember
from edgelean.shrink.scores.shares import per_unit


class Taylor(Scores):
    """Weight times gradient, summed over the weights of a unit, squared: half its mean over samples is in nats.

    References
    ----------
    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance estimation for neural network pruning, CVPR 2019.
    """

    def observe_gradients(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Take the slopes of all weights of each unit."""
        parameters = dict(model.named_parameters())
        for name, axis in axes.items():
            total, seen = torch.zeros(axis.size, dtype=torch.float64), False
            for slot in axis.slots:
                slope = self.slope(parameters, slot)
                if slope is not None:
                    total, seen = total + per_unit(axis, slot, slope), True
            if seen:
                remember(self.units, name, total.square() * self.per_batch)

    def unit_prices(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return half the squared slope of each unit, ``[size]`` in nats."""
        known = self.units.get(axis.name)
        return None if known is None else 0.5 * known.cpu()
