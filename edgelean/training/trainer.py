"""The training loop: data, optimizer, schedule, evaluation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from edgelean.errors import DivergenceError, InputError
from edgelean.nn import check_poles
from edgelean.recipe import Data, Recipe, Source, call_users
from edgelean.shrink.inputs import checked_inputs, refuse_unready
from edgelean.training import randomness

LOOK_BATCHES = 200
"""So many batches of each split are searched for NaN before the training."""

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises to its full value."""


@dataclass(frozen=True)
class Loaders:
    """One loader per split; only the training one shuffles."""

    train: DataLoader[Any]
    validation: DataLoader[Any]
    test: DataLoader[Any]


@dataclass(frozen=True)
class Session:
    """A model with everything that trains it.

    Attributes
    ----------
    steps
        All steps of the training.
    """

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    loaders: Loaders
    device: torch.device
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return len(self.loaders.train)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch


def prepare(recipe: Recipe, seed: int, device: torch.device) -> Session:
    """Build a recipe's model, loaders and optimizer, and try one batch.

    Raises
    ------
    InputError
        If the recipe's own functions fail (its traceback is shown), the data holds NaN, or the model, loss and
        data do not fit together.
    """
    randomness.seed(seed)
    model = call_users(recipe.model, f"recipe {recipe.name!r}: model() failed")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"recipe {recipe.name!r}: model() gave a {type(model).__name__}, it has to give a torch.nn.Module"
        )
    _told_of(recipe, "", lambda: refuse_unready(model))
    _told_of(recipe, "", lambda: check_poles(model))
    loaders = _loaders(recipe)
    model.to(device)
    _refuse_unfit(recipe, loaders, device)
    _try_one_batch(recipe, model, loaders, device)
    make = recipe.optimizer or (
        lambda parameters: torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    )
    optimizer = call_users(lambda: make(model.parameters()), f"recipe {recipe.name!r}: optimizer() failed")
    steps = recipe.epochs * len(loaders.train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    return Session(recipe, model, optimizer, schedule, loaders, device, seed)


def _told_of(recipe: Recipe, what: str, look: Callable[[], object]) -> None:
    """Look at something of a recipe; a refusal names the recipe."""
    try:
        look()
    except InputError as error:
        raise InputError(f"recipe {recipe.name!r}: {what}{error}") from None


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the full learning rate at a step: a linear rise, then a cosine to zero."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _loaders(recipe: Recipe) -> Loaders:
    found = call_users(recipe.data, f"recipe {recipe.name!r}: data() failed")
    if not isinstance(found, Data):
        if not (isinstance(found, (tuple, list)) and len(found) == 3):
            raise InputError(
                f"recipe {recipe.name!r}: data() has to give (train, validation, test), it gave {_kind(found)}"
            )
        found = Data(*found)
    return Loaders(
        _loader(found.train, recipe, shuffle=True),
        _loader(found.validation, recipe, shuffle=False),
        _loader(found.test, recipe, shuffle=False),
    )


def _kind(found: object) -> str:
    return f"{len(found)} parts" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"


def _loader(source: Source, recipe: Recipe, *, shuffle: bool) -> DataLoader[Any]:
    if isinstance(source, DataLoader):
        return source
    if not isinstance(source, Dataset):
        raise InputError(
            f"recipe {recipe.name!r}: data() gave a {type(source).__name__} instead of a Dataset or DataLoader"
        )
    sized = cast(Sized, source)
    if len(sized) == 0:
        raise InputError(f"recipe {recipe.name!r}: one of the data sets is empty")
    if not shuffle:
        # Evaluation has no gradients to keep, so its batches can be larger.
        return DataLoader(source, batch_size=4 * recipe.batch_size)
    size = min(recipe.batch_size, len(sized))
    return DataLoader(source, batch_size=size, sampler=RandomSampler(sized), drop_last=True)


def _refuse_unfit(recipe: Recipe, loaders: Loaders, device: torch.device) -> None:
    """Look for NaN in the beginning of each split; a hole that comes later shows in the loss.

    A model is exported for samples of one shape, that of the first of the validation split. Others in the test split
    would only be found by the verification, when the training is over.
    """
    taken: torch.Size | None = None
    for name in ("train", "validation", "test"):
        for x, y in islice(batches(getattr(loaders, name), device, recipe.name), LOOK_BATCHES):
            for part in (x, y):
                if part.is_floating_point() and not torch.isfinite(part).all():
                    problem = f"the {name} data holds NaN or infinite values: clean it first"
                    raise InputError(f"recipe {recipe.name!r}: {problem}")
            if name == "validation":
                taken = taken or x.shape[1:]
            if name == "test" and taken is not None and x.shape[1:] != taken:
                raise InputError(
                    f"recipe {recipe.name!r}: the test split has samples of the shape {list(x.shape[1:])}, the "
                    f"validation split has {list(taken)}; an exported model takes one shape (of sequences: one "
                    "length): cut and pad them to it"
                )


def _try_one_batch(recipe: Recipe, model: nn.Module, loaders: Loaders, device: torch.device) -> None:
    model.eval()  # batch statistics of this trial must not stay in the model
    with torch.no_grad():
        x, y = next(batches(loaders.train, device, recipe.name))
        _told_of(recipe, "the model fails on a batch of the training data: ", lambda: checked_inputs(model, x))
        output = call_users(lambda: model(x), f"recipe {recipe.name!r}: the model fails on a batch {tuple(x.shape)}")
        loss = call_users(lambda: recipe.loss(output, y), f"recipe {recipe.name!r}: the loss fails")
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        raise InputError(
            f"recipe {recipe.name!r}: loss(output, target) has to give one number, the mean over the batch"
        )
    model.train()


END = object()
"""What comes after the last batch."""


def batches(loader: DataLoader[Any], device: torch.device, recipe: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(input, target)`` on the device.

    Raises
    ------
    InputError
        If the loader fails, or yields something else.
    """
    failed = f"recipe {recipe!r}: the data cannot be read"
    items = call_users(lambda: iter(loader), failed)
    while (item := call_users(lambda: next(items, END), failed)) is not END:
        if not (isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, Tensor) for part in item)):
            raise InputError(
                f"recipe {recipe!r}: the data has to yield (input, target) tensors, it yields {_kind(item)}"
            )
        yield item[0].to(device), item[1].to(device)


Computing = Callable[[], AbstractContextManager[Any]]
AfterStep = Callable[[int, float], None]
AfterEpoch = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class Place:
    """Where a training is.

    Attributes
    ----------
    step
        Steps done, in all.
    epoch
        Epochs done.
    batch
        Batches done of the epoch after those; 0 between two epochs.
    loss
        Sum of the losses of these batches.
    random
        States of the random numbers there, of `randomness.states`; None between two epochs, where the seed tells them.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    random: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None


BEGINNING = Place()
Keep = Callable[[Place], None]


def train(
    session: Session,
    after_step: AfterStep,
    after_epoch: AfterEpoch,
    keep: Keep = lambda place: None,
    place: Place = BEGINNING,
    computing: Computing = nullcontext,
) -> None:
    """Train a model.

    Every epoch starts its random numbers from the seed and its own number, so a resumed training sees the same
    batches as one that was never interrupted.

    Parameters
    ----------
    after_step
        Called with the number of steps done and the loss; may cut the model.
    after_epoch
        Called with the number of epochs done, of steps done, the mean loss and the validation metric.
    keep
        Called wherever the training could be taken up again: after every step, at the end of an epoch last of all.
    place
        Where the training is taken up.
    computing
        Gives the context in which the model and the loss are computed, for every step.

    Raises
    ------
    DivergenceError
        If the loss is not a finite number.
    """
    step = place.step
    for epoch in range(place.epoch, session.recipe.epochs):
        begun = place if epoch == place.epoch else Place(step, epoch)
        _seed(session, epoch)
        session.model.train()
        total = begun.loss
        for batch, (x, y) in enumerate(_batches_from(begun, session), begun.batch + 1):
            loss = train_step(session, x, y, computing)
            step += 1
            _refuse_divergence(session, step, loss)
            total += loss
            after_step(step, loss)
            if batch < session.steps_per_epoch:
                keep(Place(step, epoch, batch, total))
        after_epoch(epoch + 1, step, total / session.steps_per_epoch, evaluate(session, session.loaders.validation))
        keep(Place(step, epoch + 1))


def _seed(session: Session, epoch: int) -> None:
    number = session.seed * 100_003 + epoch
    randomness.seed(number)
    randomness.seed_loader(session.loaders.train, number)
    if callable(tell := getattr(session.loaders.train.sampler, "set_epoch", None)):
        tell(epoch)


def _batches_from(place: Place, session: Session) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is left of an epoch. The batches before are gone through, for the random numbers that they take."""
    found = batches(session.loaders.train, session.device, session.recipe.name)
    if place.random is not None:
        deque(islice(found, place.batch), maxlen=0)
        randomness.put_back(*place.random)
    return found


def _refuse_divergence(session: Session, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss is {loss} at step {step} of {session.steps}: lower the learning rate "
            f"(now {session.recipe.learning_rate:g}, --set learning_rate=...) or look at the data"
        )


def train_step(session: Session, x: Tensor, y: Tensor, computing: Computing = nullcontext) -> float:
    """Do one step of the optimizer and the schedule; return the loss."""
    session.optimizer.zero_grad(set_to_none=True)
    with computing():
        loss = session.recipe.loss(session.model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has not typed it
    session.optimizer.step()
    session.schedule.step()
    return float(loss.detach())


def predictions(model: nn.Module, loader: DataLoader[Any], device: torch.device, recipe: str) -> tuple[Tensor, Tensor]:
    """Return all outputs and all targets of a split, on the CPU, in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            pairs = [(model(x).cpu(), y.cpu()) for x, y in batches(loader, device, recipe)]
    finally:
        model.train(training)
    return torch.cat([output for output, _ in pairs]), torch.cat([target for _, target in pairs])


def evaluate(session: Session, loader: DataLoader[Any]) -> float:
    """Return the recipe's metric on a split."""
    output, target = predictions(session.model, loader, session.device, session.recipe.name)
    metric = session.recipe.metric_function()
    return call_users(lambda: float(metric(output, target)), f"recipe {session.recipe.name!r}: the metric fails")


def mean_loss(session: Session, loader: DataLoader[Any]) -> float:
    """Return the mean loss per sample on a split, in evaluation mode; the mode is put back."""
    training = session.model.training
    session.model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for x, y in batches(loader, session.device, session.recipe.name):
                total += len(x) * float(session.recipe.loss(session.model(x), y))
                count += len(x)
    finally:
        session.model.train(training)
    return total / max(count, 1)
