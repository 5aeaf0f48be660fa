"""Balanced truncation of any stable discrete-time system, real or complex, that need not be diagonalisable.

References
----------
Smith, "Matrix equation XA + BX = C", 1968: the doubling of the horizon.
Penzl, "A cyclic low-rank Smith method for large sparse Lyapunov equations", 1999: with factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.form import NEGLIGIBLE
from edgelean.shrink.balance.modes import modes_of

DOUBLINGS = 60
"""So many doublings of the horizon reach any pole that double precision tells from 1."""

COMPRESSION = 1e-18
"""Directions of a factor below this share of the largest are dropped."""


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """``x_t = A x_{t-1} + B u_t``, ``y_t = C x_t``, in double precision; complex where one of the three is.

    Attributes
    ----------
    A
        ``[n, n]``, all eigenvalues inside the unit circle.
    B
        ``[n, H]``.
    C
        ``[P, n]``.

    Raises
    ------
    InputError
        When the shapes do not fit, a number is not finite, or the system is not stable.
    """

    A: Tensor
    B: Tensor
    C: Tensor

    def __post_init__(self) -> None:
        dtype = torch.complex128 if any(x.is_complex() for x in (self.A, self.B, self.C)) else torch.float64
        for name in "ABC":
            object.__setattr__(self, name, getattr(self, name).detach().to(dtype).resolve_conj())
        n = self.A.shape[0] if self.A.ndim else 0
        if not (self.A.ndim == self.B.ndim == self.C.ndim == 2 and self.A.shape == (n, n)) or (
            (self.B.shape[0], self.C.shape[1]) != (n, n) or n == 0
        ):
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in "ABC")
            raise InputError(f"a linear system needs A [n, n], B [n, H] and C [P, n], found {shapes}")
        for name in "ABC":
            if not bool(torch.isfinite(torch.view_as_real(getattr(self, name).to(torch.complex128))).all()):
                raise InputError(f"a linear system needs finite numbers, but {name} holds NaN or infinity")
        largest = float(torch.linalg.eigvals(self.A).abs().max())
        if not largest < 1:
            raise InputError(f"a pole has modulus {largest:.6g}; a stable system has all below 1")

    @property
    def order(self) -> int:
        """Number of states."""
        return self.A.shape[0]


@dataclass(frozen=True, eq=False)
class LinearReduction:
    """A reduced general system, its Hankel singular values ``[n]`` before, and twice the sum of those that went."""

    system: LinearSystem
    hankel: Tensor
    bound: float


def lyapunov_factor(A: Tensor, B: Tensor) -> Tensor:
    """Return ``L`` ``[n, K]`` with ``P = L L^H`` the solution of ``P = A P A^H + B B^H``, for a stable A.

    The horizon of ``B B^H + A B B^H A^H + ...`` doubles in each step. The sum is never formed, only its factor,
    compressed by an orthogonal transformation: it resolves what the sum would lose in its rounding.
    """
    L, power = _compressed(B), A
    for _ in range(DOUBLINGS):
        more = power @ L
        L = _compressed(torch.cat([L, more], dim=1))
        if float(torch.linalg.matrix_norm(more)) <= COMPRESSION * float(torch.linalg.matrix_norm(L)):
            break
        power = power @ power
    return L


def reduce_general(system: LinearSystem, order: int) -> LinearReduction:
    """Reduce any stable system to at most ``order`` states by square-root balanced truncation.

    The reduced system is real where the full one is, has fewer states where the map needs fewer, and its largest error
    over frequency is at most the bound.

    Raises
    ------
    InputError
        When ``order`` is not between 1 and n.
    """
    if not 1 <= order <= system.order:
        raise InputError(f"a system of order {system.order} can be truncated to 1 ... {system.order}, not {order}")
    reach, see = lyapunov_factor(system.A, system.B), lyapunov_factor(system.A.mH, system.C.mH)
    left, sigma, right = torch.linalg.svd(see.mH @ reach, full_matrices=False)
    kept = max(1, min(order, int((sigma > NEGLIGIBLE * sigma[0]).sum())))
    scale = sigma[:kept].clamp(min=torch.finfo(sigma.dtype).tiny).sqrt()
    T, W = reach @ right.mH[:, :kept] / scale, see @ left[:, :kept] / scale
    hankel = torch.nn.functional.pad(sigma, (0, system.order - len(sigma)))
    reduced = LinearSystem(W.mH @ system.A @ T, W.mH @ system.B, system.C @ T)
    return LinearReduction(reduced, hankel, float(2 * hankel[kept:].sum()))


def diagonalised(system: LinearSystem) -> DiagonalSystem:
    """Return a real system as complex modes, one for each conjugate pair and each real pole.

    Raises
    ------
    InputError
        If it is complex, or has eigenvectors so close to each other that the modes would be huge and cancel.
    """
    if system.A.is_complex():
        raise InputError("only a real system has conjugate pairs of modes, and this one is complex")
    limit = torch.ones(1, dtype=torch.float64, device=system.A.device)
    modes = modes_of(system.A[None], system.B[None], system.C[None], limit, system.order)
    if not bool(modes.safe):
        raise InputError(
            "the eigenvectors of this system are too close to each other to diagonalise it; reduce it with "
            "reduce_general first, or move its poles apart"
        )
    count = int(modes.used)
    return DiagonalSystem(modes.lam[0, :count], modes.B[0, :count], modes.C[0, :, :count])


def _compressed(L: Tensor) -> Tensor:
    """Return a factor of the same Gramian with no more columns than it has rank."""
    if L.shape[1] <= 1:
        return L
    left, sigma, _ = torch.linalg.svd(L, full_matrices=False)
    kept = max(1, int((sigma > COMPRESSION * sigma[:1].clamp(min=torch.finfo(sigma.dtype).tiny)).sum()))
    factor: Tensor = left[:, :kept] * sigma[:kept]
    return factor
