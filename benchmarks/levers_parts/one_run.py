"""One training of the ResNet, timed against steps at full size in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.levers_parts.images import BATCH, Images, load_images, normalised
from benchmarks.levers_parts.lever import Lever
from benchmarks.levers_parts.network import ResNet8, small_network
from benchmarks.levers_parts.shrinking import Shrinking
from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.profile import load_profile
from edgelean.shrink.axes import dissect
from edgelean.stopwatch import Stopwatch
from edgelean.target.modelled import ModelledTarget
from edgelean.training.trainer import learning_rate_share

EPOCHS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 5, 0.1, 0.9, 5e-4

TEMPERATURE, TEACHING = 2.0, 0.5
"""Of the distillation: what softens both outputs, and the teacher's share of the loss."""

PACE_EVERY = 25
"""So often a step at full size is timed: the machine is not equally fast all the time."""


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes
    ----------
    share
        Multiply-accumulates that were to be left, of those of the full size; `macs` is what is left.
    accuracy
        On the test images, after the last step.
    cost
        CPU time of all steps, observation included, over that of as many plain steps at full size.
    surgery_s
        CPU time of analysis and cuts.
    nats
        Loss that the cuts were predicted to cost.
    widths
        Channels of each axis at the end.
    """

    row: str
    share: float
    seed: int
    accuracy: float
    cost: float
    surgery_s: float
    macs: float
    parameters: int
    nats: float
    widths: dict[str, int]
    epochs: int = EPOCHS

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types."""
        return asdict(self)


@dataclass
class Laps:
    """CPU time, by what it went into: steps, analysis and cuts, single steps at full size."""

    steps_s: list[float] = field(default_factory=list)
    surgery_s: list[float] = field(default_factory=list)
    full_size_s: list[float] = field(default_factory=list)


@contextmanager
def timed(laps_s: list[float]) -> Iterator[None]:
    """Append the CPU time of what happens inside."""
    started_s = time.process_time()
    yield
    laps_s.append(time.process_time() - started_s)


def train(lever: Lever, share: float, seed: int, widths: dict[str, int]) -> Outcome:
    """Train once, on one thread.

    Parameters
    ----------
    widths
        For a small network from scratch, its channels.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, laps = load_images(), Laps()
    example = normalised(images.x_train[:8]).contiguous()
    network = small_network(widths, example) if lever.kind == "small" else ResNet8()
    optimizer, shrinking = sgd(network), None
    if lever.kind == "shrunk":
        with timed(laps.surgery_s):
            shrinking = Shrinking(lever, share, steps_of(images), bench_of(network, example), optimizer, seed)
    _train(network, optimizer, shrinking, images, seed, laps)
    found = dissect(network, (example,))
    return Outcome(
        row=lever.name,
        share=share,
        seed=seed,
        accuracy=accuracy(network, images),
        cost=statistics.fmean(laps.steps_s) / statistics.median(laps.full_size_s),
        surgery_s=sum(laps.surgery_s),
        macs=found.structure.macs({}) / dissect(ResNet8(), (example,)).structure.macs({}),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        nats=shrinking.nats if shrinking else 0.0,
        widths={name: axis.size for name, axis in found.axes.items()},
    )


def steps_of(images: Images) -> int:
    """Return the steps of one training."""
    return EPOCHS * (len(images.x_train) // BATCH)


def sgd(network: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of all rows."""
    return torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)


def bench_of(network: nn.Module, example: Tensor) -> Bench:
    """Return a network taken apart; its target is never asked."""
    profile = load_profile("jetson-orin")
    target = ModelledTarget(load_board(profile.board), profile.precision, profile.batch)
    return Bench(network, (example,), profile, target, Stopwatch())


def _train(
    network: nn.Module, optimizer: torch.optim.SGD, shrinking: Shrinking | None, images: Images, seed: int, laps: Laps
) -> None:
    idle = ResNet8()
    step, steps, idle_optimizer = 0, steps_of(images), sgd(idle)
    for epoch in range(EPOCHS):
        for x, y in images.batches(seed, epoch):
            if step % PACE_EVERY == 0:
                with timed(laps.full_size_s):
                    train_step(idle, idle_optimizer, loss_of(idle(x), y))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * learning_rate_share(step, steps) * _rewarmed(shrinking, step)
            with timed(laps.steps_s):
                train_step(network, optimizer, loss_of(network(x), y, _taught(shrinking, step, x)))
                step += 1
                if shrinking is not None:
                    shrinking.after_step(step)
            if shrinking is not None:
                with timed(laps.surgery_s):
                    shrinking.cut_if_due(step)


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Do one step of the optimizer."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has not typed it
    optimizer.step()


def loss_of(output: Tensor, y: Tensor, taught: Tensor | None = None) -> Tensor:
    """Return the cross-entropy, or what a teacher's output makes of it."""
    loss = functional.cross_entropy(output, y)
    if taught is None:
        return loss
    soft = functional.kl_div(
        torch.log_softmax(output / TEMPERATURE, 1), torch.softmax(taught / TEMPERATURE, 1), reduction="batchmean"
    )
    return (1 - TEACHING) * loss + TEACHING * TEMPERATURE**2 * soft


def _rewarmed(shrinking: Shrinking | None, step: int) -> float:
    """Return the share of the learning rate that there is so soon after a cut."""
    if shrinking is None or shrinking.last is None or not shrinking.lever.rewarmed:
        return 1.0
    return min(1.0, (step - shrinking.last + 1) / (shrinking.lever.rewarmed * shrinking.steps))


def _taught(shrinking: Shrinking | None, step: int, x: Tensor) -> Tensor | None:
    if shrinking is None or shrinking.teacher is None or not shrinking.recent(step, shrinking.lever.taught):
        return None
    with torch.no_grad():
        output: Tensor = shrinking.teacher(x)
        return output


def accuracy(network: nn.Module, images: Images) -> float:
    """Return the share of the test images that a network names rightly."""
    network.eval()
    with torch.no_grad():
        right = [
            (network(normalised(x)).argmax(1) == y).sum()
            for x, y in zip(torch.split(images.x_test, 500), torch.split(images.y_test, 500), strict=True)
        ]
    return int(sum(right)) / len(images.y_test)
