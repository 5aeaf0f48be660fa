"""The trainings of a run: the lean model, which the closed loop steers, and the full-size one beside it.

Each writes checkpoints of its own, picks up where they end, and records its epochs and its energy as events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from edgelean.control import UNITS
from edgelean.job import Job
from edgelean.loop import ClosedLoop
from edgelean.recipe import Recipe
from edgelean.resume import pack, pack_loop, unpack, unpack_loop
from edgelean.sensors.carbon import TrainingEnergy
from edgelean.stopwatch import Stopwatch
from edgelean.training.checkpoint import Checkpoint, load_newest, save
from edgelean.training.run import Run
from edgelean.training.trainer import Session, evaluate, prepare, train

LEAN, FULL_SIZE = "lean", "full-size"


def begin(run: Run, job: Job, session: Session, loop: ClosedLoop) -> None:
    """Record what a run starts from."""
    latency, energy = loop.full_size.latency, loop.full_size.energy
    run.record(
        "start",
        0,
        recipe=job.recipe.name,
        profile=job.profile.name,
        board=job.board.title,
        target=loop.bench.target.name,
        seed=job.seed,
        epochs=job.recipe.epochs,
        steps=session.steps,
        metric_name=job.recipe.metric_name(),
        budgets=[
            {"quantity": name, "limit": limit, "unit": UNITS[name], "percentile": loop.full_size.percentile}
            for name, limit in loop.limits.items()
        ],
        full_size={
            "latency_ms": latency.value,
            "energy_mj": energy.value if energy else None,
            "provenance": latency.provenance,
            "energy_provenance": energy.provenance if energy else None,
            "parameters": loop.bench.parameters(),
            "macs": loop.bench.macs(),
            "axes": {name: axis.size for name, axis in loop.bench.anatomy.axes.items()},
        },
    )


def train_lean(session: Session, loop: ClosedLoop, run: Run, stopwatch: Stopwatch) -> None:
    """Train the model that the loop steers, from the last checkpoint if there is one."""
    folder = run.folder / "checkpoints" / LEAN

    def keep(step: int, epoch: int) -> None:
        own, steered = pack(session, step, epoch), pack_loop(loop)
        both = Checkpoint({**own.tensors, **_named("loop", steered)}, {**own.values, "loop": steered.values})
        save(folder, f"{epoch:06}", both)

    def after_epoch(epoch: int, step: int, loss: float, metric: float) -> None:
        run.record("epoch", step, epoch=epoch, loss=loss, metric=metric, metric_name=session.recipe.metric_name())
        keep(step, epoch)

    loop.record = run.record
    first = 0
    if folder.exists():
        checkpoint = load_newest(folder)
        unpacked = unpack(checkpoint, session)
        unpack_loop(Checkpoint(checkpoint.part("loop/"), checkpoint.values["loop"]), loop, unpacked)
        first = unpacked.epochs
        run.resume_at(int(checkpoint.values["step"]))
    else:
        keep(0, 0)
        loop.record_beginning()
    with stopwatch.phase("training"), _energy_of(LEAN, run):
        train(session, lambda step, loss: loop.after_step(step), after_epoch, first)
    loop.close()


@dataclass(frozen=True)
class Twin:
    """The full-size model after the same training.

    Attributes
    ----------
    metric
        On the test split.
    """

    session: Session
    metric: float


def train_full_size(recipe: Recipe, seed: int, device: torch.device, run: Run, stopwatch: Stopwatch) -> Twin:
    """Train the full-size model with the same seed and nothing else, from the last checkpoint if there is one."""
    session = prepare(recipe, seed, device)
    folder = run.folder / "checkpoints" / FULL_SIZE

    def after_epoch(epoch: int, step: int, loss: float, metric: float) -> None:
        name = recipe.metric_name()
        run.record("full_size_epoch", step, epoch=epoch, loss=loss, metric=metric, metric_name=name)
        save(folder, f"{epoch:06}", pack(session, step, epoch))

    first = unpack(load_newest(folder), session).epochs if folder.exists() else 0
    with stopwatch.phase("full-size training"), _energy_of(FULL_SIZE, run):
        train(session, lambda step, loss: None, after_epoch, first)
    return Twin(session, evaluate(session, session.loaders.test))


@contextmanager
def _energy_of(chapter: str, run: Run) -> Iterator[None]:
    """Record what a training uses; also when it is interrupted, so that a resumed run adds up."""
    watch = TrainingEnergy()
    watch.start()
    try:
        yield
    finally:
        cost = watch.stop()
        parts = {name: part._asdict() for name, part in cost.parts.items()}
        # Step 0: it was spent, wherever the run goes on.
        run.record("energy", 0, chapter=chapter, seconds=cost.seconds, kwh=cost.kwh, parts=parts, method=cost.method)


def _named(prefix: str, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in checkpoint.tensors.items()}
