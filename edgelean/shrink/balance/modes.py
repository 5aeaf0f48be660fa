"""From a real system in balanced coordinates to complex modes, one state for each conjugate pair and each real pole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgelean.nn.diagonal import equalised
from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.energy import Factors
from edgelean.shrink.balance.real import complex_outputs, polar, real_outputs

WORST_CONDITION = 1e7
"""Modes whose eigenvectors are worse conditioned than this are not used: B and C would be huge and cancel."""


class Modes(NamedTuple):
    """Complex modes of a bank of real systems ``[K]``, as many as there is room for; what is not needed is zero.

    Attributes
    ----------
    lam, B, C
        As in a `DiagonalSystem`.
    used
        How many modes each system needs, ``[K]``.
    safe
        Whether poles and eigenvectors of each are fit for use, ``[K]``.
    """

    lam: Tensor
    B: Tensor
    C: Tensor
    used: Tensor
    safe: Tensor


def modes_of(A: Tensor, B: Tensor, C: Tensor, limit: Tensor, room: int) -> Modes:
    """Diagonalise real systems ``[K, n, n]`` into one state per conjugate pair and per real pole.

    Poles beyond the modulus ``limit`` ``[K]`` are not safe, nor are eigenvectors so close to each other that B and C
    explode. Systems that all need more than there is ``room`` for only come with the number that they need.
    """
    lam, vectors = torch.linalg.eig(A)
    keep = lam.imag >= 0
    if bool((keep.sum(-1) > room).all()):
        return _without_room(lam, B, C, keep.sum(-1), room)
    inverse, failed = torch.linalg.inv_ex(vectors)
    condition = torch.linalg.matrix_norm(vectors) * torch.linalg.matrix_norm(inverse)
    safe = (failed == 0) & (condition < WORST_CONDITION) & (lam.abs().amax(-1) <= limit)
    first = torch.argsort(keep.to(torch.int8), dim=-1, descending=True, stable=True)[..., :room]
    kept, lam = keep.gather(-1, first), lam.gather(-1, first)
    B_modes = inverse.gather(-2, first[..., None].expand(*first.shape, A.shape[-1])) @ B.to(lam.dtype)
    C_modes = C.to(lam.dtype) @ vectors.gather(-1, first[..., None, :].expand(*A.shape[:-1], first.shape[-1]))
    C_modes = C_modes * torch.where(lam.imag > 0, 2.0, 1.0)[..., None, :]
    B_modes, C_modes = equalised(B_modes, C_modes)
    missing = room - lam.shape[-1]
    pad = torch.nn.functional.pad
    return Modes(
        lam=pad(torch.where(kept, lam, 0.0), (0, missing)),
        B=pad(torch.where(kept[..., None], B_modes, 0.0), (0, 0, 0, missing)),
        C=pad(torch.where(kept[..., None, :], C_modes, 0.0), (0, missing)),
        used=keep.sum(-1),
        safe=safe,
    )


def _without_room(lam: Tensor, B: Tensor, C: Tensor, used: Tensor, room: int) -> Modes:
    """Return how many modes systems need that have no room for them; there is nothing to use."""
    bank = len(lam)
    empty = lam.new_zeros(bank, room), lam.new_zeros(bank, room, B.shape[-1]), lam.new_zeros(bank, C.shape[-2], room)
    return Modes(*empty, used, torch.ones_like(used, dtype=torch.bool))


def filled(modes: Modes, full: DiagonalSystem) -> DiagonalSystem:
    """Put the most reachable modes of the full systems, unread, into places that are not needed; a bank ``[K]``."""
    room = modes.lam.shape[-1]
    reached = full.B.abs().square().sum(-1) / polar(full).damping
    most = reached.argsort(dim=-1, descending=True, stable=True)[..., :room]
    place = torch.arange(room, device=most.device) - modes.used[..., None]
    chosen = most.gather(-1, place.clamp(min=0))
    free = place >= 0
    return DiagonalSystem(
        lam=torch.where(free, full.lam.gather(-1, chosen), modes.lam),
        B=torch.where(free[..., None], _rows(full.B, chosen), modes.B),
        C=torch.where(free[..., None, :], 0.0, modes.C),
    )


def subset(system: DiagonalSystem, states: int, given: Factors) -> DiagonalSystem:
    """Keep the modes through which most energy flows, and refit C to the outputs of the full system; a bank ``[K]``."""
    n, outputs = system.states, real_outputs(system)
    energy = given.reach.square().sum(-1).reshape(len(system.lam), 2, n).sum(-2) * system.C.abs().square().sum(-2)
    kept = energy.argsort(dim=-1, descending=True, stable=True)[..., :states].sort(dim=-1).values
    some = _rows(given.reach, torch.cat([kept, kept + n], dim=-1))
    inverse = torch.linalg.pinv(some @ some.mT, hermitian=True)
    C = outputs @ given.reach @ some.mT @ inverse
    return DiagonalSystem(system.lam.gather(-1, kept), _rows(system.B, kept), complex_outputs(C))


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix.gather(-2, index[..., None].expand(*index.shape, matrix.shape[-1]))
