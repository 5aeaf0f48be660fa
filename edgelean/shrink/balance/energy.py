"""Gramians of the real map, and their factors: in closed form, dense or of low rank, or from recorded inputs.

References
----------
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
from edgelean.shrink.balance.elimination import PATIENCE, all_out, eliminated
from edgelean.shrink.balance.real import covariance_of, double, dual, output_weights, polar, symmetrised

CANCELLING = 1e6
"""Modes cancel if alone they carry more than so many times the energy that they carry together."""

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
    return Factors(all_out(poles, B, seen), all_out(poles.conj(), C, reached))


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
    for piece in torch.split(u, span, dim=-2):
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
    # Symmetric: the other order of the same numbers spares LAPACK a copy in its own.
    lower, pivots, rank, _ = lapack.dpstrf(matrix.mT.numpy(), lower=1)
    lower[:, rank:] = 0
    found = np.empty(lower.shape)
    found[pivots - 1] = np.tril(lower)
    return torch.from_numpy(found), int(rank)


def _shaped_inputs(system: DiagonalSystem, covariance: Tensor | None) -> Tensor:
    """Return B for white inputs that stand for inputs of the given covariance."""
    if covariance is None:
        return system.B
    return system.B @ factor(double(system, covariance)).to(system.B.dtype)


def _shaped_outputs(system: DiagonalSystem, weight: Tensor | None) -> Tensor:
    """Return the inputs of the adjoint system, which are this system's outputs, by the roots of their weights."""
    adjoint = dual(system).B
    return adjoint if weight is None else adjoint * output_weights(system, weight).sqrt()[..., None, :]
