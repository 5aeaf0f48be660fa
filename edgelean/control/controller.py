"""The controller: readings and budgets in, a demand for the next cut out.

A self-tuning regulator in velocity form. The cost of the structure is the integrator (a cut stays), so there is no
integral state that could wind up: each event asks for the change of predicted cost that takes the output from where
it is to where the reference wants it at the next event. ``docs/control.md`` tells the law, and why this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgelean.control.readings import Observed, pooled
from edgelean.control.state import Clamps, ControllerState, Gate, Pace, Settings
from edgelean.control.track import (
    SURE,
    Standing,
    Track,
    arrived,
    clear,
    heard,
    lowest,
    new_track,
    reference,
    target,
    waits,
    watch,
)
from edgelean.errors import InputError
from edgelean.quantity import UNITS, amount, word

LEAST_READINGS, MOST_READINGS = 2, 16
"""So many readings an event takes where they differ: two tell whether the intervals are true, and more cost time."""

FRESH = 0.03
"""The readings of one event are at least so good, as a share: what has changed since the last one shall be seen."""

SMALL = 0.1
"""A cut of less than this share needs less than the whole spacing to recover, at least half of it."""

UNHURRIED = 8.0
"""With fewer cuts than this left in the training they have to be bolder."""


@dataclass(frozen=True)
class Demand:
    """What the next cut has to do.

    Attributes
    ----------
    binding
        The quantity with the largest output / budget, of those that ask for a cut if any does.
    fraction
        Share of its predicted cost that has to go; 0 means no cut.
    targets
        Predicted cost that the next structure may have at most, per quantity.
    reference
        Output that the binding quantity should have at the next event, in the unit of its budget.
    reason
        The decision in words.
    standings
        Where each quantity stands against its budget, before the cut.
    """

    binding: str
    fraction: float
    targets: Mapping[str, float]
    reference: float
    reason: str
    standings: Mapping[str, Standing]

    def to_json(self) -> dict[str, Any]:
        """Return the demand as plain JSON types, with the fraction as ``demand``."""
        plain = asdict(self) | {"standings": {name: str(standing) for name, standing in self.standings.items()}}
        return {"demand": plain.pop("fraction"), **plain}


def init(
    settings: Settings, budgets: Mapping[str, float], start: Mapping[str, Observed], steps: int
) -> ControllerState:
    """Return the state before the first event.

    Parameters
    ----------
    settings
        The profile's control settings.
    budgets
        Limit per quantity, in the unit of its readings.
    start
        Reading and predicted cost of the full-size model, at least for every budgeted quantity.
    steps
        All training steps of the run.

    Raises
    ------
    InputError
        When there is no budget, one is not above 0, or its quantity has no reading.
    """
    if not budgets:
        raise InputError("The controller needs a budget and found none. Give a latency, an energy, a memory or a size.")
    tracks = {}
    for name, limit in budgets.items():
        if not (math.isfinite(limit) and limit > 0):
            raise InputError(f"The budget of {name} must be a number above 0; found {limit}.")
        observed = _observed(start, name)
        tracks[name] = new_track(limit, observed)
    begins, ends = (round(share * steps) for share in settings.window)
    spacing = max(1, (ends - begins) // settings.events, settings.recovery_steps or 0)
    least = max(1, spacing // 2, settings.recovery_steps or 0)
    pace = Pace(begins, max(ends, begins + 1), spacing, least, steps - spacing // 2)
    clamps = Clamps(settings.largest_cut, settings.dead_band, settings.margin)
    return ControllerState(tracks, pace, clamps, Gate(settings.settled, round(settings.wait * steps)), begins)


def due(step: int, state: ControllerState) -> bool:
    """Tell whether an event is due: the window is open, the spacing has passed, and cuts are still accepted."""
    return state.due_at <= step <= state.pace.last and not state.given_up


def gate_open(step: int, agreement: float | None, state: ControllerState) -> bool:
    """Tell whether the scores can be trusted: they have settled, or the wait is over.

    Parameters
    ----------
    step
        The training step.
    agreement
        Rank correlation of the last two score vectors; None before there are two.
    state
        The controller.
    """
    return step >= state.gate.step or (agreement is not None and agreement >= state.gate.agreement)


def step(observations: Mapping[str, Observed], step: int, state: ControllerState) -> tuple[Demand, ControllerState]:
    """Return what the next cut has to do, and the state after the event.

    A budget that is surely met asks for no cut, one that is too close to call is read again a few times first, and none
    is cut for on readings that are stale, or far off what was expected. `edgelean.control.track` has the details.

    Parameters
    ----------
    observations
        The present structure, at least for every budgeted quantity: all readings of the event, `pooled`.
    step
        The training step.
    state
        The controller.

    Raises
    ------
    InputError
        When a budgeted quantity has no reading, or one that is not a number above 0.
    """
    seen = {name: _observed(observations, name) for name in state.tracks}
    if any(one.stale for one in seen.values()):
        tracks = {name: watch(state.tracks[name], one) for name, one in seen.items()}
        return _held(seen, tracks, "the readings are of the structure before the cut"), _soon(state, step, tracks)
    if state.cut_at is not None:
        state = replace(state, cut_at=None, delay=max(state.delay, step - state.cut_at))
        if step < state.ready_at:
            # Readings of a storm that began while others were waited for are not what the new structure takes.
            look = watch if _stormy(state.tracks) else arrived
            tracks = {name: look(state.tracks[name], one) for name, one in seen.items()}
            later = replace(_soon(state, step, tracks), due_at=max(state.ready_at, step + _quarter(state.pace)))
            return _held(seen, tracks, "the first readings of the new structure"), later
    tracks = {name: watch(state.tracks[name], one) for name, one in seen.items()}
    return _decided(seen, step, replace(state, tracks=tracks))


def _decided(seen: Mapping[str, Observed], step: int, state: ControllerState) -> tuple[Demand, ControllerState]:
    """Return the demand that the tracks, which know the readings by now, give rise to."""
    tracks, pace, clamps = state.tracks, state.pace, state.clamps
    costs = {name: one.cost for name, one in seen.items()}
    until = max(pace.spacing, state.delay)
    gone, left = pace.gone(step + until), (pace.last - step) / until
    wanted = {name: reference(track, clamps.margin, gone) for name, track in tracks.items()}
    sure = SURE * min(1.0, max(0.0, left / UNHURRIED))
    targets = {
        name: target(track, costs[name], wanted[name], clamps.largest_cut, (lowest(track, clamps.margin), sure))
        if _asks(track, clamps.margin, left) and not (state.exhausted or _stormy(tracks))
        else costs[name]
        for name, track in tracks.items()
    }
    if gone < 1 and all(targets[name] > costs[name] * (1 - clamps.dead_band) for name in tracks):
        targets = costs
    fractions = {name: 1 - targets[name] / costs[name] for name in tracks}
    binding = _binding(tracks, fractions)
    demand = Demand(
        binding=binding,
        fraction=fractions[binding],
        targets=targets,
        reference=wanted[binding],
        reason=_reason(binding, tracks[binding], wanted[binding], fractions[binding]),
        standings={name: track.standing for name, track in tracks.items()},
    )
    return demand, replace(state, due_at=_next(step, _pause(demand, tracks, state), pace))


def enough(readings: Sequence[Mapping[str, Observed]], step: int, state: ControllerState) -> bool:
    """Tell whether the readings of an event suffice to decide, or one more should be taken.

    A budget that is met is only watched, by a single reading, up to the last event: that one judges it anew.

    Parameters
    ----------
    readings
        Those that the event has taken so far, at least one.
    step
        The training step.
    state
        The controller, as it was before the event.
    """
    if len(readings) >= MOST_READINGS:
        return True
    for name, seen in pooled(readings).items():
        track = state.tracks.get(name)
        if track is None or seen.stale or seen.spread == 0:
            continue
        if track.standing is Standing.MET and step < state.pace.last:
            continue
        if len(readings) < LEAST_READINGS or not _fresh(seen, track):
            return False
        if not clear(watch(track, seen), state.clamps.margin):
            return False
    return True


def enough_after_cut(readings: Sequence[Mapping[str, Observed]], state: ControllerState) -> bool:
    """Tell whether the first readings of a new structure suffice to know it again at the next event."""
    seen = pooled(readings)
    return len(readings) >= MOST_READINGS or all(
        seen[name].stale or seen[name].spread == 0 or _fresh(seen[name], track) for name, track in state.tracks.items()
    )


def after_cut(observations: Mapping[str, Observed], step: int, state: ControllerState) -> ControllerState:
    """Return the state after a cut was carried out, with the first readings of what it left.

    They are taken in the same weather as those before it. Where they are stale, the next event waits for others.
    """
    seen = {name: _observed(observations, name) for name in state.tracks}
    if any(one.stale for one in seen.values()):
        return replace(state, cut_at=step, ready_at=state.due_at, due_at=step + _quarter(state.pace))
    return replace(state, tracks={name: arrived(state.tracks[name], one) for name, one in seen.items()})


def exhausted(state: ControllerState) -> ControllerState:
    """Return the state when nothing is left to cut that would save anything."""
    return replace(state, exhausted=True)


def all_met(demand: Demand) -> bool:
    """Tell whether every budget was met when the demand was made."""
    return all(standing is Standing.MET for standing in demand.standings.values())


def all_landed(state: ControllerState) -> bool:
    """Tell whether every budget is met as far as is known, and only watched."""
    return all(track.standing is Standing.MET for track in state.tracks.values())


def postponed(state: ControllerState, step: int) -> ControllerState:
    """Return the state with its next event a quarter of the spacing later: what has to be judged is not clear yet."""
    return replace(state, due_at=step + _quarter(state.pace))


def rolled_back(state: ControllerState, step: int) -> ControllerState:
    """Return the state after the last cut was taken back, or refused, at a training step.

    The largest cut is halved, and the reference starts again from where the restored structure is: what could not be
    done is not caught up with (anti-windup). When the largest cut falls below the dead band the controller gives up.
    """
    pace = state.pace
    return replace(
        state,
        tracks={name: replace(track, start=track.value) for name, track in state.tracks.items()},
        pace=replace(pace, begins=step, ends=max(pace.ends, step + 2 * pace.spacing)),
        clamps=replace(state.clamps, largest_cut=state.clamps.largest_cut / 2),
        due_at=step + pace.spacing,
        cut_at=None,
        exhausted=False,
        given_up=state.clamps.largest_cut / 2 < state.clamps.dead_band,
    )


def _observed(observations: Mapping[str, Observed], name: str) -> Observed:
    if name not in observations:
        found = ", ".join(observations) or "nothing"
        raise InputError(
            f"There is a budget for {name} and no reading of it (found {found}). "
            "Drop the budget, or use a target that can read it."
        )
    return observations[name]


def _binding(tracks: Mapping[str, Track], fractions: Mapping[str, float]) -> str:
    """Return the quantity furthest over its budget: of those that ask, else of those not met, else of all."""
    asking = [name for name in tracks if fractions[name] > 0]
    unmet = [name for name, track in tracks.items() if track.standing is not Standing.MET]
    return max(asking or unmet or tracks, key=lambda name: tracks[name].value / tracks[name].limit)


def _fresh(seen: Observed, track: Track) -> bool:
    """Tell whether the readings of an event are good enough in themselves."""
    return heard(track, seen)[1].spread <= FRESH * seen.measured


def _asks(track: Track, margin: float, left: float) -> bool:
    """Tell whether a quantity asks for a cut; `left` is how many could still be judged.

    One that may be met already is not cut blindly at the end.
    """
    hopeful = track.standing is Standing.UNDECIDED and track.promising
    return track.standing is not Standing.MET and not waits(track, margin) and not (hopeful and left < 1)


def _stormy(tracks: Mapping[str, Track]) -> bool:
    return any(track.weather for track in tracks.values())


def _quarter(pace: Pace) -> int:
    return max(1, pace.spacing // 4)


def _soon(state: ControllerState, step: int, tracks: Mapping[str, Track]) -> ControllerState:
    return replace(postponed(state, step), tracks=tracks)


def _held(seen: Mapping[str, Observed], tracks: Mapping[str, Track], why: str) -> Demand:
    """Return the demand for nothing, while readings of the present structure are waited for."""
    costs = {name: one.cost for name, one in seen.items()}
    binding = _binding(tracks, dict.fromkeys(costs, 0.0))
    standings = {name: track.standing for name, track in tracks.items()}
    return Demand(binding, 0.0, costs, tracks[binding].value, f"{binding}: {why}; nothing is cut on them", standings)


def _pause(demand: Demand, tracks: Mapping[str, Track], state: ControllerState) -> int:
    """Return how many steps to wait: a cut needs its recovery, another look at the same structure does not."""
    pace = state.pace
    if demand.fraction == 0:
        again = any(waits(track, state.clamps.margin) for track in tracks.values())
        return _quarter(pace) if again else pace.spacing
    return max(pace.least, round(pace.spacing * min(1.0, max(0.5, demand.fraction / SMALL))))


def _next(step: int, pause: int, pace: Pace) -> int:
    """Return the step of the next event; the last one is never left out, as it judges anew what was met long before."""
    return min(step + pause, pace.last) if step < pace.last else step + pause


def _reason(name: str, track: Track, wanted: float, fraction: float) -> str:
    unit = UNITS.get(name, "")
    limit, aim = amount(track.limit, unit), amount(wanted, unit)
    where = f"{word(name)} {amount(track.value, unit)} of {limit}"
    if fraction > 0:
        return f"{where}: {100 * fraction:.1f} % of the predicted cost goes, to come near {aim}"
    if track.weather:
        now = amount(track.odd, unit)
        return f"{where}, but now {now} is read of it: waited for until it passes, and not cut for"
    if track.standing is Standing.MET:
        return f"{where}: the budget is met"
    if track.proofs:
        return f"{where}: within the budget, to be seen once more"
    if track.standing is Standing.UNDECIDED:
        return f"{where}, give or take {amount(track.half, unit, 2)}: too close to call, read again"
    return f"{where}: near enough to {aim}, where it should be next"
