"""The scale that batch norm gives a unit. For comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores.shares import Shares, per_unit, squared_norms

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNorm(Shares):
    """The magnitude of the scales of all batch norms that a unit goes through, as a share of its axis.

    Where there is none, the squared norm of the weights.

    References
    ----------
    Liu, Li, Shen, Huang, Yan, Zhang: Learning efficient convolutional networks through network slimming, ICCV 2017.
    """

    def worth(self, axis: Axis, model: nn.Module) -> Tensor:
        """Return scales or squared norms, ``[size]``."""
        named = dict(model.named_parameters())
        total, found = torch.zeros(axis.size, dtype=torch.float64), False
        for name, dim in axis.slots:
            owner, _, what = name.rpartition(".")
            if what == "weight" and name in named and isinstance(model.get_submodule(owner), _BATCH_NORMS):
                total, found = total + per_unit(axis, (name, dim), named[name].detach().abs()), True
        return total if found else squared_norms(axis, model)
