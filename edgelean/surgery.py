"""One cut of a model in training, from the plan to the proof that the law holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from edgelean.bench import Bench
from edgelean.errors import LawError
from edgelean.shrink import law, refit
from edgelean.shrink.cut import Tensors, apply, cloned, restore, state_layer, tensors_of
from edgelean.shrink.followers import Follower, counterpart
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.scores import Flow, Scores
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


def operate(patient: Patient, plan: Plan, scores: Scores, observed: Mapping[str, Flow]) -> Operation:
    """Apply a plan, the first process's in all of them, and check that the cut model obeys the law.

    Channels are compared with the masked model, a truncated state space layer with its reduced system.

    Parameters
    ----------
    observed
        Of the modules that read what goes: what the refit works with. Where nothing was observed there is no refit.

    Raises
    ------
    LawError
        If it does not, in any process. Nothing is taken back here.
    """
    bench, ranks, network = patient.bench, patient.ranks, patient.bench.model
    channels, states = replace(plan, states={}), replace(plan, removals=(), scales=())
    whole, expected = ranks.together(lambda: (_outputs(bench), bench.expected(channels)))
    copies = [counterpart(each, network) for each in patient.followers if isinstance(each, nn.Module)]
    repairs = [
        (each, ranks.same_tensors(refit.amounts(each, bench.anatomy, channels, observed)))
        for each in (network, *copies)
    ]
    seen = {path: inputs for path in plan.states if (inputs := scores.flows[path].inputs) is not None}
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


def _refit(
    patient: Patient, repairs: Sequence[tuple[nn.Module, Tensors]], plan: Plan, whole: list[Tensor], distance: float
) -> None:
    """Let the readers of what went make up for it, if that brings the outputs nearer to the uncut model's.

    Parameters
    ----------
    repairs
        What is added to the network, first, and to each copy of it.
    """
    (network, amounts), *others = repairs
    before = cloned({name: tensors_of(network)[name] for name in amounts})
    refit.add(network, amounts, plan)
    if not patient.ranks.same(law.distance(whole, _outputs(patient.bench)) <= distance):
        restore(network, {**tensors_of(network), **before})
        return
    for copy, its_amounts in others:
        refit.add(copy, its_amounts, plan)
