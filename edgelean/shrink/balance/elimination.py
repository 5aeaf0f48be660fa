"""Factors of a Gramian of a diagonal system by elimination with pivots: columns on demand, no matrix of N by N.

References
----------
Gohberg, Kailath & Olshevsky, "Fast Gaussian elimination with partial pivoting for matrices with displacement
structure", 1995: what elimination leaves of a Gramian of a diagonal system is one again.
Potapov, "The multiplicative structure of J-contractive matrix functions", 1955: its inputs, by a Blaschke factor.
Demmel, "Accurate singular value decompositions of structured matrices", 1999: why it is precise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgelean.shrink.balance.real import Polar, difference, one_less

RESIDUE = 1e-20
"""Elimination stops when what is left carries this share of the energy; singular values feel its square root."""

PATIENCE = 8
"""Whether elimination can stop is looked at after so many steps: each look waits for the device."""

ALIKE = 1e-8
"""A mode and its conjugate are nearly one if their correlation is so close to 1."""


def eliminated(poles: Polar, reach: Tensor, worth: Tensor, most: int) -> Tensor | None:
    """Return the factor of the controllability Gramian of the real map, ``[..., 2N, K]``, by elimination with pivots.

    Each step takes out a mode and its conjugate. What is left is the Gramian of the same poles with other inputs,
    ``G -> G + (b - 1) (G u) u^H``, where u is the direction of the inputs of the pivot p and
    ``b = (lam - lam_p) / (1 - lam conj(lam_p))``, scaled to 1 at ``lam = 1`` such that modes and conjugates stay
    conjugate. So a step costs as much as the inputs are large, whatever the rank is, and nothing is subtracted that
    could cancel.

    Parameters
    ----------
    poles
        ``[..., N]``.
    reach
        Inputs of the modes, ``[..., N, H]``.
    worth
        How much a unit of energy in each mode counts, ``[..., N]``: a pivot is where the product is largest.
    most
        None is returned once it shows that more than so many steps are needed.
    """
    poles = Polar(*(part.reshape(-1, part.shape[-1]) for part in poles))
    n, G = reach.shape[-2], reach.reshape(-1, *reach.shape[-2:])
    weight = worth.reshape(poles.margin.shape) / poles.damping
    left = weight * G.abs().square().sum(-1)
    whole = left.sum(-1)
    columns: list[Tensor] = []
    for step in range(2 * n):
        if step % PATIENCE == 0:
            share = float(torch.where(whole > 0, left.sum(-1) / whole, 0.0).max())
            if share <= RESIDUE:
                break
            if step > most // 2 and step * math.log(RESIDUE) / min(math.log(share), -1e-9) > most:
                return None
        pair, G, weight, left = _step(poles, G, weight, left)
        columns += pair
    return _real_columns(columns, reach)


def all_out(poles: Polar, reach: Tensor, worth: Tensor) -> Tensor:
    """Return what `eliminated` does, to the last mode."""
    poles = Polar(*(part.reshape(-1, part.shape[-1]) for part in poles))
    G = reach.reshape(-1, *reach.shape[-2:])
    weight = worth.reshape(poles.margin.shape) / poles.damping
    left, columns = weight * G.abs().square().sum(-1), list[Tensor]()
    enough = RESIDUE**2 * left.sum(-1)
    for _ in range(2 * G.shape[-2]):
        if not bool((left.sum(-1) > enough).any()):
            break
        pair, G, weight, left = _step(poles, G, weight, left)
        columns += pair
    return _real_columns(columns, reach)


def _step(poles: Polar, G: Tensor, weight: Tensor, left: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Take the pivot with most energy left out of banks ``[K, N]``."""
    pivot = left.argmax(-1, keepdim=True)
    pair, G, real = _eliminate(poles, G, pivot)
    # What rounding leaves of a pivot is no energy.
    weight = torch.where(real, weight, weight.scatter(-1, pivot, 0.0))
    return pair, G, weight, weight * G.abs().square().sum(-1)


def _real_columns(columns: list[Tensor], reach: Tensor) -> Tensor:
    """Return columns ``[K, N]`` of complex numbers as those of a factor for ``[Re x; Im x]``."""
    *front, n, _ = reach.shape
    used = [column for column in columns if bool(column.any())]
    stacked = torch.stack(used or [torch.zeros_like(reach[..., 0]).reshape(-1, n)], dim=-1)
    return torch.cat([stacked.real, stacked.imag], dim=-2).reshape(*front, 2 * n, stacked.shape[-1])


def _eliminate(poles: Polar, G: Tensor, pivot: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the two real columns of a pivot and its conjugate, as complex numbers ``[K, N]``, and the inputs left.

    Where the two are nearly one, the real mode between them is taken out alone, and told of at the end: the mode keeps
    the little that is left of it.
    """
    own = G.gather(-2, pivot[..., None].expand(-1, 1, G.shape[-1]))
    along, size = _direction(own)
    at = poles.at(pivot)
    square = (along * along).sum(-1)
    # How far the mode and its conjugate move alike under the same noise; their sum and difference are real columns.
    alike = square * at.damping / one_less(at, at.conj())[..., 0]
    real = alike.abs() > 1 - ALIKE
    positive = at.cos.abs() > at.sin.abs()
    at = Polar(
        at.margin, torch.where(real, positive.to(at.cos), at.cos), torch.where(real, (~positive).to(at.sin), at.sin)
    )
    turned = (along * torch.polar(torch.ones_like(size), -0.5 * square.angle())[..., None]).real
    along = torch.where(real[..., None], _direction(turned)[0].to(along.dtype), along)
    below, blaschke, there = _blaschke(poles, at)
    twin = _left(own.conj(), (own.conj() @ along.mH)[..., 0], along, there)
    second_along, twin_size = _direction(torch.where(real[..., None], 0.0, twin))
    first, G = _taken_out(G, along, below[..., 0], blaschke[..., 0])
    second, G = _taken_out(G, second_along, below[..., 1], blaschke[..., 1])
    turn = torch.polar(torch.ones_like(size), torch.where(real, 0.0, 0.5 * alike.angle()))
    cos = torch.where(real, 1.0, (0.5 * (1 + alike.abs())).sqrt())
    sin = torch.where(real, 0.0, 0.5 * (twin_size / size) / cos)
    scale = at.damping.sqrt()
    first, second = scale * turn * first, scale * turn.conj() * second
    return [cos * first + sin * second, -1j * (sin * first - cos * second)], G, real


def _blaschke(poles: Polar, at: Polar) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors b of a pivot ``[K, 1]`` and its conjugate at all poles, ``[K, N, 2]``, and what is below.

    The first one comes at the conjugate of the pivot as well, ``[K, 1]``. All are 1 at the pole 1.
    """
    both = Polar(*(torch.cat(each, -1) for each in zip(at, at.conj(), strict=True)))
    below, unit = one_less(poles, both), _unit(at)
    blaschke = difference(poles, both) / below * torch.cat([unit, unit.conj()], -1)[..., None, :]
    there = -4j * at.modulus * at.sin * at.cos / one_less(at.conj(), at)[..., 0] * unit
    return below, blaschke, there


def _direction(row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the direction of a row ``[K, 1, H]`` and its norm ``[K, 1]``."""
    size = row.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return row / size[..., None], size


def _taken_out(G: Tensor, along: Tensor, below: Tensor, blaschke: Tensor) -> tuple[Tensor, Tensor]:
    """Take one mode out whose inputs have a direction: return its column, to be scaled, and the inputs left."""
    shares = (G @ along.mH)[..., 0]
    return shares / below, _left(G, shares, along, blaschke)


def _left(G: Tensor, shares: Tensor, along: Tensor, blaschke: Tensor) -> Tensor:
    """Return inputs ``[K, N, H]`` whose shares along a direction are multiplied by factors ``[K, N]``."""
    if G.shape[-1] == 1:
        # No difference of near numbers: with one input, the relative precision lasts to the end.
        return G * torch.where(along == 0, 1.0, blaschke[..., None])
    return torch.baddbmm(G, ((blaschke - 1) * shares)[..., None], along)


def _unit(at: Polar) -> Tensor:
    """Return ``(1 - conj(lam)) / (1 - lam)``."""
    less = torch.complex(at.margin + 2 * at.modulus * at.sin.square(), -2 * at.modulus * at.sin * at.cos)
    return less.conj() / less
