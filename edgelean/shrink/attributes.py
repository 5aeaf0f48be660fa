"""Numbers that a module's code holds on to: widths, heads, sizes of a split.

A parameter that shrinks does not tell the code that reads it. Standard modules are known; for all others the whole
numbers among their attributes are candidates: those that equal the units of an axis, or the elements of them. Which
of them really follow is not guessed: :mod:`edgelean.shrink.prove` tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from edgelean.shrink.axes import Axis

Numbers = dict[str, int]
"""Whole numbers among the attributes of modules, by path and name."""

NEVER = frozenset({"training", "kernel_size", "stride", "padding", "dilation", "groups", "padding_idx", "layer_idx"})


class Attribute(NamedTuple):
    """One attribute of one module."""

    path: str
    name: str

    def key(self) -> str:
        """Return it as one word."""
        return f"{self.path}.{self.name}"


def numbers_of(model: nn.Module) -> Numbers:
    """Return every whole number among the attributes of a model's modules."""
    return {
        Attribute(path, name).key(): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is int and not name.startswith("_") and name not in NEVER
    }


def set_numbers(model: nn.Module, numbers: Mapping[str, int]) -> None:
    """Give attributes other values; the modules have to be those that `numbers_of` saw."""
    modules = dict(model.named_modules())
    for key, value in numbers.items():
        path, _, name = key.rpartition(".")
        setattr(modules[path], name, value)


def likely_sizes(axis: Axis) -> frozenset[int]:
    """Return the sizes that code is likely to hold: the units of an axis, its elements, and the ratios of those."""
    widths = {elements.shape[1] for elements in axis.slots.values()}
    factors = {1, *widths, *(a // b for a in widths for b in widths if a % b == 0)}
    return frozenset(axis.size * factor for factor in factors)


def possible_sizes(axis: Axis) -> frozenset[int]:
    """Return every size that shrinks with an axis: the units times a divisor of the elements of one."""
    widths = {elements.shape[1] for elements in axis.slots.values()}
    return frozenset(axis.size * part for width in widths for part in range(1, width + 1) if width % part == 0)


def candidates(model: nn.Module, axis: Axis, sizes: frozenset[int]) -> tuple[Attribute, ...]:
    """Return the attributes that have one of some sizes and may have to follow when an axis shrinks.

    Only those of modules that hold, in themselves or below, something that is cut.
    """
    owners = {name.rpartition(".")[0] for name, _ in axis.slots}
    found = []
    for path, module in model.named_modules():
        holds = any(owner == path or owner.startswith(f"{path}.") or path == "" for owner in owners)
        if holds and not type(module).__module__.startswith("torch.nn.modules"):
            found += [Attribute(path, name) for name, value in _whole_numbers(module) if value in sizes]
    return tuple(found)


def _whole_numbers(module: nn.Module) -> list[tuple[str, int]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if type(value) is int and value > 1 and not name.startswith("_") and name not in NEVER
    ]
