"""In which order and in which groups things are tried, so that few trials tell which of them matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def subsets(items: Sequence[Item]) -> Iterator[frozenset[Item]]:
    """Yield the subsets of some items: all, none, then those that lack few or have few."""
    every = frozenset(items)
    yield every
    if items:
        yield frozenset()
    for count in range(1, len(items)):
        for some in itertools.combinations(items, count):
            if 2 * count <= len(items):
                yield every - set(some)
            if 2 * count < len(items):
                yield frozenset(some)


def separating(items: Sequence[Item]) -> list[list[Item]]:
    """Return groups such that for any two items there is one with the first and without the second.

    Each item is in another set of groups, all of these sets of one size, so that none contains another (Sperner).
    """
    count = 1
    while math.comb(count, (count + 1) // 2) < len(items):
        count += 1
    sets = itertools.combinations(range(count), (count + 1) // 2)
    members = list(zip(items, sets, strict=False))
    return [group for which in range(count) if (group := [item for item, where in members if which in where])]
