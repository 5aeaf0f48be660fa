"""What a refit saves right after a cut: trained networks with every axis halved at once, before any further step.

Prints one line per network and the goals beside their figures, and exits 1 when a goal is missed. The data are MNIST
and CIFAR-10 as JPEG copies from the folder that EDGELEAN_DATA names, or the digits of scikit-learn without it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.refit_networks import CASES, QUICK, Case, Split, accuracy, batches
from edgelean.shrink import refit
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.least_squares import RIDGES
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.recent import MOST_SAMPLES
from edgelean.shrink.scores import Scores
from edgelean.shrink.trace import trace

LEAST_RECOVERED = 0.5
MOST_STEPS = 30.0
BATCH, OBSERVED = 100, 10


@dataclass(frozen=True)
class Row:
    """What a cut to half of every axis does to one network.

    Attributes
    ----------
    full, cut, mean, refitted
        Accuracy on the test split: of the whole network, cut, with biases and batch statistics corrected, refitted.
    steps
        What the refit took, in training steps of the whole network.
    """

    name: str
    data: str
    axes: int
    full: float
    cut: float
    mean: float
    refitted: float
    steps: float

    def recovered(self, accuracy: float) -> float:
        """Return the share of the lost accuracy that is won back."""
        return (accuracy - self.cut) / (self.full - self.cut)


@dataclass(frozen=True)
class Trained:
    """A trained network, its axes, the order in which their units go, and what a training step takes in CPU seconds."""

    model: nn.Module
    anatomy: Anatomy
    order: dict[str, tuple[int, ...]]
    step_s: float


def train(case: Case, split: Split) -> Trained:
    """Train a network with AdamW, observing it as the closed loop does."""
    torch.manual_seed(0)
    model = case.make(tuple(split.inputs.shape[1:]))
    found = dissect(model, (split.inputs[:2],))
    anatomy = prove(model, found, (split.inputs[:4],)).applied(found)
    scores = Scores()
    scores.watch(model, anatomy.axes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.rate, weight_decay=1e-2)
    steps = case.epochs * -(-len(split.inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    spent_s, step = 0.0, 0
    for _ in range(case.epochs):
        for x, y in batches(split, BATCH, generator):
            model.train()
            scores.active = step % OBSERVED == 0
            begin_s = time.process_time()
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch has not typed it
            optimizer.step()
            spent_s += time.process_time() - begin_s
            schedule.step()
            step += 1
    scores.release()
    model.eval()
    order = {name: _order(scores, anatomy, name, model) for name in anatomy.axes}
    return Trained(model, anatomy, order, spent_s / steps)


def _order(scores: Scores, anatomy: Anatomy, name: str, model: nn.Module) -> tuple[int, ...]:
    """Return in which order units go; queries and keys, which nothing prices, as they come."""
    priced = scores.removal_prices(anatomy.axes[name], model)
    return tuple(range(anatomy.axes[name].size)) if priced is None else priced[0]


def judge(case: Case) -> Row:
    """Train a network, halve it, and refit it."""
    data = case.data(case.samples)
    trained = train(case, data.train)
    keep = {name: axis.size // 2 for name, axis in trained.anatomy.axes.items()}
    plan = make_plan(trained.anatomy, keep, trained.order, 0.0)
    figures, spent_s = {}, 0.0
    for what, ridges in (("cut", None), ("mean", ()), ("refitted", RIDGES)):
        begin_s = time.process_time()
        model = refitted(trained.model, plan, data.train, ridges)
        spent_s = time.process_time() - begin_s
        figures[what] = accuracy(model, data.test)
    full = accuracy(trained.model, data.test)
    return Row(case.name, data.name, len(plan.cuts), full, **figures, steps=spent_s / trained.step_s)


def refitted(model: nn.Module, plan: Plan, split: Split, ridges: Sequence[float] | None) -> nn.Module:
    """Return a copy of a network that is cut, and refitted on as many samples as the closed loop keeps; None: cut."""
    lean = copy.deepcopy(model)
    apply(lean, plan)
    if ridges is not None:
        inputs = (split.inputs[:MOST_SAMPLES],)
        names = dict(model.named_parameters())
        refit.add(lean, refit.amounts(model, trace(model, inputs), plan, inputs, names, ridges), plan)
    return lean


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train on less")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    rows, missed = [], 0
    for case in QUICK if options.quick else CASES:
        row = judge(case)
        rows.append(row)
        print(
            f"{row.name} on {row.data}, {row.axes} axes halved: accuracy {row.full:.3f}, cut {row.cut:.3f}, "
            f"with the mean {row.mean:.3f}, refitted {row.refitted:.3f}"
        )
        share = row.recovered(row.refitted)
        goals = (
            (
                "accuracy that is won back",
                f"{share:.0%} (mean {row.recovered(row.mean):.0%})",
                "at least 50 %",
                share >= LEAST_RECOVERED,
            ),
            (
                "time of the refit",
                f"{row.steps:.1f} steps",
                f"under {MOST_STEPS:g} training steps",
                row.steps < MOST_STEPS,
            ),
        )
        for what, figure, goal, reached in goals:
            missed += not reached
            print(f"  {what}: {figure}; goal: {goal}; {'reached' if reached else 'MISSED'}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
