"""Balanced truncation of diagonal systems: fewer states, nearly the same map from inputs to outputs.

A layer with complex states and real outputs, ``y = Re(C x)``, is reduced as the real system of order 2N that it is.
A complex reduction would treat a mode and its conjugate as different, although they do the same to a real output.

References
----------
Moore, "Principal component analysis in linear systems", 1981.
Laub, Heath, Paige & Ward, "Computation of system balancing transformations", 1987: the square-root method.
Lall, Marsden & Glavaski, "Empirical model reduction of controlled nonlinear systems", 1999: measured covariances.
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem

NEGLIGIBLE = 1e-8
"""Hankel singular values below this share of the largest are noise: a factor of a Gramian resolves no better."""

WORST_CONDITION = 1e7
"""Modes whose eigenvectors are worse conditioned than this are not used: B and C would be huge and cancel."""

LARGEST_MODULUS = 1 - 1e-6
"""Reduced poles stay below this modulus, or below the largest of the full system where that is closer to 1."""

PRICED_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
"""Shares of the states at which `prices` is exact."""


@dataclass(frozen=True, eq=False)
class Gramians:
    """How much energy reaches the states ``[Re x; Im x]``, and how much of it is seen; both ``[2N, 2N]``, real.

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
class Reduction:
    """A reduced system, with what is known about it.

    Attributes
    ----------
    system
        The reduced system; it has exactly the states that were asked for.
    hankel
        Hankel singular values of the full real map, ``[2N]``, largest first.
    order
        Order of the real system that was kept; at most twice the states.
    bound
        ``2 * (sum of the values that went)``. For ``"balanced"`` with the Gramians of `gramians`, no input makes the
        difference of the outputs larger than this factor times itself, both in root mean square (the H-infinity norm
        of the difference, of the weighted map where weights were given). Measured Gramians give no such certificate.
    method
        ``"balanced"``; ``"unchanged"`` when nothing had to go; ``"subset"`` when no balanced system was stable and
        well conditioned: the modes that carry most energy, with C refitted.
    """

    system: DiagonalSystem
    hankel: Tensor
    order: int
    bound: float
    method: Literal["balanced", "unchanged", "subset"]


def gramians(system: DiagonalSystem, covariance: Tensor | None = None, weight: Tensor | None = None) -> Gramians:
    """Return the Gramians of the real map in closed form.

    Parameters
    ----------
    system
        The full system.
    covariance
        Covariance of the inputs, ``[H, H]``; None for the identity. The inputs are white in time.
    weight
        How much the square of each output counts, ``[P]``; None for 1. With the diagonal of the Fisher information,
        half of a weighted energy is a loss in nats.
    """
    return Gramians(
        controllability=_state_covariance(system.lam, _shaped_inputs(system, covariance)),
        observability=_observability(system, weight),
    )


def measured_gramians(system: DiagonalSystem, inputs: Tensor, weight: Tensor | None = None) -> Gramians:
    """Return Gramians whose controllability is the covariance of the states under recorded inputs.

    Real inputs are neither white nor centred, and a truncation that knows them keeps the loss with far fewer states.

    Parameters
    ----------
    system
        The full system.
    inputs
        What the layer reads, ``[batch, time, H]``; a few sequences are enough.
    weight
        As for `gramians`.
    """
    driven = _on(system, inputs).to(system.B.dtype) @ system.B.mT
    state = torch.zeros_like(driven[:, 0])
    total = torch.zeros(2 * system.states, 2 * system.states, dtype=torch.float64, device=state.device)
    for step in driven.unbind(1):
        state = system.lam * state + step
        both = torch.cat([state.real, state.imag], dim=1)
        total += both.mT @ both
    samples = driven.shape[0] * driven.shape[1]
    return Gramians(total / samples, _observability(system, weight))


def hankel_singular_values(system: DiagonalSystem, given: Gramians | None = None) -> Tensor:
    """Return the Hankel singular values of the real map, ``[2N]``, largest first.

    Values below 1e-8 of the largest are noise.
    """
    return _balance(given or gramians(system)).sigma


def truncate(system: DiagonalSystem, states: int, given: Gramians | None = None) -> Reduction:
    """Reduce a system to ``states`` states by square-root balanced truncation of its real map.

    A conjugate pair of reduced poles takes one state, with C doubled; a real pole takes one as well, and the order is
    lowered until all fit. States that the map does not need at all are filled with modes of the full system that
    nothing reads yet (their C is 0). The result is always stable.

    Parameters
    ----------
    system
        The full system.
    states
        Complex states to keep, 1 to N.
    given
        Gramians to balance; None for white inputs and unweighted outputs.

    Raises
    ------
    InputError
        When ``states`` is not between 1 and N.
    """
    if not 1 <= states <= system.states:
        raise InputError(f"a system of {system.states} states can be truncated to 1 ... {system.states}, not {states}")
    pair = given or gramians(system)
    balanced = _balance(pair)
    if states == system.states:
        return Reduction(system, balanced.sigma, 2 * states, 0.0, "unchanged")
    kept = _balanced_modes(system, states, balanced)
    if kept is None:
        reduced, order = _subset(system, states, pair.controllability), 2 * states
        return Reduction(reduced, balanced.sigma, order, balanced.tail(order), "subset")
    modes, order = kept
    return Reduction(_filled(modes, system, states), balanced.sigma, order, balanced.tail(order), "balanced")


def output_error(
    full: DiagonalSystem, reduced: DiagonalSystem, covariance: Tensor | None = None, weight: Tensor | None = None
) -> float:
    """Return the mean squared difference of the outputs for white inputs, exactly: ``tr(W C_e P_e C_e^T)``.

    It is the squared H2 norm of the difference, and resolves differences down to about 1e-8 of the outputs. For the
    parameters see `gramians`; half of it, weighted by the Fisher information, is the predicted loss in nats.
    """
    lam = torch.cat([full.lam, reduced.lam])
    B = torch.cat([_shaped_inputs(full, covariance), _shaped_inputs(reduced, covariance)])
    C = torch.cat([full.C, -reduced.C], dim=1)
    C_real = _real_outputs(DiagonalSystem(lam, B, C))
    per_output = ((C_real @ _state_covariance(lam, B)) * C_real).sum(1).clamp(min=0)
    return float(per_output.sum() if weight is None else per_output @ _on(full, weight))


def prices(system: DiagonalSystem, weight: Tensor, covariance: Tensor | None = None) -> Tensor:
    """Return the predicted loss, in nats, of removing the first 0, 1, ... N states: ``[N + 1]``, never decreasing.

    Half the weighted `output_error` of `truncate` with ``gramians(system, covariance)``. It is computed exactly at a
    few numbers of states; between them, the energy in the balanced coordinates that go (what holding them at zero would
    cost, known for every rank at once) is corrected by the ratio of the two, interpolated over that energy.

    Parameters
    ----------
    system
        The full system.
    weight
        Diagonal of the Fisher information of the loss at the outputs, summed over time, ``[P]``.
    covariance
        Covariance of the inputs, ``[H, H]``; None for the identity.
    """
    balanced = _balance(gramians(system, covariance))
    held = _held_energy(system, balanced, weight)
    level = held.clamp(min=torch.finfo(held.dtype).tiny).log().cpu().numpy()
    known, correction = [float(level[-1])], [0.0]
    for states in sorted({max(1, round(share * system.states)) for share in PRICED_SHARES}):
        tail = float(held[system.states - states])
        kept = _balanced_modes(system, states, balanced)
        if kept is not None and tail > NEGLIGIBLE**2 * float(held[-1]):
            exact = 0.5 * output_error(system, kept[0], covariance, weight)
            known.append(math.log(tail))
            correction.append(math.log(max(exact, tail) / tail))
    ratio = torch.from_numpy(np.exp(np.interp(level, known[::-1], correction[::-1])))
    return (held * ratio.to(held)).cummax(0).values


def measured_prices(system: DiagonalSystem, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return what `prices` returns, for `truncate` with ``measured_gramians(system, inputs)``.

    Half the weighted energy that recorded inputs send through the balanced coordinates that go. That is the error of
    holding them at zero; the error of the truncated system on the same inputs is mostly 1 to 2 times as large.
    """
    return _held_energy(system, _balance(measured_gramians(system, inputs)), weight)


def coordinates(pair: Gramians) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Hankel singular values of two Gramians, and the way into the coordinates that balance them and back.

    Nothing is inverted; both Gramians have to be of full rank. In the new coordinates each is the diagonal matrix of
    the values, the largest first.
    """
    balanced = _balance(pair)
    scale = balanced.sigma.sqrt()
    return balanced.sigma, (balanced.see / scale).mT, balanced.reach / scale


@dataclass(frozen=True, eq=False)
class _Balanced:
    """The square-root form: ``reach @ reach.T`` is one Gramian, ``see @ see.T`` the other, ``see.T @ reach`` diagonal.

    Attributes
    ----------
    sigma
        The Hankel singular values, ``[2N]``: the diagonal.
    """

    sigma: Tensor
    reach: Tensor
    see: Tensor

    def tail(self, order: int) -> float:
        """Return twice the sum of the values behind the first ``order``."""
        return float(2 * self.sigma[order:].sum())

    def rank(self) -> int:
        """Return the number of values that are more than noise."""
        return int((self.sigma > NEGLIGIBLE * self.sigma[0]).sum())


def _held_energy(system: DiagonalSystem, balanced: _Balanced, weight: Tensor) -> Tensor:
    """Return half the weighted energy of the balanced coordinates that go with 0, 1, ... N states, ``[N + 1]``."""
    energy = (_on(system, weight)[:, None] * (_real_outputs(system) @ balanced.reach).square()).sum(0)
    return torch.cat([energy.new_zeros(1), 0.5 * energy.flip(0).cumsum(0)[1::2]])


def _balance(pair: Gramians) -> _Balanced:
    reach, see = _factor(pair.controllability), _factor(pair.observability)
    left, sigma, right = torch.linalg.svd(see.mT @ reach)
    return _Balanced(sigma, reach @ right.mT, see @ left)


def _factor(gramian: Tensor) -> Tensor:
    """Return ``L`` with ``L @ L.T`` the Gramian, which may be singular.

    Unit diagonal first: states of very different energy, as close to the unit circle, keep their relative precision.
    """
    scale = gramian.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(gramian / scale / scale[:, None])
    factor: Tensor = scale[:, None] * vectors * values.clamp(min=0).sqrt()
    return factor


def _state_covariance(lam: Tensor, B: Tensor) -> Tensor:
    """Return the covariance of ``[Re x; Im x]`` for ``x_t = lam * x_{t-1} + B u_t`` and white real inputs.

    From ``E[x x^H]`` and ``E[x x^T]``, both in closed form because the poles are diagonal.
    """
    hermitian = (B @ B.mH) / (1 - lam[:, None] * lam.conj())
    symmetric = (B @ B.mT) / (1 - lam[:, None] * lam)
    both, difference = hermitian + symmetric, hermitian - symmetric
    upper = torch.cat([both.real, -difference.imag], dim=1)
    lower = torch.cat([both.imag, difference.real], dim=1)
    whole = 0.5 * torch.cat([upper, lower])
    return 0.5 * (whole + whole.mT)


def _observability(system: DiagonalSystem, weight: Tensor | None) -> Tensor:
    """Return the state covariance of the adjoint system, whose inputs are this system's outputs."""
    adjoint = system.C.mH
    if weight is not None:
        adjoint = adjoint * _on(system, weight).sqrt()
    return _state_covariance(system.lam.conj(), adjoint)


def _shaped_inputs(system: DiagonalSystem, covariance: Tensor | None) -> Tensor:
    """Return B for white inputs that stand for inputs of the given covariance."""
    if covariance is None:
        return system.B
    return system.B @ _factor(_on(system, covariance)).to(system.B.dtype)


def _real_outputs(system: DiagonalSystem) -> Tensor:
    """Return the matrix that reads ``Re(C x)`` from ``[Re x; Im x]``."""
    return torch.cat([system.C.real, -system.C.imag], dim=1)


def _on(system: DiagonalSystem, values: Tensor) -> Tensor:
    return values.to(system.lam.device, torch.float64)


def _balanced_modes(system: DiagonalSystem, states: int, balanced: _Balanced) -> tuple[DiagonalSystem, int] | None:
    """Return the largest balanced system that fits, is stable and well conditioned, and its order; or None."""
    limit = max(LARGEST_MODULUS, float(system.lam.abs().max()))
    order = largest = min(2 * states, balanced.rank())
    while order >= max(1, largest // 2):
        modes = _modes(*_real_truncation(system, order, balanced), limit)
        excess = 1 if modes is None else modes.states - states
        if modes is not None and excess <= 0:
            return modes, order
        order -= max(1, excess)
    return None


def _real_truncation(system: DiagonalSystem, order: int, balanced: _Balanced) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, B and C of the real system of the first ``order`` balanced coordinates; nothing is inverted."""
    scale = balanced.sigma[:order].sqrt()
    reach, see = balanced.reach[:, :order] / scale, balanced.see[:, :order] / scale
    upper, lower = torch.split(reach, system.states)
    re, im = system.lam.real[:, None], system.lam.imag[:, None]
    moved = torch.cat([re * upper - im * lower, im * upper + re * lower])
    B_real = torch.cat([system.B.real, system.B.imag])
    return see.mT @ moved, see.mT @ B_real, _real_outputs(system) @ reach


def _modes(A: Tensor, B: Tensor, C: Tensor, limit: float) -> DiagonalSystem | None:
    """Diagonalise a real system into one state per conjugate pair and per real pole; None when that is not safe.

    Poles beyond the modulus ``limit`` are not safe, nor are eigenvectors so close to each other that B and C explode.
    """
    lam, vectors = torch.linalg.eig(A)
    inverse, failed = torch.linalg.inv_ex(vectors)
    condition = vectors.norm() * inverse.norm()
    if bool(failed) or not float(condition) < WORST_CONDITION or float(lam.abs().max()) > limit:
        return None
    keep = lam.imag >= 0
    B_modes = (inverse @ B.to(lam.dtype))[keep]
    C_modes = (C.to(lam.dtype) @ vectors)[:, keep] * torch.where(lam.imag[keep] > 0, 2.0, 1.0)
    # The scale of a mode is free; eigenvectors of norm 1 leave B and C far apart.
    scale = (C_modes.norm(dim=0) / B_modes.norm(dim=1)).sqrt()
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
    return DiagonalSystem(lam[keep], B_modes * scale[:, None], C_modes / scale)


def _filled(modes: DiagonalSystem, full: DiagonalSystem, states: int) -> DiagonalSystem:
    """Add the most reachable modes of the full system, unread, until there are ``states``."""
    missing = states - modes.states
    reached = full.B.abs().square().sum(1) / (1 - full.lam.abs().square())
    chosen = reached.argsort(descending=True, stable=True)[:missing]
    return DiagonalSystem(
        lam=torch.cat([modes.lam, full.lam[chosen]]),
        B=torch.cat([modes.B, full.B[chosen]]),
        C=torch.cat([modes.C, torch.zeros_like(full.C[:, chosen])], dim=1),
    )


def _subset(system: DiagonalSystem, states: int, covariance: Tensor) -> DiagonalSystem:
    """Keep the modes through which most energy flows, and refit C to the outputs of the full system."""
    energy = covariance.diagonal().reshape(2, -1).sum(0) * system.C.abs().square().sum(0)
    kept = energy.argsort(descending=True, stable=True)[:states].sort().values
    both = torch.cat([kept, kept + system.states])
    inverse = torch.linalg.pinv(covariance[both][:, both], hermitian=True)
    C_kept = _real_outputs(system) @ covariance[:, both] @ inverse
    return DiagonalSystem(system.lam[kept], system.B[kept], torch.complex(C_kept[:, :states], -C_kept[:, states:]))
