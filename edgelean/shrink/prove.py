"""Prove axes before they are used: each is cut in half, on paper, and compared with the masked model.

What the graph allows, the model's code may forbid: it may hold on to a width in a number of its own. Such numbers are
found by trying which of them have to follow an axis. Axes that only work together (the places within a head of
queries, keys and values, which one number gives) are tied; an axis that works in no way is refused by name.

Layers that repeat are tried once: axes whose names differ in digits only share the answer.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from edgelean.errors import LawError
from edgelean.shrink import law
from edgelean.shrink.attributes import Attribute, candidates, likely_sizes, possible_sizes
from edgelean.shrink.axes import Anatomy, Axis, Refusal
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.rotate import bases
from edgelean.shrink.trace import trace

MOST_TRIALS = 96


@dataclass(frozen=True)
class Proof:
    """What has been found out about the axes of a model; it holds after cuts, too.

    Attributes
    ----------
    attributes
        By the name of an axis, the numbers that follow it.
    ties
        By the name of an axis, the axis that it is a part of.
    refused
        By the name of an axis, why it is left alone.
    free
        The axes whose basis is free.
    """

    attributes: Mapping[str, tuple[Attribute, ...]] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    free: frozenset[str] = frozenset()

    def applied(self, anatomy: Anatomy) -> Anatomy:
        """Return an anatomy with what was proved: numbers that follow, axes tied, axes refused."""
        axes = {
            name: replace(axis, attributes=self.attributes.get(name, ()), free=name in self.free)
            for name, axis in anatomy.axes.items()
        }
        for name, first in self.ties.items():
            if name in axes and first in axes:
                axes[first] = tied(axes[first], axes.pop(name))
        structure = anatomy.structure.tied(
            {name: first for name, first in self.ties.items() if name in anatomy.axes and first in anatomy.axes}
        )
        refusals = [Refusal(name, why) for name, why in self.refused.items() if axes.pop(name, None) is not None]
        return replace(anatomy, axes=axes, refused=(*anatomy.refused, *refusals), structure=structure)


def prove(model: nn.Module, anatomy: Anatomy, probe: tuple[Tensor, ...]) -> Proof:
    """Find out which axes can be cut, and what in the model's code has to follow.

    Parameters
    ----------
    model
        Left as it is.
    probe
        Inputs of one small batch.
    """
    bench = _Bench(model, anatomy, probe)
    attributes: dict[str, tuple[Attribute, ...]] = {}
    refused: dict[str, str] = {}
    for members in _alike(anatomy.axes).values():
        answer = _attributes(bench, members[0])
        for axis in members:
            if isinstance(answer, str):
                refused[axis.name] = answer
            else:
                attributes[axis.name] = answer if axis is members[0] else _counterparts(model, answer, axis)
    ties = _ties(bench, [anatomy.axes[name] for name in refused], attributes)
    for name in (*ties, *ties.values()):
        refused.pop(name, None)
    proof = _all_together(bench, Proof(attributes, ties, refused))
    left = proof.applied(anatomy)
    return replace(proof, free=frozenset(bases(model, left, left.linear & left.axes.keys(), probe)))


class _Bench:
    def __init__(self, model: nn.Module, anatomy: Anatomy, probe: tuple[Tensor, ...]) -> None:
        self.model, self.anatomy, self.probe = model, anatomy, probe
        self.reference = law.Reference(model, trace(model, probe), probe)
        self._shapes_tell = not law.misfit(model, Plan((), (), {}, 0.0), probe)
        self._expected: tuple[Plan, list[Tensor]] | None = None

    def fails(self, axes: Sequence[Axis]) -> str:
        """Cut axes in half, on paper; return how that breaks the law, empty if it does not."""
        plan = halved(replace(self.anatomy, axes={axis.name: axis for axis in axes}))
        try:
            why = law.misfit(self.model, plan, self.probe) if self._shapes_tell else ""
            if not why:
                found = law.cut_outputs(self.model, plan, self.probe)
                law.check(self._outputs(plan), found, self.reference.tolerance)
        except LawError as error:
            return str(error)
        return why

    def _outputs(self, plan: Plan) -> list[Tensor]:
        """Return what a plan has to lead to; which numbers follow makes no difference to that."""
        alone = replace(plan, scales=())
        if self._expected is None or self._expected[0] != alone:
            self._expected = alone, self.reference.outputs(plan)
        return self._expected[1]


def halved(anatomy: Anatomy) -> Plan:
    """Return a plan that removes the first half of the units of every axis of channels."""
    keep = {axis.name: -(-axis.size // 2) for axis in anatomy.axes.values() if axis.kind == "channels"}
    return make_plan(anatomy, keep, {axis.name: range(axis.size) for axis in anatomy.axes.values()}, 0.0)


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _alike(axes: Mapping[str, Axis]) -> dict[tuple[object, ...], list[Axis]]:
    groups: dict[tuple[object, ...], list[Axis]] = defaultdict(list)
    for axis in axes.values():
        shape = tuple((_pattern(slot[0]), slot[1], elements.shape[1]) for slot, elements in axis.slots.items())
        groups[_pattern(axis.name), axis.size, shape].append(axis)
    return groups


def _counterparts(model: nn.Module, found: tuple[Attribute, ...], other: Axis) -> tuple[Attribute, ...]:
    """Return the attributes of another layer that are those of the first one."""
    kinds = {_kind(attribute) for attribute in found}
    return tuple(a for a in candidates(model, other, possible_sizes(other)) if _kind(a) in kinds)


def _attributes(bench: _Bench, axis: Axis) -> tuple[Attribute, ...] | str:
    """Return the numbers that have to follow an axis, or why it cannot be cut."""
    if axis.kind == "states":
        return ()
    answer: tuple[Attribute, ...] | str = ""
    tried: tuple[Attribute, ...] | None = None
    for sizes in (likely_sizes(axis), possible_sizes(axis)):
        found = candidates(bench.model, axis, sizes)
        if isinstance(answer, str) and found != tried:
            again = _searched(found, lambda chosen: bench.fails([replace(axis, attributes=chosen)]))
            answer, tried = (again if isinstance(again, tuple) or not answer else answer), found
    return answer


def _searched(
    possible: tuple[Attribute, ...], fails: Callable[[tuple[Attribute, ...]], str]
) -> tuple[Attribute, ...] | str:
    """Try which of some attributes have to follow: all, none, all but some, only some."""
    kinds = sorted({_kind(attribute) for attribute in possible})
    reason = ""
    for chosen in itertools.islice(_subsets(kinds), MOST_TRIALS):
        taken = tuple(attribute for attribute in possible if _kind(attribute) in chosen)
        why = fails(taken)
        if not why:
            return taken
        reason = reason or why
    return reason


def _kind(attribute: Attribute) -> str:
    """Return what attributes of the same place in repeated layers have in common."""
    return f"{_pattern(attribute.path)}.{attribute.name}"


def _subsets(kinds: Sequence[str]) -> Iterable[frozenset[str]]:
    every = frozenset(kinds)
    yield every
    if kinds:
        yield frozenset()
    for count in range(1, len(kinds)):
        for some in itertools.combinations(kinds, count):
            if 2 * count <= len(kinds):
                yield every - set(some)
            if 2 * count < len(kinds):
                yield frozenset(some)


def tied(first: Axis, second: Axis) -> Axis:
    """Return two axes as one: unit by unit, or several units of the second with each of the first."""
    slots = dict(first.slots)
    for slot, elements in second.slots.items():
        together = elements.reshape(-1, first.size, elements.shape[1]).transpose(1, 0, 2).reshape(first.size, -1)
        slots[slot] = np.concatenate([slots[slot], together], 1) if slot in slots else together
    attributes = tuple(dict.fromkeys((*first.attributes, *second.attributes)))
    return replace(
        first, slots=slots, attributes=attributes, readers=tuple(dict.fromkeys((*first.readers, *second.readers)))
    )


def _ties(bench: _Bench, failed: Sequence[Axis], attributes: dict[str, tuple[Attribute, ...]]) -> dict[str, str]:
    """Try to cut together what cannot be cut alone: axes of one number, or of one tensor."""
    ties: dict[str, str] = {}
    answers: dict[tuple[str, ...], tuple[Attribute, ...] | str] = {}
    free = {axis.name: axis for axis in failed}
    for first in sorted(failed, key=lambda axis: axis.size):
        for partners in _companies(bench, first, list(free.values())) if first.name in free else ():
            together = first
            for axis in partners:
                together = tied(together, axis)
            key = tuple(_pattern(axis.name) for axis in (first, *partners))
            if key not in answers:
                answers[key] = _attributes(bench, together)
            answer = answers[key]
            if isinstance(answer, str):
                continue
            kinds = {_kind(attribute) for attribute in answer}
            attributes[first.name] = tuple(a for a in _possible(bench, together) if _kind(a) in kinds)
            for axis in (first, *partners):
                free.pop(axis.name, None)
            ties.update({axis.name: first.name for axis in partners})
            break
    return ties


def _companies(bench: _Bench, first: Axis, others: Sequence[Axis]) -> list[list[Axis]]:
    """Return the sets of axes that one axis may have to go together with, to be tried in turn."""
    numbers, tensors = _possible(bench, first), {name for name, _ in first.slots}
    fitting = [axis for axis in others if axis.name != first.name and axis.size % first.size == 0]
    by_number = [axis for axis in fitting if numbers & _possible(bench, axis)]
    by_tensor = [axis for axis in fitting if tensors & {name for name, _ in axis.slots}]
    layers = [_with_layers(first, hub, fitting) for hub in by_tensor]
    sets = [by_number, by_tensor, *([axis] for axis in (*by_tensor, *by_number)), *layers]
    return [company for index, company in enumerate(sets) if company and company not in sets[:index]]


def _with_layers(first: Axis, hub: Axis, others: Sequence[Axis]) -> list[Axis]:
    """Return an axis that goes through several layers, and those like the first one in each of them."""
    tensors = {name for name, _ in hub.slots}
    kin = [axis for axis in others if (_pattern(axis.name), axis.size) == (_pattern(first.name), first.size)]
    return [hub, *(axis for axis in kin if axis.name != hub.name and tensors & {name for name, _ in axis.slots})]


def _possible(bench: _Bench, axis: Axis) -> set[Attribute]:
    return set(candidates(bench.model, axis, possible_sizes(axis)))


def _all_together(bench: _Bench, proof: Proof) -> Proof:
    """Cut every axis at once; where that fails, try them one by one and refuse those that fail."""
    axes = [axis for axis in proof.applied(bench.anatomy).axes.values() if axis.kind == "channels"]
    if not bench.fails(axes):
        return proof
    refused = dict(proof.refused)
    kept: list[Axis] = []
    for axis in axes:
        why = bench.fails([*kept, axis])
        if why:
            refused[axis.name] = why
        else:
            kept.append(axis)
    return replace(proof, refused=refused)
