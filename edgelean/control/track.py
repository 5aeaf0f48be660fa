"""One budgeted quantity on its way: what it is estimated to be, where it stands, where it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from edgelean.control.plant import (
    Plant,
    anchored,
    cost_for,
    deviation,
    furthest,
    identify,
    new_plant,
    output,
    surprise,
)
from edgelean.control.readings import CONFIDENCE, Observed

CAUTION = 1.0
"""A cut is sized for a slope so many standard deviations steeper than the expected one."""

SURE = 2.5
"""And so small that its output stays above the lower end of the landing zone by so many standard deviations."""

LEAST_CUT = 0.005
"""Share of the cost that goes at least where a cut is due and the readings cannot tell how far one may go."""

LANDING = 0.05
"""The reference is an exponential that would leave this share of the way at the end of the window, bent to leave 0."""

PROVEN = 2.5
"""A budget is met when the estimate lies under it by so many standard deviations."""

REPEATED = 0.005
"""Standard deviation of what the artifact gives in another session, minutes later, as a share of the reading."""

PROOFS = 2
"""A measured budget is met when so many events in a row find it within."""

ALARMS = 2
"""A met budget counts as lost after so many events in a row that find it above."""

PATIENCE = 4
"""Events that read an undecided budget again which looks as if it were met, before a small cut settles it."""

UNCLEAR = 3
"""Events that read any other one again until the readings suffice for a cut."""

CLEAR = 0.2
"""They suffice when their standard deviation is at most this share of the way down to the lower end of the zone."""

SURPRISE = 2.5
"""A reading so many standard deviations off what was expected is taken for the weather, and not cut for."""

CALM = 0.5
"""The weather has passed when a reading is off by less than this share of that again."""

ALIKE = 0.03
"""Surprises belong together when they are so close, as a share, beyond what their spread explains."""

STORM, LULL = 8, 1
"""Surprises that belong together are waited out so often, above and below what was expected; then they are believed."""

TRUSTED = 2.0
"""The intervals that a target tells are trusted as if so many readings had already borne them out."""


class Standing(StrEnum):
    """Where a quantity stands against its budget: by how sure its estimate is."""

    MET = "met"
    UNDECIDED = "undecided"
    NOT_MET = "not met"


@dataclass(frozen=True)
class Track:
    """One budgeted quantity.

    Attributes
    ----------
    limit
        The budget.
    start
        The output from which the reference decays.
    value, half
        Best estimate of the present output, and half the width of its 95 % interval.
    plant
        How the output answers to the predicted cost.
    standing
        Where the quantity stands against its budget.
    doubts, proofs, alarms
        Events in a row that found this structure undecided, within the budget, and above it though it was met.
    landed
        Whether this structure was ever found to be met: then only what is surely lost is cut for.
    weather, odd
        Surprising readings in a row that belong together, and the last of them.
    freedom, scatter
        Over all events, how many readings beyond the first there were, and by how much they differed (see `Observed`).
    """

    limit: float
    start: float
    value: float
    half: float
    plant: Plant
    standing: Standing = Standing.NOT_MET
    doubts: int = 0
    proofs: int = 0
    alarms: int = 0
    landed: bool = False
    weather: int = 0
    odd: float = 0.0
    freedom: int = 0
    scatter: float = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the estimate."""
        return self.half / CONFIDENCE

    @property
    def modesty(self) -> float:
        """By how much the intervals of this target are too narrow, from the scatter of its readings; at least 1."""
        return math.sqrt(max(1.0, (TRUSTED + self.scatter) / (TRUSTED + self.freedom)))

    @property
    def promising(self) -> bool:
        """Whether more readings may show that the budget is met."""
        return self.value * (1 + PROVEN * REPEATED) <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return the track as plain JSON types."""
        return asdict(self) | {"plant": self.plant.to_json(), "standing": str(self.standing)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Track:
        """Return the track that `to_json` wrote."""
        made = {"plant": Plant.from_json(plain["plant"]), "standing": Standing(plain["standing"])}
        return cls(**{**plain, **made})


def new_track(limit: float, seen: Observed) -> Track:
    """Return the track of a quantity whose full-size model was read once."""
    plant = new_plant(seen.cost, seen.measured, seen.spread)
    return Track(limit, seen.measured, seen.measured, CONFIDENCE * seen.spread, plant)


def lowest(track: Track, margin: float) -> float:
    """Return the lower end of the landing zone: as far below the aim as the aim is below the budget."""
    return track.limit * (1 - 2 * margin)


def watch(track: Track, seen: Observed) -> Track:
    """Return the track with the readings of one more event in it, and where it now stands.

    Readings of the same structure are averaged by the plant, so a budget that is too close to call is decided by
    reading again. A figure of the cost model (no spread) is taken as it is.

    Readings far off what was expected are taken for the weather: a board that throttles, or does something else. They
    are put aside until they have come back, or have lasted.
    """
    same = track.plant.saw_last(seen.cost)
    track, seen = heard(track, seen)
    track, aside = _weathered(track, seen)
    return track if aside else _judged(_estimated(track, seen), same=same)


def arrived(track: Track, seen: Observed) -> Track:
    """Return the track with the first readings of a new structure in it, taken in the weather of the cut.

    Where the structure stands is judged at the next event, by readings of then.
    """
    track, seen = heard(track, seen)
    # A budget that was met stays so: the cut was for another one, and no quantity may grow.
    standing = track.standing if track.standing is Standing.MET else Standing.NOT_MET
    return replace(_estimated(track, seen), standing=standing, doubts=0, proofs=0, alarms=0, landed=False)


def heard(track: Track, seen: Observed) -> tuple[Track, Observed]:
    """Return the track that knows how far the target's intervals can be trusted, and the readings widened by that."""
    track = replace(track, freedom=track.freedom + seen.count - 1, scatter=track.scatter + seen.scatter)
    half = CONFIDENCE * seen.spread * track.modesty
    return track, replace(seen, low=seen.measured - half, high=seen.measured + half)


def _weathered(track: Track, seen: Observed) -> tuple[Track, bool]:
    """Return the track after a look at the weather, and whether the readings have to be put aside."""
    if seen.spread == 0:
        return track, False
    off = surprise(track.plant, seen.cost, seen.measured, seen.spread)
    if abs(off) <= SURPRISE * (CALM if track.weather else 1.0):
        return replace(track, weather=0), False
    together = (
        track.weather > 0 and abs(seen.measured / track.odd - 1) <= ALIKE + SURPRISE * seen.spread / seen.measured
    )
    before = track.weather if together else 0
    if before < (STORM if off > 0 else LULL):
        return replace(track, weather=before + 1, odd=seen.measured), True
    return replace(track, weather=0, plant=anchored(track.plant, seen.cost, seen.measured, seen.spread)), False


def _estimated(track: Track, seen: Observed) -> Track:
    plant = identify(track.plant, seen.cost, seen.measured, seen.spread)
    if seen.spread == 0:
        return replace(track, plant=plant, value=seen.measured, half=0.0, weather=0)
    value, half = output(plant, seen.cost), CONFIDENCE * deviation(plant, seen.cost)
    return replace(track, plant=plant, value=value, half=half, weather=0)


def _judged(track: Track, *, same: bool) -> Track:
    """Return the track with its standing; `same` tells whether the last event read the same structure."""
    value, half, limit = track.value, track.half, track.limit
    sure = PROVEN * math.hypot(track.spread, REPEATED * value) if half else 0.0
    proofs = (track.proofs if same else 0) + 1 if value + sure <= limit else 0
    alarms = track.alarms + 1 if value > limit and track.standing is Standing.MET else 0
    doubts = track.doubts if same else 0
    met = proofs >= (PROOFS if half else 1)
    kept = track.standing is Standing.MET and alarms < (ALARMS if half else 1)
    if met or kept:
        standing, doubts = Standing.MET, 0
    elif value - half > limit:
        standing, doubts = Standing.NOT_MET, 0
    else:
        standing, doubts = Standing.UNDECIDED, doubts + 1
    landed = standing is Standing.MET or (track.landed and same)
    return replace(track, standing=standing, doubts=doubts, proofs=proofs, alarms=alarms, landed=landed)


def clear(track: Track, margin: float) -> bool:
    """Tell whether a quantity is known well enough to stop, or to cut."""
    if track.half == 0 or track.weather or track.proofs or track.standing is Standing.MET:
        return True
    if track.standing is Standing.UNDECIDED and track.promising:
        return False
    return track.spread <= CLEAR * (track.value - lowest(track, margin))


def waits(track: Track, margin: float) -> bool:
    """Tell whether a quantity asks for another look before anything is cut for it."""
    if track.weather or (track.proofs and track.standing is not Standing.MET):
        return True
    if track.standing is not Standing.UNDECIDED:
        return False
    if track.landed:
        return True
    return track.doubts <= PATIENCE if track.promising else not clear(track, margin) and track.doubts <= UNCLEAR


def reference(track: Track, margin: float, gone: float) -> float:
    """Return the output that a quantity should have when a share of the window is gone, in the unit of its budget.

    The excess over the aim, which is the budget less the margin, decays exponentially and is 0 at the end: large cuts
    early, where learning repairs them, and small ones at the landing, where an error could not be undone.
    """
    aim = track.limit * (1 - margin)
    left = (math.pow(LANDING, min(max(gone, 0.0), 1.0)) - LANDING) / (1 - LANDING)
    return aim + max(0.0, track.start - aim) * left


def target(track: Track, cost: float, wanted: float, largest_cut: float, zone: tuple[float, float]) -> float:
    """Return the predicted cost that the next structure may have at most.

    Parameters
    ----------
    track
        The quantity; neither met nor to be looked at again.
    cost
        Predicted cost of the present structure.
    wanted
        What the reference wants next.
    largest_cut
        Largest share of the cost that may go.
    zone
        Lower end of the landing zone, and by how many standard deviations the output has to stay above it.
    """
    if track.standing is Standing.UNDECIDED:
        wanted = min(wanted, track.limit - track.half)
    bold = cost_for(track.plant, wanted, CAUTION)
    safe = min(furthest(track.plant, *zone), cost * (1 - LEAST_CUT))
    return min(cost, max(bold, safe, cost * (1 - largest_cut)))
