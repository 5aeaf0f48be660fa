"""The controller: readings and budgets in, a demand for the next cut out.

A self-tuning regulator in velocity form. The cost of the structure is the integrator (a cut stays), so there is no
integral state that could wind up: each event asks for the change of predicted cost that takes the output from where
it is to where the reference wants it at the next event. ``docs/control.md`` tells the law, and why this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from edgelean.control.track import CONFIDENCE, PATIENCE, Standing, Track, new_track, reference, target, watch
from edgelean.errors import InputError
from edgelean.quantity import UNITS, amount, word


class Settings(Protocol):
    """What the controller needs of a profile's control settings; the profile explains each."""

    @property
    def window(self) -> tuple[float, float]:
        """Start and end of the window for cuts, in shares of all steps."""

    @property
    def events(self) -> int:
        """How many cuts the window has room for."""

    @property
    def recovery_steps(self) -> int | None:
        """Fewest steps between a cut and the next event, if the window's events would come sooner."""

    @property
    def largest_cut(self) -> float:
        """Largest share of the predicted cost that one cut may remove."""

    @property
    def dead_band(self) -> float:
        """Smallest share worth a cut while the reference is still on its way."""

    @property
    def margin(self) -> float:
        """Aim this share under a budget."""

    @property
    def settled(self) -> float:
        """Rank correlation of successive scores from which the gate opens."""

    @property
    def wait(self) -> float:
        """Share of all steps after which the gate opens anyway."""


@dataclass(frozen=True)
class Observed:
    """One quantity of the present structure: its reading and its predicted cost.

    Attributes
    ----------
    measured, low, high
        The reading and its 95 % interval, in the unit of the budget; all three equal for a modelled figure.
    cost
        Predicted cost of the same structure, from the board's cost model.
    """

    measured: float
    low: float
    high: float
    cost: float

    @property
    def spread(self) -> float:
        """Standard deviation of the reading, in its unit."""
        return max(0.0, self.high - self.low) / (2 * CONFIDENCE)


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


@dataclass(frozen=True)
class Pace:
    """When events happen, in steps of the training.

    Attributes
    ----------
    begins, ends
        The reference decays from `begins` to `ends`.
    spacing
        At least so many steps lie between a cut and the next event.
    last
        No event after this step: a cut needs some training to recover.
    """

    begins: int
    ends: int
    spacing: int
    last: int

    def gone(self, step: int) -> float:
        """Return the share of the window that is gone at a step."""
        return (step - self.begins) / (self.ends - self.begins)


@dataclass(frozen=True)
class Clamps:
    """The named clamps, as shares; `Settings` tells what each is."""

    largest_cut: float
    dead_band: float
    margin: float


@dataclass(frozen=True)
class Gate:
    """The scores must agree so well, or training must have come so far, before anything is cut."""

    agreement: float
    step: int


@dataclass(frozen=True)
class ControllerState:
    """Everything the controller remembers between two events.

    Attributes
    ----------
    tracks
        Per budgeted quantity.
    pace, clamps, gate
        Fixed by `init`; a rollback restarts the pace and halves ``clamps.largest_cut``.
    due_at
        First step of the next event.
    given_up
        True when cuts were rolled back until none was small enough.
    """

    tracks: Mapping[str, Track]
    pace: Pace
    clamps: Clamps
    gate: Gate
    due_at: int
    given_up: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain JSON types."""
        return asdict(self) | {"tracks": {name: track.to_json() for name, track in self.tracks.items()}}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ControllerState:
        """Return the state that `to_json` wrote."""
        made = {
            "tracks": {name: Track.from_json(track) for name, track in plain["tracks"].items()},
            "pace": Pace(**plain["pace"]),
            "clamps": Clamps(**plain["clamps"]),
            "gate": Gate(**plain["gate"]),
        }
        return cls(**{**plain, **made})


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
        tracks[name] = new_track(limit, observed.cost, observed.measured, observed.spread)
    begins, ends = (round(share * steps) for share in settings.window)
    spacing = max(1, (ends - begins) // settings.events, settings.recovery_steps or 0)
    pace = Pace(begins, max(ends, begins + 1), spacing, steps - spacing // 2)
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

    A budget is met when the whole 95 % interval lies within it, and then asks for no cut; one whose interval straddles
    it is read again a few times first. `edgelean.control.track` has the details.

    Parameters
    ----------
    observations
        The present structure, at least for every budgeted quantity.
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
    costs = {name: one.cost for name, one in seen.items()}
    tracks = {name: watch(state.tracks[name], one.cost, one.measured, one.spread) for name, one in seen.items()}
    pace, clamps = state.pace, state.clamps
    gone = pace.gone(step + pace.spacing)
    wanted = {name: reference(track, clamps.margin, gone) for name, track in tracks.items()}
    targets = {name: target(track, costs[name], wanted[name], clamps.largest_cut) for name, track in tracks.items()}
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
    return demand, replace(state, tracks=tracks, due_at=step + _pause(demand, tracks, pace))


def all_met(demand: Demand) -> bool:
    """Tell whether every budget was met when the demand was made."""
    return all(standing is Standing.MET for standing in demand.standings.values())


def postponed(state: ControllerState, step: int) -> ControllerState:
    """Return the state with its next event a quarter of the spacing later: what has to be judged is not clear yet."""
    return replace(state, due_at=step + max(1, state.pace.spacing // 4))


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


def _pause(demand: Demand, tracks: Mapping[str, Track], pace: Pace) -> int:
    """Return how many steps to wait: a cut needs its recovery, another look at the same structure does not."""
    look_again = demand.fraction == 0 and any(0 < track.doubts <= PATIENCE for track in tracks.values())
    return max(1, pace.spacing // 4) if look_again else pace.spacing


def _reason(name: str, track: Track, wanted: float, fraction: float) -> str:
    unit = UNITS.get(name, "")
    limit, aim = amount(track.limit, unit), amount(wanted, unit)
    where = f"{word(name)} {amount(track.value, unit)} of {limit}"
    if fraction > 0:
        return f"{where}: {100 * fraction:.1f} % of the predicted cost goes, to come near {aim}"
    if track.standing is Standing.MET:
        return f"{where}: the budget is met"
    if track.standing is Standing.UNDECIDED:
        return f"{where}, give or take {amount(track.half, unit, 2)}: too close to call, read again"
    return f"{where}: near enough to {aim}, where it should be next"
