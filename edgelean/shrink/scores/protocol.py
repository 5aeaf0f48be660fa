"""What a score has to offer; `edgelean.testing.score_contract` says how it has to behave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.plan import Plan
from edgelean.shrink.scores.flow import Flow

Running = tuple[tuple[int, ...], tuple[float, ...]]
"""The order in which units go (empty for states), and the summed price of removing the first 0, 1, 2, ... of them."""


class Score(Protocol):
    """Prices the units of axes, from what it sees of a few steps of the training.

    Attributes
    ----------
    active
        Whether the coming step is observed.
    """

    active: bool

    @property
    def flows(self) -> Mapping[str, Flow]:
        """What has been observed, by the path of the module: the refit and the truncation of states need it, too."""

    def watch(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Put hooks on a model; they do nothing while the score is not active, and change no result ever."""

    def release(self) -> None:
        """Take the hooks away."""

    def observe_gradients(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Look at the gradients of the parameters, after the backward pass of a step that is observed."""

    def unit_prices(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return the price of each unit of an axis of channels, ``[size]``, if it went alone; None if none is known."""

    def removal_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the order in which units go, and running prices: they start at 0 and never fall. None if unknown."""

    def spectrum(self, axis: Axis, model: nn.Module) -> tuple[float, ...]:
        """Return what the units of an axis are worth, the most valuable first."""

    def forget(self, plan: Plan, axes: Mapping[str, Axis]) -> None:
        """Drop what is known of removed units; what is known of the others stays. The axes are those before the cut."""

    def turned(self, axes: Iterable[Axis]) -> None:
        """Drop what has been observed of the readers of some axes: what they read has another basis now."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that has been observed, by name: it goes into snapshots and checkpoints."""

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned earlier."""
