"""What the closed loop is put into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from edgelean.board import Board
from edgelean.reading import Reading
from edgelean.shrink.followers import Follower
from edgelean.stopwatch import Stopwatch


class Record(Protocol):
    """Takes the events of the loop: writes them down, shows them."""

    def __call__(self, event: str, step: int, **fields: Any) -> object:
        """Take one event."""


@dataclass(frozen=True)
class Surroundings:
    """What the loop works with.

    Attributes
    ----------
    board
        Whose channel alignment sets the width of a step.
    steps
        Steps of the whole training.
    validate
        Gives the metric on the validation data, higher is better; None if there is none, and then no cut is
        judged by it. While it gives None itself, the metric of the present model is not known
        yet, and the next cut waits.
    model
        The model as the training calls it, where that is not the network itself: for several processes, or compiled.
    loss
        Gives the mean loss on the validation data; None if there is none, and then the run cannot choose a precision.
    followers
        What is cut along, beside the optimizer of the loop.
    full_size
        The reading of the model before the first cut, where an earlier part of the run has taken it: budgets that are
        shares of it stay what they were.
    """

    board: Board
    steps: int
    validate: Callable[[], float | None] | None
    stopwatch: Stopwatch
    model: nn.Module | None = None
    followers: tuple[Follower, ...] = ()
    full_size: Reading | None = None
    loss: Callable[[], float] | None = None
