"""Which of the numbers that a model holds its code really uses as sizes.

A number is changed by one and the model run: where the shape of any tensor on the way is another one, or the code does
not run, it is used. Numbers are changed in groups, halved as long as something happens, so that a model with many
numbers and few that count takes few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgelean.shrink.attributes import Attribute, numbers_of, set_number, set_numbers

Shapes = tuple[tuple[int, ...], ...]


class _Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes the shape of everything that an operator returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.shapes += [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def shapes_of(run: Callable[[], object]) -> Shapes:
    """Run something and return the shapes of all tensors that it makes."""
    with torch.no_grad(), _Recorded() as recorded:
        run()
    return tuple(recorded.shapes)


def used_kinds(
    model: nn.Module,
    kinds: Mapping[str, Sequence[Attribute]],
    run: Callable[[], object],
    failures: tuple[type[Exception], ...],
) -> frozenset[str]:
    """Return which kinds of numbers matter to the shapes of the tensors that a model computes.

    Parameters
    ----------
    kinds
        The numbers, those of repeated layers together.
    run
        Runs the model; it must run as it is.
    failures
        What the model's code raises when sizes do not fit.
    """
    expected = shapes_of(run)

    def matter(names: Sequence[str]) -> bool:
        with _other(model, [attribute for name in names for attribute in kinds[name]]):
            try:
                return shapes_of(run) != expected
            except failures:
                return True

    def among(names: Sequence[str]) -> Iterator[str]:
        if not names or not matter(names):
            return
        if len(names) == 1:
            yield names[0]
            return
        yield from among(names[: len(names) // 2])
        yield from among(names[len(names) // 2 :])

    return frozenset(among(sorted(kinds)))


@contextmanager
def _other(model: nn.Module, attributes: Sequence[Attribute]) -> Iterator[None]:
    """Let some numbers be one more, for a while."""
    before = numbers_of(model)
    for attribute in attributes:
        set_number(model, attribute, before[attribute.key()] + 1)
    try:
        yield
    finally:
        set_numbers(model, before)
