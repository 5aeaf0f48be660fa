"""The largest gain of a real map over frequency, its H-infinity norm, at a cost that a training can afford."""

from __future__ import annotations

import torch
from torch import Tensor

from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.real import double, gap

FREQUENCIES = 64
"""Frequencies between 0 and pi at which gains are looked for, and so many at the resonances of a system."""

ITERATIONS = 12
"""Of the power method, at every frequency at once."""

PEAKS, CLOSER = 4, 17
"""Around so many of the largest gains, so many frequencies are looked at more closely."""


def largest_gain(
    full: DiagonalSystem, reduced: DiagonalSystem | None = None, feedthrough: Tensor | None = None
) -> float:
    """Return the largest gain of the difference of two real maps at any frequency, from below.

    Looked for by the power method, on a grid that holds the resonances of the strongest modes and then closer around
    the best of it. A bank is as strong as its strongest system.

    Parameters
    ----------
    full, reduced
        Both systems or both banks; without ``reduced`` the gain of ``full``.
    feedthrough
        What the reduced map has beside its states, ``[..., P, H]``.
    """
    system = full if reduced is None else gap(full, reduced)
    direct = system.B.new_zeros(system.C.shape[-2], system.B.shape[-1])
    direct = direct if feedthrough is None else double(full, feedthrough).to(direct.dtype)
    phases = _frequencies(system)
    found = _gains(system, direct, phases)
    # Two resonances close together may add up to their peak between the points of the grid.
    best = phases.gather(-1, found.topk(PEAKS, dim=-1).indices)
    around = torch.linspace(-1, 1, CLOSER, dtype=best.dtype, device=best.device) * (torch.pi / (FREQUENCIES - 1))
    closer = (best[..., :, None] + around).flatten(-2).abs()
    return float(torch.maximum(found.max(), _gains(system, direct, closer).max()))


def _gains(system: DiagonalSystem, direct: Tensor, phases: Tensor) -> Tensor:
    """Return the gain at frequencies in radians per step, both ``[..., F]``, by the power method.

    The input of a step is in its output, as in ``x_t = lam x_{t-1} + B u_t``; ``direct`` is taken from it.
    """
    turn = torch.polar(torch.ones_like(phases), -phases)[..., :, None]
    ahead = 1 / (1 - turn * system.lam[..., None, :])
    mirrored = 1 / (1 - turn * system.lam.conj()[..., None, :])
    generator = torch.Generator().manual_seed(0)
    shape = (*ahead.shape[:-1], system.B.shape[-1])
    v = torch.randn(shape, generator=generator, dtype=torch.float64).to(ahead)
    largest = torch.zeros(shape[:-1], dtype=torch.float64, device=v.device)
    for _ in range(ITERATIONS):
        v = v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        out = 0.5 * (((v @ system.B.mT) * ahead) @ system.C.mT + ((v @ system.B.mH) * mirrored) @ system.C.mH)
        out = out - v @ direct.mT
        largest = torch.maximum(largest, out.norm(dim=-1))
        ahead_back, mirrored_back = (out @ system.C.conj()) * ahead.conj(), (out @ system.C) * mirrored.conj()
        v = 0.5 * (ahead_back @ system.B.conj() + mirrored_back @ system.B) - out @ direct
    return largest


def _frequencies(system: DiagonalSystem) -> Tensor:
    """Return frequencies in radians per step, ``[..., F]``: evenly spaced, and those of the strongest modes."""
    grid = torch.linspace(0, torch.pi, FREQUENCIES, dtype=torch.float64, device=system.lam.device)
    peak = system.B.norm(dim=-1) * system.C.norm(dim=-2) / (1 - system.lam.abs())
    strongest = peak.topk(min(FREQUENCIES, system.states), dim=-1).indices
    resonances = system.lam.angle().abs().gather(-1, strongest)
    return torch.cat([grid.expand(*resonances.shape[:-1], -1), resonances], dim=-1)
