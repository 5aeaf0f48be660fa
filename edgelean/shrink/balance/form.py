"""The square-root form of two Gramians: Hankel singular values and the coordinates that balance.

References
----------
Laub, Heath, Paige & Ward, "Computation of system balancing transformations", 1987: the square-root method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.energy import Factors, Gramians, factored, factors
from edgelean.shrink.balance.real import squared, symmetric_modes

NEGLIGIBLE = 1e-8
"""Hankel singular values below this share of the largest are noise: a factor of a Gramian resolves no better."""

LARGE, LEADING = 256, 1e-2
"""A matrix of so many rows and columns is decomposed in two parts, values above and below this share of the first."""


@dataclass(frozen=True, eq=False)
class Balanced:
    """The square-root form: ``reach @ reach.mT`` and ``see @ see.mT`` are the Gramians, ``see.mT @ reach`` is diagonal.

    Attributes
    ----------
    sigma
        The Hankel singular values, ``[..., K]``: the diagonal. K is the order of the real map, or less where a
        Gramian is of lower rank.
    reach, see
        ``[..., 2N, K]``.
    """

    sigma: Tensor
    reach: Tensor
    see: Tensor

    def rank(self) -> Tensor:
        """Return the number of values that are more than noise, ``[...]``."""
        return (self.sigma > NEGLIGIBLE * self.sigma[..., :1]).sum(-1)

    def tail(self, orders: Tensor) -> Tensor:
        """Return twice the sum of the values behind the first ``orders``, ``[...]``."""
        behind = torch.arange(self.sigma.shape[-1], device=self.sigma.device) >= orders[..., None]
        return 2 * torch.where(behind, self.sigma, 0.0).sum(-1)

    def whole(self) -> Tensor:
        """Return the values of the whole real map, ``[..., 2N]``, with zeros for what its Gramians have not."""
        return padded(self.sigma, self.reach.shape[-2])

    def bases(self, order: int) -> tuple[Tensor, Tensor]:
        """Return T and W, ``[..., 2N, order]``, with ``W.mT @ T`` the identity; columns that are noise are zero."""
        sigma = self.sigma[..., :order]
        scale = torch.where(sigma > NEGLIGIBLE * self.sigma[..., :1], sigma.rsqrt(), 0.0)[..., None, :]
        return self.reach[..., :order] * scale, self.see[..., :order] * scale


def balance(given: Gramians | Factors, columns: int | None = None) -> Balanced:
    """Balance two Gramians; nothing is inverted. All values are there, of the coordinates the first ``columns``."""
    pair = given if isinstance(given, Factors) else factored(given)
    left, sigma, right = decomposed(pair.see.mT @ pair.reach, columns)
    return Balanced(sigma, pair.reach @ right[..., :columns, :].mT, pair.see @ left[..., :columns])


def decomposed(matrix: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return a singular value decomposition, as torch does; of one large matrix in less time.

    The leading values, down to 1e-2 of the first, are those of the squared matrix, where they lose four digits of
    sixteen; what is left of the matrix is decomposed as it is. All values come back, of the vectors ``most`` or more.
    """
    rows, columns = matrix.shape[-2:]
    if min(rows, columns) < LARGE or matrix.numel() > rows * columns:
        left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, sigma, right
    if columns > rows:
        right, sigma, left = decomposed(matrix.mT, most)
        return left.mT, sigma, right.mT
    plain = matrix.reshape(rows, columns)
    squares, right = (part.flip(-1) for part in symmetric_modes(squared(plain)))
    sizes = squares.clamp(min=0).sqrt()
    lead = int((sizes > LEADING * sizes[0]).sum())
    kept = right[:, : max(lead, 1) if lead < columns else most]
    left = plain @ kept
    left = left / left.norm(dim=0).clamp(min=torch.finfo(left.dtype).tiny)
    if lead < columns:
        rest = plain @ right[:, lead:]
        inner, small, turn = torch.linalg.svd(rest - left @ (left.mT @ rest), full_matrices=False)
        left, sizes = torch.cat([left, inner], 1), torch.cat([sizes[:lead], small])
        kept = torch.cat([kept, right[:, lead:] @ turn.mT], 1)
    front = matrix.shape[:-2]
    return left.reshape(*front, rows, -1), sizes.reshape(*front, columns), kept.mT.reshape(*front, -1, columns)


def hankel_singular_values(system: DiagonalSystem, given: Gramians | Factors | None = None) -> Tensor:
    """Return the Hankel singular values of the real map, ``[..., 2N]``, largest first.

    Values below 1e-8 of the largest are noise.
    """
    pair = given or factors(system)
    pair = pair if isinstance(pair, Factors) else factored(pair)
    return padded(torch.linalg.svdvals(pair.see.mT @ pair.reach), 2 * system.states)


def coordinates(pair: Gramians) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Hankel singular values of two Gramians, and the way into the coordinates that balance them and back.

    Nothing is inverted; both Gramians have to be of full rank. In the new coordinates each is the diagonal matrix of
    the values, the largest first.
    """
    balanced = balance(pair)
    scale = balanced.sigma.sqrt()[..., None, :]
    return balanced.sigma, (balanced.see / scale).mT, balanced.reach / scale


def padded(values: Tensor, length: int) -> Tensor:
    """Return values ``[..., K]`` with zeros up to a length."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))
