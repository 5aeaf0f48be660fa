"""Labels: which elements of which tensor dimensions are one and the same unit.

Every element along a dimension has a label. Labels that meet in an operator become one. A view that splits a dimension
in two, such as features into heads and places within a head, gives the label of each element two parts, and the
element goes when either part goes: so heads and places are units of their own, and the features follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Line = NDArray[np.int64]
"""Labels along one dimension."""

Dimension = Line | None
"""One label per element along a dimension; None where elements cannot be told apart (batch, time, space)."""

LARGEST_VIEW = 1 << 21
"""A view that merges more labelled elements than this is not followed."""


@dataclass(frozen=True)
class Value:
    """A tensor of the traced graph.

    Attributes
    ----------
    constant
        Whether it is known before any input arrives.
    uniform
        Whether it holds one number everywhere, so that a smaller one of it means the same.
    """

    shape: tuple[int, ...]
    labels: tuple[Dimension, ...]
    constant: bool = False
    uniform: bool = False


def plain(shape: tuple[int, ...]) -> Value:
    """Return a tensor whose elements cannot be told apart."""
    return Value(shape, (None,) * len(shape))


@dataclass
class Labels:
    """A union-find over labels, some of which have parts; some cannot be removed at all, and a reason says why."""

    _parent: list[int] = field(default_factory=list)
    _reasons: dict[int, str] = field(default_factory=dict)
    _parts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _products: dict[tuple[int, ...], int] = field(default_factory=dict)
    _atoms: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def fresh(self, count: int) -> Line:
        """Return ``count`` new labels, each on its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """Return the representative of a label."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def atoms(self, label: int) -> tuple[int, ...]:
        """Return the units whose removal removes an element with this label: its parts, and their parts."""
        found = self._atoms.get(label)
        if found is None:
            root = self.root(label)
            parts = self._parts.get(root)
            found = (root,)
            if parts is not None:
                found = tuple(dict.fromkeys(atom for part in parts for atom in self.atoms(part)))
            self._atoms[label] = found
        return found

    def product(self, parts: Sequence[int]) -> int:
        """Return the label of an element that goes when any of some labels goes."""
        roots = tuple(self.root(part) for part in parts)
        if len(roots) == 1:
            return roots[0]
        if roots not in self._products:
            self._products[roots] = int(self.fresh(1)[0])
            self._parts[self._products[roots]] = roots
        return self._products[roots]

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
        if len(left) != len(right):
            raise ValueError(f"{len(left)} labels meet {len(right)}")
        different = left != right
        for a, b in zip(left[different].tolist(), right[different].tolist(), strict=True):
            self.join(a, b)
        return left

    def tie(self, line: Dimension, count: int) -> None:
        """Make the same place in each of ``count`` equal stretches of a dimension one unit."""
        if line is not None:
            stretches = line.reshape(count, -1)
            for stretch in stretches[1:]:
                self.unify(stretches[0], stretch, "")

    def join(self, a: int, b: int) -> None:
        """Make two labels one; where both have parts, the parts become one pairwise."""
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        left, right = self._parts.get(a), self._parts.get(b)
        if left is None and right is not None:
            a, b, left, right = b, a, right, left
        if left is not None and (self._holds(a, b) or self._holds(b, a)):
            self._freeze_label(a, "it is a part of itself")
            self._freeze_label(b, "it is a part of itself")
            return
        self._parent[b] = a
        self._atoms.clear()
        if b in self._reasons:
            self._reasons.setdefault(a, self._reasons.pop(b))
        if left is not None and right is not None:
            del self._parts[b]
            self._match(left, right)

    def _holds(self, whole: int, part: int) -> bool:
        """Tell whether a label is among the parts of another, or among their parts."""
        return any(root == part or self._holds(root, part) for root in map(self.root, self._parts.get(whole, ())))

    def _match(self, left: tuple[int, ...], right: tuple[int, ...]) -> None:
        if len(left) != len(right):
            left = tuple(atom for part in left for atom in self.atoms(part))
            right = tuple(atom for part in right for atom in self.atoms(part))
        if len(left) == len(right):
            for a, b in zip(left, right, strict=True):
                self.join(a, b)
        else:
            for label in (*left, *right):
                self._freeze_label(label, "two views take it apart in different ways")

    def freeze(self, line: Dimension, reason: str) -> None:
        """Mark units as not removable; the first reason stays."""
        if line is not None:
            for label in np.unique(line).tolist():
                self._freeze_label(label, reason)

    def stays(self, line: Dimension) -> bool:
        """Tell whether no element of a dimension can go."""
        return line is None or all(self.root(label) in self._reasons for label in np.unique(line).tolist())

    def _freeze_label(self, label: int, reason: str) -> None:
        self._reasons.setdefault(self.root(label), reason)

    def freeze_all(self, value: Value, reason: str) -> None:
        """Mark every labelled unit of a tensor as not removable."""
        for line in value.labels:
            self.freeze(line, reason)

    def frozen(self) -> dict[int, str]:
        """Return the units that cannot be removed, and why: what is frozen freezes all its parts."""
        reasons: dict[int, str] = {}
        for label, reason in self._reasons.items():
            for atom in self.atoms(label):
                reasons.setdefault(atom, reason)
        return reasons


def reshaped(labels: Labels, value: Value, shape: tuple[int, ...]) -> tuple[Dimension, ...]:
    """Carry labels through a view.

    Parameters
    ----------
    value
        The tensor before.
    shape
        Its shape afterwards, with as many elements.
    """
    out: list[Dimension] = [None] * len(shape)
    for before, after in _factors(value.shape, shape):
        if len(before) == len(after) == 1:
            out[after[0]] = value.labels[before[0]]
            continue
        merged = _merged(labels, value, before)
        wide = [j for j in after if shape[j] > 1]
        if merged is not None and len(wide) == 1:
            out[wide[0]] = merged
        elif merged is not None:
            for place, line in zip(after, _divided(labels, merged, [shape[j] for j in after]), strict=True):
                out[place] = line
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


def _merged(labels: Labels, value: Value, dims: list[int]) -> Dimension:
    """Return the labels along the dimension that some dimensions are merged into."""
    known = [i for i in dims if value.shape[i] > 1 and not labels.stays(value.labels[i])]
    if not known:
        return None
    sizes = [value.shape[i] for i in dims]
    if math.prod(sizes) > LARGEST_VIEW:
        for i in known:
            labels.freeze(value.labels[i], "a view of it is too large to follow")
        return None
    spread = []
    for i in known:
        view = [1] * len(dims)
        view[dims.index(i)] = -1
        line = value.labels[i]
        assert line is not None
        spread.append(np.broadcast_to(line.reshape(view), sizes).reshape(-1))
    if len(spread) == 1:
        return spread[0].copy()
    return np.array([labels.product(parts) for parts in zip(*(line.tolist() for line in spread), strict=True)])


def _divided(labels: Labels, line: Line, sizes: list[int]) -> list[Dimension]:
    """Return the labels along each of the dimensions that one dimension is split into."""
    roots, back = np.unique([labels.root(label) for label in line.tolist()], return_inverse=True)
    terms = [labels.atoms(root) for root in roots.tolist()]
    if len({len(term) for term in terms}) != 1:
        return _repeated(labels, line, sizes)
    factors: list[list[Line]] = [[] for _ in sizes]
    for column in np.array(terms).T:
        grid = column[back].reshape(sizes)
        varying = [j for j in range(len(sizes)) if not (grid == grid.take([0], j)).all()]
        if len(varying) == 0:
            labels.freeze(grid.reshape(-1), "it is all of a dimension")
        elif len(varying) == 1:
            factors[varying[0]].append(np.moveaxis(grid, varying[0], 0).reshape(sizes[varying[0]], -1)[:, 0])
        else:
            for j, fresh in zip(varying, _refined(labels, grid, varying), strict=True):
                factors[j].append(fresh)
    return [_joined(labels, lines) for lines in factors]


def _repeated(labels: Labels, line: Line, sizes: list[int]) -> list[Dimension]:
    """Let units of different kinds go together where they are at one place of the largest dimension."""
    widest = int(np.argmax(sizes))
    stretches = np.moveaxis(line.reshape(sizes), widest, 0).reshape(sizes[widest], -1)
    for column in stretches.T[1:]:
        labels.unify(stretches[:, 0], column, "")
    return [stretches[:, 0].copy() if j == widest else None for j in range(len(sizes))]


def _refined(labels: Labels, grid: NDArray[np.int64], varying: list[int]) -> list[Line]:
    """Give every label of a grid one new part for each dimension along which the labels vary."""
    fresh = [labels.fresh(grid.shape[j]) for j in varying]
    places = np.indices(grid.shape).reshape(grid.ndim, -1)
    parts = np.stack([line[places[j]] for line, j in zip(fresh, varying, strict=True)], 1)
    seen: set[tuple[int, ...]] = set()
    for label, part in zip(grid.reshape(-1).tolist(), parts.tolist(), strict=True):
        if (label, *part) not in seen:
            seen.add((label, *part))
            labels.join(label, labels.product(part))
    return fresh


def _joined(labels: Labels, lines: list[Line]) -> Dimension:
    if not lines:
        return None
    if len(lines) == 1:
        return lines[0].copy()
    return np.array([labels.product(parts) for parts in zip(*(line.tolist() for line in lines), strict=True)])
