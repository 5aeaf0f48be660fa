"""One cut of a model in training, from the plan to the proof that the law holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgelean.bench import Bench
from edgelean.errors import InputError, LawError
from edgelean.shrink import law, refit, rotate
from edgelean.shrink.certificate import Truncation
from edgelean.shrink.cut import Tensors, apply, cloned, restore, tensors_of
from edgelean.shrink.followers import Follower, Optimizer, counterpart, restart
from edgelean.shrink.gramians import Balanced, balanced
from edgelean.shrink.least_squares import RIDGES
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.reference import double, in_batches
from edgelean.shrink.rotate import Turn
from edgelean.shrink.scores import Score
from edgelean.shrink.states import left_to_read, state_layer
from edgelean.shrink.trace import trace
from edgelean.shrink.truncations import certified, systems_at
from edgelean.shrink.wrappers import Ranks, synchronise
from edgelean.stopwatch import LAW

T = TypeVar("T")

EXACT_TYPES = (torch.float32, torch.float64)
"""Of parameters whose basis is turned; what rounding leaves of others would no longer be the same network."""

MOST_BATCHES = 8
"""Samples for a refit run in so many batches through the trace that is there; for more of them they are traced anew,
which takes less time."""


@dataclass(frozen=True)
class Patient:
    """What is cut.

    Attributes
    ----------
    bench
        The network, on its target.
    model
        The network as the training calls it: itself, or wrapped for several processes, or compiled.
    followers
        Optimizers, and copies of the network.
    ranks
        The processes that train the model together.
    """

    bench: Bench
    model: nn.Module
    followers: tuple[Follower, ...]
    ranks: Ranks


@dataclass(frozen=True)
class Repair:
    """How a cut is refitted.

    Attributes
    ----------
    inputs
        Samples of the training; without any there is no refit.
    ridges
        See `refit.amounts`; none where only means and batch statistics are put right, which training does not see.
    """

    inputs: tuple[Tensor, ...] = ()
    ridges: tuple[float, ...] = RIDGES


@dataclass(frozen=True)
class Operation:
    """How a cut went.

    Attributes
    ----------
    error
        How far the outputs are from the law.
    notes
        What a person should know.
    hankel, truncations
        Of each truncated state space layer the Hankel singular values that it had, and what the truncation cost.
    """

    error: float
    notes: tuple[str, ...]
    hankel: Mapping[str, Tensor]
    truncations: tuple[Truncation, ...]

    def told(self, plan: Plan) -> dict[str, Any]:
        """Return the plan and how it went as the fields of an event."""
        return {
            "axes": [{"axis": cut.axis, "before": cut.before, "after": cut.after} for cut in plan.cuts],
            "nats": plan.nats,
            "law_error": self.error,
            "notes": self.notes,
            "truncations": [truncation.to_json() for truncation in self.truncations],
            "plan": plan.to_json(),
        }


def balance(patient: Patient, inputs: tuple[Tensor, ...]) -> dict[str, Balanced]:
    """Return the axes of free basis in their balanced basis, the same in all processes; the model stays as it is.

    Axes of frozen parameters, or of such that hold few digits, are not among them.
    """
    network, anatomy = patient.bench.model, patient.bench.anatomy
    exact = {name for name, p in network.named_parameters() if p.requires_grad and p.dtype in EXACT_TYPES}
    names = [name for name, axis in anatomy.axes.items() if axis.free and exact >= {slot for slot, _ in axis.slots}]

    def found() -> dict[str, Balanced]:
        with suppress(InputError, *law.FAILURES):
            bases = rotate.bases(network, anatomy, names, patient.bench.probe)
            return balanced(network, anatomy, bases, inputs)
        return {}

    return patient.ranks.first(found) if names and inputs else {}


def operate(
    patient: Patient, plan: Plan, scores: Score, repair: Repair, turns: Mapping[str, Sequence[Turn]]
) -> Operation:
    """Apply a plan, the first process's in all of them, and check that the cut model obeys the law; then refit it.

    Channels and blocks are compared with the masked model, a truncated state space layer with its reduced system.

    Parameters
    ----------
    repair
        How it is refitted.
    turns
        For axes of free basis into which basis they are turned before they are cut.

    Raises
    ------
    LawError
        If it does not, in any process. Nothing is taken back here.
    """
    bench, ranks, network = patient.bench, patient.ranks, patient.bench.model
    channels, states = replace(plan, states={}), replace(plan, removals=(), scales=(), detours=())
    turned = _turn(patient, scores, {cut.axis: turns[cut.axis] for cut in plan.cuts if cut.axis in turns})
    expected = _held_against_the_law(patient, lambda: bench.expected(channels))
    repairs = _repairs(patient, channels, repair)
    whole = ranks.together(lambda: _outputs(bench)) if repairs[0][1] else []
    flows = {path: scores.flows[path].inputs for path in plan.states}
    seen = {path: left_to_read(network, plan, path, last) for path, last in flows.items() if last is not None}
    read = ranks.same_tensors(seen)
    notes = list(apply(patient.model, channels, *patient.followers).notes)
    found = _held_against_the_law(patient, lambda: _outputs(bench))
    error = _held_against_the_law(patient, lambda: law.check(expected, found))
    if whole:
        _refit(patient, repairs, channels, whole, law.distance(whole, found))
    full = systems_at(network, plan.states)
    truncated = apply(patient.model, states, *patient.followers, read=read)
    for path, reduction in truncated.reductions.items():
        layer = state_layer(network, path)
        states_error = _held_against_the_law(
            patient,
            lambda: law.check_states(layer, reduction, read[path]),  # noqa: B023  at once
        )
        error = max(error, states_error)
    synchronise(patient.model)
    words = tuple(dict.fromkeys((*turned, *notes, *truncated.notes)))
    hankel = {path: reduction.hankel for path, reduction in truncated.reductions.items()}
    return Operation(error, words, hankel, certified(full, truncated.reductions, read))


def guilty(bench: Bench, plan: Plan) -> list[str]:
    """Return the axes of a plan that break the law each on their own; the model stays as it is."""
    found = []
    for cut in plan.cuts:
        alone = make_plan(bench.anatomy, {cut.axis: cut.after}, {cut.axis: cut.removed}, 0.0)
        with bench.stopwatch.phase(LAW):
            try:
                law.check(bench.expected(alone), law.cut_outputs(bench.model, alone, bench.probe))
            except LawError:
                found.append(cut.axis)
    return found


def _held_against_the_law(patient: Patient, check: Callable[[], T]) -> T:
    """Do a part of the check in all processes; what it takes is told in the report."""
    with patient.bench.stopwatch.phase(LAW):
        return patient.ranks.together(check)


def _outputs(bench: Bench) -> list[Tensor]:
    return law.outputs(bench.model, tensors_of(bench.model), bench.probe)


def _turn(patient: Patient, scores: Score, turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Turn the bases of axes in the network, its gradients and its copies; what was known in the old ones is dropped.

    Raises
    ------
    LawError
        If the network would not compute what it did. Nothing has been changed then.
    """
    network, axes = patient.bench.model, patient.bench.anatomy.axes
    if not turns:
        return []
    contents = {name: double(tensor) for name, tensor in tensors_of(network).items()}
    new = {**contents, **rotate.turned(axes, turns, contents)}
    probe = patient.bench.probe
    _held_against_the_law(
        patient,
        lambda: law.check(law.outputs(network, contents, probe), law.outputs(network, new, probe), rotate.EXACT),
    )
    for each in (network, *(counterpart(one, network) for one in patient.followers if isinstance(one, nn.Module))):
        named = dict(each.named_parameters())
        gradients = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
        with torch.no_grad():
            for name, tensor in rotate.turned(axes, turns, named).items():
                named[name].copy_(tensor)
        for name, gradient in rotate.turned_gradients(axes, turns, gradients).items():
            named[name].grad = gradient.to(named[name].dtype)
    mine = dict(network.named_parameters())
    changed = {
        column.slot[0] for each in turns.values() for turn in each for columns in turn.pair for column in columns
    }
    for follower in patient.followers:
        if isinstance(follower, Optimizer):
            restart(follower, [mine[name] for name in sorted(changed)])
    scores.turned([axes[axis] for axis in turns])
    return [f"{axis} was turned into its balanced basis before it was cut" for axis in turns]


def _repairs(patient: Patient, plan: Plan, repair: Repair) -> list[tuple[nn.Module, Tensors]]:
    """Return what is to be added to the network, first, and to each copy of it; nothing where it cannot be computed."""
    network = patient.bench.model
    copies = [counterpart(each, network) for each in patient.followers if isinstance(each, nn.Module)]
    found, inputs = patient.bench.anatomy.found, repair.inputs
    batches: list[tuple[Tensor, ...]] = []
    if inputs and (plan.removals or plan.detours):
        batches = [] if found is None else in_batches(found, inputs)
        if not 0 < len(batches) <= MOST_BATCHES:
            with suppress(InputError):
                found, batches = trace(network, inputs), [inputs]
    trained = frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    repairs = []
    for each in (network, *copies):
        amounts: Tensors = {}
        if found is not None and batches:
            with suppress(*law.FAILURES):
                amounts = refit.amounts(each, found, plan, batches, trained, repair.ridges)
        repairs.append((each, patient.ranks.same_tensors(amounts)))
    return repairs


def _refit(
    patient: Patient, repairs: Sequence[tuple[nn.Module, Tensors]], plan: Plan, whole: list[Tensor], distance: float
) -> None:
    """Let the readers of what went make up for it, if that brings the outputs nearer to the uncut model's.

    What optimizers know of a changed weight stays: it is the same weight, in the same basis, moved a little.

    Parameters
    ----------
    repairs
        What is added to the network, first, and to each copy of it.
    """
    # What read a removed unit inside of a removed block is gone, too.
    repairs = [(each, {n: a for n, a in amounts.items() if n in tensors_of(each)}) for each, amounts in repairs]
    (network, amounts), *others = repairs
    before = cloned({name: tensor for name, tensor in tensors_of(network).items() if name in amounts})
    refit.add(network, amounts, plan)
    if not patient.ranks.same(law.distance(whole, _outputs(patient.bench)) <= distance):
        restore(network, {**tensors_of(network), **before})
        return
    for copy, its_amounts in others:
        refit.add(copy, its_amounts, plan)
