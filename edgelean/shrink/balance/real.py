"""The real map of a diagonal system: poles as they are near the unit circle, and covariances of states in closed form.

All functions take banks: dimensions in front are those of the bank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg import blas, lapack
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem

LARGE = 256
"""From so many rows and columns on a matrix is worth a routine of its own."""


class Polar(NamedTuple):
    """Poles such that what is small near the unit circle keeps its relative precision; each part ``[..., N]``.

    Attributes
    ----------
    margin
        ``1 - |lam|``.
    cos, sin
        Of half the phase.
    """

    margin: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def modulus(self) -> Tensor:
        """``|lam|``."""
        return 1 - self.margin

    @property
    def damping(self) -> Tensor:
        """``1 - |lam|^2``."""
        return self.margin * (2 - self.margin)

    def conj(self) -> Polar:
        """Return the conjugate poles."""
        return Polar(self.margin, self.cos, -self.sin)

    def at(self, index: Tensor) -> Polar:
        """Return the poles ``[..., K]`` at places ``[..., K]``."""
        return Polar(*(part.gather(-1, index) for part in self))


def polar(system: DiagonalSystem) -> Polar:
    """Return the poles of a system; its margin where it knows one."""
    margin = 1 - system.lam.abs() if system.margin is None else system.margin
    half = 0.5 * system.lam.angle()
    return Polar(margin, half.cos(), half.sin())


def one_less(a: Polar, b: Polar) -> Tensor:
    """Return ``1 - a conj(b)`` for all pairs, ``[..., N, M]``, without cancellation where both are near the circle."""
    margin_a, margin_b = a.margin[..., :, None], b.margin[..., None, :]
    rest = margin_a + margin_b - margin_a * margin_b
    cos_a, sin_a, cos_b, sin_b = a.cos[..., :, None], a.sin[..., :, None], b.cos[..., None, :], b.sin[..., None, :]
    cos, sin = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b
    twice = 2 * (1 - rest) * sin
    return torch.complex(rest + twice * sin, -twice * cos)


def difference(a: Polar, b: Polar) -> Tensor:
    """Return ``a - b`` for all pairs, ``[..., N, M]``, without cancellation where both are near the circle."""
    cos_a, sin_a, cos_b, sin_b = a.cos[..., :, None], a.sin[..., :, None], b.cos[..., None, :], b.sin[..., None, :]
    cos, sin = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b
    margin_a, margin_b = a.margin[..., :, None], b.margin[..., None, :]
    along = torch.complex((margin_b - margin_a) * cos, (2 - margin_a - margin_b) * sin)
    return along * torch.complex(cos_a, sin_a) * torch.complex(cos_b, sin_b)


def covariance_of(a: Polar, reach_a: Tensor, b: Polar, reach_b: Tensor, horizon: int | None = None) -> Tensor:
    """Return ``E[z w^T]``, ``[..., 2N, 2M]``, for the states ``z = [Re x; Im x]`` and w of two systems.

    Both are driven by the same white real noise through ``reach`` ``[..., N, H]``; for a horizon, the sum over so many
    steps from zero states. From ``E[x y^H]`` and ``E[x y^T]``, both in closed form because the poles are diagonal.
    """
    parts = [torch.cat([each.real, each.imag], dim=-2) for each in (reach_a, reach_b)]
    together = squared(parts[0].mT) if reach_a is reach_b else parts[0] @ parts[1].mT
    (rr, ri), (ir, ii) = (each.chunk(2, dim=-1) for each in together.chunk(2, dim=-2))
    hermitian = torch.complex(rr + ii, ir - ri) / one_less(a, b)
    symmetric = torch.complex(rr - ii, ir + ri) / one_less(a, b.conj())
    if horizon is not None:
        hermitian = hermitian * _finite(a, b, horizon)
        symmetric = symmetric * _finite(a, b.conj(), horizon)
    both, less = hermitian + symmetric, hermitian - symmetric
    upper = torch.cat([both.real, -less.imag], dim=-1)
    lower = torch.cat([both.imag, less.real], dim=-1)
    return 0.5 * torch.cat([upper, lower], dim=-2)


def _finite(a: Polar, b: Polar, horizon: int) -> Tensor:
    """Return ``1 - (a conj(b))^horizon`` for all pairs."""
    logs = [torch.complex(torch.log1p(-each.margin), 2 * torch.atan2(each.sin, each.cos)) for each in (a, b)]
    return -torch.expm1(horizon * (logs[0][..., :, None] + logs[1].conj()[..., None, :]))


def symmetrised(matrix: Tensor) -> Tensor:
    """Return the symmetric part."""
    return 0.5 * (matrix + matrix.mT)


def squared(matrix: Tensor) -> Tensor:
    """Return ``M.mT @ M``; of one large matrix on the CPU by BLAS's routine for it, at half the cost."""
    if matrix.ndim != 2 or matrix.device.type != "cpu" or min(matrix.shape) < LARGE or matrix.is_complex():
        return matrix.mT @ matrix
    by_columns = matrix.mT.is_contiguous()
    upper = torch.from_numpy(
        blas.dsyrk(1.0, matrix.numpy(), trans=1) if by_columns else blas.dsyrk(1.0, matrix.mT.numpy(), trans=0)
    ).triu()
    return upper + upper.triu(1).mT


def symmetric_modes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, smallest first, and eigenvectors of a symmetric matrix ``[n, n]``.

    On the CPU by the LAPACK of SciPy, which takes three quarters of the time of the one in torch.

    Raises
    ------
    RuntimeError
        If it does not converge, as torch does.
    """
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    found, modes, failed = lapack.dsyevd(matrix.mT.numpy(), lower=1)
    if failed:
        raise RuntimeError(f"the eigenvalues of a symmetric matrix of order {len(matrix)} do not converge")
    return torch.from_numpy(found), torch.from_numpy(modes)


def real_outputs(system: DiagonalSystem) -> Tensor:
    """Return the matrix that reads ``Re(C x)`` from ``[Re x; Im x]``, ``[..., P, 2N]``."""
    return torch.cat([system.C.real, -system.C.imag], dim=-1)


def real_inputs(system: DiagonalSystem) -> Tensor:
    """Return the matrix that drives ``[Re x; Im x]``, ``[..., 2N, H]``."""
    return torch.cat([system.B.real, system.B.imag], dim=-2)


def complex_outputs(matrix: Tensor) -> Tensor:
    """Return the C ``[..., P, N]`` of a matrix that reads ``[Re x; Im x]``."""
    real, imaginary = matrix.chunk(2, dim=-1)
    return torch.complex(real, -imaginary)


def dual(system: DiagonalSystem) -> DiagonalSystem:
    """Return the adjoint system: inputs and outputs have changed places."""
    return DiagonalSystem(system.lam.conj(), system.C.mH, system.B.mH, system.margin)


def double(system: DiagonalSystem, values: Tensor) -> Tensor:
    """Return values in double precision where the system is."""
    return values.detach().to(system.lam.device, torch.float64)


def output_weights(system: DiagonalSystem, weight: Tensor) -> Tensor:
    """Return weights ``[..., P]``; for a bank with one output each, one number for each system will do.

    Raises
    ------
    InputError
        If there are not as many as outputs, or one is negative.
    """
    found = double(system, weight)
    if found.shape == system.lam.shape[:-1] and system.C.shape[-2] == 1 and found.ndim:
        found = found[..., None]
    if found.ndim == 0 or found.shape[-1] != system.C.shape[-2] or not bool((found >= 0).all()):
        raise InputError(
            f"weights of outputs are {system.C.shape[-2]} numbers of at least 0, found {list(weight.shape)}"
            + (", some of them negative or not numbers" if found.shape[-1:] == system.C.shape[-2:-1] else "")
        )
    return found


def one_bank(system: DiagonalSystem) -> DiagonalSystem:
    """Return a system, or a bank of any dimensions, as a bank of one dimension."""
    n = system.states
    margin = None if system.margin is None else system.margin.reshape(-1, n)
    B = system.B.reshape(-1, n, system.B.shape[-1])
    return DiagonalSystem(system.lam.reshape(-1, n), B, system.C.reshape(len(B), -1, n), margin)


def gap(full: DiagonalSystem, reduced: DiagonalSystem) -> DiagonalSystem:
    """Return the system whose outputs are the difference of those of two, or of each two of two banks."""
    return DiagonalSystem(
        torch.cat([full.lam, reduced.lam], -1),
        torch.cat([full.B, reduced.B], -2),
        torch.cat([full.C, -reduced.C], -1),
        torch.cat([polar(full).margin, polar(reduced).margin], -1),
    )


def like(bank: DiagonalSystem, system: DiagonalSystem) -> DiagonalSystem:
    """Return a bank of one dimension with the dimensions in front that another system has."""
    front = system.lam.shape[:-1]
    parts = (bank.lam, bank.B, bank.C)
    return DiagonalSystem(*(part.reshape(*front, *part.shape[1:]) for part in parts))
