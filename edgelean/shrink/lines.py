"""Numbers in a model's code and the lines of labels that they are the lengths of.

A number that code uses as a size is the length of some dimension of some tensor, and it shrinks as that does: by the
elements that go, whatever units they belong to. So a number that is the sum of two widths, or heads times places,
follows each axis by the right amount.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgelean.shrink.attributes import Attribute, Number, every_number
from edgelean.shrink.labels import Labels, Line
from edgelean.shrink.modules import aligned
from edgelean.shrink.trace import Trace

LONGEST = 1 << 17
"""Longer lines are not looked at: no code holds on to their length."""


class Length(NamedTuple):
    """A number as the length of a line, as one axis sees it.

    Attributes
    ----------
    units
        For every element of the line the unit of the axis that it goes with, or -1.
    near
        Whether the line is one of a tensor that a module with this number has or computes.
    line
        Which of the lines of the model it is: equal for all axes that have units in it.
    """

    units: NDArray[np.int64]
    near: bool
    line: int = 0

    def weight(self) -> int:
        """Return how many elements go with some unit."""
        return int((self.units >= 0).sum())


Lengths = dict[str, dict[Attribute, Length]]
"""By the name of an axis, the numbers that may follow it."""


def lengths_along(model: nn.Module, found: Trace, units: Mapping[int, tuple[str, int]]) -> Lengths:
    """Return the numbers that may have to follow each axis.

    Parameters
    ----------
    units
        For each removable unit the name of its axis, and its place there.
    """
    numbers = [number for number in every_number(model) if 1 < number.value <= LONGEST and not _known(model, number)]
    by_value: dict[int, list[Number]] = defaultdict(list)
    for number in numbers:
        by_value[number.value].append(number)
    best: Lengths = defaultdict(dict)
    seen: dict[tuple[int, bytes], dict[str, Length]] = {}
    met: set[tuple[int, frozenset[str]]] = set()
    for line, inside in _lines(found):
        if (id(line), inside) in met or len(line) not in by_value:
            continue
        met.add((id(line), inside))
        key = (len(line), line.tobytes())
        if key not in seen:
            seen[key] = _by_axis(found.labels, line, units, len(seen))
        for number in by_value[len(line)] if seen[key] else ():
            near = not inside.isdisjoint(number.paths)
            for axis, length in seen[key].items():
                _keep_better(best[axis], number.attribute, length._replace(near=near))
    return {axis: _ordered(lengths, numbers) for axis, lengths in best.items()}


def _known(model: nn.Module, number: Number) -> bool:
    """Tell whether a standard module holds a number, which follows the shapes of its parameters."""
    return number.attribute.name.partition("/")[0] in aligned(model.get_submodule(number.attribute.path))


def _keep_better(known: dict[Attribute, Length], attribute: Attribute, length: Length) -> None:
    before = known.get(attribute)
    if before is None or (length.near, length.weight()) > (before.near, before.weight()):
        known[attribute] = length


def _ordered(lengths: Mapping[Attribute, Length], numbers: Sequence[Number]) -> dict[Attribute, Length]:
    return {number.attribute: lengths[number.attribute] for number in numbers if number.attribute in lengths}


def _lines(found: Trace) -> Iterator[tuple[Line, frozenset[str]]]:
    """Yield the lines of all tensors, each with the paths of the modules that have or compute it."""
    for name, value in found.tensors.items():
        owner = name.rpartition(".")[0].split(".")
        inside = frozenset(["", *(".".join(owner[:depth]) for depth in range(1, len(owner) + 1))])
        yield from ((line, inside) for line in value.labels if line is not None)
    for node in found.program.graph.nodes:
        result = found.values.get(node.name)
        if node.op == "call_function" and result is not None:
            inside = _modules(node.meta.get("nn_module_stack") or {})
            yield from ((line, inside) for line in result.labels if line is not None)


def _modules(stack: Mapping[str, tuple[str, object]]) -> frozenset[str]:
    """Return the paths of the modules in whose code an operator stands; repeated calls have numbers of their own."""
    return frozenset(["", *(path.partition("@")[0] for path, _ in stack.values())])


def _by_axis(labels: Labels, line: Line, units: Mapping[int, tuple[str, int]], which: int) -> dict[str, Length]:
    """Return a line as each axis that has units in it sees it."""
    found: dict[str, Length] = {}
    distinct, back = np.unique(line, return_inverse=True)
    atoms = [labels.atoms(label) for label in distinct.tolist()]
    for axis in dict.fromkeys(units[atom][0] for atom in _flat(atoms) if atom in units):
        mine = [[units[atom][1] for atom in some if atom in units and units[atom][0] == axis] for some in atoms]
        if all(len(places) <= 1 for places in mine):
            found[axis] = Length(np.array([places[0] if places else -1 for places in mine])[back], True, which)
    return found


def _flat(atoms: Iterable[tuple[int, ...]]) -> Iterator[int]:
    return (atom for some in atoms for atom in some)
