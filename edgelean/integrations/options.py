"""What a person may ask of a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from edgelean.errors import InputError
from edgelean.profile import Profile
from edgelean.recipe import METRICS, Metric
from edgelean.shrink.followers import Follower
from edgelean.training.run import OnEvent

Pair = tuple[tuple[Tensor, ...], Tensor]
"""The inputs of a model for one batch, and what is to come out."""

ReadBatch = Callable[[Any], Pair]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a callback does, beyond the profile.

    Attributes
    ----------
    profile, latency, energy, target, protect, followers, on_event, name
        As for `edgelean.attach`.
    out
        Folder of the run: events, bundle and report. Left out: a bundle in ``bundle``, and nothing else.
    example_inputs
        One batch of each input of the model; left out: those of the first batch of the training data.
    metric
        ``"accuracy"``, ``"r2"``, or ``metric(outputs, targets)`` over a whole split, higher is better. Cuts are judged
        by it on the validation data of the trainer, and the exported files on the test data.
    validate
        Gives the metric that cuts are judged by instead.
    monitor, mode
        Name of a metric that the trainer logs in its validation, and whether ``"max"`` or ``"min"`` is better: cuts are
        judged by that instead, and each one waits for the next validation.
    test
        What the exported files are verified on: ``(inputs, targets)``, or batches like those of the training. Left out:
        the validation data.
    batch
        Takes a batch of the trainer apart: ``batch(batch)`` is the tuple of the model's inputs, and the targets.
    network
        Path of the module in a LightningModule that is cut and exported, such as ``"net"``; left out: all of it.
    """

    profile: str | Path | Profile
    latency: str | None = None
    energy: str | None = None
    target: str | None = None
    protect: str | Sequence[str] = ()
    followers: Sequence[Follower] = ()
    on_event: OnEvent | None = None
    name: str = "model"
    out: str | Path | None = None
    example_inputs: Tensor | tuple[Tensor, ...] | None = None
    metric: str | Metric = "accuracy"
    validate: Callable[[], float | None] | None = None
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    test: tuple[Any, Tensor] | Iterable[Any] | None = None
    batch: ReadBatch | None = None
    network: str = ""

    def metric_function(self) -> Metric:
        """Return the metric as a function.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        if not isinstance(self.metric, str):
            return self.metric
        if self.metric not in METRICS:
            raise InputError(f"metric {self.metric!r} is not known: use one of {', '.join(METRICS)}, or a function")
        return METRICS[self.metric]
