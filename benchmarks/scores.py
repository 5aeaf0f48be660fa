"""Scores: the predicted loss of a cut against the loss that held-out data really shows, and what the collecting costs.

Three networks (a residual CNN, a transformer and an LSTM that read the rows of an image) are trained on handwritten
digits while every score watches. Then axes are cut, one alone and all together, to many sizes, with and without refit,
and the increase of the loss on data that no training saw is compared with the prediction. Prints every figure beside
its goal, and exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.control import rank_correlation
from edgelean.loop import OBSERVE_EVERY
from edgelean.recipes.digits import DigitsNet
from edgelean.shrink import refit
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.prove import prove
from edgelean.shrink.recent import MOST_SAMPLES
from edgelean.shrink.scores import SCORES, Running, Score, open_score
from edgelean.shrink.scores.elimination import Reader
from edgelean.shrink.scores.energy import Energy
from edgelean.shrink.trace import Trace, trace

BATCH = 64
EPOCHS, QUICK_EPOCHS = 5, 4
HELD_OUT = 1000
TRAINING, QUICK_TRAINING = 20_000, 6_000
SINGLE_SHARES, QUICK_SINGLE_SHARES = (1 / 8, 1 / 4, 1 / 2), (1 / 4, 1 / 2)
PLAN_SHARES = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
PLANS, QUICK_PLANS = 40, 30
PAIRS, QUICK_PAIRS = 60, 10
SEED = 0
PLAIN = "energy, no refit foreseen"
QUICK_SCORES = ("energy", "magnitude", "random")
"""Those that goals are about."""

RANK, AMONG, LEAST, MOST, COST = 0.9, 0.8, 0.1, 3.0, 0.02
"""Goals: rank correlation of whole plans and of single axes, the median of predicted over observed, the cost."""


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, side, side]`` and labels, for training and held out."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


def digits(samples: int) -> Digits:
    """Return MNIST at half its resolution from EDGELEAN_DATA, or the smaller digits of scikit-learn."""
    path = Path(os.environ.get("EDGELEAN_DATA", "")) / "mnist.npz"
    if path.is_file():
        arrays = np.load(path)
        images, labels = arrays["x_train"][: samples + HELD_OUT], arrays["y_train"][: samples + HELD_OUT]
        x = functional.avg_pool2d(torch.from_numpy(images).float().div(255).unsqueeze(1), 2)
        y = torch.from_numpy(labels).long()
        return Digits((x[:samples], y[:samples]), (x[samples:], y[samples:]))
    from edgelean.recipes._digits_data import digits_split

    train, validation, test = digits_split()
    held = [torch.cat(pair) for pair in zip(validation, test, strict=True)]
    return Digits((train[0].unsqueeze(1), train[1]), (held[0].unsqueeze(1), held[1]))


class Block(nn.Module):
    """Attention and an inner layer, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same."""
        y = self.norm1(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Rows of an image as a sequence: ``[batch, 1, side, side]`` to ten logits."""

    def __init__(self, side: int, width: int = 48) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(side, width), nn.Parameter(0.02 * torch.randn(side, width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x[:, 0]) + self.place)).mean(1))
        return logits


class Recurrence(nn.Module):
    """Rows of an image through two layers of an LSTM, and an inner layer: ``[batch, 1, side, side]`` to ten logits."""

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        self.lstm, self.inner = nn.LSTM(side, width, 2, batch_first=True), nn.Linear(width, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(torch.relu(self.inner(self.lstm(x[:, 0])[0][:, -1])))
        return logits


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "cnn": lambda side: DigitsNet(16),
    "transformer": Transformer,
    "lstm": Recurrence,
}


class Plain(Energy):
    """The default score as if nothing were refitted after a cut."""

    def reader(self, path: str, model: nn.Module, places: Tensor) -> Reader | None:
        """Return that nothing is refitted."""
        return None


@dataclass(frozen=True)
class Trained:
    """A trained network, and what the scores saw of it."""

    model: nn.Module
    anatomy: Anatomy
    scores: Mapping[str, Score]
    held_out: tuple[Tensor, Tensor]
    loss: float
    seen: tuple[Tensor, ...]
    traced: Trace

    def observed(self, plan: Plan) -> tuple[float, float]:
        """Return by how much a cut raises the held-out loss, before and after the refit."""
        found = refit.amounts(self.model, self.traced, plan, [self.seen], dict(self.model.named_parameters()))
        cut = copy.deepcopy(self.model)
        apply(cut, plan)
        plain = held_out_loss(cut, self.held_out) - self.loss
        refit.add(cut, found, plan)
        return plain, held_out_loss(cut, self.held_out) - self.loss


def held_out_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the mean loss in nats, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return float(functional.cross_entropy(model(data[0]), data[1]))


def train(build: Callable[[int], nn.Module], data: Digits, epochs: int, scores: Mapping[str, Score]) -> Trained:
    """Train a network while scores watch it as the loop lets them."""
    torch.manual_seed(SEED)
    x, y = data.train
    model = build(x.shape[-1])
    anatomy = dissect(model, (x[:8],))
    anatomy = prove(model, anatomy, (x[:8],)).applied(anatomy)
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for score in scores.values():
        score.watch(model, anatomy.axes)
    model.train()
    order = torch.cat([torch.randperm(len(x))[: len(x) // BATCH * BATCH] for _ in range(epochs)])
    for step, batch in enumerate(torch.split(order, BATCH)):
        for score in scores.values():
            score.active = step % OBSERVE_EVERY == 0
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(x[batch]), y[batch]))
        for score in scores.values():
            if score.active:
                score.observe_gradients(model, anatomy.axes)
        optimizer.step()
        schedule.step()
    for score in scores.values():
        score.active = False
        score.release()
    seen = (x[:MOST_SAMPLES],)
    loss = held_out_loss(model, data.held_out)
    return Trained(model, anatomy, scores, data.held_out, loss, seen, trace(model, seen))


# -- predicted and observed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One cut: what was predicted, and what held-out data shows, in nats."""

    predicted: float
    plain: float
    refitted: float


@dataclass(frozen=True)
class Agreement:
    """How well a score predicts: rank correlation and median ratio, plain and refitted; and what its cuts cost."""

    network: str
    score: str
    what: str
    trials: int
    rank: float
    rank_refitted: float
    ratio: float
    ratio_refitted: float
    nats: float
    nats_refitted: float


def agreement(network: str, score: str, what: str, trials: Sequence[Trial]) -> Agreement:
    """Return what some cuts say of a score."""
    predicted, plain, refitted = zip(*((t.predicted, t.plain, t.refitted) for t in trials), strict=True)

    def ratio(observed: Sequence[float]) -> float:
        return float(statistics.median(p / max(o, 1e-4) for p, o in zip(predicted, observed, strict=True)))

    ranks = (rank_correlation(predicted, plain), rank_correlation(predicted, refitted))
    means = (statistics.fmean(plain), statistics.fmean(refitted))
    return Agreement(network, score, what, len(trials), *ranks, ratio(plain), ratio(refitted), *means)


def tried(trained: Trained, prices: Mapping[str, Running], shares: Mapping[str, float]) -> Trial | None:
    """Cut axes by so much each, in the order of a score; None if nothing is left to cut."""
    axes = trained.anatomy.axes
    keep = {name: axes[name].size - int(share * axes[name].size) for name, share in shares.items()}
    nats = sum(prices[name][1][axes[name].size - kept] for name, kept in keep.items())
    plan = make_plan(trained.anatomy, keep, {name: order for name, (order, _) in prices.items()}, nats)
    if not plan.cuts:
        return None
    return Trial(nats, *trained.observed(plan))


def compare(network: str, trained: Trained, plans: int, alone: Mapping[str, Sequence[float]]) -> Iterator[Agreement]:
    """Cut whole plans by every score, the sizes are the same for all of them; and single axes by these shares."""
    lots = random.Random(SEED)
    drawn = [{name: lots.choice(PLAN_SHARES) for name in trained.anatomy.axes} for _ in range(plans)]
    for name, score in trained.scores.items():
        found = {axis.name: score.removal_prices(axis, trained.model) for axis in trained.anatomy.axes.values()}
        prices = {axis: running for axis, running in found.items() if running is not None}
        single = [{axis: share} for axis in prices for share in alone.get(name, ())]
        whole = [{axis: plan[axis] for axis in prices} for plan in drawn]
        for what, wanted in (("single axes", single), ("whole plans", whole)):
            trials = [trial for shares in wanted if (trial := tried(trained, prices, shares)) is not None]
            if trials:
                yield agreement(network, name, what, trials)


# -- cost --------------------------------------------------------------------------------------------------------------

COSTED: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "cnn": (DigitsNet, 14),
    "transformer": (lambda: Transformer(28, 128), 28),
}
"""Networks whose steps are long enough to be typical, and the side of the images that they read."""


def cost(build: Callable[[], nn.Module], side: int, pairs: int) -> float:
    """Return the share of a training step that the default score takes, spread over the steps between observations.

    Observed and plain steps take turns; each is timed by the processor time of this process.
    """
    torch.manual_seed(SEED)
    model = build()
    x, y = torch.randn(BATCH, 1, side, side), torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters())
    axes = dissect(model, (x[:4],)).axes
    score = open_score("energy", SEED)
    score.watch(model, axes)
    model.train()

    def step_s(observed: bool) -> float:
        score.active = observed
        started = time.process_time()
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(x), y))
        if observed:
            score.observe_gradients(model, axes)
        optimizer.step()
        return float(time.process_time() - started)

    times = [(step_s(True), step_s(False)) for _ in range(pairs + 3)][3:]
    observed, plain = (float(statistics.median(each)) for each in zip(*times, strict=True))
    return (observed / plain - 1) / OBSERVE_EVERY


# -- goals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A figure beside what it should be."""

    name: str
    figure: float
    goal: str
    reached: bool


def goals(found: Sequence[Agreement], costs: Mapping[str, float]) -> list[Goal]:
    """Hold the default score against its goals, for each network."""
    made = []
    for network in dict.fromkeys(each.network for each in found):
        by = {(each.score, each.what): each for each in found if each.network == network}
        whole, single = by["energy", "whole plans"], by["energy", "single axes"]
        ratio = whole.ratio_refitted
        made += [
            Goal(
                f"{network}: rank correlation, whole plans",
                whole.rank_refitted,
                f">= {RANK}",
                whole.rank_refitted >= RANK,
            ),
            Goal(
                f"{network}: the same, single axes", single.rank_refitted, f">= {AMONG}", single.rank_refitted >= AMONG
            ),
            Goal(f"{network}: predicted / observed, whole plans", ratio, f"{LEAST} to {MOST}", LEAST <= ratio <= MOST),
        ]
        for other in ("magnitude", "random"):
            theirs = by[other, "whole plans"]
            name = f"{network}: rank correlation over that of {other}"
            made.append(
                Goal(
                    name,
                    whole.rank_refitted,
                    f"> {theirs.rank_refitted:.2f}",
                    whole.rank_refitted > theirs.rank_refitted,
                )
            )
        theirs = by["random", "whole plans"]
        name = f"{network}: mean nats of its plans, under those of random"
        made.append(
            Goal(name, whole.nats_refitted, f"< {theirs.nats_refitted:.3f}", whole.nats_refitted < theirs.nats_refitted)
        )
    made += [Goal(f"{name}: cost, share of a step", share, f"< {COST}", share < COST) for name, share in costs.items()]
    return made


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less training, fewer plans, fewer scores")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    data, plans = digits(QUICK_TRAINING if quick else TRAINING), QUICK_PLANS if quick else PLANS
    costs = {name: cost(*built, QUICK_PAIRS if quick else PAIRS) for name, built in COSTED.items()}
    found: list[Agreement] = []
    print(f"{'':39}rank correlation    predicted/observed  mean nats")
    print(f"{'':39}plain    refitted   plain    refitted   plain    refitted")
    for network, build in NETWORKS.items():
        scores = {name: open_score(name, SEED) for name in (QUICK_SCORES if quick else SCORES)}
        scores |= {} if quick else {PLAIN: Plain()}
        trained = train(build, data, QUICK_EPOCHS if quick else EPOCHS, scores)
        print(f"{network}: held-out loss {trained.loss:.4f}, {len(trained.anatomy.axes)} axes", flush=True)
        alone = {"energy": QUICK_SINGLE_SHARES} if quick else dict.fromkeys(scores, SINGLE_SHARES)
        for each in compare(network, trained, plans, alone):
            found.append(each)
            figures = (each.rank, each.rank_refitted, each.ratio, each.ratio_refitted, each.nats, each.nats_refitted)
            print(f"  {each.what:12}{each.score:25}" + "".join(f"{figure:<10.3g}" for figure in figures), flush=True)
    made = goals(found, costs)
    for goal in made:
        print(f"{'ok' if goal.reached else 'MISSED':7}{goal.name:52}{goal.figure:8.3f}   goal: {goal.goal}")
    if arguments.json:
        told = {"agreement": [asdict(each) for each in found], "goals": [asdict(goal) for goal in made]}
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal.reached for goal in made) else 1


if __name__ == "__main__":
    sys.exit(main())
