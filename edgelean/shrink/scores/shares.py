"""Scores that order units but know nothing of the loss: their prices are shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.collect import Scores
from edgelean.shrink.scores.protocol import Running


class Shares(Scores):
    """A score without a currency of its own: a whole axis costs one, and a unit its share of that.

    The allocator then gives up equal shares of what the axes are worth by this score, weighed by what they save. States
    of a state space layer are balanced as ever, and their prices scaled in the same way.
    """

    def worth(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return what units are worth next to each other, ``[size]``, none below 0; None if not known."""
        raise NotImplementedError

    def unit_prices(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return the share of each unit, ``[size]``."""
        worth = self.worth(axis, model)
        return None if worth is None else _shares(worth.double().cpu())

    def state_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the share of the energy in the balanced coordinates of a state space layer that go."""
        found = super().state_prices(axis, model)
        return None if found is None else ((), tuple(price / (found[1][-1] or 1.0) for price in found[1]))

    def block_prices(self, axis: Axis) -> Running | None:
        """Return that a block is an axis of its own."""
        return (), (0.0, 1.0)


def _shares(worth: Tensor) -> Tensor:
    total = worth.sum()
    return worth / total if bool(total > 0) else torch.full_like(worth, 1 / len(worth))


def per_unit(axis: Axis, slot: tuple[str, int], elements: Tensor) -> Tensor:
    """Return the sum over the elements of each unit, ``[size]`` in float64."""
    return elements.double().cpu()[torch.from_numpy(axis.slots[slot])].sum(1)


def squared_norms(axis: Axis, model: nn.Module) -> Tensor:
    """Return the squared L2 norm of all weights that make or read each unit, ``[size]``.

    Vectors, such as biases and the scales of norms, are left out: their size says little about a unit's.
    """
    named = dict(model.named_parameters())
    total = torch.zeros(axis.size, dtype=torch.float64)
    for name, dim in axis.slots:
        weight = named.get(name)
        if weight is not None and weight.ndim > 1:
            total += per_unit(axis, (name, dim), weight.detach().float().square().movedim(dim, 0).flatten(1).sum(1))
    return total
