"""The trainings of a run: the lean model, which the closed loop steers, and the full-size one beside it.

Each writes checkpoints of its own, picks up where they end, and records its epochs and its energy as events.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgelean.errors import DivergenceError, EdgeleanError, InputError
from edgelean.job import About, Job
from edgelean.loop import ClosedLoop
from edgelean.lowering import Tail
from edgelean.recipe import Recipe
from edgelean.resume import pack, pack_loop, unpack, unpack_loop
from edgelean.sensors.carbon import TrainingCost, TrainingEnergy
from edgelean.stopwatch import Stopwatch
from edgelean.training.checkpoint import Checkpoint, Found, discard, find_newest
from edgelean.training.durable import REMEDIES, in_words
from edgelean.training.keeper import Keeper
from edgelean.training.run import ASKED, SPENT, TWIN, Run
from edgelean.training.trainer import BEGINNING, Place, Session, evaluate, prepare, train

CHECKPOINTS = "checkpoints"
LEAN, FULL_SIZE = "lean", "full-size"

NOWHERE = -1
"""The step before all others."""


def found_in(run: Run) -> Found | None:
    """Return the checkpoint from which the lean training of a run goes on; None if it never had come to one.

    Raises
    ------
    InputError
        If no checkpoint is whole, or they are of another run than what was asked.
    """
    found = find_newest(run.folder / CHECKPOINTS / LEAN)
    if found is not None and found.checkpoint.values["asked"] != run.fingerprint():
        raise InputError(f"{run.folder / ASKED} is not what the run began with: put it back, or start the run anew")
    return found


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Add to a failure how to go on once its cause is gone.

    Raises
    ------
    InputError
        If a disk is full, or takes nothing for another reason.
    """
    how = f"the run can go on: edgelean fit --resume {run.folder}"
    try:
        yield
    except DivergenceError:
        raise  # would come again
    except EdgeleanError as error:
        error.add_note(how)
        raise
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        somewhere = f"a file in {run.folder} or {tempfile.gettempdir()}"
        failure = in_words(error.filename or somewhere, error)
        failure.add_note(how)
        raise failure from None


def begin(run: Run, about: About, loop: ClosedLoop) -> None:
    """Record what a run starts from; what a killed process recorded before its first checkpoint no longer counts."""
    if run.events():
        run.go_on(NOWHERE)
    run.record(
        "start",
        0,
        recipe=about.name,
        profile=about.profile.name,
        board=about.board.title,
        target=loop.bench.target.name,
        seed=about.seed,
        epochs=about.epochs,
        steps=about.steps,
        metric_name=about.metric_name,
        budgets=[
            {
                "quantity": budget.quantity,
                "limit": loop.limits.get(budget.quantity, budget.limit),
                "unit": budget.unit,
                "percentile": budget.percentile,
            }
            for budget in about.profile.budgets.given
        ],
        reach={name: asdict(reach) for name, reach in loop.reach.items()},
        full_size={
            **loop.bench.told(loop.full_size),
            "axes": {name: axis.size for name, axis in loop.bench.anatomy.axes.items()},
        },
    )


def take_up(run: Run, job: Job, session: Session, loop: ClosedLoop, earlier: Found) -> Place:
    """Put a training where its last checkpoint is, and its events, too."""
    checkpoint = earlier.checkpoint
    unpacked = unpack(checkpoint, session)
    unpack_loop(Checkpoint(checkpoint.part("loop/"), checkpoint.values["loop"]), loop, unpacked)
    run.go_on(unpacked.place.step)
    for note in job.changes:
        run.record("note", 0, text=note)
    _settle(run, earlier, loop.around.stopwatch)
    return unpacked.place


def _settle(run: Run, earlier: Found, stopwatch: Stopwatch) -> None:
    """Count what the earlier parts of a training took, also if a process was killed that could not record it."""
    values = earlier.checkpoint.values
    stopwatch.add(values["timing"])
    told = {(event["chapter"], event["part"]) for event in run.events() if event["event"] == SPENT}
    if values["spent"] is not None and (values["spent"]["chapter"], values["spent"]["part"]) not in told:
        run.record(SPENT, 0, **values["spent"])
    for path in earlier.damaged:
        run.record("note", 0, text=f"checkpoint {path.name} was damaged, the run went on from {earlier.path.name}")
        discard(path)


def train_lean(session: Session, loop: ClosedLoop, run: Run, stopwatch: Stopwatch, place: Place) -> None:
    """Train the model that the loop steers, from where an earlier part of the run had come to."""
    account = Account(LEAN, run, stopwatch, {})

    def packed(place: Place) -> Checkpoint:
        own, steered = pack(session, place), pack_loop(loop)
        values = {**own.values, "loop": steered.values, **account.told(place)}
        return Checkpoint({**own.tensors, **_named("loop", steered)}, values)

    def after_epoch(epoch: int, step: int, loss: float, metric: float) -> None:
        run.record("epoch", step, epoch=epoch, loss=loss, metric=metric, metric_name=session.recipe.metric_name())
        with stopwatch.phase("evaluating"):
            tail.look(step, run.record)

    keep = Keeper(run.folder / CHECKPOINTS / LEAN, packed, run.flush)
    if place == BEGINNING:
        keep(place)
    tail = Tail.of(session, loop.bench, loop.around.board, run.events())
    if place.epoch < session.recipe.epochs:  # else it is exported once more, and the sensors alone would count
        with stopwatch.phase("training"), account:
            train(session, lambda step, loss: loop.after_step(step), after_epoch, keep, place, tail.computing)
    loop.close()
    loop.bench.notes += tail.words()


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
    folder = run.folder / CHECKPOINTS / FULL_SIZE
    account = Account(FULL_SIZE, run, stopwatch, stopwatch.seconds())

    def packed(place: Place) -> Checkpoint:
        own = pack(session, place)
        return Checkpoint(own.tensors, {**own.values, **account.told(place)})

    def after_epoch(epoch: int, step: int, loss: float, metric: float) -> None:
        name = recipe.metric_name()
        run.record(TWIN, step, epoch=epoch, loss=loss, metric=metric, metric_name=name)

    earlier, place = find_newest(folder), BEGINNING
    if earlier is not None:
        place = unpack(earlier.checkpoint, session).place
        _settle(run, earlier, stopwatch)
    if place.epoch < recipe.epochs:
        with stopwatch.phase("full-size training"), account:
            train(session, lambda step, loss: None, after_epoch, Keeper(folder, packed, run.flush), place)
    return Twin(session, evaluate(session, session.loaders.test))


class Account(AbstractContextManager["Account"]):
    """What a training takes: recorded when it ends or is interrupted, and in each checkpoint in case it is killed.

    Parameters
    ----------
    chapter
        The name of the training.
    before_s
        Seconds per phase that belong to what came before.
    """

    def __init__(self, chapter: str, run: Run, stopwatch: Stopwatch, before_s: Mapping[str, float]) -> None:
        self._chapter, self._run, self._stopwatch, self._before_s = chapter, run, stopwatch, before_s
        self._asked = run.fingerprint()
        self._watch = TrainingEnergy()

    def __enter__(self) -> Account:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        fields = self._fields(self._watch.stop())
        # What ended the training is told, not that the disk is too full for this as well.
        with nullcontext() if kind is None else suppress(InputError):
            # Step 0: it was spent, wherever the run goes on.
            self._run.record(SPENT, 0, **fields)

    def told(self, place: Place) -> dict[str, Any]:
        """Return what a checkpoint says of the run: what was asked, and what was spent until then."""
        spent = None if place == BEGINNING else self._fields(self._watch.so_far())
        return {"asked": self._asked, "spent": spent, "timing": self._timing()}

    def _timing(self) -> dict[str, float]:
        """Return the seconds per phase of this training, earlier parts of it included."""
        now = self._stopwatch.seconds()
        return {name: seconds - self._before_s.get(name, 0.0) for name, seconds in now.items()}

    def _fields(self, cost: TrainingCost) -> dict[str, Any]:
        parts = {name: part._asdict() for name, part in cost.parts.items()}
        whose = {"chapter": self._chapter, "part": self._run.part}
        return whose | {"seconds": cost.seconds, "kwh": cost.kwh, "parts": parts, "method": cost.method}


def _named(prefix: str, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in checkpoint.tensors.items()}
