"""Plans: which units of which axes go, as a value that can be printed, saved and replayed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.shrink.attributes import Attribute
from edgelean.shrink.axes import Anatomy, Axis
from edgelean.shrink.bypass import Detour


@dataclass(frozen=True)
class AxisCut:
    """What happens to one axis: units before and after, and which ones go (none are named for states)."""

    axis: str
    kind: str
    before: int
    after: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Removal:
    """Elements that go from one dimension of one parameter or buffer."""

    tensor: str
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """A whole number that a module holds, ``before`` the cut and ``after`` it."""

    path: str
    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Plan:
    """A cut that has not happened yet.

    Attributes
    ----------
    cuts
        The axes that shrink.
    removals
        The same in elements of tensors, so that the plan can be replayed without a trace.
    states
        For each state space layer that is truncated (its path in the model), the states it keeps, in each feature of a
        bank.
    nats
        Loss that the cut is predicted to cost.
    scales
        Numbers in the model's code that follow.
    detours
        Modules that are replaced because the block that they are in goes.
    """

    cuts: tuple[AxisCut, ...]
    removals: tuple[Removal, ...]
    states: Mapping[str, int]
    nats: float
    scales: tuple[Scale, ...] = ()
    detours: tuple[Detour, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` wrote."""
        return cls(
            cuts=tuple(AxisCut(**{**cut, "removed": tuple(cut["removed"])}) for cut in plain["cuts"]),
            removals=tuple(Removal(r["tensor"], r["dim"], tuple(r["indices"])) for r in plain["removals"]),
            states=dict(plain["states"]),
            nats=float(plain["nats"]),
            scales=tuple(Scale(**scale) for scale in plain["scales"]),
            detours=tuple(Detour(**detour) for detour in plain["detours"]),
        )


def make_plan(anatomy: Anatomy, keep: Mapping[str, int], order: Mapping[str, Sequence[int]], nats: float) -> Plan:
    """Turn an allocation (units to keep per axis) into a plan.

    Parameters
    ----------
    keep
        Units to keep; axes that are not named, or keep all, are left alone.
    order
        For each axis of channels its units, the least valuable first. Axes inside a block that goes are left alone.
    nats
        Predicted loss of the whole plan.
    """
    blocks = [axis for name, kept in keep.items() if kept == 0 and (axis := anatomy.axes[name]).kind == "blocks"]
    detours = tuple(dict.fromkeys(detour for block in blocks for detour in block.detours))
    cuts, states = [], {}
    lost: dict[Attribute, NDArray[np.bool_]] = {}
    removals: dict[tuple[str, int], list[int]] = defaultdict(list)
    for name, kept in keep.items():
        axis = anatomy.axes[name]
        if kept >= axis.size or (axis.slots and _inside(axis, detours)):
            continue
        if axis.kind == "blocks":
            cuts.append(AxisCut(name, axis.kind, axis.size, kept, ()))
            continue
        if axis.kind == "states":
            states[axis.module()] = kept
            cuts.append(AxisCut(name, axis.kind, axis.size, kept, ()))
            continue
        gone = sorted(order[name][: axis.size - kept])
        cuts.append(AxisCut(name, axis.kind, axis.size, kept, tuple(gone)))
        for attribute in axis.attributes:
            flags = np.isin(axis.numbers[attribute].units, gone)
            lost[attribute] = flags | lost[attribute] if attribute in lost else flags
        for slot, elements in axis.slots.items():
            removals[slot].extend(int(index) for index in np.unique(elements[gone]))
    return Plan(
        tuple(cuts),
        tuple(Removal(tensor, dim, tuple(sorted(set(indices)))) for (tensor, dim), indices in removals.items()),
        states,
        nats,
        tuple(Scale(path, name, len(flags), int((~flags).sum())) for (path, name), flags in lost.items()),
        detours,
    )


def _inside(axis: Axis, detours: Sequence[Detour]) -> bool:
    """Tell whether all that an axis is made of goes with modules that are replaced."""
    gone = tuple(f"{detour.path}." for detour in detours)
    return all(tensor.startswith(gone) for tensor, _ in axis.slots)
