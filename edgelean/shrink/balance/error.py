"""What a reduction costs: the energy of the difference, in closed form or on recorded inputs, and prices in nats."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.energy import driven_states, factor, factored, factors, measured_gramians
from edgelean.shrink.balance.form import NEGLIGIBLE, Balanced, balance, padded
from edgelean.shrink.balance.modes import Modes, filled
from edgelean.shrink.balance.real import (
    covariance_of,
    double,
    gap,
    one_bank,
    output_weights,
    polar,
    real_outputs,
)
from edgelean.shrink.balance.truncation import keep, some, truncation

PRICED_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
"""Shares of the states at which `prices` is exact."""


def output_error(
    full: DiagonalSystem, reduced: DiagonalSystem, covariance: Tensor | None = None, weight: Tensor | None = None
) -> float:
    """Return the mean squared difference of the outputs for white inputs, exactly: ``tr(W C_e P_e C_e^T)``.

    It is the squared H2 norm of the difference, and resolves differences down to about 1e-8 of the outputs. For the
    parameters see `gramians`; half of it, weighted by the Fisher information, is the predicted loss in nats. That of a
    bank is the sum over its systems.
    """
    return float(output_errors(full, reduced, covariance, weight).sum())


def output_errors(
    full: DiagonalSystem, reduced: DiagonalSystem, covariance: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return the `output_error` of each system of a bank, ``[...]``."""
    both = gap(full, reduced)
    poles, B, C = polar(both), both.B, real_outputs(both)
    if covariance is not None:
        B = B @ factor(double(full, covariance)).to(B.dtype)
    per_output = ((C @ covariance_of(poles, B, poles, B)) * C).sum(-1).clamp(min=0)
    return per_output.sum(-1) if weight is None else (per_output * output_weights(full, weight)).sum(-1)


def recorded_error(
    full: DiagonalSystem, reduced: DiagonalSystem, inputs: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the mean squared difference of the outputs on recorded inputs, of each system of a bank, ``[...]``.

    Half of it, weighted by the Fisher information, is the loss in nats that is predicted on inputs like these. For
    inputs see `measured_gramians`.
    """
    return recorded_energy(gap(full, reduced), inputs, weight)


def recorded_energy(system: DiagonalSystem, inputs: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean square of the outputs on recorded inputs, summed over the outputs of each system, ``[...]``."""
    weights = None if weight is None else output_weights(system, weight)
    total = system.lam.new_zeros(system.lam.shape[:-1]).real.clone()
    for states in driven_states(system, inputs):
        per_output = (states @ system.C.mT[..., None, :, :]).real.square().sum((-3, -2))
        total = total + (per_output if weights is None else per_output * weights).sum(-1)
    return total / (inputs.shape[0] * inputs.shape[1])


def prices(system: DiagonalSystem, weight: Tensor, covariance: Tensor | None = None) -> Tensor:
    """Return the predicted loss, in nats, of removing the first 0, 1, ... N states: ``[..., N + 1]``, never decreasing.

    Half the weighted `output_error` of `truncate` with ``gramians(system, covariance)``. It is computed exactly at a
    few numbers of states; between them, the energy in the balanced coordinates that go (what holding them at zero would
    cost, known for every rank at once) is corrected by the ratio of the two, interpolated over that energy.

    Parameters
    ----------
    system
        The full system, or a bank: the prices of each system; as all lose as many states, the bank pays their sum.
    weight
        Diagonal of the Fisher information of the loss at the outputs, summed over time, ``[..., P]``.
    covariance
        Covariance of the inputs, ``[..., H, H]``; None for the identity.
    """
    front, n, bank = system.lam.shape[:-1], system.states, one_bank(system)
    weights = output_weights(system, weight).expand(*front, -1).reshape(len(bank.lam), -1)
    noise = None if covariance is None else covariance.expand(*front, -1, -1).reshape(-1, *covariance.shape[-2:])
    balanced = balance(factors(bank, noise, None))
    held = _held_energy(bank, balanced, weights)
    level = held.clamp(min=torch.finfo(held.dtype).tiny).log()
    known, correction = [level[:, -1]], [torch.zeros_like(level[:, -1])]
    for states in sorted({max(1, round(share * n)) for share in PRICED_SHARES}):
        exact, found = _exact(bank, balanced, states, noise, weights)
        tail = held[:, n - states]
        usable = found & (tail > NEGLIGIBLE**2 * held[:, -1])
        ratio = torch.where(usable, (torch.maximum(exact, tail) / tail).log(), math.nan)
        known.append(torch.where(usable, tail.log(), math.nan))
        correction.append(ratio)
    ratio = _interpolated(level, torch.stack(known, -1), torch.stack(correction, -1))
    return (held * ratio.to(held)).cummax(-1).values.reshape(*front, n + 1)


def measured_prices(system: DiagonalSystem, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return what `prices` returns, for `truncate` with ``measured_gramians(system, inputs)``.

    Half the weighted energy that recorded inputs send through the balanced coordinates that go. That is the error of
    holding them at zero; the error of the truncated system on the same inputs is mostly 1 to 2 times as large.
    """
    balanced = balance(factored(measured_gramians(system, inputs)))
    return _held_energy(system, balanced, output_weights(system, weight))


def _held_energy(system: DiagonalSystem, balanced: Balanced, weights: Tensor) -> Tensor:
    """Return half the weighted energy of the balanced coordinates that go with 0, 1, ... N states, ``[..., N + 1]``."""
    energy = (weights[..., None] * (real_outputs(system) @ balanced.reach).square()).sum(-2)
    energy = padded(energy, 2 * system.states)
    return torch.cat([torch.zeros_like(energy[..., :1]), 0.5 * energy.flip(-1).cumsum(-1)[..., 1::2]], -1)


def _exact(
    bank: DiagonalSystem, balanced: Balanced, states: int, covariance: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return half the weighted output error of each truncated system ``[K]``, and where there is one."""
    kept = keep(bank, balanced, states, truncation)
    which = kept.found.nonzero()[:, 0]
    errors = torch.full_like(weights[:, 0], math.inf)
    if len(which):
        reduced = filled(Modes(*(part[which] for part in kept.modes)), some(bank, which))
        noise = None if covariance is None else covariance[which]
        errors[which] = 0.5 * output_errors(some(bank, which), reduced, noise, weights[which])
    return errors, kept.found


def _interpolated(level: Tensor, known: Tensor, correction: Tensor) -> Tensor:
    """Return the factors ``[K, N + 1]`` at the levels, from known points that go down, NaN where there is none."""
    rows = []
    for at, x, y in zip(level.cpu().numpy(), known.cpu().numpy(), correction.cpu().numpy(), strict=True):
        there = np.isfinite(x)
        order = np.argsort(x[there])
        rows.append(np.exp(np.interp(at, x[there][order], y[there][order])))
    return torch.from_numpy(np.stack(rows))
