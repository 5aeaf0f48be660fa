"""What lower precisions of the model in training cost: measured with its own data, in training and before delivery."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelean.bench import Bench
from edgelean.board import Board
from edgelean.exporter.graphs import Samples
from edgelean.exporter.int8 import int8_loss
from edgelean.exporter.onnx import export_onnx
from edgelean.exporter.search import AIM, HeldOut, Loss
from edgelean.exporter.targets import ExportTarget, graph_target, graph_targets, load_target
from edgelean.shrink.recent import MOST_ELEMENTS, MOST_SAMPLES
from edgelean.surroundings import Record
from edgelean.training.rounded import computing_in
from edgelean.training.trainer import Session, batches

MOST_HELD_OUT = 2048
"""Validation samples at most by which a lower precision is judged."""

ROUNDING = "rounding"
"""The event that says whether the rest of a training is done with rounding to INT8."""


def samples_of(session: Session) -> Samples:
    """Return what lower precisions of a model are made with: training inputs, and the validation split."""
    recipe = session.recipe
    with torch.random.fork_rng():
        torch.manual_seed(session.seed)  # a training loader shuffles, and equal runs have to see equal samples
        seen = first_samples(batches(session.loaders.train, session.device, recipe.name), MOST_SAMPLES)
    held = first_samples(batches(session.loaders.validation, session.device, recipe.name), MOST_HELD_OUT)
    metric, targets = recipe.metric_function(), torch.cat([y.cpu() for _, y in held])
    return Samples(_arrays(seen), HeldOut(_arrays(held), lambda found: float(metric(torch.from_numpy(found), targets))))


def first_samples(pairs: Iterable[tuple[Tensor, Tensor]], most: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first so many samples as batches, or as many as have `MOST_ELEMENTS` elements; one in any case."""
    taken: list[tuple[Tensor, Tensor]] = []
    count = 0
    for x, y in pairs:
        room = min(most, max(1, MOST_ELEMENTS // max(1, x[:1].numel()))) - count
        if room <= 0:
            break
        taken.append((x[:room], y[:room]))
        count += len(taken[-1][0])
    return taken


def _arrays(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Sequence[Any]]:
    return [(x.cpu().numpy(),) for x, _ in pairs]


@dataclass
class Tail:
    """The last part of a training, done with rounding to INT8 where rounding afterwards would cost too much.

    Attributes
    ----------
    on
        Whether the training is in the tail and rounds; None before that was decided.
    before
        What rounding cost when it was decided, of the file that loses most.
    """

    session: Session
    bench: Bench
    board: Board
    on: bool | None = None
    before: Loss | None = None

    @classmethod
    def of(cls, session: Session, bench: Bench, board: Board, events: Iterable[Mapping[str, Any]]) -> Tail:
        """Return the tail of a training, as far as the events of a resumed run tell of it."""
        tail = cls(session, bench, board)
        for event in events:
            if event["event"] == ROUNDING:
                tail.on, tail.before = event["on"], Loss(**event["loss"])
        return tail

    @property
    def targets(self) -> tuple[ExportTarget, ...]:
        """The INT8 files that are exported, as far as it is known; without any nothing is done."""
        profile = self.bench.profile
        wanted = graph_targets([*map(load_target, profile.targets), graph_target(profile.precision, self.board.kind)])
        return tuple(target for target in wanted if target.precision == "int8")

    def computing(self) -> AbstractContextManager[Any]:
        """Return the context of a step of the training."""
        return computing_in("int8" if self.on else "fp32")

    def look(self, step: int, record: Record) -> None:
        """Decide, at the end of an epoch, once the last part of the training begins; records what was found."""
        share = self.bench.profile.accuracy.int8_tail
        begins = min((1 - share) * self.session.steps, self.session.steps - self.session.steps_per_epoch)
        if not (self.targets and share > 0 and self.on is None and begins <= step < self.session.steps):
            return
        target, self.before = self.worst()
        self.on = self.before.share_of(target.tolerances) > AIM
        then = "the rest of the training rounds to INT8" if self.on else "the training need not round"
        text = f"with every operator in INT8 {target.graph} would lose {self.before.drop:.4f} of the metric: {then}"
        record(ROUNDING, step, on=self.on, file=target.graph, loss=vars(self.before), text=text)

    def worst(self) -> tuple[ExportTarget, Loss]:
        """Return the INT8 file of the present model that loses most with every operator in INT8, and what it loses."""
        samples = samples_of(self.session)
        with tempfile.TemporaryDirectory() as scratch:
            file = export_onnx(self.bench.model, self.bench.batch, Path(scratch) / "model.onnx", metadata={})
            losses = [
                (target, int8_loss(file, target, samples.calibration, samples.held_out)) for target in self.targets
            ]
        return max(losses, key=lambda pair: pair[1].share_of(pair[0].tolerances))

    def words(self) -> tuple[str, ...]:
        """Return, after the training, what rounding in its tail won; nothing where there was none."""
        if not self.on or self.before is None:
            return ()
        target, after = self.worst()
        return (
            "The last part of the training rounded to INT8, since rounding afterwards would have cost too much. With "
            f"every operator in INT8, on the validation data: {self.before.words()} when it began, {after.words()} "
            f"after it ({target.graph}).",
        )
