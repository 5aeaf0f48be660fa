"""What stands in a model where a residual block was: no parameters, and nothing of the block left to compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Plain = bool | int | float | str | None


class Bypass(nn.Module):
    """The place of a module that is gone; what it returns is made from its first tensor.

    Parameters
    ----------
    parts
        0 where the module returned a tensor; else it returned a tuple of so many, whose first is the tensor and whose
        others are None now.
    plain
        Attributes of the module that the code around it may ask for.
    """

    def __init__(self, parts: int = 0, plain: Mapping[str, Plain] | None = None) -> None:
        super().__init__()
        for name, value in (plain or {}).items():
            setattr(self, name, value)
        self._returned = parts

    @property
    def parts(self) -> int:
        """The length of the tuple that is returned; 0 for a tensor."""
        return self._returned

    def _packed(self, tensor: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        return (tensor, *(None for _ in range(self._returned - 1))) if self._returned else tensor


class Skip(Bypass):
    """Hands its first tensor through: a block of which only its input is left."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Return the first tensor, as it is."""
        return self._packed(_first(arguments, named))


class Zeros(Bypass):
    """Gives zeros of the shape of its first tensor: a branch that adds nothing to what goes around it."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Return zeros."""
        return self._packed(torch.zeros_like(_first(arguments, named)))


def _first(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    for argument in (*arguments, *named.values()):
        if isinstance(argument, Tensor):
            return argument
    raise TypeError("a module that was removed was called without any tensor")


def plain_of(module: nn.Module) -> dict[str, Plain]:
    """Return what code may ask a module for: its plain attributes, and None for each parameter."""
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None))) and not name.startswith("_") and name != "training"
    }
    return {**dict.fromkeys(module._parameters), **own}
