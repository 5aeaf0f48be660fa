"""In which order units go, and what that costs, when what read them is refitted after each cut.

Removed inputs of a layer are predicted from the kept ones by least squares. What the prediction misses is the
conditional covariance of the removed given the kept, so removing a set R costs half the trace of F_RR times
Cov(R | kept), with F the Fisher information at what the layer reads. With the inverse covariance Q of all that is left,
removing inputs B next misses inv(Q_BB) (Q x)_B. If F always includes what others, removed earlier, owe to the inputs
that are left, that adds half the trace of F_BB times the covariance of what is missed; x_B is then replaced by a
combination of the rest, F and Q are updated, and so on. It is Gaussian elimination, of what matters least first.

A sample has many positions. Where the gradient is much the same at all of them (behind a mean over positions), errors
of one sign add up over a sample; otherwise they average out. So there are two parts of everything: the means of samples
with the summed gradients, and the rest with the rest of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelean.shrink.scores.flow import RIDGE

ROUNDS = 24
"""Units go in at most about so many rounds; those of one round are priced together."""


@dataclass(frozen=True)
class Part:
    """One of two kinds of error: those that a sample has in the mean, or those that differ within a sample.

    Attributes
    ----------
    spread
        Covariance of the inputs; `Reader` keeps it between the inverse covariances, Q spread Q.
    fisher
        Fisher information of the loss at the inputs.
    """

    spread: Tensor
    fisher: Tensor

    def missed(self, inverse: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return what goes with some inputs, in nats, where ``inverse`` is that of their own block of Q."""
        error = inverse @ self.spread[rows, columns] @ inverse
        return 0.5 * (error * self.fisher[rows, columns]).sum((-1, -2)).clamp_min(0)

    def without(self, gone: Tensor, stay: Tensor, leaning: Tensor) -> Part:
        """Return the part when some inputs have been replaced by a combination of others, ``leaning``."""
        spread = self.spread[stay][:, gone] @ leaning
        shared = self.fisher[stay][:, gone] @ leaning
        return Part(
            self.spread[stay][:, stay] + spread + spread.T + leaning.T @ self.spread[gone][:, gone] @ leaning,
            self.fisher[stay][:, stay] + shared + shared.T + leaning.T @ self.fisher[gone][:, gone] @ leaning,
        )


@dataclass
class Reader:
    """A layer that can be refitted, as it is when some of its inputs are gone.

    Attributes
    ----------
    inverse
        Inverse covariance Q of the inputs that are left, ``[left, left]``, float64.
    parts
        Errors in the mean of a sample, and within it.
    places
        Where the elements of each unit are among the inputs that are left, ``[units, elements]``.
    """

    inverse: Tensor
    parts: tuple[Part, ...]
    places: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, Tensor]], doubt: float, places: Tensor) -> Reader:
        """Return a layer that has lost nothing yet.

        Parameters
        ----------
        parts
            Covariance and Fisher information, ``[features, features]``, of the means of samples and of what differs
            within a sample; the covariances add up to that of all positions.
        doubt
            One over the number of positions that they were estimated from: with fewer positions than inputs anything
            can be predicted, so inputs are taken to be less alike by that much.
        """
        trusted = 1 / (1 + len(parts[0][0]) * doubt)
        shrunk = [trusted * spread + (1 - trusted) * torch.diag(spread.diagonal()) for spread, _ in parts]
        covariance = sum(shrunk[1:], shrunk[0])
        floor = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
        inverse = torch.linalg.inv(covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype))
        both = zip(shrunk, parts, strict=True)
        return cls(inverse, tuple(Part(inverse @ spread @ inverse, fisher) for spread, (_, fisher) in both), places)

    def prices(self) -> Tensor:
        """Return what each unit that is left would add if it went alone, ``[units]`` in nats."""
        rows, columns = self.places[:, :, None], self.places[:, None, :]
        inverse = torch.linalg.inv(self.inverse[rows, columns])
        return sum((part.missed(inverse, rows, columns) for part in self.parts), torch.zeros(len(rows)).double())

    def remove(self, units: Tensor) -> float:
        """Let units go; return what that adds, in nats."""
        gone = self.places[units].flatten()
        gone = torch.unique(gone)
        left = torch.ones(len(self.inverse), dtype=torch.bool)
        left[gone] = False
        stay = left.nonzero()[:, 0]
        inverse = torch.linalg.inv(self.inverse[gone][:, gone])
        added = sum(float(part.missed(inverse, gone[:, None], gone)) for part in self.parts)
        across = self.inverse[gone][:, stay]
        leaning = -inverse @ across
        self.inverse = self.inverse[stay][:, stay] + across.T @ leaning
        self.parts = tuple(part.without(gone, stay, leaning) for part in self.parts)
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
