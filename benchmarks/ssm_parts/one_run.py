"""One training on one thread, timed against steps at full size in the same process."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ssm_parts.tasks import Task
from benchmarks.ssm_parts.truncating import Attempts, layers_of, truncate_layers
from edgelean.recipe import Recipe
from edgelean.training.trainer import Session, batches, evaluate, prepare, train, train_step

PACE_EVERY = 20
"""So often a step at full size is timed: the machine is not equally fast all the time."""

FULL, TRUNCATED, SCRATCH = "full size", "truncated", "from scratch"


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes
    ----------
    row
        Full size, truncated in training, or small from scratch.
    tolerance
        Of the row; 0 for the full size. A small network has the states that this tolerance left for its seed.
    accuracy
        On the test split, of the epoch that was best on the validation split.
    cost
        CPU time of all steps, attempts included, over that of as many steps at full size.
    """

    task: str
    row: str
    tolerance: float
    seed: int
    states: int
    accuracy: float
    validation: float
    cost: float

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        return asdict(self)


@dataclass
class Timed:
    """A training that is told after every step and epoch what happened, and times it.

    Attributes
    ----------
    session, idle
        What is trained, and the full size beside it, of which single steps are timed.
    attempts
        When states are truncated; never where it is None.
    from_step
        Epochs that end before this step are not chosen from.
    best
        The metric of the best epoch on the validation split, and the network then.
    """

    session: Session
    idle: Session
    attempts: Attempts | None
    from_step: int
    steps_s: list[float] = field(default_factory=list)
    full_size_s: list[float] = field(default_factory=list)
    best: tuple[float, nn.Module | None] = (-1.0, None)

    def __post_init__(self) -> None:
        loader = self.session.loaders.train
        self._batch: tuple[Tensor, Tensor] = next(batches(loader, self.session.device, self.session.recipe.name))
        self._since_s = time.process_time()

    def run(self) -> None:
        """Train to the end."""
        train(self.session, self._after_step, self._after_epoch)

    def cost(self) -> float:
        """Return the CPU time of all steps over that of as many at full size."""
        return sum(self.steps_s) / (statistics.median(self.full_size_s) * self.session.steps)

    def _after_step(self, step: int, loss: float) -> None:
        if self.attempts is not None and self.attempts.due(step, self.session.steps):
            truncate_layers(self.session.model, self.session.optimizer, self._batch[0], self.attempts)
        self.steps_s.append(time.process_time() - self._since_s)
        if step % PACE_EVERY == 0:
            started_s = time.process_time()
            train_step(self.idle, *self._batch)
            self.full_size_s.append(time.process_time() - started_s)
        self._since_s = time.process_time()

    def _after_epoch(self, epoch: int, step: int, loss: float, metric: float) -> None:
        if step >= self.from_step and metric > self.best[0]:
            self.best = metric, copy.deepcopy(self.session.model)
        self._since_s = time.process_time()


def train_once(task: Task, row: str, attempts: Attempts, states: int, seed: int) -> Outcome:
    """Train a network with so many states at the start.

    Parameters
    ----------
    attempts
        Of the truncated row of this tolerance; all rows choose among the epochs after the last attempt.
    """
    session, idle = (_session(task.with_states(n), seed) for n in (states, task.states))
    timed = Timed(session, idle, attempts if row == TRUNCATED else None, attempts.last(session.steps))
    timed.run()
    validation, network = timed.best
    assert network is not None  # the attempts end before the last epoch does
    session.model.load_state_dict(network.state_dict())
    return Outcome(
        task=task.name,
        row=row,
        tolerance=0.0 if row == FULL else attempts.tolerance,
        seed=seed,
        states=sum(layer.states for layer in layers_of(session.model).values()),
        accuracy=evaluate(session, session.loaders.test),
        validation=validation,
        cost=timed.cost(),
    )


def _session(recipe: Recipe, seed: int) -> Session:
    return prepare(recipe, seed, torch.device("cpu"))
