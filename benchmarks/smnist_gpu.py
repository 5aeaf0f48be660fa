"""The sMNIST rows of the paper on a GPU: one linear recurrent unit of 8 features, 256 states truncated in training.

Needs EDGELEAN_DATA. Four trainings side by side: uncompressed, and truncated to about 47, 28 and 13 states, which the
paper's figures are for. They advance in turns, so that their times compare and every call leaves all at the same step.
The state of all is in one file; a call goes on where the last one stopped, until all steps are done:

    python benchmarks/smnist_gpu.py --state smnist.pt --minutes 9

Truncation: four attempts in the first 10 % of the steps, each by a tolerance on the sum of the Hankel singular values,
but not below the states of the row. The learning rate warms up and falls along a cosine over all steps. The accuracy is
that of the test split where the validation split was best. Exits 1 until every goal is reached.

References
----------
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ssm_parts.truncating import Attempts, layers_of, truncate_layers
from edgelean.errors import EdgeleanError, InputError
from edgelean.recipe import accuracy
from edgelean.recipes.smnist import STATES, load_data, pixel_net, recipe
from edgelean.training.trainer import learning_rate_share

AT_ONCE = 500
"""Images of one evaluation step."""

TOO_MANY = 1.1
"""A row may end with this many times the states of the paper's, which are means over seeds."""


@dataclass(frozen=True)
class Row:
    """A row of the paper's table: its states and test accuracy, and the tolerance by which we get there."""

    states: int
    paper: float
    tolerance: float = 0.0


ROWS = (Row(256, 0.973), Row(47, 0.969, 0.02), Row(28, 0.969, 0.04), Row(13, 0.959, 0.08))


@dataclass(frozen=True)
class Settings:
    """What has to be the same in every call."""

    steps: int
    states: int
    turn: int
    batch: int
    seed: int
    images: int


@dataclass
class Lane:
    """One training.

    Attributes
    ----------
    seconds
        Of its steps and attempts, evaluation left out.
    validation, test
        Best accuracy on the validation split after the last attempt, and on the test split then.
    """

    row: Row
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    validation: float = -1.0
    test: float = 0.0

    @property
    def states(self) -> int:
        """States that are left."""
        return sum(layer.states for layer in layers_of(self.model).values())


@dataclass
class Images:
    """The splits on a device: pixels ``[n, 784, 1]`` and digits ``[n]``."""

    splits: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def on(cls, device: torch.device, at_most: int) -> Images:
        """Load the first so many images of each split."""
        data = load_data()
        found = {}
        for name in ("train", "validation", "test"):
            pixels, digits = (tensor[:at_most] for tensor in getattr(data, name).tensors)
            found[name] = pixels.to(device), digits.to(device)
        return cls(found)

    def accuracy(self, model: nn.Module, split: str) -> float:
        """Return the share of a split that a network names rightly."""
        pixels, digits = self.splits[split]
        model.eval()
        with torch.no_grad():
            found = torch.cat([model(some) for some in torch.split(pixels, AT_ONCE)])
        model.train()
        return accuracy(found, digits)


def open_lanes(settings: Settings, file: Path, device: torch.device) -> list[Lane]:
    """Return the trainings as a file left them, or new ones.

    Raises
    ------
    InputError
        If the file is of other settings.
    """
    if not file.exists():
        return [_lane(row, settings.states, settings.seed, device) for row in ROWS]
    held = torch.load(file, map_location=device, weights_only=True)
    if held["settings"] != vars(settings):
        raise InputError(f"{file} is of other settings, {held['settings']}: give these, or another --state")
    lanes = []
    for row, plain in zip(ROWS, held["lanes"], strict=True):
        lane = _lane(row, plain["states"], settings.seed, device)
        lane.model.load_state_dict(plain["model"])
        lane.optimizer.load_state_dict(plain["optimizer"])
        for name in ("step", "seconds", "validation", "test"):
            setattr(lane, name, plain[name])
        lanes.append(lane)
    return lanes


def _lane(row: Row, states: int, seed: int, device: torch.device) -> Lane:
    torch.manual_seed(seed)
    model = pixel_net(states=states).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    return Lane(row, model, optimizer)


def save(settings: Settings, lanes: Sequence[Lane], file: Path) -> None:
    """Write the trainings so that a call that is broken off leaves the last whole state."""
    plain = [
        {
            "states": lane.states,
            "model": lane.model.state_dict(),
            "optimizer": lane.optimizer.state_dict(),
            **{name: getattr(lane, name) for name in ("step", "seconds", "validation", "test")},
        }
        for lane in lanes
    ]
    part = file.with_name(file.name + ".part")
    torch.save({"settings": vars(settings), "lanes": plain}, part)
    part.replace(file)


def take_turn(lane: Lane, images: Images, settings: Settings) -> None:
    """Do the steps of one turn, then evaluate.

    Every turn starts its random numbers from the seed and its step: a call that goes on sees the same batches.
    """
    attempts = Attempts(lane.row.tolerance, least=min(lane.row.states, settings.states))
    torch.manual_seed(settings.seed * 1_000_003 + lane.step)
    pixels, digits = images.splits["train"]
    started_s = time.perf_counter()
    for _ in range(min(settings.turn, settings.steps - lane.step)):
        chosen = torch.randint(len(pixels), (settings.batch,), device=pixels.device)
        for group in lane.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(lane.step, settings.steps)
        lane.optimizer.zero_grad(set_to_none=True)
        recipe.loss(lane.model(pixels[chosen]), digits[chosen]).backward()  # type: ignore[no-untyped-call]  # torch has not typed it
        lane.optimizer.step()
        lane.step += 1
        if lane.row.tolerance and attempts.due(lane.step, settings.steps):
            truncate_layers(lane.model, lane.optimizer, pixels[chosen], attempts)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    lane.seconds += time.perf_counter() - started_s
    validation = images.accuracy(lane.model, "validation")
    if lane.step >= attempts.last(settings.steps) and validation > lane.validation:
        lane.validation, lane.test = validation, images.accuracy(lane.model, "test")


def lines(lanes: Sequence[Lane], settings: Settings) -> Iterator[str]:
    """Yield the table, with the paper's figures beside ours as goals."""
    yield f"{'row':>14s}{'step':>9s}{'states':>8s}{'validation':>12s}{'test':>8s}{'seconds':>9s}{'speed-up':>10s}"
    for lane in lanes:
        name = f"to {lane.row.states}" if lane.row.tolerance else "uncompressed"
        figures = f"{max(0.0, lane.validation):12.2%}{lane.test:8.2%}{lane.seconds:9.0f}"
        speed_up = f"{lanes[0].seconds / max(lane.seconds, 1e-9):9.2f}x"
        goal = f"goal: {lane.row.paper:.1%} at about {lane.row.states}"
        missed = "" if reached(lane) else "  MISSED" if lane.step >= settings.steps else "  not yet"
        yield f"{name:>14s}{lane.step:9d}{lane.states:8d}{figures}{speed_up}   {goal}{missed}"


def reached(lane: Lane) -> bool:
    """Tell whether a training is as accurate as the paper's with no more states."""
    return lane.test >= lane.row.paper and lane.states <= TOO_MANY * lane.row.states


def asked(arguments: Sequence[str] | None = None) -> tuple[Settings, argparse.Namespace]:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, metavar="FILE", help="where the trainings are kept")
    parser.add_argument("--minutes", type=float, default=9.0, help="after these no further turn begins")
    parser.add_argument("--device", default="cuda", help="where to train; cpu for a trial")
    parser.add_argument("--steps", type=int, default=60_000, help="of each training; the paper's are 200,000")
    parser.add_argument("--turn", type=int, default=500, help="steps of one turn")
    parser.add_argument("--states", type=int, default=STATES, help="at the start")
    parser.add_argument("--batch", type=int, default=recipe.batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=60_000, help="at most so many of each split, for a trial")
    found = parser.parse_args(arguments)
    settings = Settings(found.steps, found.states, found.turn, found.batch, found.seed, found.images)
    return settings, found


def main() -> int:
    """Go on with the trainings for a while; returns the exit code."""
    settings, arguments = asked()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU on this machine; --device cpu is for a trial")
        return 1
    try:
        lanes, images = open_lanes(settings, arguments.state, device), Images.on(device, settings.images)
    except EdgeleanError as error:
        print(f"smnist_gpu: {error}", file=sys.stderr)
        return error.exit_code
    ends_s = time.perf_counter() + 60 * arguments.minutes
    while lanes[0].step < settings.steps:
        for lane in lanes:
            take_turn(lane, images, settings)
        save(settings, lanes, arguments.state)
        if time.perf_counter() > ends_s:
            break
    print(*lines(lanes, settings), sep="\n")
    if lanes[0].step < settings.steps:
        print(f"{lanes[0].step} of {settings.steps} steps are done: the same command goes on")
    return 0 if all(map(reached, lanes)) else 1


if __name__ == "__main__":
    sys.exit(main())
