"""A diagonal linear system: what a state space layer hands to the reduction, and gets back from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgelean.errors import InputError


@dataclass(frozen=True, eq=False)
class DiagonalSystem:
    """``x_t = lam * x_{t-1} + B u_t``, ``y_t = Re(C x_t)``, with real ``u`` and ``y`` and complex states.

    Whatever comes in is promoted to complex128, so that a float32 layer is reduced in double precision. Dimensions in
    front, the same for all three, make it a bank of systems of equally many states.

    Attributes
    ----------
    lam
        Poles, shape ``[..., N]``, inside the unit circle.
    B
        Input matrix, shape ``[..., N, H]``.
    C
        Output matrix, shape ``[..., P, N]``.
    margin
        ``1 - |lam|``, shape ``[..., N]``, from a layer that knows it more precisely than its poles, rounded, show.

    Raises
    ------
    InputError
        When the shapes do not fit, a number is not finite, or a pole is not inside the unit circle.
    """

    lam: Tensor
    B: Tensor
    C: Tensor
    margin: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("lam", "B", "C"):
            object.__setattr__(self, name, getattr(self, name).detach().to(torch.complex128).resolve_conj())
        if self.margin is not None:
            object.__setattr__(self, "margin", self.margin.detach().to(torch.float64))
        bank, n = self.lam.shape[:-1], self.lam.shape[-1] if self.lam.ndim else 0
        matrices = self.B.ndim == self.C.ndim == self.lam.ndim + 1 > 1
        if not (
            matrices and self.B.shape[:-1] == self.lam.shape and (*self.C.shape[:-2], self.C.shape[-1]) == (*bank, n)
        ):
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in ("lam", "B", "C"))
            raise InputError(f"a diagonal system needs lam [N], B [N, H] and C [P, N], found {shapes}")
        modulus = self.lam.abs()
        unstable = ~(modulus < 1)
        if bool(unstable.any()):
            place = tuple(unstable.nonzero()[0].tolist())
            where = f"state {place[-1]}" + (f" of feature {', '.join(map(str, place[:-1]))}" if bank else "")
            value = float(modulus[place])
            found = f"a pole of modulus {value:.6g}" if torch.isfinite(modulus[place]) else "a pole that is not finite"
            raise InputError(f"{where} has {found}; a stable system has all below 1")
        for name in ("B", "C"):
            if not bool(torch.isfinite(torch.view_as_real(getattr(self, name))).all()):
                raise InputError(f"a diagonal system needs finite numbers, but {name} holds NaN or infinity")

    @property
    def states(self) -> int:
        """Number of complex states (of each system of a bank)."""
        return self.lam.shape[-1]


@runtime_checkable
class StateSpace(Protocol):
    """A time-invariant layer whose states can be reduced: it gives its system away and takes another one in.

    Attributes
    ----------
    D
        Weights of the direct path, ``[width]``.
    """

    D: nn.Parameter

    @property
    def states(self) -> int:
        """Number of complex states."""

    @property
    def state_dimensions(self) -> Mapping[str, int]:
        """For each parameter with a dimension of states, by its name in the layer, which dimension that is."""

    @property
    def reads(self) -> tuple[str, int]:
        """A parameter, by its name in the layer, and which of its dimensions runs along the features that are read."""

    def system(self) -> DiagonalSystem:
        """Return the linear map of the layer without its direct path, in double precision."""

    def load_system(self, system: DiagonalSystem) -> None:
        """Become another system, of any number of states; parameters remain the same Python objects."""


@runtime_checkable
class Selective(Protocol):
    """A layer whose recurrence depends on its input: it has no system to reduce, but some of its states can go.

    Attributes
    ----------
    selected_by
        A parameter, by its name in the layer, and which of its dimensions is that of the states.
    reads
        The same for the features that are read.
    states_read_by
        The linear layer, by its name in the layer, that reads what the states add up to.
    """

    selected_by: tuple[str, int]
    reads: tuple[str, int]
    states_read_by: str

    def through_states(self, inputs: Tensor) -> Iterator[Tensor]:
        """Return for each time step what every state adds to what ``states_read_by`` reads, ``[batch, inner, N]``."""


def check_poles(model: nn.Module) -> None:
    """Make sure that every state space layer of a model is stable, and every selective layer has finite states.

    Raises
    ------
    InputError
        If one is not, or its parameters are not finite; the message names the layer and the state.
    """
    for path, layer in model.named_modules():
        try:
            if isinstance(layer, StateSpace):
                layer.system()
            elif isinstance(layer, Selective):
                _check_selected(layer)
        except InputError as error:
            raise InputError(f"{path or type(layer).__name__}: {error}") from error


def _check_selected(layer: Selective) -> None:
    name, dim = layer.selected_by
    bad = (~torch.isfinite(getattr(layer, name))).movedim(dim, 0).flatten(1).any(1)
    if bool(bad.any()):
        raise InputError(f"state {int(bad.nonzero()[0])} has NaN or infinity in {name}; it takes finite numbers")


def replace(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter new data of another shape while it stays the same object.

    While a graph of an earlier step is alive, the parameter's gradient accumulator remembers the old shape; passing
    through another dtype makes torch drop it.
    """
    dtype, device = parameter.dtype, parameter.device
    other = torch.float64 if dtype != torch.float64 else torch.float32
    parameter.grad = None
    parameter.data = torch.empty(0, dtype=other, device=device)
    parameter.data = value.detach().to(device=device, dtype=dtype).contiguous()
