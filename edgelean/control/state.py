"""What the controller is set to, and what it remembers between two events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from edgelean.control.track import Track


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
class Pace:
    """When events happen, in steps of the training.

    Attributes
    ----------
    begins, ends
        The reference decays from `begins` to `ends`.
    spacing, least
        So many steps lie between a cut and the next event, and at least so many where it was small.
    last
        No event after this step: a cut needs some training to recover.
    """

    begins: int
    ends: int
    spacing: int
    least: int
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
    exhausted
        True when nothing was left to cut that saves anything.
    cut_at, ready_at
        Steps of the last cut, and of the first decision after it. Only set while no reading of what it left has
        arrived.
    delay
        How many steps the readings of a new structure have lagged behind its cut.
    """

    tracks: Mapping[str, Track]
    pace: Pace
    clamps: Clamps
    gate: Gate
    due_at: int
    given_up: bool = False
    exhausted: bool = False
    cut_at: int | None = None
    ready_at: int = 0
    delay: int = 0

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
