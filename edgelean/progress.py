"""What the closed loop remembers from event to event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgelean import control
from edgelean.board import Precision
from edgelean.reading import Reading
from edgelean.shrink.cut import Contents, Held, cloned, put_back, saved, saved_model, saved_optimizer
from edgelean.shrink.followers import Follower
from edgelean.shrink.scores import Score

UNLEARNED = 0.3
"""Up to this share of the window nothing is cut while the metric has not risen: what a network that knows nothing yet
would miss cannot have shown, and what it loses it may need to learn anything."""


@dataclass(frozen=True)
class Pending:
    """A cut that the network still has to recover from, and what is needed to take it back.

    Attributes
    ----------
    network, optimizer
        What they were.
    scores
        What the scores had observed.
    followers
        What the other followers were.
    blocks
        Names of the blocks that went with it.
    """

    network: Contents
    optimizer: Held
    scores: Mapping[str, Tensor]
    followers: tuple[Contents | Held, ...] = ()
    blocks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scores: Score,
        followers: Sequence[Follower],
        blocks: tuple[str, ...],
    ) -> Pending:
        """Return what everything is before a cut that takes these blocks."""
        others = tuple(saved(follower) for follower in followers)
        return cls(saved_model(model), saved_optimizer(optimizer), cloned(scores.tensors()), others, blocks)

    def put_back(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scores: Score, followers: Sequence[Follower]
    ) -> None:
        """Make everything what it was."""
        kept = (self.network, self.optimizer, *self.followers)
        for follower, before in zip((model, optimizer, *followers), kept, strict=True):
            put_back(follower, before)
        scores.put_back(self.scores)


@dataclass
class Progress:
    """What the loop remembers from event to event.

    Attributes
    ----------
    controller
        The controller.
    reading
        The last reading of the present structure.
    order
        What the units of each axis were last worth alone, to tell whether their order has settled.
    agreement
        How alike the last two of these are, see `control.agreement`.
    guard
        The best metric so far, which a cut has to come back to.
    pending, doubts
        The last cut, until it is judged, and how often its judgement was put off.
    confirmed
        Whether readings are of the exported file: from the moment when the budgets first seemed met.
    done
        Whether every budget is met for good: nothing is left to do until the training ends.
    spectra
        Scores of every axis just before its first cut.
    precision
        What the run has chosen to compute in; None before, and where there is nothing to choose.
    banned
        Axes that are left alone, and why: their cut broke the law, or the network did not recover from it.
    """

    controller: control.ControllerState
    reading: Reading
    guard: control.Guard
    order: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    agreement: float | None = None
    pending: Pending | None = None
    doubts: int = 0
    confirmed: bool = False
    done: bool = False
    spectra: dict[str, tuple[float, ...]] = field(default_factory=dict)
    banned: dict[str, str] = field(default_factory=dict)
    precision: Precision | None = None

    @property
    def knows_nothing(self) -> bool:
        """Whether the network may not have learned anything yet, see `UNLEARNED`."""
        return not self.guard.learned and self.controller.pace.gone(self.controller.due_at) < UNLEARNED
