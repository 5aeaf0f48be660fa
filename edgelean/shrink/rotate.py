"""Free bases: units that linear weights write and linear weights read can be turned before some of them go.

Values and the projection behind them, queries and keys, two linear layers with nothing between them: whatever
invertible matrix is put on the one side, its inverse on the other undoes it. Before a cut such units are turned into
the basis in which the covariance of what they carry and the sensitivity of the outputs to it are the same diagonal
matrix; the error of a truncation is then the tail of its squares.

Which axes have such a basis, and which places of which tensors turn together, is found by trial: every group of
places is turned a little, and the groups whose effects on the outputs cancel belong together.

References
----------
Moore, "Principal component analysis in linear systems", 1981.
Lall, Marsden & Glavaski, "Empirical model reduction of controlled nonlinear systems", 1999: measured Gramians.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgelean.errors import LawError
from edgelean.shrink import law
from edgelean.shrink.axes import Anatomy, Axis, Slot
from edgelean.shrink.cut import Tensors, tensors_of
from edgelean.shrink.wide import wide

SMALL_TURN = 1e-4
"""Of a trial; differences over it are exact to its square."""

NOTHING = 1e-13
"""An effect whose square is below this share of the largest is none."""

EXACT = 1e-9
"""How far outputs in float64 may be apart, relative to the largest, after a turn and its inverse."""

MOST_COLUMNS = 128
"""Axes whose units have more places than this are not tried."""


class Column(NamedTuple):
    """One place of every unit of an axis: a dimension of a tensor, and which elements of it, one a unit."""

    slot: Slot
    place: int


class Pair(NamedTuple):
    """Columns that turn together: the ones by a matrix, the others by its inverse, transposed."""

    ones: tuple[Column, ...]
    others: tuple[Column, ...]


Basis = tuple[Pair, ...]
"""Of an axis: for places within heads one pair a head."""


class Turn(NamedTuple):
    """A change of the basis of one pair, and its inverse, ``[units, units]`` in float64."""

    pair: Pair
    matrix: Tensor
    inverse: Tensor


def bases(model: nn.Module, anatomy: Anatomy, names: Collection[str], probe: tuple[Tensor, ...]) -> dict[str, Basis]:
    """Find the axes whose basis is free, and what turns together in each.

    Parameters
    ----------
    model
        Left as it is.
    names
        The axes that are tried.
    probe
        Inputs of one small batch.
    """
    if not names:
        return {}
    contents = {name: wide(tensor) for name, tensor in tensors_of(model).items()}
    try:
        expected = law.outputs(model, contents, probe)
    except LawError:
        return {}
    if any(output.dtype != torch.float64 for output in expected if output.is_floating_point()):
        return {}
    found: dict[str, Basis] = {}
    answers: dict[tuple[object, ...], Basis | None] = {}
    for name in sorted(names):
        axis = anatomy.axes[name]
        key = tuple((re.sub(r"\d+", "#", slot), dim, places.shape) for (slot, dim), places in axis.slots.items())
        if key not in answers:
            answers[key] = None
            with suppress(LawError):
                answers[key] = _basis(axis, contents, _around(model, axis, contents, probe))
        basis = _moved(answers[key], axis)
        if basis is not None and _is_free(model, axis, basis, contents, probe, expected):
            found[name] = basis
    return found


def turned(axes: Mapping[str, Axis], turns: Mapping[str, Sequence[Turn]], contents: Mapping[str, Tensor]) -> Tensors:
    """Return those of some contents that turns change, in their new basis, in float64."""
    return _turned(axes, turns, contents, along=False)


def turned_gradients(
    axes: Mapping[str, Axis], turns: Mapping[str, Sequence[Turn]], gradients: Mapping[str, Tensor]
) -> Tensors:
    """Return gradients with respect to the turned contents."""
    return _turned(axes, turns, gradients, along=True)


def _turned(
    axes: Mapping[str, Axis], turns: Mapping[str, Sequence[Turn]], tensors: Mapping[str, Tensor], along: bool
) -> Tensors:
    changed: Tensors = {}
    for name, each in turns.items():
        for turn in each:
            pairs = ((turn.pair.ones, turn.matrix, turn.inverse.mT), (turn.pair.others, turn.inverse.mT, turn.matrix))
            for columns, matrix, dual in pairs:
                for column in columns:
                    tensor = column.slot[0]
                    if tensor in tensors:
                        before = changed.get(tensor, tensors[tensor].detach().double())
                        changed[tensor] = _moved_along(before, axes[name], column, dual if along else matrix)
    return changed


def _moved_along(whole: Tensor, axis: Axis, column: Column, matrix: Tensor) -> Tensor:
    """Return a tensor with the elements of a column multiplied by a matrix along its dimension."""
    index = torch.from_numpy(axis.slots[column.slot][:, column.place]).to(whole.device)
    part = whole.index_select(column.slot[1], index)
    new = torch.tensordot(matrix.to(whole), part, dims=([1], [column.slot[1]])).movedim(0, column.slot[1])
    return whole.index_copy(column.slot[1], index, new)


# -- trials ------------------------------------------------------------------------------------------------------------


Trial = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""Runs what has an axis with other contents of the model, and returns its outputs."""


class _Call(nn.Module):
    """One module as it was called while the whole model ran."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.module, self.given = module, (args, kwargs)

    def forward(self) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, self.given)
        return self.module(*args, **kwargs)


def _around(model: nn.Module, axis: Axis, contents: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> Trial:
    """Return how to run the smallest module that holds all of an axis: what its outputs do not show, no output does."""
    paths = [name.split(".")[:-1] for name, _ in axis.slots]
    shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    called: dict[str, _Call] = {}
    with ExitStack() as hooks:
        for depth in range(1, len(shared) + 1):
            path = ".".join(shared[:depth])

            def seen(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                called[path] = _Call(module, args, kwargs)

            hooks.callback(model.get_submodule(path).register_forward_pre_hook(seen, with_kwargs=True).remove)
        law.outputs(model, contents, probe)
    for path in sorted(called, key=len, reverse=True):
        mine = {f"module.{name.removeprefix(f'{path}.')}": name for name in contents if name.startswith(f"{path}.")}
        if tensors_of(called[path]).keys() == mine.keys() and _is_plain(called[path].given):
            return lambda other: law.outputs(called[path], {new: other[name] for new, name in mine.items()}, ())
    return lambda other: law.outputs(model, other, probe)


def _is_plain(given: Any) -> bool:
    """Tell whether a module is given the same by every call: a cache, for one, would fill up."""
    return all(isinstance(leaf, (Tensor, str, int, float, type(None))) for leaf in pytree.tree_leaves(given))


def _basis(axis: Axis, contents: Mapping[str, Tensor], trial: Trial) -> Basis | None:
    """Return what turns together; None if not everything does."""
    sets = _columns(axis)
    if axis.size < 2 or not 2 <= len(sets) <= MOST_COLUMNS:
        return None
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(axis.size, axis.size, generator=generator, dtype=torch.float64)
    direction = (direction + direction.mT) / (
        2 * axis.size**0.5
    )  # its transpose is itself: the inverse differs by sign
    effects = torch.stack([_effect(axis, columns, direction, contents, trial) for columns in sets])
    values, vectors = torch.linalg.eigh(effects @ effects.mT)
    silent = vectors[:, values <= NOTHING * values[-1]]
    together = silent @ silent.mT
    pairs, left = [], list(range(len(sets)))
    while left:
        members = [place for place in left if abs(float(together[left[0], place])) > 0.5 / len(sets)]
        signs = [float(together[left[0], place]) > 0 for place in members]
        if all(signs) or not signs:
            return None
        ones, others = (
            tuple(
                column for place, sign in zip(members, signs, strict=True) if sign == wanted for column in sets[place]
            )
            for wanted in (True, False)
        )
        pairs.append(Pair(ones, others))
        left = [place for place in left if place not in members]
    return tuple(pairs)


def _columns(axis: Axis) -> list[tuple[Column, ...]]:
    """Return the columns of an axis; those of a weight's rows and of the bias beside it are one."""
    sets: dict[tuple[object, ...], list[Column]] = defaultdict(list)
    for (name, dim), elements in axis.slots.items():
        for place in range(elements.shape[1]):
            first = elements[:, place].tobytes() if dim == 0 else (name, dim, place)
            sets[name.rpartition(".")[0], first].append(Column((name, dim), place))
    return [tuple(columns) for columns in sets.values()]


def _effect(
    axis: Axis, columns: Iterable[Column], direction: Tensor, contents: Mapping[str, Tensor], trial: Trial
) -> Tensor:
    """Return the derivative of all outputs as some columns begin to turn."""
    sides = []
    for step in (SMALL_TURN, -SMALL_TURN):
        matrix = torch.eye(axis.size, dtype=torch.float64) + step * direction
        other = dict(contents)
        for column in columns:
            other[column.slot[0]] = _moved_along(other[column.slot[0]], axis, column, matrix)
        sides.append(torch.cat([output.flatten() for output in trial(other)]).double())
    return (sides[0] - sides[1]).cpu() / (2 * SMALL_TURN)


def _moved(basis: Basis | None, axis: Axis) -> Basis | None:
    """Return the basis of one layer as that of another one like it."""
    if basis is None:
        return None
    slots = {re.sub(r"\d+", "#", name) + str(dim): (name, dim) for name, dim in axis.slots}

    def mine(columns: tuple[Column, ...]) -> tuple[Column, ...]:
        return tuple(
            Column(slots[re.sub(r"\d+", "#", column.slot[0]) + str(column.slot[1])], column.place) for column in columns
        )

    return tuple(Pair(mine(pair.ones), mine(pair.others)) for pair in basis)


def _is_free(
    model: nn.Module,
    axis: Axis,
    basis: Basis,
    contents: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
    expected: list[Tensor],
) -> bool:
    """Tell whether the outputs stay what they are when every pair is turned at random."""
    generator = torch.Generator().manual_seed(1)
    turns = []
    for pair in basis:
        matrix = torch.randn(axis.size, axis.size, generator=generator, dtype=torch.float64)
        matrix = torch.linalg.matrix_exp(0.5 * matrix / axis.size**0.5)
        turns.append(Turn(pair, matrix, torch.linalg.inv(matrix)))
    changed = turned({axis.name: axis}, {axis.name: turns}, contents)
    try:
        found = law.outputs(model, {**contents, **changed}, probe)
        return law.deviation(expected, found) <= EXACT
    except LawError:
        return False
