"""What a run would cut from the untrained model: ``edgelean fit --dry-run``. Nothing is trained, nothing is written."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from edgelean import control
from edgelean.bench import Bench
from edgelean.feasibility import warnings_on
from edgelean.job import Job
from edgelean.judging import provenance_of
from edgelean.loop import ClosedLoop
from edgelean.quantity import UNITS
from edgelean.reading import Provenance
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.trainer import Session, batches, prepare

LOOKS = 8
"""Batches from which the untrained units are priced."""

ALL_AT_ONCE = 0.999
"""The whole way is planned as one cut: an axis may go down to its floor in it."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """One budgeted quantity: where it starts, where the plan leads, how low it can come, each in its unit.

    Attributes
    ----------
    planned
        What the cost model says of the planned structure, scaled as the full-size reading is.
    price
        Nats that a further unit of the budget would buy back, as far as an untrained network can tell.
    """

    quantity: str
    unit: str
    full_size: float
    limit: float
    planned: float
    least: float
    least_provenance: Provenance
    provenance: Provenance
    price: float


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What would go, and what that is predicted to bring.

    Attributes
    ----------
    axes
        ``(axis, kind, units now, units then)``, those that stay as they are included.
    feasible
        Whether the plan holds every budget.
    nats
        Loss that the plan is predicted to cost the untrained network.
    notes
        Warnings, and how the model is taken apart.
    refused
        ``(what, why)``: parts of the model that are left alone.
    """

    recipe: str
    profile: str
    board: str
    target: str
    steps: int
    axes: tuple[tuple[str, str, int, int], ...]
    quantities: tuple[Outlook, ...]
    parameters: tuple[int, int]
    feasible: bool
    nats: float
    notes: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the preview as plain JSON types."""
        return asdict(self)


def preview(job: Job) -> Preview:
    """Plan the cuts of a run on the model before its training.

    Which units would go is a guess: an untrained network cannot tell which it is going to need. How many of each axis,
    and what that brings, is what the cost model says in any case.

    Raises
    ------
    InputError
        If a budget cannot be reached (the message has the number), or the recipe cannot be used.
    """
    stopwatch = Stopwatch()
    session = prepare(job.recipe, job.seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    example = next(iter(session.loaders.validation))[0].to(session.device)
    knobs = job.profile.control.model_copy(update={"largest_axis_cut": ALL_AT_ONCE})
    profile = job.profile.model_copy(update={"control": knobs})
    around = Surroundings(job.board, session.steps, None, stopwatch)
    with closing(open_target(job.target, profile, job.board)) as target:
        bench = Bench(session.model, (example,), profile, target, stopwatch, job.recipe.protect)
        loop = ClosedLoop(bench, session.optimizer, around)
        _look(session, loop)
        found = _planned(job, session, loop)
        loop.close()
    return found


def _look(session: Session, loop: ClosedLoop) -> None:
    """Let the scores see a few batches; no weight changes."""
    session.model.train()
    loop.scores.active = loop.recent.active = True
    for x, y in islice(batches(session.loaders.train, session.device, session.recipe.name), LOOKS):
        session.model.zero_grad(set_to_none=True)
        session.recipe.loss(session.model(x), y).backward()  # type: ignore[no-untyped-call]  # torch has not typed it
        loop.scores.observe_gradients(session.model, loop.bench.anatomy.axes)
    loop.scores.active = loop.recent.active = False


def _planned(job: Job, session: Session, loop: ClosedLoop) -> Preview:
    bench, margin = loop.bench, job.profile.control.margin
    start = bench.observed(loop.full_size)
    aims = {name: limit * (1 - margin) for name, limit in loop.limits.items()}
    targets = {name: aim * start[name].cost / start[name].measured for name, aim in aims.items()}
    _, choices = loop.choices({}, 1.0)
    allocation = control.allocate(choices, bench.cost, targets)
    prices = control.prices_of(allocation.prices, start)
    axes = bench.anatomy.axes
    return Preview(
        recipe=job.recipe.name,
        profile=job.profile.name,
        board=job.board.title,
        target=bench.target.name,
        steps=session.steps,
        axes=tuple((name, axis.kind, axis.size, allocation.keep.get(name, axis.size)) for name, axis in axes.items()),
        quantities=tuple(
            _outlook(name, loop, start[name], allocation.cost_after[name], prices[name]) for name in loop.limits
        ),
        parameters=(bench.parameters(), bench.anatomy.structure.parameters(allocation.keep)),
        feasible=allocation.feasible,
        nats=allocation.nats,
        notes=(*bench.notes, *warnings_on(loop.reach, loop.limits)),
        refused=tuple((refusal.what, refusal.why) for refusal in bench.anatomy.refused),
    )


def _outlook(name: str, loop: ClosedLoop, seen: control.Observed, cost: float, price: float) -> Outlook:
    return Outlook(
        quantity=name,
        unit=UNITS[name],
        full_size=seen.measured,
        limit=loop.limits[name],
        planned=seen.measured * cost / seen.cost,
        least=loop.reach[name].least,
        least_provenance=loop.reach[name].provenance,
        provenance=provenance_of(loop.full_size, name),
        price=price,
    )
