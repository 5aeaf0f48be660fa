"""Activation times weight: how much of what a layer computes comes from a unit. For comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.flow import Flow
from edgelean.shrink.scores.shares import Shares, per_unit


class Activation(Shares):
    """The mean square of a unit times the squared norm of the weights that read it, as a share of its axis.

    Readers that are never called as a module count as if all units were equally large there.

    References
    ----------
    Sun, Liu, Bair, Kolter: A simple and effective pruning approach for large language models (Wanda), ICLR 2024.
    """

    def worth(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return the mean square of what each unit sends into its readers, ``[size]``."""
        named = dict(model.named_parameters())
        total, seen = torch.zeros(axis.size, dtype=torch.float64), False
        for path, (name, dim) in axis.readers:
            square, weight = self.flows.get(path, Flow()).square, named.get(name)
            if weight is None:
                continue
            norms = weight.detach().float().square().movedim(dim, 0).flatten(1).sum(1)
            seen = seen or square is not None
            total += per_unit(axis, (name, dim), norms if square is None else norms * square)
        return total if seen or self.slopes else None
