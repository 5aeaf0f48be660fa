"""Prove axes before they are used: each is cut in half, on paper, and compared with the masked model.

What the graph allows, the model's code may forbid: it may hold on to a width in a number of its own. Such numbers are
found by trying which of them have to follow an axis, first on shapes alone. Axes that only work together (the places
within a head of queries, keys and values, which one number gives) are tied; an axis that works in no way is refused by
name. Layers that repeat are tried once.

Then the numbers are compared. Axes are cut in a few groups, chosen so that for any two there is a group with the first
and without the second; where a group breaks the law, its axes are tried on their own.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import numpy as np
from torch import Tensor, nn

from edgelean.errors import InputError, LawError
from edgelean.shrink import law
from edgelean.shrink.attributes import Attribute
from edgelean.shrink.axes import Anatomy, Axis, Refusal
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.parts_law import reference_of
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove_blocks import BlockProof, prove_blocks
from edgelean.shrink.rotate import bases
from edgelean.shrink.search import separating, subsets
from edgelean.shrink.uses import used_kinds

MOST_TRIALS, MOST_TRIALS_TOGETHER = 96, 12
"""Sets of numbers that are tried for one axis, and for one set of axes that may belong together."""


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
    blocks
        The same about residual branches.
    free
        The axes whose basis is free.
    """

    attributes: Mapping[str, tuple[Attribute, ...]] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    blocks: BlockProof = field(default_factory=BlockProof)
    free: frozenset[str] = frozenset()

    def applied(self, anatomy: Anatomy) -> Anatomy:
        """Return an anatomy with what was proved: numbers that follow, axes tied, axes refused, blocks that can go."""
        axes = dict(anatomy.axes)
        for name, first in self.ties.items():
            if name in axes and first in axes:
                axes[first] = tied(axes[first], axes.pop(name))
        refused = dict(self.refused)
        for name, axis in axes.items():
            axes[name] = replace(axis, attributes=self.attributes.get(name, ()), free=name in self.free)
            lost = [attribute.key() for attribute in axes[name].attributes if attribute not in axis.numbers]
            if lost:
                refused.setdefault(name, f"{lost[0]} has to follow it, and is the length of nothing any more")
        structure = anatomy.structure.tied(
            {name: first for name, first in self.ties.items() if name in anatomy.axes and first in anatomy.axes}
        )
        refusals = [Refusal(name, why) for name, why in refused.items() if axes.pop(name, None) is not None]
        blocks, same, left_alone = self.blocks.applied(anatomy)
        return replace(
            anatomy,
            axes={**axes, **blocks},
            refused=(*anatomy.refused, *refusals, *left_alone),
            structure=structure.with_blocks(same),
        )


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
    proof = _searched(bench)
    suspects = bench.suspects(_axes_of(bench, proof))
    if suspects:
        bench.compared |= suspects
        proof = _searched(bench)
    blocks = prove_blocks(model, anatomy.blocks, bench.reference, probe)
    proof = _all_together(bench, replace(proof, blocks=blocks))
    left = proof.applied(anatomy)
    return replace(proof, free=frozenset(bases(model, left, left.linear & left.axes.keys(), probe)))


def _searched(bench: _Bench) -> Proof:
    attributes: dict[str, tuple[Attribute, ...]] = {}
    refused: dict[str, str] = {}
    for members in _alike(bench.anatomy.axes.values()).values():
        answer = _attributes(bench, members[0])
        for axis in members:
            if isinstance(answer, str):
                refused[axis.name] = answer
            else:
                attributes[axis.name] = (
                    answer if axis is members[0] else _counterparts(_marks(members[0], answer), axis)
                )
    _settled(bench, attributes, refused)
    ties = _ties(bench, [bench.anatomy.axes[name] for name in refused], attributes)
    for name in (*ties, *ties.values()):
        refused.pop(name, None)
    return Proof(attributes, ties, refused)


def _settled(bench: _Bench, attributes: dict[str, tuple[Attribute, ...]], refused: dict[str, str]) -> None:
    """Let every number be the length of one thing: axes that can do without a number that others claim, do."""
    answers: dict[tuple[object, ...], bool] = {}
    for name, contested in _contested(bench.anatomy, attributes).items():
        axis = bench.anatomy.axes[name]
        rest = tuple(attribute for attribute in attributes[name] if attribute not in contested)
        key = (_kind_of(axis), frozenset(map(_kind, rest)))
        if key not in answers:
            answers[key] = not bench.fails(replace(axis, attributes=rest))
        if answers[key]:
            attributes[name] = rest
    for name, contested in _contested(bench.anatomy, attributes).items():
        refused[name] = f"{min(contested).key()} has to follow it, and other axes"
        del attributes[name]


def _contested(anatomy: Anatomy, attributes: Mapping[str, tuple[Attribute, ...]]) -> dict[str, set[Attribute]]:
    """Return by axis the numbers that follow it as the length of one thing, and other axes as that of another."""
    claims: dict[Attribute, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, chosen in attributes.items():
        for attribute in chosen:
            claims[attribute][anatomy.axes[name].numbers[attribute].line].append(name)
    contested: dict[str, set[Attribute]] = defaultdict(set)
    for attribute, lines in claims.items():
        for name in itertools.chain(*lines.values()) if len(lines) > 1 else ():
            contested[name].add(attribute)
    return contested


class _Bench:
    """Where axes are cut in half, on paper.

    Attributes
    ----------
    compared
        The kinds of axes whose every trial is compared with the masked model; for others it is enough that it runs.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, probe: tuple[Tensor, ...]) -> None:
        self.model, self.anatomy, self.probe = model, anatomy, probe
        self.reference = reference_of(model, anatomy, probe)
        self.compared: set[object] = set()
        self._shapes_tell = not self.reference.misfit(Plan((), (), {}, 0.0))
        self._known: dict[tuple[object, ...], str] = {}
        self._expected: tuple[Plan, list[Tensor]] | None = None

    @cached_property
    def used(self) -> frozenset[str]:
        """The kinds of numbers that matter to the shapes of what the model computes."""
        kinds: dict[str, list[Attribute]] = defaultdict(list)
        for attribute in dict.fromkeys(a for axis in self.anatomy.axes.values() for a in axis.numbers):
            kinds[_kind(attribute)].append(attribute)

        def run() -> None:
            if self._shapes_tell and self.anatomy.parts is None:
                law.dry_run(self.model, self.probe, {})
            else:
                law.outputs(self.model, tensors_of(self.model), self.probe)

        return used_kinds(self.model, kinds, run, (LawError,)) if kinds else frozenset()

    def sizes(self, axis: Axis, *, near: bool) -> set[Attribute]:
        """Return the numbers that code uses as sizes and that may follow an axis; near ones, or all."""
        found = {attribute for attribute, length in axis.numbers.items() if length.near or not near}
        return {attribute for attribute in found if _kind(attribute) in self.used}

    def fails(self, axis: Axis) -> str:
        """Cut one axis, on paper; return how that breaks the law as far as it is looked at, empty if it does not."""
        key = (axis.name, axis.size, tuple(axis.slots), axis.attributes)
        if key not in self._known:
            self._known[key] = self._misfit(halved(replace(self.anatomy, axes={axis.name: axis})))
        why = self._known[key]
        if why or (self._shapes_tell and _kind_of(axis) not in self.compared):
            return why
        return self.differs([axis])

    def differs(self, axes: Iterable[Axis]) -> str:
        """Cut axes in half, on paper; return how the result differs from the masked model, empty if it does not."""
        plan = halved(replace(self.anatomy, axes={axis.name: axis for axis in axes}))
        try:
            found = law.cut_outputs(self.model, plan, self.probe)
            law.check(self._outputs(plan), found, self.reference.tolerance)
        except (LawError, InputError) as error:
            return str(error)
        return ""

    def suspects(self, axes: Sequence[Axis]) -> set[object]:
        """Return the kinds of axes that break the law, all layers of a kind together."""
        kinds = list(_alike(axes).values())
        if not self._shapes_tell or not any(self.differs(itertools.chain(*group)) for group in separating(kinds)):
            return set()
        return {_kind_of(members[0]) for members in kinds if self.differs(members)}

    def _misfit(self, plan: Plan) -> str:
        if any(scale.after == 0 for scale in plan.scales):
            return "a number in the code would be 0"
        try:
            return self.reference.misfit(plan) if self._shapes_tell else ""
        except InputError as error:  # nothing would be left of a tensor
            return str(error)

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


def _kind_of(axis: Axis) -> tuple[object, ...]:
    """Return what axes of repeated layers have in common."""
    shape = tuple((_pattern(slot[0]), slot[1], elements.shape[1]) for slot, elements in axis.slots.items())
    return _pattern(axis.name), axis.size, shape


def _alike(axes: Iterable[Axis]) -> dict[tuple[object, ...], list[Axis]]:
    groups: dict[tuple[object, ...], list[Axis]] = defaultdict(list)
    for axis in axes:
        groups[_kind_of(axis)].append(axis)
    return groups


def _marks(axis: Axis, attributes: Iterable[Attribute]) -> frozenset[tuple[str, int]]:
    """Return the kinds of some numbers, and how large they are."""
    return frozenset((_kind(attribute), len(axis.numbers[attribute].units)) for attribute in attributes)


def _counterparts(marks: frozenset[tuple[str, int]], other: Axis) -> tuple[Attribute, ...]:
    """Return the numbers of another layer that are those of the first one."""
    fitting = tuple(attribute for attribute in other.numbers if _marks(other, [attribute]) <= marks)
    closer = tuple(attribute for attribute in fitting if other.numbers[attribute].near)
    return closer if _marks(other, closer) == marks else fitting


def _attributes(bench: _Bench, axis: Axis, most: int = MOST_TRIALS) -> tuple[Attribute, ...] | str:
    """Return the numbers that have to follow an axis, or why it cannot be cut."""
    if axis.kind == "states":
        return ()
    reason, tried = "", None
    for near in (True, False):
        sizes = bench.sizes(axis, near=near)
        used = [attribute for attribute in axis.numbers if attribute in sizes]
        if used != tried:
            answer = _chosen(bench, axis, used, most)
            if not isinstance(answer, str):
                return answer
            reason, tried = reason or answer, used
    return reason


def _chosen(bench: _Bench, axis: Axis, possible: Sequence[Attribute], most: int) -> tuple[Attribute, ...] | str:
    """Try which of some numbers have to follow an axis: all, none, all but some, only some."""
    marks = {attribute: _marks(axis, [attribute]) for attribute in possible}
    reason = ""
    for chosen in itertools.islice(subsets(sorted(frozenset().union(*marks.values()))), most):
        taken = tuple(attribute for attribute in possible if marks[attribute] <= chosen)
        why = bench.fails(replace(axis, attributes=taken))
        if not why:
            return taken
        reason = reason or why
    return reason


def _kind(attribute: Attribute) -> str:
    """Return what attributes of the same place in repeated layers have in common."""
    return f"{_pattern(attribute.path)}.{attribute.name}"


def tied(first: Axis, second: Axis) -> Axis:
    """Return two axes as one: unit by unit, or several units of the second with each of the first."""
    slots = dict(first.slots)
    for slot, elements in second.slots.items():
        together = elements.reshape(-1, first.size, elements.shape[1]).transpose(1, 0, 2).reshape(first.size, -1)
        slots[slot] = np.concatenate([slots[slot], together], 1) if slot in slots else together
    numbers = dict(first.numbers)
    for attribute, length in second.numbers.items():
        theirs = length._replace(units=np.where(length.units < 0, -1, length.units % first.size))
        mine = numbers.get(attribute, theirs)
        if mine.line == length.line:
            units = np.where(mine.units < 0, theirs.units, mine.units)
            numbers[attribute] = mine._replace(units=units, near=mine.near or length.near)
        elif length.near and not mine.near:
            numbers[attribute] = theirs
    attributes = tuple(dict.fromkeys((*first.attributes, *second.attributes)))
    readers = tuple(dict.fromkeys((*first.readers, *second.readers)))
    return replace(first, slots=slots, numbers=numbers, attributes=attributes, readers=readers)


def _ties(bench: _Bench, failed: Sequence[Axis], attributes: dict[str, tuple[Attribute, ...]]) -> dict[str, str]:
    """Try to cut together what cannot be cut alone: axes of one number, or of one tensor."""
    ties: dict[str, str] = {}
    answers: dict[tuple[object, ...], frozenset[tuple[str, int]] | None] = {}
    free = {axis.name: axis for axis in failed}
    for first in sorted(failed, key=lambda axis: axis.size):
        for partners in _companies(bench, first, list(free.values())) if first.name in free else ():
            together = reduce(tied, partners, first)
            key = tuple((_pattern(axis.name), axis.size) for axis in (first, *partners))
            if key not in answers:
                answer = _attributes(bench, together, MOST_TRIALS_TOGETHER)
                answers[key] = None if isinstance(answer, str) else _marks(together, answer)
            marks = answers[key]
            if marks is None:
                continue
            attributes[first.name] = _counterparts(marks, together)
            for axis in (first, *partners):
                free.pop(axis.name, None)
            ties.update({axis.name: first.name for axis in partners})
            break
    return ties


def _companies(bench: _Bench, first: Axis, others: Sequence[Axis]) -> list[list[Axis]]:
    """Return the sets of axes that one axis may have to go together with, to be tried in turn."""
    tensors = {name for name, _ in first.slots}
    fitting = [axis for axis in others if axis.name != first.name and axis.size % first.size == 0]
    near = [axis for axis in fitting if bench.sizes(first, near=True) & bench.sizes(axis, near=True)]
    far = [axis for axis in fitting if bench.sizes(first, near=False) & bench.sizes(axis, near=False)]
    kin = [axis for axis in far if _kind_of(axis) == _kind_of(first)]
    by_tensor = [axis for axis in fitting if tensors & {name for name, _ in axis.slots}]
    layers = itertools.chain(*(_with_layers(first, hub, fitting) for hub in by_tensor))
    sets = [near, by_tensor, kin, *([axis] for axis in (*by_tensor, *near)), *layers, far]
    return [company for index, company in enumerate(sets) if company and company not in sets[:index]]


def _with_layers(first: Axis, hub: Axis, others: Sequence[Axis]) -> list[list[Axis]]:
    """Return an axis that goes through several layers, with those like the first one in each, and of its size."""
    tensors = {name for name, _ in hub.slots}
    through = [axis for axis in others if axis.name != hub.name and tensors & {name for name, _ in axis.slots}]
    equal = [axis for axis in through if axis.size == first.size]
    return [[hub, *(axis for axis in equal if _pattern(axis.name) == _pattern(first.name))], [hub, *equal]]


def _axes_of(bench: _Bench, proof: Proof) -> list[Axis]:
    """Return the axes of channels as they are proved: some tied, some refused."""
    return [axis for axis in proof.applied(bench.anatomy).axes.values() if axis.kind == "channels"]


def _all_together(bench: _Bench, proof: Proof) -> Proof:
    """Cut every axis at once; where that fails, refuse those that fail when they join the others."""
    refused = dict(proof.refused)
    kept: list[Axis] = []

    def add(axes: Sequence[Axis]) -> None:
        why = bench.differs([*kept, *axes])
        if not why:
            kept.extend(axes)
        elif len(axes) == 1:
            refused[axes[0].name] = why
        else:
            add(axes[: len(axes) // 2])
            add(axes[len(axes) // 2 :])

    axes = _axes_of(bench, proof)
    if axes:
        add(axes)
    return replace(proof, refused=refused)
