"""How many Hankel singular values to keep: the tolerance on their sum.

References
----------
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgelean.errors import InputError

WORTHWHILE = 0.95
"""A layer that would keep this share of its states or more is left as it is: a cut costs a change of basis."""


def rank_for(sigma: Tensor, tolerance: float) -> int:
    """Return the smallest rank whose values add up to all but a share ``tolerance`` of the sum of all.

    What goes is added up in double precision from the smallest value on, so a tolerance below the resolution of the
    sum keeps every value that is not zero.

    Parameters
    ----------
    sigma
        Hankel singular values ``[n]``, in any order.
    tolerance
        Share of the sum that may go, from 0 to below 1.

    Returns
    -------
    int
        1 to n; 1 where all values are zero.

    Raises
    ------
    InputError
        If a value is negative or not finite, there is none, or the tolerance is out of its range.
    """
    if sigma.ndim != 1 or len(sigma) == 0:
        raise InputError(f"a rank is chosen from a row of Hankel singular values, found the shape {tuple(sigma.shape)}")
    if not 0 <= tolerance < 1:
        raise InputError(f"the tolerance on Hankel singular values is {tolerance}, it has to be 0 or more and below 1")
    values = sigma.detach().double().sort().values
    bad = ~(torch.isfinite(values) & (values >= 0))
    if bool(bad.any()):
        raise InputError(
            f"{int(bad.sum())} of {len(values)} Hankel singular values are negative or not finite: look at the poles"
        )
    gone = values.cumsum(0)
    return max(1, len(values) - int((gone <= tolerance * gone[-1]).sum()))


def states_for(sigma: Tensor, tolerance: float) -> int:
    """Return the complex states that a layer keeps at a tolerance.

    Parameters
    ----------
    sigma
        Hankel singular values of the real map of N complex states, ``[2 N]``: two orders fit one state.
    tolerance
        As for `rank_for`.

    Returns
    -------
    int
        N where the rank is not worth a cut, which is at 95 % of N or more.
    """
    whole = len(sigma) // 2
    states = math.ceil(rank_for(sigma, tolerance) / 2)
    return states if states < WORTHWHILE * whole else whole
