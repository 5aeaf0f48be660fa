"""What the layers with a dense input and output map around a diagonal recurrence have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.scan import Map, Pair, advance, respond
from edgelean.nn.system import DiagonalSystem, replace


class DiagonalLayer(nn.Module, ABC):
    """A layer ``x_t = lam * x_{t-1} + B u_t``, ``y_t = Re(C x_t) + D * u_t``, in real arithmetic.

    A subclass says how poles, B and C follow from its parameters. Every tensor that has a state dimension keeps it as a
    dimension of its own, so the number of states is a free axis of the traced graph.
    """

    D: nn.Parameter

    state_dimensions: ClassVar[Mapping[str, int]]
    """For each parameter with a dimension of states, which one that is."""

    reads: ClassVar[tuple[str, int]] = ("B_re", 1)
    """A parameter, and which of its dimensions runs along the features that are read."""

    @property
    def width(self) -> int:
        """Features per time step, in and out."""
        return len(self.D)

    @abstractmethod
    def _map(self, values: Mapping[str, Tensor]) -> Map:
        """Return the system for these values of the parameters."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape, starting from zero states."""
        return respond(inputs, self._map(dict(self.named_parameters()))) + self.D * inputs

    def step(self, inputs: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        """Advance by one time step: the recurrent form, for streams.

        Parameters
        ----------
        inputs
            One time step, shape ``[batch, width]``.
        state
            What the previous step returned; None at the start of a sequence.

        Returns
        -------
        Outputs ``[batch, width]`` and the new state, two tensors ``[batch, states]``.
        """
        outputs, state = advance(inputs, self._map(dict(self.named_parameters())), state)
        return outputs + self.D * inputs, state

    def system(self) -> DiagonalSystem:
        """Return the linear map ``u -> Re(C x)`` of this layer (without D), computed in float64 from the parameters.

        Raises
        ------
        InputError
            If a pole is not inside the unit circle, or a parameter is not finite; the state is named.
        """
        found = self._map({name: value.detach().double() for name, value in self.named_parameters()})
        lam = torch.polar(found.poles.decay.exp(), found.poles.phase)
        return DiagonalSystem(lam, torch.complex(*found.B), torch.complex(*found.C), -torch.expm1(found.poles.decay))

    def _accept(self, system: DiagonalSystem) -> None:
        if system.lam.ndim != 1 or system.B.shape[1] != self.width or system.C.shape[0] != self.width:
            found = f"{system.B.shape[-1]} inputs and {system.C.shape[-2]} outputs"
            raise InputError(f"{self._called()} of width {self.width} cannot load a system of {found}")

    def _called(self) -> str:
        return f"an {type(self).__name__}"

    def _become(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            replace(getattr(self, name), value)


def equalised(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each mode so that its row of B ``[..., N, H]`` and its column of C ``[..., P, N]`` have the same norm.

    The scale of a mode is free, and an optimizer with one step size then moves both alike.
    """
    scale = torch.sqrt(C.norm(dim=-2) / B.norm(dim=-1))
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
    return B * scale[..., :, None], C / scale[..., None, :]


def parts(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return real and imaginary part as the values of two parameters."""
    return {f"{name}_re": value.real, f"{name}_im": value.imag}


def positive_phase(lam: Tensor) -> Tensor:
    """Return the phases in ``(0, 2 pi]``: a positive real pole gets ``2 pi``, since 0 has no logarithm."""
    return 2 * math.pi - torch.remainder(-lam.angle(), 2 * math.pi)
