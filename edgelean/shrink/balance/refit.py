"""Least squares after a reduction: given the poles, the best C for what the states do, and the best B likewise.

A truncation puts the poles where they belong, nearly, but its B and C are not the best for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.diagonal import equalised
from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.energy import driven_states, factor
from edgelean.shrink.balance.error import output_errors, recorded_error
from edgelean.shrink.balance.real import (
    complex_outputs,
    covariance_of,
    double,
    dual,
    like,
    one_bank,
    polar,
    real_outputs,
)
from edgelean.shrink.least_squares import Rows, correction

ROUNDS = 3
"""C and B are fitted in turns so many times; more change little."""

SINGULAR = 1e-12
"""Directions of the reduced states with less than this share of the energy are left out of the fit."""

HELD_OUT = 4
"""One in so many recorded sequences takes no part in a fit, and says how far to go."""


def refitted(
    full: DiagonalSystem,
    reduced: DiagonalSystem,
    covariance: Tensor | None = None,
    weight: Tensor | None = None,
) -> DiagonalSystem:
    """Return a reduced system, or bank, with the B and C that bring its outputs nearest to those of the full one.

    In closed form, for white inputs: ``C = E[y z^T] E[z z^T]^-1`` with z the reduced states, and B by the same rule
    from the other side, in turns. The poles stay, and the `output_error` of no system grows. For covariance and weight
    see `gramians`.
    """
    best = reduced
    for _ in range(ROUNDS):
        best = _better(full, best, _with_outputs(full, best, covariance), covariance, weight)
        turned = dual(_with_outputs(dual(full), dual(best), None if weight is None else _diagonal(full, weight)))
        best = _better(full, best, turned, covariance, weight)
    return DiagonalSystem(best.lam, *equalised(best.B, best.C))


def refitted_to(full: DiagonalSystem, reduced: DiagonalSystem, inputs: Tensor) -> DiagonalSystem:
    """Return a reduced system, or bank, with the C that brings its outputs nearest to those of the full one on inputs.

    The ridge, towards the C that there is, is chosen on a quarter of the sequences; where no ridge brings those nearer,
    C stays. For inputs see `measured_gramians`.

    Raises
    ------
    InputError
        If there are fewer than two sequences.
    """
    if len(inputs) < 2:
        raise InputError(f"a refit needs at least 2 recorded sequences, found {len(inputs)}")
    split = max(1, len(inputs) // HELD_OUT)
    fit, held_out = (_missing(full, reduced, part) for part in (inputs[split:], inputs[:split]))
    rows = zip(fit.features, fit.missing, held_out.features, held_out.missing, strict=True)
    found = [correction(Rows(a, b), Rows(c, d), centred=False).matrix for a, b, c, d in rows]
    bank = one_bank(reduced)
    moved = DiagonalSystem(bank.lam, bank.B, bank.C + complex_outputs(torch.stack(found)), bank.margin)
    moved = like(moved, reduced)
    worse = recorded_error(full, moved, inputs) > recorded_error(full, reduced, inputs)
    C = torch.where(worse[..., None, None], reduced.C, moved.C)
    return DiagonalSystem(reduced.lam, *equalised(reduced.B, C))


def _with_outputs(full: DiagonalSystem, reduced: DiagonalSystem, covariance: Tensor | None) -> DiagonalSystem:
    """Return the reduced system with the best C for its poles and its B."""
    a, b, B, B_reduced = polar(full), polar(reduced), full.B, reduced.B
    if covariance is not None:
        shape = factor(double(full, covariance)).to(B.dtype)
        B, B_reduced = B @ shape, B_reduced @ shape
    own, cross = covariance_of(b, B_reduced, b, B_reduced), covariance_of(a, B, b, B_reduced)
    scale = own.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)[..., None, :]
    inverse = torch.linalg.pinv(own / scale / scale.mT, hermitian=True, rtol=SINGULAR)
    C = real_outputs(full) @ (cross / scale) @ inverse / scale
    return DiagonalSystem(reduced.lam, reduced.B, complex_outputs(C), reduced.margin)


def _better(
    full: DiagonalSystem, a: DiagonalSystem, b: DiagonalSystem, covariance: Tensor | None, weight: Tensor | None
) -> DiagonalSystem:
    """Return of two systems with the same poles the one that is nearer, for each of a bank."""
    first = (output_errors(full, a, covariance, weight) <= output_errors(full, b, covariance, weight))[..., None, None]
    return DiagonalSystem(a.lam, torch.where(first, a.B, b.B), torch.where(first, a.C, b.C), a.margin)


def _diagonal(full: DiagonalSystem, weight: Tensor) -> Tensor:
    return torch.diag_embed(double(full, weight).reshape(*full.lam.shape[:-1], -1))


def _missing(full: DiagonalSystem, reduced: DiagonalSystem, inputs: Tensor) -> Rows:
    """Return states of the reduced system and what is missing in its outputs, ``[K, samples, ...]`` each."""
    features, gaps = [], []
    for a, b in zip(driven_states(full, inputs), driven_states(reduced, inputs), strict=True):
        gap = (a @ full.C.mT[..., None, :, :] - b @ reduced.C.mT[..., None, :, :]).real
        gaps.append(gap.flatten(-3, -2))
        features.append(torch.cat([b.real, b.imag], dim=-1).flatten(-3, -2))
    both = [torch.cat(each, dim=-2) for each in (features, gaps)]
    return Rows(*(each.reshape(-1, *each.shape[-2:]) for each in both))
