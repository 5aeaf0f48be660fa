"""A diagonal linear system: what a state space layer hands to the reduction, and gets back from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgelean.errors import InputError


@dataclass(frozen=True, eq=False)
class DiagonalSystem:
    """``x_t = lam * x_{t-1} + B u_t``, ``y_t = Re(C x_t)``, with real ``u`` and ``y`` and complex states.

    Whatever comes in is promoted to complex128, so that a float32 layer is reduced in double precision.

    Attributes
    ----------
    lam
        Poles, shape ``[N]``, inside the unit circle.
    B
        Input matrix, shape ``[N, H]``.
    C
        Output matrix, shape ``[P, N]``.

    Raises
    ------
    InputError
        When the shapes do not fit, a number is not finite, or a pole is not inside the unit circle.
    """

    lam: Tensor
    B: Tensor
    C: Tensor

    def __post_init__(self) -> None:
        for name in ("lam", "B", "C"):
            value = getattr(self, name).detach().to(torch.complex128)
            object.__setattr__(self, name, value)
            if not bool(torch.isfinite(torch.view_as_real(value)).all()):
                raise InputError(f"a diagonal system needs finite numbers, but {name} holds NaN or infinity")
        n = self.lam.numel()
        if self.lam.ndim != 1 or self.B.ndim != 2 or self.C.ndim != 2 or self.B.shape[0] != n or self.C.shape[1] != n:
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in ("lam", "B", "C"))
            raise InputError(f"a diagonal system needs lam [N], B [N, H] and C [P, N], found {shapes}")
        modulus = self.lam.abs()
        if n and bool(modulus.max() >= 1):
            worst = int(modulus.argmax())
            raise InputError(
                f"state {worst} has a pole of modulus {float(modulus[worst]):.6g}; a stable system has all below 1"
            )

    @property
    def states(self) -> int:
        """Number of complex states."""
        return self.lam.numel()
