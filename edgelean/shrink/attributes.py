"""Numbers that a module's code holds on to: widths, heads, sizes of a split.

A parameter that shrinks does not tell the code that reads it. Standard modules are known; for all others every whole
number that a module holds may have to follow: an attribute, an item of a tuple, list or dictionary, a field of an
object such as a configuration, which many modules may share. Which of them follow what is found out by
:mod:`edgelean.shrink.lines` and :mod:`edgelean.shrink.prove`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

Numbers = dict[str, int]
"""Whole numbers that modules hold, by path and name."""

NEVER = frozenset(
    {"training", "kernel_size", "stride", "padding", "dilation", "groups", "padding_idx", "layer_idx", "_trainer"}
)
FOREIGN = frozenset(
    {"torch", "numpy", "logging", "threading", "weakref", "builtins", "lightning", "pytorch_lightning", "accelerate"}
)
"""Packages whose objects hold no widths. A LightningModule holds its trainer, with all its counters."""

INTERNAL = frozenset(vars(nn.Module()))
"""What torch itself keeps in every module."""

DEEPEST = 4
"""Steps from a module to a number that are gone at most: an attribute, its item, the item of that..."""

MOST_ITEMS = 256
"""Larger containers hold data, no sizes."""


class Attribute(NamedTuple):
    """A number that a module holds: its path, and the steps from the module to it, joined by slashes."""

    path: str
    name: str

    def key(self) -> str:
        """Return it as one word."""
        return f"{self.path}.{self.name}"

    def shared(self) -> bool:
        """Tell whether it is not the module's own attribute, but inside of something that others may hold as well."""
        return "/" in self.name


@dataclass(frozen=True)
class Number:
    """A whole number that a model holds once, though several of its modules may reach it.

    Attributes
    ----------
    attribute
        How the first of the modules reaches it.
    value
        What it is.
    paths
        Every module that reaches it.
    """

    attribute: Attribute
    value: int
    paths: tuple[str, ...]


def every_number(model: nn.Module) -> list[Number]:
    """Return the whole numbers that a model's modules hold, each once."""
    found: dict[tuple[object, ...], Number] = {}
    for path, module in model.named_modules():
        for steps, home, value in _walked(module, (), ()):
            known = found.get(home)
            attribute = known.attribute if known else Attribute(path, "/".join(steps))
            found[home] = Number(attribute, value, (*(known.paths if known else ()), path))
    return list(found.values())


def numbers_of(model: nn.Module) -> Numbers:
    """Return every whole number that a model's modules hold."""
    return {number.attribute.key(): number.value for number in every_number(model)}


def set_numbers(model: nn.Module, numbers: Mapping[str, int]) -> None:
    """Give a model the numbers that `numbers_of` saw in it, or in another of the same code."""
    for number in every_number(model):
        value = numbers.get(number.attribute.key(), number.value)
        if value != number.value:
            set_number(model, number.attribute, value)


def set_number(model: nn.Module, attribute: Attribute, value: int) -> None:
    """Change one number that a model holds."""
    _changed(model.get_submodule(attribute.path), attribute.name.split("/"), value)


def _walked(
    value: Any, steps: tuple[str, ...], home: tuple[object, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[object, ...], int]]:
    """Yield the numbers in something: the steps to each, what tells it from all others, and its value."""
    if type(value) is int:
        yield steps, home, value
    elif len(steps) < DEEPEST:
        for step, item in _items(value):
            # A tuple is no place of its own: equal ones may be one object.
            inner = (*home, step) if isinstance(value, tuple) else (id(value), step)
            yield from _walked(item, (*steps, step), inner)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the named parts of a module, container or plain object that may be or hold numbers."""
    if isinstance(value, nn.Module):
        return ((name, item) for name, item in vars(value).items() if name not in INTERNAL | NEVER and _plain(item))
    found: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, (list, tuple)):
        found = enumerate(value) if len(value) <= MOST_ITEMS else ()
    elif isinstance(value, dict):
        found = value.items()
    elif isinstance(value, partial):
        found = value.keywords.items()
    elif hasattr(value, "__dict__"):
        found = vars(value).items()
    named = [(str(step), item) for step, item in found if isinstance(step, (str, int)) and _plain(item)]
    return [(step, item) for step, item in named if "/" not in step] if len(named) <= MOST_ITEMS else ()


def _plain(value: Any) -> bool:
    """Tell whether something is a whole number or may hold some that belong to a model."""
    if isinstance(value, (bool, str, bytes, float, Tensor, nn.Module, Enum, type, ModuleType)) or value is None:
        return False
    known = (int, list, tuple, dict, partial)
    return isinstance(value, known) or (hasattr(value, "__dict__") and not callable(value) and not _foreign(value))


def _foreign(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in FOREIGN


def _changed(holder: Any, steps: list[str], value: int) -> Any:
    """Change a number some steps below a holder; return the holder, another one where it is a tuple."""
    step, *below = steps
    parts: Any = holder.keywords if isinstance(holder, partial) else holder
    if isinstance(parts, (list, tuple)):
        place: Any = int(step)
    elif isinstance(parts, dict):
        place = step if step in parts else int(step)
    else:
        parts, place = vars(parts), step
    new = _changed(parts[place], below, value) if below else value
    if isinstance(parts, tuple):
        items = [*parts[:place], new, *parts[place + 1 :]]
        make: Any = type(parts)
        return make(*items) if hasattr(parts, "_fields") else make(items)
    parts[place] = new
    return holder
