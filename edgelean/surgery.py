"""One cut of a model in training, from the plan to the proof that the law holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor, nn

from edgelean.bench import Bench
from edgelean.errors import InputError, LawError
from edgelean.shrink import law, refit
from edgelean.shrink.cut import Tensors, apply, cloned, restore, state_layer, tensors_of
from edgelean.shrink.followers import Follower, counterpart
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.scores import Score
from edgelean.shrink.trace import Trace, trace
from edgelean.shrink.wrappers import Ranks, synchronise


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
class Operation:
    """How a cut went: how far the outputs are from the law, and what a person should know."""

    error: float
    notes: tuple[str, ...]


def operate(patient: Patient, plan: Plan, scores: Score, inputs: tuple[Tensor, ...]) -> Operation:
    """Apply a plan, the first process's in all of them, and check that the cut model obeys the law; then refit it.

    Channels and blocks are compared with the masked model, a truncated state space layer with its reduced system.

    Parameters
    ----------
    inputs
        Samples of the training, for the refit; without any there is none.

    Raises
    ------
    LawError
        If it does not, in any process. Nothing is taken back here.
    """
    bench, ranks, network = patient.bench, patient.ranks, patient.bench.model
    channels, states = replace(plan, states={}), replace(plan, removals=(), scales=(), detours=())
    whole, expected = ranks.together(lambda: (_outputs(bench), bench.expected(channels)))
    repairs = _repairs(patient, channels, inputs)
    seen = {path: last for path in plan.states if (last := scores.flows[path].inputs) is not None}
    read = ranks.same_tensors(seen)
    notes = list(apply(patient.model, channels, *patient.followers).notes)
    found = ranks.together(lambda: _outputs(bench))
    error = ranks.together(lambda: law.check(expected, found))
    _refit(patient, repairs, channels, whole, law.distance(whole, found))
    truncated = apply(patient.model, states, *patient.followers, read=read)
    for path, reduction in truncated.reductions.items():
        layer = state_layer(network, path)
        error = max(error, ranks.together(lambda: law.check_states(layer, reduction, read[path])))  # noqa: B023  at once
    synchronise(patient.model)
    return Operation(error, tuple(dict.fromkeys((*notes, *truncated.notes))))


def guilty(bench: Bench, plan: Plan) -> list[str]:
    """Return the axes of a plan that break the law each on their own; the model stays as it is."""
    found = []
    for cut in plan.cuts:
        alone = make_plan(bench.anatomy, {cut.axis: cut.after}, {cut.axis: cut.removed}, 0.0)
        try:
            law.check(bench.expected(alone), law.cut_outputs(bench.model, alone, bench.probe))
        except LawError:
            found.append(cut.axis)
    return found


def _outputs(bench: Bench) -> list[Tensor]:
    return law.outputs(bench.model, tensors_of(bench.model), bench.probe)


def _repairs(patient: Patient, plan: Plan, inputs: tuple[Tensor, ...]) -> list[tuple[nn.Module, Tensors]]:
    """Return what is to be added to the network, first, and to each copy of it; nothing where it cannot be computed."""
    network = patient.bench.model
    copies = [counterpart(each, network) for each in patient.followers if isinstance(each, nn.Module)]
    found: Trace | None = None
    if inputs and (plan.removals or plan.detours):
        with suppress(InputError):
            found = trace(network, inputs)
    trained = frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    repairs = []
    for each in (network, *copies):
        amounts: Tensors = {}
        if found is not None:
            with suppress(*law.FAILURES):
                amounts = refit.amounts(each, found, plan, inputs, trained)
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
