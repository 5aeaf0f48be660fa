"""A network that is cut in training as its lever says, with the pieces of the closed loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import nn

from benchmarks.levers_parts.lever import Lever
from edgelean import control
from edgelean.bench import Bench
from edgelean.loop import OBSERVE_EVERY
from edgelean.shrink.axes import Axis
from edgelean.shrink.least_squares import RIDGES
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.recent import Recent
from edgelean.shrink.scores import Running, Score, open_score
from edgelean.shrink.wrappers import Ranks
from edgelean.surgery import Patient, Repair, operate

STEP, FLOOR = 4, 8
"""Channels by which an axis shrinks, and those that it keeps: of a machine that pads nothing."""


@dataclass
class Shrinking:
    """Cuts a network, with multiply-accumulates in the place of a measured cost.

    Attributes
    ----------
    share
        Multiply-accumulates that are left after the last cut, of those of the full size.
    steps
        Of the whole training.
    seed
        Of the training, and of the score that draws numbers.
    teacher, last
        The network before the last cut, if it is to teach, and the step of that cut.
    nats
        Loss that the cuts so far were predicted to cost.
    """

    lever: Lever
    share: float
    steps: int
    bench: Bench
    optimizer: torch.optim.Optimizer
    seed: int
    scores: Score = field(init=False)
    recent_inputs: Recent = field(default_factory=Recent)
    teacher: nn.Module | None = None
    last: int | None = None
    nats: float = 0.0

    def __post_init__(self) -> None:
        self._full, self._structure = self.widths(), self.bench.anatomy.structure
        times = [round(time * self.steps) for time in self.lever.cuts]
        self._targets = {at: self.share ** ((i + 1) / len(times)) for i, at in enumerate(times)}
        apart = min((later - earlier for earlier, later in pairwise(times)), default=self.steps)
        self._every = max(1, min(OBSERVE_EVERY, apart // 2))
        self.scores = open_score(self.lever.score, self.seed)
        self.scores.watch(self.bench.model, self.bench.anatomy.axes)
        self.recent_inputs.watch(self.bench.model, self.bench.batch)

    def widths(self) -> dict[str, int]:
        """Return the channels of each axis."""
        return {name: axis.size for name, axis in self._axes().items()}

    def _axes(self) -> dict[str, Axis]:
        """Return the axes of channels; blocks stay, so that only widths are compared."""
        return {name: axis for name, axis in self.bench.anatomy.axes.items() if axis.kind == "channels"}

    def recent(self, step: int, share: float) -> bool:
        """Tell whether the last cut is less than a share of all steps ago."""
        return self.last is not None and step < self.last + share * self.steps

    def after_step(self, step: int) -> None:
        """Collect what the scores need; after so many steps."""
        if self.scores.active:
            self.scores.observe_gradients(self.bench.model, self.bench.anatomy.axes)
        self.scores.active = self.recent_inputs.active = (step + 1) % self._every == 0

    def cut_if_due(self, step: int) -> None:
        """Cut when it is time, and remember the network before."""
        plan = self._plan(self._targets[step]) if step in self._targets else None
        if plan is None or not plan.cuts:
            return
        if self.lever.taught:
            self.teacher = copy.deepcopy(self.bench.model).eval().requires_grad_(False)
        repair = Repair(self.recent_inputs.inputs(), RIDGES if self.lever.refit else ())
        operate(Patient(self.bench, self.bench.model, (self.optimizer,), Ranks(None)), plan, self.scores, repair, {})
        self.scores.forget(plan, self.bench.anatomy.axes)
        self.bench.look()
        self.nats, self.last = self.nats + plan.nats, step
        if self.lever.momentum == "dropped":
            self.optimizer.state.clear()

    def _plan(self, target: float) -> Plan:
        anatomy, order, choices = self.bench.anatomy, {}, []
        for name, axis in self._axes().items():
            order[name], running = self._prices(axis)
            left = max((1 - self.lever.most) * axis.size, self.lever.least * self._full[name])
            floor = max(FLOOR, math.ceil(left))
            if floor < axis.size:
                choices.append(control.Choice(name, axis.size, STEP, floor, tempered(running, self.lever.exponent)))
        if self.lever.widths == "uniform":
            return make_plan(anatomy, self._uniform(target), order, 0.0)
        allocation = control.allocate(choices, lambda keep: {"macs": self._macs(keep)}, {"macs": target})
        return make_plan(anatomy, allocation.keep, order, allocation.nats)

    def _prices(self, axis: Axis) -> Running:
        priced = self.scores.removal_prices(axis, self.bench.model)
        assert priced is not None  # the first cut comes after the first observation
        return priced

    def _macs(self, keep: Mapping[str, int]) -> float:
        """Return the multiply-accumulates of a structure as a share of those at full size."""
        return self._structure.macs({**self.widths(), **keep}) / self._structure.macs({})

    def _uniform(self, target: float) -> dict[str, int]:
        """Return the widest widths that are the same share of the full ones on every axis, and not above a target."""
        return next(found for found in self._uniform_widths() if self._macs(found) <= target)

    def _uniform_widths(self) -> list[dict[str, int]]:
        widths = self.widths()
        return [
            {
                name: min(widths[name], max(FLOOR, round(share / 1000 * size / STEP) * STEP))
                for name, size in self._full.items()
            }
            for share in range(1000, 0, -1)
        ]


def tempered(running: tuple[float, ...], exponent: float) -> tuple[float, ...]:
    """Return running prices of units whose own prices are raised to a power."""
    return tuple(accumulate(((later - earlier) ** exponent for earlier, later in pairwise(running)), initial=0.0))
