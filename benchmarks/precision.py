"""What lower precisions cost on the test split, and what rounding in the tail of a training wins back.

A residual network on the digits of scikit-learn, and one on CIFAR-10 as JPEG copies from the folder that EDGELEAN_DATA
names, are trained, exported and lowered: FP16, INT8 for onnxruntime, INT8 for TensorRT. Ranges come from training data,
choices are judged on a held-out part, and the figures are of the test split. A third network, with channels of very
uneven size, is trained once more with rounding in the last part of its training.

Prints one line per file and the goals beside their figures, and exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgelean.exporter import build_engine, export_onnx, load_target
from edgelean.exporter.fp16 import halved
from edgelean.exporter.int8 import int8_loss, quantised
from edgelean.exporter.search import HeldOut, Judge, Loss
from edgelean.recipe import accuracy
from edgelean.training.rounded import computing_in

GOALS = {"fp16": 0.001, "int8": 0.01}
"""Largest drop of the accuracy."""

BATCH, CALIBRATED = 250, 256
TAIL = 0.3
Pairs = tuple[Tensor, Tensor]
Epoch = Callable[[int], Iterator[Pairs]]


@dataclass(frozen=True)
class Case:
    """A network and its data; ``epoch`` yields the batches of one epoch."""

    name: str
    model: nn.Module
    epoch: Epoch
    epochs: int
    seen: Tensor
    held: Pairs
    test: Pairs


@dataclass(frozen=True)
class Row:
    """One file of one network."""

    network: str
    file: str
    precision: str
    samples: int
    accuracy: float
    drop: float
    rel_l2: float
    calibrator: str
    kept: tuple[str, ...]
    tensorrt: str


def digits(epochs: int) -> Case:
    """Return the network of the recipe ``digits``."""
    from edgelean.recipes.digits import DigitsNet, load_data

    train, held, test = ((split.tensors[0], split.tensors[1]) for split in load_data().__dict__.values())
    return Case("digits, ResNet", DigitsNet(16), shuffled(train, 64), epochs, train[0][:CALIBRATED], held, test)


def cifar(epochs: int) -> Case:
    """Return the network of the levers on CIFAR-10; 2000 test images are held out for the choices."""
    from benchmarks.levers_parts.images import load_images, normalised
    from benchmarks.levers_parts.network import ResNet8

    images = load_images()
    x, y = normalised(images.x_test).contiguous(), images.y_test
    seen = normalised(images.x_train[:CALIBRATED]).contiguous()
    held, test = (x[:2000], y[:2000]), (x[2000:], y[2000:])
    return Case("CIFAR-10, ResNet", ResNet8(), lambda epoch: images.batches(0, epoch), epochs, seen, held, test)


class Uneven(nn.Module):
    """Two linear layers; what the second reads is between a hundredth and a hundred times what the first wrote."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, channels), nn.Linear(channels, 10)
        self.size = nn.Buffer(torch.logspace(-2, 2, channels))
        with torch.no_grad():
            self.outer.weight /= self.size

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[n, 10]`` of images."""
        logits: Tensor = self.outer(torch.relu(self.inner(x.flatten(1))) * self.size)
        return logits


def uneven(epochs: int) -> Case:
    """Return a network whose activations do not fit into 8 bits as it is trained."""
    plain = digits(epochs)
    return Case("digits, uneven", Uneven(), plain.epoch, epochs, plain.seen, plain.held, plain.test)


def shuffled(train: Pairs, size: int) -> Epoch:
    """Return the epochs of a split, each in an order of its own."""

    def epoch(number: int) -> Iterator[Pairs]:
        order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(number))
        for chosen in torch.split(order, size):
            yield train[0][chosen], train[1][chosen]

    return epoch


def train(case: Case, computing: Callable[[float], AbstractContextManager[Any]]) -> nn.Module:
    """Train a network with AdamW and one cycle; ``computing`` takes the share of the epochs that are done."""
    steps = case.epochs * sum(1 for _ in case.epoch(0))
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for number in range(case.epochs):
        case.model.train()
        for x, y in case.epoch(number):
            optimizer.zero_grad()
            with computing(number / case.epochs):
                loss = nn.functional.cross_entropy(case.model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has not typed it
            optimizer.step()
            schedule.step()
    return case.model.eval()


def held_out(pairs: Pairs) -> HeldOut:
    """Return samples and their metric as the exporter takes them."""
    x, y = pairs
    return HeldOut(batches(x), lambda found: accuracy(torch.from_numpy(found), y))


def batches(x: Tensor) -> list[Sequence[Any]]:
    """Return inputs in batches."""
    return [(part.numpy(),) for part in torch.split(x, BATCH)]


def rows_of(case: Case, folder: Path) -> Iterator[Row]:
    """Yield a row per file of a trained network."""
    path = export_onnx(case.model, (case.seen[:2],), folder / "model.onnx", metadata={})
    with torch.no_grad():
        whole = accuracy(torch.cat([case.model(part) for part in torch.split(case.test[0], BATCH)]), case.test[1])
    for name in ("onnx-fp16", "onnx-int8", "tensorrt-int8"):
        target = load_target(name)
        out = folder / target.graph
        if target.precision == "fp16":
            made: Any = halved(path, out, target, held_out(case.held))
        else:
            made = quantised(path, out, target, batches(case.seen), held_out(case.held))
        loss = Judge(path, held_out(case.test), target.tolerances.model_copy(update={"near_tie": 0.0})).loss(out)
        engine = build_engine(out, folder / "model.engine", 8)
        built = f"{engine.layers} layers" if engine.built else "no engine"
        calibrator = getattr(made, "calibrator", "")
        samples = len(case.test[0])
        yield Row(
            case.name,
            target.graph,
            target.precision,
            samples,
            whole,
            loss.drop,
            loss.mean,
            calibrator,
            made.kept,
            built,
        )


def tail_of(epochs: int, folder: Path) -> tuple[Loss, Loss]:
    """Return what the uneven network loses with everything in INT8: trained as usual, and with rounding in the tail."""
    losses = []
    for tail in (2.0, 1 - TAIL):
        torch.manual_seed(0)
        case = uneven(epochs)

        def computing(done: float, tail: float = tail) -> AbstractContextManager[Any]:
            return computing_in("int8" if done >= tail else "fp32")

        train(case, computing)
        path = export_onnx(case.model, (case.seen[:2],), folder / "uneven.onnx", metadata={})
        losses.append(int8_loss(path, load_target("tensorrt-int8"), batches(case.seen), held_out(case.test)))
    return losses[0], losses[1]


def main() -> int:
    """Train, lower, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = [digits(8 if arguments.quick else 20)]
    if os.environ.get("EDGELEAN_DATA"):
        cases.append(cifar(4 if arguments.quick else 12))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            train(case, lambda done: nullcontext())
            for row in rows_of(case, Path(place)):
                rows.append(row)
                extra = f"  ranges by {row.calibrator}" if row.calibrator else ""
                kept = f"  in FP32: {', '.join(row.kept)}" if row.kept else ""
                print(
                    f"{row.network:18s}{row.file:26s}accuracy {row.accuracy:.4f}  drop {100 * row.drop:+.3f} points of "
                    f"{row.samples}  outputs off by {row.rel_l2:.2g}  TensorRT-RTX {row.tensorrt}{extra}{kept}",
                    flush=True,
                )
        before, after = tail_of(10 if arguments.quick else 20, Path(place))
    reached = []
    for precision, most in GOALS.items():
        worst = max(row.drop for row in rows if row.precision == precision)
        reached.append(worst < most)
        print(f"{precision}: largest drop {100 * worst:.3f} points, goal below {100 * most:g}: {_word(reached[-1])}")
    won, lost = (after.metric or 0.0) - (before.metric or 0.0), before.drop
    reached.append(won > lost / 2)
    print(f"without rounding in training: {before.words()}; in its last {TAIL:.0%}: {after.words()}")
    print(f"of {100 * lost:.2f} points {100 * won:.2f} are won back, goal more than half: {_word(reached[-1])}")
    if arguments.json:
        told = {"rows": [asdict(row) for row in rows], "tail": {"before": vars(before), "after": vars(after)}}
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(reached) else 1


def _word(reached: bool) -> str:
    return "reached" if reached else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
