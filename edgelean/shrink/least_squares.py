"""Least squares with a ridge that is chosen on rows that took no part in the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1)
"""Of the mean square of the features: tried in turn, the one that predicts the held-out rows best is taken."""


class Rows(NamedTuple):
    """Samples of a linear map: features ``[rows, features]`` and what is missing in its outputs ``[rows, outputs]``."""

    features: Tensor
    missing: Tensor


class Correction(NamedTuple):
    """What has to be added to a matrix ``[outputs, features]`` and to its bias ``[outputs]``."""

    matrix: Tensor
    shift: Tensor


def correction(fit: Rows, held_out: Rows, centred: bool, ridges: Sequence[float] = RIDGES) -> Correction:
    """Return the correction of a linear map that comes nearest to what is missing in its outputs.

    It is small where the features do not tell: the ridge draws it to zero, and it is zero where no ridge brings the
    held-out rows nearer.

    Parameters
    ----------
    fit, held_out
        What the correction is computed from, and what the ridge is chosen on.
    centred
        Whether something behind the map takes the mean over; without, the shift is zero and the matrix makes up for
        the mean as well.
    ridges
        None of them: the shift alone.
    """
    middle = _means(fit) if centred else Rows(*(rows.new_zeros(rows.shape[1]) for rows in fit))
    inside, outside = (
        Rows(*(each - mean for each, mean in zip(rows, middle, strict=True))) for rows in (fit, held_out)
    )
    best = inside.features.new_zeros(inside.missing.shape[1], inside.features.shape[1])
    least = float(outside.missing.square().sum())
    for candidate in _solutions(inside, ridges):
        error = float((outside.missing - outside.features @ candidate.mT).square().sum())
        if error < least:
            best, least = candidate, error
    return Correction(best, middle.missing - best @ middle.features)


def _means(rows: Rows) -> Rows:
    return Rows(rows.features.mean(0), rows.missing.mean(0))


def _solutions(rows: Rows, ridges: Sequence[float]) -> list[Tensor]:
    """Return the solution for every ridge, ``[outputs, features]`` each, by whichever Gram matrix is smaller."""
    x, y = rows
    wide = x.shape[1] > x.shape[0]
    gram = (x @ x.mT if wide else x.mT @ x).double()
    given = y.double() if wide else (x.mT @ y).double()
    power = gram.diagonal().sum() / x.shape[1]
    found = []
    for ridge in ridges if power > 0 else ():
        damped = gram + ridge * power * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            solved = torch.cholesky_solve(given, factor).to(x.dtype)
            found.append((x.mT @ solved if wide else solved).mT)
    return found
