"""Gramians of the real map, and their factors: in closed form, dense or of low rank, or from recorded inputs.

References
----------
Gohberg, Kailath & Olshevsky, "Fast Gaussian elimination with partial pivoting for matrices with displacement
structure", 1995: what elimination leaves of a Gramian of a diagonal system is one again.
Potapov, "The multiplicative structure of J-contractive matrix functions", 1955: its inputs, by a Blaschke factor.
Lall, Marsden & Glavaski, "Empirical model reduction of controlled nonlinear systems", 1999: measured covariances.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.real import (
    Polar,
    covariance_of,
    difference,
    double,
    dual,
    one_less,
    output_weights,
    polar,
    symmetrised,
)

RESIDUE = 1e-20
"""Elimination stops when what is left carries this share of the energy; singular values feel its square root."""

PATIENCE = 8
"""Whether elimination can stop is looked at after so many steps: each look waits for the device."""

CANCELLING = 1e6
"""Modes cancel if alone they carry more than so many times the energy that they carry together."""

ALIKE = 1e-8
"""A mode and its conjugate are nearly one if their correlation is so close to 1."""

SPAN = 2**22
"""So many numbers of states are held at a time where states are summed over recorded inputs."""


@dataclass(frozen=True, eq=False)
class Gramians:
    """How much energy reaches the states ``[Re x; Im x]``, and how much of it is seen; both ``[..., 2N, 2N]``, real.

    Attributes
    ----------
    controllability
        Covariance of the states.
    observability
        Energy of all later outputs per unit of state.
    """

    controllability: Tensor
    observability: Tensor


@dataclass(frozen=True, eq=False)
class Factors:
    """Gramians as factors of as many columns as they have rank, ``[..., 2N, K]``: ``L @ L.T`` is the Gramian.

    Attributes
    ----------
    reach
        Of the controllability.
    see
        Of the observability.
    """

    reach: Tensor
    see: Tensor


def gramians(
    system: DiagonalSystem,
    covariance: Tensor | None = None,
    weight: Tensor | None = None,
    horizon: int | None = None,
) -> Gramians:
    """Return the Gramians of the real map in closed form.

    Parameters
    ----------
    system
        The full system, or a bank.
    covariance
        Covariance of the inputs, ``[..., H, H]``; None for the identity. The inputs are white in time.
    weight
        How much the square of each output counts, ``[..., P]``; None for 1. With the diagonal of the Fisher
        information, half of a weighted energy is a loss in nats.
    horizon
        Length of the sequences, from zero states; None for ever. A slow mode that a sequence never excites fully
        counts less. The bound of a truncation is not valid then.
    """
    poles, back = polar(system), polar(system).conj()
    B, C = _shaped_inputs(system, covariance), _shaped_outputs(system, weight)
    return Gramians(
        controllability=symmetrised(covariance_of(poles, B, poles, B, horizon)),
        observability=symmetrised(covariance_of(back, C, back, C, horizon)),
    )


def factors(system: DiagonalSystem, covariance: Tensor | None = None, weight: Tensor | None = None) -> Factors:
    """Return the factors of `gramians`, by the faster of two ways.

    Either both are formed and factored, or their columns are computed on demand by elimination with pivots, which never
    forms a matrix of N by N. A pivot is the mode that carries most of the energy that is not accounted for yet,
    from inputs to outputs: what nothing reaches or nobody sees is never touched, and no scale of a mode matters.
    Elimination is more precise as well, so it is the way, however long, where huge modes cancel each other.
    """
    B, C = _shaped_inputs(system, covariance), _shaped_outputs(system, weight)
    poles, most = polar(system), _worthwhile(system, max(B.shape[-1], C.shape[-1]))
    reached, seen = (each.abs().square().sum(-1) / poles.damping for each in (B, C))
    reach = None if most < PATIENCE else eliminated(poles, B, seen, most)
    see = None if reach is None else eliminated(poles.conj(), C, reached, most)
    if reach is not None and see is not None:
        return Factors(reach, see)
    dense = gramians(system, covariance, weight)
    if not _cancels(dense):
        return factored(dense)
    return Factors(_all_out(poles, B, seen), _all_out(poles.conj(), C, reached))


def _cancels(given: Gramians) -> bool:
    """Tell whether the modes of a system carry far more energy than they do together."""
    P, Q = given.controllability, given.observability
    single = (P.diagonal(dim1=-2, dim2=-1) * Q.diagonal(dim1=-2, dim2=-1)).sum(-1)
    return bool((single > CANCELLING * (P * Q).sum((-2, -1)).abs()).any())


def _worthwhile(system: DiagonalSystem, width: int) -> int:
    """Return with how many steps elimination is still faster than dense factors, which know the rank as well.

    Seconds on one CPU core; only their ratios matter.
    """
    bank, n = math.prod(system.lam.shape[:-1]), system.states

    def cost(steps: int) -> float:
        return 2 * steps * (9e-4 + bank * n * (3.5e-7 + 4e-8 * width))

    return bisect.bisect_left(range(n + 1), 1e-10 * bank * (2 * n) ** 3, key=cost)


def factored(given: Gramians) -> Factors:
    """Return the factors of any Gramians."""
    return Factors(factor(given.controllability), factor(given.observability))


def measured_gramians(system: DiagonalSystem, inputs: Tensor, weight: Tensor | None = None) -> Gramians:
    """Return Gramians whose controllability is the covariance of the states under recorded inputs.

    Real inputs are neither white nor centred, and a truncation that knows them keeps the loss with far fewer states.

    Parameters
    ----------
    system
        The full system, or a bank.
    inputs
        What the layer reads, ``[batch, time, H]``; a few sequences are enough. For a bank the features of all systems
        one after the other: with one input each, feature i feeds system i.
    weight
        As for `gramians`.
    """
    total = torch.zeros(*system.lam.shape[:-1], *[2 * system.states] * 2, dtype=torch.float64, device=system.lam.device)
    for states in driven_states(system, inputs):
        both = torch.cat([states.real, states.imag], dim=-1).flatten(-3, -2)
        total += both.mT @ both
    samples = inputs.shape[0] * inputs.shape[1]
    poles, C = polar(system).conj(), _shaped_outputs(system, weight)
    return Gramians(total / samples, symmetrised(covariance_of(poles, C, poles, C)))


def driven_states(system: DiagonalSystem, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the states under inputs ``[batch, time, features]``, a span of time at once, ``[..., batch, time, N]``.

    Raises
    ------
    InputError
        If the features are not as many as all inputs of the system or bank.
    """
    front, width = system.lam.shape[:-1], system.B.shape[-1]
    if inputs.ndim != 3 or inputs.shape[-1] != math.prod(front) * width:
        wanted = f"{width} features" if not front else f"{width} for each of {math.prod(front)} systems"
        raise InputError(f"inputs are [batch, time, features] with {wanted}, found {list(inputs.shape)}")
    u = double(system, inputs).reshape(*inputs.shape[:2], *front, width).movedim((0, 1), (-3, -2))
    state = system.lam.new_zeros(*front, inputs.shape[0], system.states)
    span = max(1, SPAN // max(1, state.numel()))
    for piece in u.split(span, dim=-2):
        added = piece.to(system.B.dtype) @ system.B.mT[..., None, :, :]
        found = []
        for step in added.unbind(-2):
            state = torch.addcmul(step, system.lam[..., None, :], state)
            found.append(state)
        yield torch.stack(found, dim=-2)


def factor(gramian: Tensor) -> Tensor:
    """Return ``L`` ``[..., n, K]`` with ``L @ L.T`` the Gramian and K its rank, the largest of a bank.

    Unit diagonal first: states of very different energy, as close to the unit circle, keep their relative precision.
    """
    scale = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    plain = gramian / scale[..., None, :] / scale[..., :, None]
    if gramian.device.type == "cpu":
        pivoted = [_pivoted(each) for each in plain.reshape(-1, *plain.shape[-2:])]
        rank = max(1, *(rank for _, rank in pivoted)) if pivoted else 0
        found = torch.stack([each[:, :rank] for each, _ in pivoted]).reshape(*plain.shape[:-1], rank)
    else:
        values, vectors = torch.linalg.eigh(plain)
        found = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return scale[..., :, None] * found


def _pivoted(matrix: Tensor) -> tuple[Tensor, int]:
    """Return the pivoted Cholesky factor of one matrix, which torch does not have, and its rank."""
    lower, pivots, rank, _ = lapack.dpstrf(matrix.numpy(), lower=1)
    lower = np.tril(lower)
    lower[:, rank:] = 0
    found = np.empty_like(lower)
    found[pivots - 1] = lower
    return torch.from_numpy(np.ascontiguousarray(found)), int(rank)


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
    front, n, G = reach.shape[:-2], reach.shape[-2], reach.reshape(-1, *reach.shape[-2:])
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


def _all_out(poles: Polar, reach: Tensor, worth: Tensor) -> Tensor:
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


def _shaped_inputs(system: DiagonalSystem, covariance: Tensor | None) -> Tensor:
    """Return B for white inputs that stand for inputs of the given covariance."""
    if covariance is None:
        return system.B
    return system.B @ factor(double(system, covariance)).to(system.B.dtype)


def _shaped_outputs(system: DiagonalSystem, weight: Tensor | None) -> Tensor:
    """Return the inputs of the adjoint system, which are this system's outputs, by the roots of their weights."""
    adjoint = dual(system).B
    return adjoint if weight is None else adjoint * output_weights(system, weight).sqrt()[..., None, :]
