"""The linear recurrent unit of Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.diagonal import DiagonalLayer, equalised, parts, positive_phase
from edgelean.nn.scan import Map, Poles
from edgelean.nn.system import DiagonalSystem


class LRU(DiagonalLayer):
    """A diagonal complex recurrence between two dense maps, in real arithmetic.

    ``x_t = lam * x_{t-1} + gamma * (B u_t)`` and ``y_t = Re(C x_t) + D * u_t`` with
    ``lam = exp(-exp(nu_log) + i exp(theta_log))``, which is inside the unit circle whatever training does.

    Parameters
    ----------
    width
        Features per time step, in and out.
    states
        Number of complex states.
    r_min, r_max
        The modulus of the poles is drawn between these, uniformly over the area of the ring.
    max_phase
        The phase of the poles is drawn between 0 and this, in radians.
    """

    state_dimensions: ClassVar[Mapping[str, int]] = {
        "nu_log": 0,
        "theta_log": 0,
        "gamma_log": 0,
        "B_re": 0,
        "B_im": 0,
        "C_re": 1,
        "C_im": 1,
    }

    def __init__(
        self, width: int, states: int, r_min: float = 0.9, r_max: float = 0.999, max_phase: float = 2 * math.pi
    ) -> None:
        super().__init__()
        if width < 1 or states < 1:
            raise InputError(f"an LRU needs width and states of at least 1, found width={width}, states={states}")
        if not (0 <= r_min < r_max < 1 and 0 < max_phase <= 2 * math.pi):
            raise InputError(
                "an LRU needs 0 <= r_min < r_max < 1 and 0 < max_phase <= 2 pi, "
                f"found r_min={r_min}, r_max={r_max}, max_phase={max_phase}"
            )
        modulus_squared = torch.empty(states).uniform_(max(r_min, 1e-3) ** 2, r_max**2)
        # 1 - rand() lies in (0, 1]: a phase of 0 has no logarithm.
        phase = max_phase * (1 - torch.rand(states))
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(modulus_squared)))
        self.theta_log = nn.Parameter(torch.log(phase))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-modulus_squared))
        self.B_re = nn.Parameter(torch.randn(states, width) / math.sqrt(2 * width))
        self.B_im = nn.Parameter(torch.randn(states, width) / math.sqrt(2 * width))
        self.C_re = nn.Parameter(torch.randn(width, states) / math.sqrt(states))
        self.C_im = nn.Parameter(torch.randn(width, states) / math.sqrt(states))
        self.D = nn.Parameter(torch.randn(width))

    @property
    def states(self) -> int:
        """Number of complex states."""
        return len(self.nu_log)

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"width={self.width}, states={self.states}"

    def load_system(self, system: DiagonalSystem) -> None:
        """Replace poles, B and C by those of ``system``; D stays. The parameters remain the same Python objects.

        ``gamma`` becomes ``sqrt(1 - |lam|^2)``, its initial form. The scale of a mode is free, and chosen so that its
        rows of B and columns of C (as parameters) have the same norm: an optimizer with one step size moves both alike.

        Raises
        ------
        InputError
            When the system does not have this layer's width at its input and output.
        """
        self._accept(system)
        # A pole at 0 has no logarithm; 1e-12 is far below what float32 outputs resolve.
        modulus = system.lam.abs().clamp(min=1e-12)
        gamma = torch.sqrt(-torch.expm1(2 * torch.log(modulus)))
        B, C = equalised(system.B / gamma[:, None], system.C)
        values = {
            "nu_log": (-modulus.log()).log(),
            "theta_log": positive_phase(system.lam).log(),
            "gamma_log": gamma.log(),
        }
        self._become(values | parts("B", B) | parts("C", C))

    def _map(self, values: Mapping[str, Tensor]) -> Map:
        gamma = values["gamma_log"].exp()[:, None]
        return Map(
            poles=Poles(-values["nu_log"].exp(), values["theta_log"].exp()),
            B=(gamma * values["B_re"], gamma * values["B_im"]),
            C=(values["C_re"], values["C_im"]),
        )
