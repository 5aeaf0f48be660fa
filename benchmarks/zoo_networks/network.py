"""What an entry of the zoo is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]
"""A network, and an input of a batch of two."""

Maker = Callable[[], Built]


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes
    ----------
    name
        Unique.
    family
        ``"classic"``, ``"transformers"`` or ``"timm"``.
    make
        Builds it, with random weights, and an input.
    """

    name: str
    family: str
    make: Maker


def classics(**makers: Maker) -> tuple[Network, ...]:
    """Return hand-written networks by their names."""
    return tuple(Network(name, "classic", make) for name, make in makers.items())
