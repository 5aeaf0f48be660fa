"""What a truncation is known to cost before it is done, and what it did cost.

The certificate is twice the sum of the Hankel singular values that go: a truncation that is balanced for white noise
never makes a larger error at any frequency. Truncations here are balanced for what a layer really reads, which no
certificate covers; so their error is measured, at the worst frequency and on recorded inputs.

References
----------
Enns, "Model reduction with balanced realizations", 1984; Glover, "All optimal Hankel-norm approximations", 1984.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from edgelean.nn.system import DiagonalSystem, StateSpace
from edgelean.shrink.balance import Reduction
from edgelean.shrink.certificate import Truncation
from edgelean.shrink.modes import drive, some, spectra_of

FREQUENCIES = 64
"""Frequencies between 0 and pi at which gains are looked for, and so many at the resonances of a system."""

ITERATIONS = 12
"""Of the power method, at every frequency at once."""

PEAKS, CLOSER = 4, 17
"""Around so many of the largest gains, so many frequencies are looked at more closely."""


def systems_at(model: nn.Module, paths: Iterable[str]) -> dict[str, DiagonalSystem]:
    """Return the systems of those layers of a model that have one."""
    layers = {path: model.get_submodule(path) for path in paths}
    return {path: layer.system() for path, layer in layers.items() if isinstance(layer, StateSpace)}


def certified(
    full: Mapping[str, DiagonalSystem], reductions: Mapping[str, Reduction], read: Mapping[str, Tensor]
) -> tuple[Truncation, ...]:
    """Return what is known of truncations, in the order of the reductions.

    Parameters
    ----------
    full
        The systems before, by the path of the layer; without one a layer is passed over.
    read
        What the layers read, ``[batch, time, width]``; without it a layer is passed over.
    """
    found = []
    for path, reduction in reductions.items():
        if path in full and path in read:
            # A solver that does not converge costs a figure, not the cut.
            with suppress(RuntimeError):
                found.append(_certified(path, full[path], reduction, read[path]))
    return tuple(found)


def _certified(path: str, full: DiagonalSystem, reduction: Reduction, inputs: Tensor) -> Truncation:
    difference = _joined(full, reduction.system)
    tails = spectra_of(full)[:, int(reduction.orders.min()) :].sum(-1)
    return Truncation(
        layer=path,
        before=full.states,
        after=reduction.system.states,
        gain=gain(full),
        certificate=2 * float(tails.max()),
        worst=gain(difference),
        energy=_output_energy(difference, inputs) / max(_output_energy(full, inputs), torch.finfo(torch.float64).tiny),
    )


def gain(system: DiagonalSystem) -> float:
    """Return the largest gain of the real map of a system at any frequency (its H-infinity norm), from below.

    Looked for on a grid that holds the resonances of the strongest modes, then closer around the best of it, by the
    power method, which a training can afford: `largest_gain` decomposes a matrix at every frequency. A bank is as
    strong as its strongest system.
    """
    phases = _frequencies(system)
    found = _gains(system, phases)
    # Two resonances close together may add up to their peak between the points of the grid.
    best = phases.gather(-1, found.topk(PEAKS, dim=-1).indices)
    around = torch.linspace(-1, 1, CLOSER, dtype=best.dtype, device=best.device) * (torch.pi / (FREQUENCIES - 1))
    closer = (best[..., :, None] + around).flatten(-2).abs()
    return float(torch.maximum(found.max(), _gains(system, closer).max()))


def _gains(system: DiagonalSystem, phases: Tensor) -> Tensor:
    """Return the gain at frequencies in radians per step, both ``[..., F]``, by the power method."""
    around = torch.polar(torch.ones_like(phases), phases)
    ahead = 1 / (around[..., :, None] - system.lam[..., None, :])
    mirrored = 1 / (around[..., :, None] - system.lam.conj()[..., None, :])
    generator = torch.Generator().manual_seed(0)
    shape = (*ahead.shape[:-1], system.B.shape[-1])
    v = torch.randn(shape, generator=generator, dtype=torch.float64).to(ahead)
    largest = torch.zeros(shape[:-1], dtype=torch.float64, device=v.device)
    for _ in range(ITERATIONS):
        v = v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        out = 0.5 * (((v @ system.B.mT) * ahead) @ system.C.mT + ((v @ system.B.mH) * mirrored) @ system.C.mH)
        largest = torch.maximum(largest, out.norm(dim=-1))
        ahead_back, mirrored_back = (out @ system.C.conj()) * ahead.conj(), (out @ system.C) * mirrored.conj()
        v = 0.5 * (ahead_back @ system.B.conj() + mirrored_back @ system.B)
    return largest


def _frequencies(system: DiagonalSystem) -> Tensor:
    """Return frequencies in radians per step, ``[..., F]``: evenly spaced, and those of the strongest modes."""
    grid = torch.linspace(0, torch.pi, FREQUENCIES, dtype=torch.float64, device=system.lam.device)
    peak = system.B.norm(dim=-1) * system.C.norm(dim=-2) / (1 - system.lam.abs())
    strongest = peak.topk(min(FREQUENCIES, system.states), dim=-1).indices
    resonances = system.lam.angle().abs().gather(-1, strongest)
    return torch.cat([grid.expand(*resonances.shape[:-1], -1), resonances], dim=-1)


def _joined(full: DiagonalSystem, reduced: DiagonalSystem) -> DiagonalSystem:
    """Return the system whose output is the difference of two."""
    return DiagonalSystem(
        torch.cat([full.lam, reduced.lam], dim=-1),
        torch.cat([full.B, reduced.B], dim=-2),
        torch.cat([full.C, -reduced.C], dim=-1),
    )


def _output_energy(system: DiagonalSystem, inputs: Tensor) -> float:
    """Return the mean square of the outputs for recorded inputs, summed over the features."""
    driven = drive(system, some(inputs))
    state, total = torch.zeros_like(driven[0]), 0.0
    for step in driven:
        state = system.lam * state + step
        out = state @ system.C.mT if system.lam.ndim == 1 else (system.C.squeeze(-2) * state).sum(-1)
        total += float(out.real.square().sum())
    return total / (driven.shape[0] * driven.shape[1])
