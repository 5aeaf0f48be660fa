"""Labels: which elements of which tensor dimensions are one and the same unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Dimension = NDArray[np.int64] | None
"""One label per element along a dimension; None where elements cannot be told apart (batch, time, space)."""


@dataclass(frozen=True)
class Value:
    """A tensor of the traced graph: its shape, its labels, and whether it is known before any input arrives."""

    shape: tuple[int, ...]
    labels: tuple[Dimension, ...]
    constant: bool = False


class Labels:
    """A union-find over labels; labels that have to be kept together or cannot be removed at all."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> NDArray[np.int64]:
        """Return ``count`` new labels, each on its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """Return the representative of a label's unit."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def unify(self, left: Dimension, right: Dimension, reason: str) -> Dimension:
        """Make two dimensions of one length one; where only one has labels, its units cannot be removed.

        Parameters
        ----------
        reason
            Why the units are left alone if one side has no labels, in words for the log.
        """
        if left is None or right is None:
            known = right if left is None else left
            self.freeze(known, reason)
            return known
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            self._join(self.root(a), self.root(b))
        return left

    def _join(self, a: int, b: int) -> None:
        if a == b:
            return
        self._parent[b] = a
        if b in self._reasons:
            self._reasons.setdefault(a, self._reasons.pop(b))

    def freeze(self, labels: Dimension, reason: str) -> None:
        """Mark units as not removable; the first reason stays."""
        if labels is not None:
            for label in labels.tolist():
                self._reasons.setdefault(self.root(label), reason)

    def freeze_all(self, value: Value, reason: str) -> None:
        """Mark every labelled unit of a tensor as not removable."""
        for labels in value.labels:
            self.freeze(labels, reason)

    def frozen(self, root: int) -> str | None:
        """Return why a unit cannot be removed, or None if it can."""
        return self._reasons.get(root)

    def roots(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the representatives of many labels."""
        return np.fromiter((self.root(label) for label in labels.tolist()), np.int64, len(labels))


def reshaped(labels: Labels, value: Value, shape: tuple[int, ...]) -> tuple[Dimension, ...]:
    """Carry labels through a view: dimensions that merge or split keep them where one labelled factor is left.

    Parameters
    ----------
    value
        The tensor before.
    shape
        Its shape afterwards, with as many elements.
    """
    out: list[Dimension] = [None] * len(shape)
    for before, after in _factors(value.shape, shape):
        known = [i for i in before if value.labels[i] is not None]
        if len(before) == len(after) == 1:
            out[after[0]] = value.labels[before[0]]
        elif len(known) == 1 and len(after) == 1:
            out[after[0]] = _merged(value, before, known[0])
        elif len(known) == 1 and len(before) == 1:
            place = _split(value.labels[known[0]], [shape[j] for j in after])
            if place is None:
                labels.freeze(value.labels[known[0]], "a view splits its units over several dimensions")
            else:
                out[after[place[0]]] = place[1]
        else:
            for i in known:
                labels.freeze(value.labels[i], "a view mixes its units with another dimension")
    return tuple(out)


def _factors(before: tuple[int, ...], after: tuple[int, ...]) -> Iterable[tuple[list[int], list[int]]]:
    """Yield the smallest runs of dimensions before and after whose sizes have equal products."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i][: len(before) - i], [j][: len(after) - j]
        a = before[i] if left else 1
        b = after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                left.append(i)
                a *= before[i]
                i += 1
            else:
                right.append(j)
                b *= after[j]
                j += 1
        yield left, right


def _merged(value: Value, dims: list[int], known: int) -> Dimension:
    sizes = [value.shape[i] for i in dims]
    view = [1] * len(dims)
    view[dims.index(known)] = -1
    labels = value.labels[known]
    return None if labels is None else np.broadcast_to(labels.reshape(view), sizes).reshape(-1).copy()


def _split(labels: Dimension, sizes: list[int]) -> tuple[int, NDArray[np.int64]] | None:
    """Return the one factor along which the labels differ, and the labels along it."""
    if labels is None:
        return None
    grid = labels.reshape(sizes)
    for axis in range(len(sizes)):
        line = np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1)
        if (line == line[:, :1]).all():
            return axis, line[:, 0].copy()
    return None
