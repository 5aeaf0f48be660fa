"""S4D of Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models" (NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.continuous import Discretization, check_steps, continuous, discrete, log_steps
from edgelean.nn.convolution import advance_each, respond_each
from edgelean.nn.diagonal import parts
from edgelean.nn.scan import Pair, Poles, product
from edgelean.nn.system import DiagonalSystem, replace

Init = Literal["lin", "inv", "real"]


class S4D(nn.Module):
    """A bank of diagonal systems in continuous time, one for each feature, discretised with a step per feature.

    ``y_t = 2 Re(C x_t) + D u_t`` with one complex state per conjugate pair and ``B = 1``, which is no restriction, as
    only the products of B and C matter. The real part of an eigenvalue is ``-exp(log_A_re)``: always stable.

    Parameters
    ----------
    d_model
        Features per time step, in and out.
    d_state
        Order of the real system of a feature: half as many complex states.
    init
        Eigenvalues of state n: ``"lin"`` ``-1/2 + i pi n``, ``"inv"`` ``-1/2 + i (N / pi) (N / (2n + 1) - 1)`` with N
        the order, ``"real"`` ``-(n + 1)``.
    discretization
        Zero-order hold or the bilinear transform.
    dt_min, dt_max
        The steps are drawn between these, uniformly over their logarithm.
    """

    state_dimensions: ClassVar[Mapping[str, int]] = {"log_A_re": 1, "A_im": 1, "C_re": 1, "C_im": 1}
    reads: ClassVar[tuple[str, int]] = ("D", 0)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: Init = "lin",
        discretization: Discretization = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        check_steps("an S4D", discretization, dt_min, dt_max)
        if d_model < 1 or d_state < 2 or d_state % 2:
            raise InputError(
                "an S4D needs d_model of at least 1 and an even d_state of at least 2 (conjugate pairs), "
                f"found d_model={d_model}, d_state={d_state}"
            )
        self.discretization: Discretization = discretization
        A_re, A_im = (part.repeat(d_model, 1) for part in _eigenvalues(init, d_state))
        self.log_A_re = nn.Parameter(torch.log(-A_re))
        self.A_im = nn.Parameter(A_im)
        self.log_step = nn.Parameter(log_steps(d_model, dt_min, dt_max))
        # Real and imaginary part of a standard complex normal have variance 1/2 each.
        self.C_re = nn.Parameter(torch.randn(d_model, d_state // 2) * math.sqrt(0.5))
        self.C_im = nn.Parameter(torch.randn(d_model, d_state // 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))

    @property
    def width(self) -> int:
        """Features per time step, in and out."""
        return len(self.D)

    @property
    def states(self) -> int:
        """Number of complex states of a feature."""
        return self.C_re.shape[1]

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"width={self.width}, states={self.states}, discretization={self.discretization}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape, starting from zero states."""
        poles, gain, C = self._bank(dict(self.named_parameters()))
        return respond_each(inputs, poles, product(gain, C)) + self.D * inputs

    def step(self, inputs: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        """Advance by one time step ``[batch, width]``; see `LRU.step`. The states are two of ``[batch, width, N]``."""
        poles, gain, C = self._bank(dict(self.named_parameters()))
        outputs, state = advance_each(inputs, poles, product(gain, C), state)
        return outputs + self.D * inputs, state

    def system(self) -> DiagonalSystem:
        """Return the maps ``u -> 2 Re(C x)`` of all features (without D) as a bank, computed in float64.

        Raises
        ------
        InputError
            If a pole is not inside the unit circle, or a parameter is not finite; feature and state are named.
        """
        poles, gain, C = self._bank({name: value.detach().double() for name, value in self.named_parameters()})
        lam = torch.polar(poles.decay.exp(), poles.phase)
        margin = -torch.expm1(poles.decay)
        return DiagonalSystem(lam, torch.complex(*gain)[..., None], torch.complex(*C)[..., None, :], margin)

    def load_system(self, system: DiagonalSystem) -> None:
        """Replace eigenvalues and C by those of a bank; the steps and D stay, and parameters the same objects.

        Raises
        ------
        InputError
            When the bank is not one system with one input and one output for each feature.
        """
        if system.lam.ndim != 2 or (len(system.lam), system.B.shape[2], system.C.shape[1]) != (self.width, 1, 1):
            raise InputError(
                f"an S4D of width {self.width} can load as many systems of one input and one output, "
                f"found lam {list(system.lam.shape)}, B {list(system.B.shape)}, C {list(system.C.shape)}"
            )
        A, gain = continuous(system.lam, self.log_step.detach().double().exp()[:, None], self.discretization)
        C = system.C[:, 0] * system.B[..., 0] / gain / 2
        values = {"log_A_re": torch.log(-A.real), "A_im": A.imag} | parts("C", C)
        for name, value in values.items():
            replace(getattr(self, name), value)

    def _bank(self, values: Mapping[str, Tensor]) -> tuple[Poles, Pair, Pair]:
        """Return poles, input gains and output weights, all ``[width, N]``."""
        poles, gain = discrete(
            -values["log_A_re"].exp(), values["A_im"], values["log_step"].exp()[:, None], self.discretization
        )
        return poles, gain, (2 * values["C_re"], 2 * values["C_im"])


def _eigenvalues(init: Init, order: int) -> tuple[Tensor, Tensor]:
    place = torch.arange(order // 2, dtype=torch.get_default_dtype())
    half, zero = torch.full_like(place, -0.5), torch.zeros_like(place)
    if init == "lin":
        return half, math.pi * place
    if init == "inv":
        return half, order / math.pi * (order / (2 * place + 1) - 1)
    if init == "real":
        return -(place + 1), zero
    raise InputError(f"an S4D starts with {', '.join(get_args(Init))}, not {init!r}")
