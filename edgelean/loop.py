"""The closed loop: read the model, compare with the budgets, cut, and let it learn on.

One object is attached to a training, by `edgelean.fit` or by a loop of one's own. After every step of the optimizer it
is told so; at its events it measures, asks the controller for a demand and the allocator for the cheapest way to meet
it, cuts, and checks that the cut model obeys the law. A cut that the network does not recover from is taken back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from edgelean import control, offer
from edgelean.bench import Bench
from edgelean.board import Precision
from edgelean.choosing import choose, in_any_precision, reach_in_some_precision
from edgelean.errors import DeviceError, LawError
from edgelean.feasibility import limits_of, warnings_on, within_for_sure
from edgelean.progress import Pending, Progress
from edgelean.reading import Reading, incomparable
from edgelean.shrink.gramians import Balanced
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.recent import Recent
from edgelean.shrink.rotate import Turn
from edgelean.shrink.scores import Score, open_score
from edgelean.shrink.wrappers import Ranks, eagerly
from edgelean.spectra import Looks, Rule, allowed, attempts, orders
from edgelean.surgery import Operation, Patient, balance, guilty, operate
from edgelean.surroundings import Record, Surroundings
from edgelean.training.rounded import computing_in

PATIENCE = 3
"""So often a metric that neither came back after a cut nor climbs is looked at again before the cut is taken back: with
a high learning rate, or batch statistics that lag behind, the metric of a healthy network falls now and then."""

OBSERVE_EVERY = 10
"""The scores are collected every so many steps, or twice between two cuts if those are closer: often enough to settle,
rare enough to cost little."""


class ClosedLoop:
    """Steers the model on a bench into its budgets while it trains.

    Parameters
    ----------
    bench
        The model; cuts change it in place, every parameter stays the same object.
    optimizer
        Its state is cut along.
    around
        How the model is validated, and how long the training is.

    Attributes
    ----------
    model
        The model as the training calls it.
    ranks
        The processes that train the model together: what the first one reads, validates and plans holds for all.
    record
        Where events go; nowhere until it is set.
    full_size
        The reading of the model before the first cut.
    limits
        The budgets on costs, each in the unit of its quantity.
    reach
        From what to what each quantity can be had.
    left
        The metric when the training was over, where there is a budget on what it may lose.
    """

    def __init__(self, bench: Bench, optimizer: torch.optim.Optimizer, around: Surroundings) -> None:
        self.bench, self.optimizer, self.around = bench, optimizer, around
        self.model = bench.model if around.model is None else around.model
        self.ranks = Ranks.of(self.model)
        self._patient = Patient(bench, self.model, (optimizer, *around.followers), self.ranks)
        self._observing = ExitStack()
        self.left: float | None = None
        self.record: Record = lambda event, step, **fields: None
        self._width = bench.step_width(around.board)
        self._floor = max(bench.profile.control.floor, self._width)
        # Read before there are hooks: the smallest model is a copy, and must not be observed.
        self.full_size = around.full_size or self.ranks.first(bench.read)
        self.limits = limits_of(bench.profile, self.full_size)
        start = bench.observed(self.full_size)
        self.reach = reach_in_some_precision(bench, around, self._floor, start, self.limits, self.ranks)
        # The seed of the training is that of a score that draws numbers, too.
        self.scores: Score = open_score(bench.profile.control.score, torch.initial_seed())
        self.scores.watch(bench.model, bench.anatomy.axes)
        self.recent = Recent()
        self.recent.watch(bench.model, bench.batch)
        self._apart = self.ranks.first(partial(bench.apart, self.full_size))
        state = control.init(bench.profile.control, self.limits, start, around.steps)
        self.progress = Progress(state, self.full_size, control.Guard(bench.profile.tolerance))
        self._laps_s: list[float] = []
        self._returned_s = time.perf_counter()
        self._every = max(1, min(OBSERVE_EVERY, state.pace.spacing // 2))
        self._looks = Looks.of(bench.model, bench.anatomy.axes, around.steps)
        self._attempts = attempts(bench.profile.control.window, around.steps)

    def after_step(self, step: int) -> None:
        """Do what is due after so many steps of the optimizer."""
        self._laps_s.append(time.perf_counter() - self._returned_s)
        self._do_what_is_due(step)
        self._returned_s = time.perf_counter()

    def _do_what_is_due(self, step: int) -> None:
        with self.around.stopwatch.phase("control"):
            if self.scores.active:
                self.scores.observe_gradients(self.bench.model, self.bench.anatomy.axes)
            self._observe((step + 1) % self._every == 0)
            self._follow_the_states(step)
            if self.progress.done or not control.due(step, self.progress.controller):
                return
            if step % self._every == 0:
                self._watch_the_order()
            if control.gate_open(step, self.progress.agreement, self.progress.controller):
                with eagerly(self.model):
                    self._event(step)

    def _observe(self, active: bool) -> None:
        """Collect the scores in the coming step, or not; compiled code would break at the hooks."""
        self.scores.active = self.recent.active = active
        self._observing.close()
        if active:
            self._observing.enter_context(eagerly(self.model))

    def close(self) -> None:
        """Record where the budgets stand, and why, and take the hooks off the model; the training is over."""
        least = self.bench.cost({name: axis.least(self._floor) for name, axis in self.bench.anatomy.axes.items()})
        for name, ending in control.endings(self.progress.controller, least).items():
            self.record("ending", self.around.steps, quantity=name, **vars(ending))
        self._observing.close()
        self.scores.release()
        self.recent.release()
        if self.bench.profile.budgets.accuracy_loss is not None:
            self.left = self.validated()

    def compute_in(self, precision: Precision) -> None:
        """Read, predict, validate and cut from now on as suits a precision."""
        self.bench.compute_in(precision)
        self.progress.precision = precision
        self._width = self.bench.step_width(self.around.board)
        self._floor = max(self.bench.profile.control.floor, self._width)

    def _choose_precision(self, step: int) -> None:
        """Take the precision in which the budgets cost the fewest nats: those of the cuts, and of the rounding."""
        turned = balance(self._patient, self.recent.inputs())

        def enter(precision: Precision) -> list[control.Choice]:
            self.compute_in(precision)
            return self.choices(turned, 1.0)[1]

        best, told = choose(self.bench, self.around, self.limits, enter)
        self.compute_in(best.precision)
        self.progress.reading, start = best.reading, self.bench.observed(best.reading)
        self.progress.controller = control.init(self.bench.profile.control, self.limits, start, self.around.steps)
        self.record("precision", step, **told)

    # -- one event -----------------------------------------------------------------------------------------------------

    def _event(self, step: int) -> None:
        if len(self.bench.profile.precisions) > 1 and self.progress.precision is None:
            self._choose_precision(step)
        watched = control.all_landed(self.progress.controller) and self.progress.pending is None
        metric = None if watched else self.validated()
        unknown = metric is None and self.around.validate is not None and not watched
        if unknown or self._recovering(step, metric):
            return
        if self.progress.knows_nothing:
            self.progress.controller = control.postponed(self.progress.controller, step)
            return
        demand = self._demand(step)
        if control.all_met(demand) and not self.progress.confirmed and not self._beyond_doubt():
            # The budgets are judged on the artifact: if that misses, the loop goes on.
            self.progress.confirmed = True
            self._read_again(step)
            demand = self._demand(step)
        self.record("demand", step, metric=metric, **control.told(demand, self._observed(), self.progress.controller))
        if demand.fraction > 0:
            self._cut(step, demand, self.validated() if watched else metric)
        elif control.all_met(demand):
            # What is measured may still drift: it is watched, and judged anew at the last event.
            self.progress.done = not self._uncertain()

    def _demand(self, step: int) -> control.Demand:
        state = self.progress.controller
        if self._uncertain():
            self._read_again(step)
        seen = self._until(partial(control.enough, step=step, state=state), step)
        demand, self.progress.controller = control.step(control.pooled(seen), step, state)
        return demand

    def _until(self, enough: Callable[[Sequence[dict[str, control.Observed]]], bool], step: int) -> list[Any]:
        """Return the last reading, and as many more of the same structure as it takes to decide."""
        seen = [self._observed()]
        while not enough(seen):
            self._read_again(step)
            seen.append(self._observed())
        return seen

    def _observed(self) -> dict[str, control.Observed]:
        return self.bench.observed(self.progress.reading)

    def _cut(self, step: int, demand: control.Demand, metric: float | None) -> None:
        turned = balance(self._patient, self.recent.inputs())
        order, choices = self.choices(turned, self.bench.profile.control.largest_axis_cut)
        allocation = control.allocate(choices, self.bench.cost, demand.targets)
        mine = make_plan(self.bench.anatomy, allocation.keep, order, allocation.nats)
        plan = Plan.from_json(self.ranks.same(mine.to_json()))
        if not plan.cuts:
            self.record("wait", step, reason="no step of any axis makes the model faster on this target")
            if choices:
                self.progress.controller = control.exhausted(self.progress.controller)
            return
        self._keep_spectra([choice.axis for choice in choices])
        turns = {name: each.turns for name, each in turned.items() if name in order}
        self._carry_out(step, plan, turns, metric, **control.why(demand, allocation, self._observed()))

    def _carry_out(
        self, step: int, plan: Plan, turns: Mapping[str, Sequence[Turn]], metric: float | None, **why: Any
    ) -> None:
        """Cut, and record what that did; a cut that breaks the law is taken back at once."""
        self.progress.pending = self._snapshot(plan)
        gradients = {parameter: parameter.grad for parameter in self.bench.model.parameters()}
        try:
            repair = offer.repair(self.bench, self.recent.inputs(), self.around.steps - step)
            operation = operate(self._patient, plan, self.scores, repair, turns)
        except LawError as refusal:
            self._restore()
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            self._ban(plan, refusal, step)
            return
        self.scores.forget(plan, self.bench.anatomy.axes)
        self.bench.look()
        self.progress.reading = self._read()
        self._record_cut(step, plan, operation, metric, **why)
        self.record_reading(step)
        first = self._until(partial(control.enough_after_cut, state=self.progress.controller), step)
        self.progress.controller = control.after_cut(control.pooled(first), step, self.progress.controller)

    def _record_cut(self, step: int, plan: Plan, operation: Operation, metric: float | None, **why: Any) -> None:
        if operation.hankel:
            self.record("spectrum", step, layers=self._looks.told(operation.hankel))
        now = self.validated()
        self.progress.guard = self.progress.guard.after_cut(now)
        # The last lap stays: another cut of the same step has a pace, too.
        step_s, self._laps_s = statistics.median(self._laps_s), self._laps_s[-1:]
        self.record(
            "cut",
            step,
            **why,
            **operation.told(plan),
            metric_before=metric,
            metric_after=now,
            parameters=self.bench.parameters(),
            step_s=step_s,
            predicted=self.bench.cost({}),
        )

    def choices(self, turned: Mapping[str, Balanced], most: float) -> tuple[dict[str, Any], list[control.Choice]]:
        """Return in which order units of each axis go, and what the allocator may take: at most this share of each."""
        bounds = offer.Bounds(most, self._width, self._floor, self.progress.banned)
        return offer.choices(self.bench, self.scores, turned, bounds)

    # -- taking a cut back ---------------------------------------------------------------------------------------------

    def _recovering(self, step: int, metric: float | None) -> bool:
        """Judge the last cut now that the network had time to recover; take it back if it did not after all."""
        guard = self.progress.guard
        if metric is None or guard.accepts(metric) or self.progress.pending is None:
            self.progress.pending, self.progress.doubts = None, 0
            self.progress.guard = guard if metric is None else guard.seen(metric)
            return False
        if guard.climbs(metric):
            self.progress.guard = guard.after_cut(metric)
        else:
            self.progress.doubts += 1
        if self.progress.doubts <= PATIENCE:
            self.progress.controller = control.postponed(self.progress.controller, step)
            return True
        reason = f"the metric was {guard.best:.4f} before the cut and is {metric:.4f} after recovery"
        # Channels may go in smaller cuts. A block goes whole: it would be missed as much the next time.
        self.progress.banned |= dict.fromkeys(self.progress.pending.blocks, f"{reason}, which took this block away")
        self._go_back(step, reason=reason, metric_before=guard.best, metric_now=metric)
        self.record_reading(step)
        return True

    def _snapshot(self, plan: Plan) -> Pending:
        blocks = tuple(cut.axis for cut in plan.cuts if self.bench.anatomy.axes[cut.axis].kind == "blocks")
        return Pending.of(self.bench.model, self.optimizer, self.scores, self.around.followers, blocks)

    def _restore(self) -> None:
        pending, self.progress.pending, self.progress.doubts = self.progress.pending, None, 0
        if pending is not None:
            pending.put_back(self.model, self.optimizer, self.scores, self.around.followers)
            self.look_again()

    def _ban(self, plan: Plan, refusal: LawError, step: int) -> None:
        """Leave alone, from now on, the axes of a refused plan that break the law each on their own; else all of it."""
        for axis in guilty(self.bench, plan) or [cut.axis for cut in plan.cuts]:
            self.progress.banned[axis] = str(refusal)
            self.record("wait", step, reason=f"{axis} is left alone: {refusal}")
        self.progress.controller = control.postponed(self.progress.controller, step)

    def _go_back(self, step: int, **why: Any) -> None:
        self._restore()
        self.progress.controller = control.rolled_back(self.progress.controller, step)
        self.record("rollback", step, largest_cut=self.progress.controller.clamps.largest_cut, **why)
        if self.progress.controller.given_up:
            self.record("wait", step, reason="the network recovers from no cut, however small: nothing more is cut")

    def look_again(self) -> None:
        """Take apart and read a model whose widths were changed from outside: rolled back, or resumed."""
        self.bench.look()
        self.progress.reading = self._read()

    # -- readings ------------------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        reading = self.ranks.first(self.bench.read_artifact if self.progress.confirmed else self.bench.read)
        # The full-size model is read before a precision is chosen.
        before = self.full_size if self.progress.precision is None else in_any_precision(self.full_size)
        why = incomparable(before, reading)
        if why:
            raise DeviceError(f"the readings of this run can no longer be compared: {why}. Set it back, then resume")
        return reading

    def _read_again(self, step: int) -> None:
        self.progress.reading = self._read()
        self.record_reading(step)

    def _uncertain(self) -> bool:
        """Tell whether another reading of the same structure may give another figure."""
        return any(seen.spread > 0 for seen in self._observed().values())

    def _beyond_doubt(self) -> bool:
        """Tell whether the artifact meets the budgets for sure: what it costs and what its trace does are too alike."""
        return within_for_sure(self._observed(), self._apart, self.limits)

    def record_beginning(self) -> None:
        """Record, before the first step, what a person should know, and the reading of the full-size model."""
        for note in (*self.bench.notes, *warnings_on(self.reach, self.limits)):
            self.record("note", 0, text=note)
        self.record_reading(0)

    def record_reading(self, step: int) -> None:
        """Record the last reading as an event."""
        self.record("reading", step, **self.bench.told(self.progress.reading))

    def validated(self) -> float | None:
        """Return the metric on the validation data; None where there is none."""
        if self.around.validate is None:
            return None
        with self.around.stopwatch.phase("evaluating"), computing_in(self.bench.profile.precision):
            return self.ranks.same(self.around.validate())

    # -- scores and reach ----------------------------------------------------------------------------------------------

    def _watch_the_order(self) -> None:
        known = orders(self.bench.model, self.bench.anatomy.axes, self.scores)
        seen = control.agreement(self.progress.order, known)
        self.progress.agreement = self.ranks.same(self.progress.agreement if seen is None else seen)
        self.progress.order = known

    def _keep_spectra(self, names: Iterable[str]) -> None:
        for name in names:
            axis = self.bench.anatomy.axes[name]
            if axis.kind != "blocks":
                self.progress.spectra.setdefault(name, self.scores.spectrum(axis, self.bench.model))

    def _follow_the_states(self, step: int) -> None:
        """Apply the paper's rule to state space layers, and look at their spectra, where either is due."""
        tolerance = self.bench.profile.control.hankel_tolerance
        if tolerance is not None and step in self._attempts:
            with eagerly(self.model):
                self._apply_the_rule(step, tolerance)
        if self._looks.due(step) and (seen := self._looks.look(self.bench.model, self.scores.flows)):
            self.record("spectrum", step, layers=seen)

    def _apply_the_rule(self, step: int, tolerance: float) -> None:
        """Truncate layers as the paper does, whatever the budgets are; the guard does not judge what the rule allows.

        Cuts before this one can no longer be taken back either.
        """
        axes = [axis for name, axis in self.bench.anatomy.axes.items() if name not in self.progress.banned]
        keep, nats = allowed(self.bench.model, axes, self.scores, Rule(tolerance, self.bench.profile.control.floor))
        plan = Plan.from_json(self.ranks.same(make_plan(self.bench.anatomy, keep, {}, nats).to_json()))
        if not plan.cuts:
            self.record("wait", step, reason=f"no layer has states to lose at a Hankel tolerance of {tolerance:g}")
            return
        self._keep_spectra(keep)
        self._carry_out(step, plan, {}, self.validated(), demand=0.0, binding="tolerance")
        self.progress.pending, self.progress.doubts = None, 0
