"""What a refit, and a balanced basis, save right after a cut: trained networks, before any further step.

Every axis but blocks is halved at once, and refitted. Where an axis has a free basis (places within heads), it is cut
in the present basis and in the balanced one.

Prints one line per network and the goals beside their figures, and exits 1 when a goal is missed. The data are MNIST
and CIFAR-10 as JPEG copies from the folder that EDGELEAN_DATA names, or the digits of scikit-learn without it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.refit_networks import CASES, QUICK, Case, Data, Split, accuracy, batches
from edgelean.shrink import law, refit
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.cut import apply, tensors_of
from edgelean.shrink.gramians import Balanced, balanced
from edgelean.shrink.least_squares import RIDGES
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.recent import MOST_SAMPLES
from edgelean.shrink.rotate import EXACT, bases, turned
from edgelean.shrink.scores import Score, open_score
from edgelean.shrink.trace import trace

LEAST_RECOVERED = 0.5
MOST_STEPS, MOST_SECONDS = 30.0, 0.5
"""What a refit may take: so many training steps, or so many CPU seconds where steps are short."""
BATCH, OBSERVED = 100, 10

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""


@dataclass(frozen=True)
class Row:
    """What a cut to half of every axis does to one network.

    Attributes
    ----------
    full, cut, mean, refitted
        Accuracy on the test split: of the whole network, cut, with biases and batch statistics corrected, refitted.
    refit_s, step_s
        CPU seconds of the refit, its trace included, and of a training step of the whole network.
    """

    name: str
    data: str
    axes: int
    full: float
    cut: float
    mean: float
    refitted: float
    refit_s: float
    step_s: float

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
    scores = open_score("energy", 0)
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


def _order(scores: Score, anatomy: Anatomy, name: str, model: nn.Module) -> tuple[int, ...]:
    """Return in which order units go; queries and keys, which nothing prices, as they come."""
    priced = scores.removal_prices(anatomy.axes[name], model)
    return tuple(range(anatomy.axes[name].size)) if priced is None else priced[0]


def judge(case: Case, data: Data, trained: Trained) -> Row:
    """Halve every axis of a network, and refit it; blocks, of which there is no half, stay."""
    keep = {name: axis.size // 2 for name, axis in trained.anatomy.axes.items() if axis.size > 1}
    plan = make_plan(trained.anatomy, keep, trained.order, 0.0)
    figures, spent_s = {}, 0.0
    for what, ridges in (("cut", None), ("mean", ()), ("refitted", RIDGES)):
        begin_s = time.process_time()
        model = refitted(trained.model, plan, data.train, ridges)
        spent_s = time.process_time() - begin_s
        figures[what] = accuracy(model, data.test)
    full = accuracy(trained.model, data.test)
    return Row(case.name, data.name, len(plan.cuts), full, **figures, refit_s=spent_s, step_s=trained.step_s)


@dataclass(frozen=True)
class Turned:
    """What a cut of the places within heads to a share does, in the present basis and in the balanced one.

    Attributes
    ----------
    change
        Largest relative change of the outputs in float64 that the new basis makes.
    plain, plain_refitted, balanced, balanced_refitted
        Accuracy on the test split.
    """

    places: str
    share: float
    change: float
    full: float
    plain: float
    plain_refitted: float
    balanced: float
    balanced_refitted: float


def judge_turned(data: Data, trained: Trained) -> list[Turned]:
    """Cut the axes of free basis to a half and to a quarter, with and without balancing."""
    anatomy, probe = trained.anatomy, (data.train.inputs[:8],)
    free = [name for name, axis in anatomy.axes.items() if axis.free]
    inputs = (data.train.inputs[:MOST_SAMPLES],)
    found = balanced(trained.model, anatomy, bases(trained.model, anatomy, free, probe), inputs)
    other, change = in_basis(trained, found, probe)
    rows = []
    for places, names in (
        ("queries and keys", [name for name in free if "query" in name]),
        ("values and outputs", [name for name in free if "value" in name]),
    ):
        for share in (0.5, 0.25):
            keep = {name: int(anatomy.axes[name].size * share) for name in names}
            last = {name: tuple(reversed(range(anatomy.axes[name].size))) for name in names}
            figures = [
                accuracy(refitted(model, make_plan(anatomy, keep, order, 0.0), data.train, ridges), data.test)
                for model, order in ((trained.model, trained.order), (other, last))
                for ridges in (None, RIDGES)
            ]
            rows.append(Turned(places, share, change, accuracy(trained.model, data.test), *figures))
    return rows


def in_basis(trained: Trained, found: Mapping[str, Balanced], probe: tuple[Tensor, ...]) -> tuple[nn.Module, float]:
    """Return a copy of a network in its balanced basis, and how far its outputs moved in float64."""
    turns = {name: each.turns for name, each in found.items()}
    contents = {name: tensor.detach().double() for name, tensor in tensors_of(trained.model).items()}
    changed = turned(trained.anatomy.axes, turns, contents)
    outputs = [law.outputs(trained.model, each, probe) for each in (contents, contents | changed)]
    lean = copy.deepcopy(trained.model)
    with torch.no_grad():
        for name, tensor in changed.items():
            tensors_of(lean)[name].copy_(tensor)
    return lean, law.deviation(*outputs)


def refitted(model: nn.Module, plan: Plan, split: Split, ridges: Sequence[float] | None) -> nn.Module:
    """Return a copy of a network that is cut, and refitted on as many samples as the closed loop keeps; None: cut."""
    lean = copy.deepcopy(model)
    apply(lean, plan)
    if ridges is not None:
        inputs = (split.inputs[:MOST_SAMPLES],)
        names = dict(model.named_parameters())
        refit.add(lean, refit.amounts(model, trace(model, inputs), plan, [inputs], names, ridges), plan)
    return lean


def goals_of(row: Row) -> list[Goal]:
    """Print what a refit did; return its goals."""
    print(
        f"{row.name} on {row.data}, {row.axes} axes halved: accuracy {row.full:.3f}, cut {row.cut:.3f}, "
        f"with the mean {row.mean:.3f}, refitted {row.refitted:.3f}"
    )
    share, steps = row.recovered(row.refitted), row.refit_s / row.step_s
    won = f"{share:.0%} (mean {row.recovered(row.mean):.0%})"
    limit = f"under {MOST_STEPS:g} training steps or {MOST_SECONDS:g} s"
    quick = steps < MOST_STEPS or row.refit_s < MOST_SECONDS
    return [
        ("accuracy that is won back", won, f"at least {LEAST_RECOVERED:.0%}", share >= LEAST_RECOVERED),
        ("CPU time of the refit", f"{steps:.1f} steps, {row.refit_s:.2f} s", limit, quick),
    ]


def goals_of_turned(row: Turned) -> list[Goal]:
    """Print what balancing did; return its goals."""
    print(
        f"{row.places} cut to {row.share:.0%} of their places: accuracy {row.full:.3f}, cut {row.plain:.3f} "
        f"(refitted {row.plain_refitted:.3f}), balanced {row.balanced:.3f} (refitted {row.balanced_refitted:.3f})"
    )
    lost, in_present = row.full - row.balanced, row.full - row.plain
    return [
        ("outputs in the balanced basis", f"{row.change:.1e}", f"within {EXACT:g}", row.change <= EXACT),
        (
            "lost by the cut",
            f"{lost:.3f}",
            f"at most half of {in_present:.3f} in the present basis",
            lost <= 0.5 * in_present,
        ),
        (
            "refitted",
            f"{row.balanced_refitted:.3f}",
            f"at least the {row.plain_refitted:.3f} of the present basis",
            row.balanced_refitted >= row.plain_refitted,
        ),
    ]


def results(case: Case, data: Data, trained: Trained) -> Iterator[tuple[Row | Turned, list[Goal]]]:
    """Yield figures and goals of one trained network."""
    row = judge(case, data, trained)
    yield row, goals_of(row)
    if any(axis.free for axis in trained.anatomy.axes.values()):
        for each in judge_turned(data, trained):
            yield each, goals_of_turned(each)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train on less")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    rows: list[Row | Turned] = []
    missed = 0
    for case in QUICK if options.quick else CASES:
        data = case.data(case.samples)
        trained = train(case, data.train)
        for row, goals in results(case, data, trained):
            rows.append(row)
            for what, figure, goal, reached in goals:
                missed += not reached
                print(f"  {what}: {figure}; goal: {goal}; {'reached' if reached else 'MISSED'}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
