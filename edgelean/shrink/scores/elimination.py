"""In which order units go, and what that costs, when what read them is refitted after each cut.

Removed inputs of a layer are predicted from the kept ones by least squares. What the prediction misses is the
conditional covariance of the removed given the kept, so removing a set R costs half the trace of F_RR times
Cov(R | kept), with F the Fisher information at what the layer reads. With the inverse covariance Q of all that is left,
removing inputs B next adds half the trace of F_BB inv(Q_BB), if F always includes what others, removed earlier, owe to
the inputs that are left: x_B is then replaced by a combination of the rest, F and Q are updated, and so on. It is
Gaussian elimination, of the inputs that matter least first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelean.shrink.scores.flow import RIDGE

ROUNDS = 48
"""Units go in at most about so many rounds; those of one round are priced together."""


@dataclass
class Reader:
    """A layer that can be refitted, as it is when some of its inputs are gone.

    Attributes
    ----------
    inverse
        Inverse covariance of the inputs that are left, ``[left, left]``, float64.
    fisher
        Fisher information of the loss at them, ``[left, left]``.
    floor
        What was added to the variances before they were inverted.
    places
        Where the elements of each unit are among the inputs that are left, ``[units, elements]``.
    """

    inverse: Tensor
    fisher: Tensor
    floor: float
    places: Tensor

    @classmethod
    def of(cls, covariance: Tensor, doubt: float, fisher: Tensor, places: Tensor) -> Reader:
        """Return a layer that has lost nothing yet.

        Parameters
        ----------
        covariance
            Of its inputs, ``[features, features]``.
        doubt
            One over the number of positions that it was estimated from: with fewer positions than inputs anything can be
            predicted, so covariances are taken to be smaller by that much.
        fisher
            Diagonal of the Fisher information, ``[features]``.
        """
        size = len(covariance)
        variance = covariance.diagonal().clamp_min(0)
        trusted = 1 / (1 + size * doubt)
        floor = RIDGE * float(variance.mean().clamp_min(1e-12))
        shrunk = trusted * covariance + torch.diag((1 - trusted) * variance + floor)
        return cls(torch.linalg.inv(shrunk), torch.diag(fisher), floor, places)

    def prices(self) -> Tensor:
        """Return what each unit that is left would add if it went alone, ``[units]`` in nats."""
        rows, columns = self.places[:, :, None], self.places[:, None, :]
        missed = torch.linalg.inv(self.inverse[rows, columns])
        owed = self.fisher[rows, columns]
        ridge = self.floor * owed.diagonal(dim1=1, dim2=2).sum(1)
        return 0.5 * ((owed * missed).sum((1, 2)) - ridge).clamp_min(0)

    def remove(self, units: Tensor) -> float:
        """Let units go; return what that adds, in nats."""
        gone = self.places[units].flatten().unique()
        left = torch.ones(len(self.inverse), dtype=torch.bool)
        left[gone] = False
        stay = left.nonzero()[:, 0]
        missed = torch.linalg.inv(self.inverse[gone][:, gone])
        owed, shared = self.fisher[gone][:, gone], self.fisher[stay][:, gone]
        added = 0.5 * float(((owed * missed).sum() - self.floor * owed.trace()).clamp_min(0))
        across = self.inverse[gone][:, stay]
        leaning = -missed @ across
        turned = shared @ leaning
        self.inverse = self.inverse[stay][:, stay] + across.T @ leaning
        self.fisher = self.fisher[stay][:, stay] + turned + turned.T + leaning.T @ owed @ leaning
        others = torch.ones(len(self.places), dtype=torch.bool)
        others[units] = False
        self.places = (left.cumsum(0) - 1)[self.places[others]]
        return added


def eliminate(readers: Sequence[Reader], fixed: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the order in which units go, and the summed price of removing the first 0, 1, 2, ... of them.

    Parameters
    ----------
    readers
        The layers that are refitted; they are used up.
    fixed
        What each unit costs where nothing is refitted, ``[units]`` in nats.
    """
    units = torch.arange(len(fixed))
    order: list[int] = []
    running = [0.0]
    together = -(-len(fixed) // ROUNDS)
    while len(units):
        alone = fixed[units] + sum((reader.prices() for reader in readers), torch.zeros(len(units)).double())
        going = torch.argsort(alone, stable=True)[:together]
        added = float(fixed[units[going]].sum()) + sum(reader.remove(going) for reader in readers)
        shares = alone[going] / alone[going].sum() if bool(alone[going].sum() > 0) else torch.ones(len(going)).double()
        steps = (shares.cumsum(0) / shares.sum() * added).tolist()
        order += units[going].tolist()
        running += [running[-1] + step for step in steps]
        left = torch.ones(len(units), dtype=torch.bool)
        left[going] = False
        units = units[left]
    return tuple(order), tuple(running)
