"""Simulated plants: what a controller can be tried on in milliseconds, with all that real ones do to it.

A `Staircase` has one axis and is quick. A `Chain` has several, and the real allocator cuts it. Both have a true output
that differs from the predicted cost; `Weather` disturbs what is read of it.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Generic, Protocol, TypeVar

from edgelean import control
from edgelean.control import Choice, Demand, Ending, Observed, Settings, Standing, allocate
from edgelean.control.readings import CONFIDENCE

STEPS = 1000
"""Training steps of a simulated run."""

LEAST_READ = 0.2
"""No noise takes a reading below this share of the truth."""

TOLERANCE = 1e-9
"""Relative: costs this close to a target hold it."""

S = TypeVar("S")


class Simulated(Protocol[S]):
    """A network that can be cut, with a true output per quantity that differs from the predicted cost."""

    @property
    def whole(self) -> S:
        """The structure at full size."""

    @property
    def smallest(self) -> S:
        """The structure with every axis at its floor."""

    @property
    def limits(self) -> Mapping[str, float]:
        """The budgets, per quantity."""

    def costs(self, structure: S) -> Mapping[str, float]:
        """Return the predicted cost per quantity."""

    def truth(self, structure: S) -> Mapping[str, float]:
        """Return the output per quantity on the undisturbed board."""

    def shrunk(self, structure: S, targets: Mapping[str, float]) -> S:
        """Return the structure after a cut to these costs; the same one where nothing is left that saves."""

    def granularity(self, structure: S) -> float:
        """Return by how much of its budget the last step of one axis lowered the output, at most."""


@dataclass(frozen=True)
class Spell:
    """A time, in shares of the training, in which the board is slower by a factor: throttled, or shared."""

    begins: float
    ends: float
    factor: float


@dataclass(frozen=True)
class Weather:
    """What disturbs the readings.

    Attributes
    ----------
    noise
        Standard deviation of a reading, as a share of it.
    honesty
        Width of the interval that a reading tells, in shares of the true one.
    drift, warming
        The output rises by this share, exponentially with this time constant, in shares of the training.
    spells
        When the board is slower.
    lag
        A reading is of the structure of so many steps ago.
    """

    noise: float = 0.0
    honesty: float = 1.0
    drift: float = 0.0
    warming: float = 0.1
    spells: tuple[Spell, ...] = ()
    lag: int = 0

    def factor(self, gone: float) -> float:
        """Return the output as a share of that at the end of the training, without spells, where it is judged."""
        now, last = (1 + self.drift * (1 - math.exp(-when / self.warming)) for when in (gone, 1.0))
        return now / last * math.prod(spell.factor for spell in self.spells if spell.begins <= gone < spell.ends)


@dataclass(frozen=True)
class Staircase:
    """One axis: levels of falling cost and output, from the full size to the floor.

    Attributes
    ----------
    predicted, outputs
        Cost and true output per level, both falling.
    limit
        The budget of the latency.
    """

    predicted: tuple[float, ...]
    outputs: tuple[float, ...]
    limit: float

    @property
    def whole(self) -> int:
        """The first level."""
        return 0

    @property
    def smallest(self) -> int:
        """The last level."""
        return len(self.predicted) - 1

    @property
    def limits(self) -> Mapping[str, float]:
        """The budget of the latency."""
        return {"latency": self.limit}

    def costs(self, structure: int) -> Mapping[str, float]:
        """Return the predicted cost of a level."""
        return {"latency": self.predicted[structure]}

    def truth(self, structure: int) -> Mapping[str, float]:
        """Return the true output of a level."""
        return {"latency": self.outputs[structure]}

    def shrunk(self, structure: int, targets: Mapping[str, float]) -> int:
        """Return the first level that costs no more than the target; the last one if none does."""
        level = bisect_left(self.predicted, -targets["latency"] * (1 + TOLERANCE), key=lambda cost: -cost)
        return min(max(level, structure), self.smallest)

    def granularity(self, structure: int) -> float:
        """Return the height of the last step, as a share of the budget."""
        return (self.outputs[structure - 1] - self.outputs[structure]) / self.limit if structure else 0.0


@dataclass(frozen=True)
class Chain:
    """A chain of convolutions, cut by the real allocator.

    Attributes
    ----------
    seed
        Of its layers and their prices.
    share
        The budgets, as a share of the full-size output.
    lie
        The cost of each layer is wrong by a factor of its own, up to this.
    offset
        Share of the full-size output that no cut reduces.
    gain
        Output of the full-size chain.
    axes, step
        Number of axes, and units that go at once.
    """

    seed: int
    share: float
    lie: float = 1.0
    offset: float = 0.1
    gain: float = 1.0
    quantities: tuple[str, ...] = ("latency", "energy")
    axes: int = 8
    step: int = 8
    sizes: tuple[int, ...] = field(init=False)
    work: Mapping[str, Sequence[float]] = field(init=False)
    true: Mapping[str, Sequence[float]] = field(init=False)
    prices: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        layers = range(self.axes + 1)
        sizes = tuple(self.step * rng.randint(4, 16) for _ in range(self.axes))
        work = {name: [rng.lognormvariate(0, 0.5) for _ in layers] for name in self.quantities}
        wrong = {name: [self.lie ** rng.uniform(-1, 1) for _ in layers] for name in self.quantities}
        true = {name: [a * b for a, b in zip(work[name], wrong[name], strict=True)] for name in work}
        scores = [sorted(rng.lognormvariate(0, 1.5) for _ in range(size)) for size in sizes]
        prices = tuple((0.0, *accumulate(each)) for each in scores)
        for name, value in (("sizes", sizes), ("work", work), ("true", true), ("prices", prices)):
            object.__setattr__(self, name, value)

    @cached_property
    def whole(self) -> Mapping[str, int]:
        """All units of each axis."""
        return {f"a{i}": size for i, size in enumerate(self.sizes)}

    @cached_property
    def smallest(self) -> Mapping[str, int]:
        """What has to stay of each axis."""
        return {choice.axis: choice.levels[-1] for choice in self.choices(self.whole)}

    @cached_property
    def limits(self) -> Mapping[str, float]:
        """A share of each full-size output."""
        return {name: self.share * whole for name, whole in self.truth(self.whole).items()}

    def costs(self, structure: Mapping[str, int]) -> Mapping[str, float]:
        """Return the predicted cost per quantity."""
        return {name: self._total(work, structure) for name, work in self.work.items()}

    def truth(self, structure: Mapping[str, int]) -> Mapping[str, float]:
        """Return the true output per quantity."""
        parts = {name: self._total(true, structure) / self._total(true, self.whole) for name, true in self.true.items()}
        return {name: self.gain * (part * (1 - self.offset) + self.offset) for name, part in parts.items()}

    def choices(self, structure: Mapping[str, int]) -> list[Choice]:
        """Return what the allocator may choose from."""
        found = []
        for (axis, size), prices in zip(self.whole.items(), self.prices, strict=True):
            left = prices[size - structure[axis] :]
            found.append(Choice(axis, structure[axis], self.step, self.step, tuple(each - left[0] for each in left)))
        return found

    def shrunk(self, structure: Mapping[str, int], targets: Mapping[str, float]) -> Mapping[str, int]:
        """Return what the allocator keeps."""
        return allocate(self.choices(structure), self.costs, targets).keep

    def granularity(self, structure: Mapping[str, int]) -> float:
        """Return by how much of its budget the last step of one axis lowered the output, at most."""
        here = used(self, structure)
        back = ({**structure, axis: kept + self.step} for axis, kept in structure.items() if kept < self.whole[axis])
        return max((used(self, larger) - here for larger in back), default=0.0)

    def _total(self, work: Sequence[float], structure: Mapping[str, int]) -> float:
        widths = [4, *(structure[f"a{i}"] for i in range(self.axes)), 10]
        return sum(each * (a * b / 4096 + 0.05) for each, (a, b) in zip(work, pairwise(widths), strict=True))


@dataclass(frozen=True)
class Event:
    """What happened at one event of a simulated run: what was demanded, of how many readings, and what was true."""

    step: int
    readings: int
    demand: Demand
    used: float
    cut: bool


@dataclass
class Outcome:
    """How a simulated run ended, and what happened on the way.

    Attributes
    ----------
    used
        True output of the worst quantity at the end, as a share of its budget.
    step
        By how much the last step of one axis lowered that, at most.
    endings
        What the controller says of each budget.
    events
        One after the other.
    readings
        All that were taken.
    given_up
        Whether every cut was taken back.
    """

    used: float
    step: float
    endings: Mapping[str, Ending]
    events: tuple[Event, ...]
    readings: int
    given_up: bool

    @property
    def met(self) -> bool:
        """Whether the controller calls every budget met."""
        return all(ending.standing is Standing.MET for ending in self.endings.values())

    @property
    def named_out_of_reach(self) -> bool:
        """Whether the controller says that no cut can get there."""
        return any(not ending.reachable for ending in self.endings.values())

    @property
    def cuts(self) -> int:
        """Cuts that stayed."""
        return sum(event.cut for event in self.events)

    @property
    def cuts_after_met(self) -> int:
        """Cuts after every budget had been called met, while they truly were."""
        seen = accumulate((control.all_met(event.demand) for event in self.events), max)
        return sum(event.cut and event.used <= 1 and met for event, met in zip(self.events, seen, strict=True))

    @property
    def cuts_within(self) -> int:
        """Cuts of a structure that truly was within all budgets, whether or not the readings could tell."""
        return sum(event.cut and event.used <= 1 for event in self.events)


def used(plant: Simulated[S], structure: S) -> float:
    """Return the true output of the worst quantity as a share of its budget."""
    truth = plant.truth(structure)
    return max(truth[name] / limit for name, limit in plant.limits.items())


class _Board(Generic[S]):
    """The board that runs a simulated plant: its structures over time, and the readings of them."""

    def __init__(self, plant: Simulated[S], weather: Weather, rng: random.Random) -> None:
        self.plant, self.weather, self.rng = plant, weather, rng
        self.history: list[tuple[int, S]] = [(0, plant.whole)]
        self.readings = 0

    @property
    def now(self) -> S:
        return self.history[-1][1]

    def read(self, when: int) -> dict[str, Observed]:
        """Take one reading."""
        self.readings += 1
        since = max(0, when - self.weather.lag)
        keep = next(structure for begun, structure in reversed(self.history) if begun <= since)
        factor, costs = self.weather.factor(when / STEPS), self.plant.costs(keep)
        seen = {}
        for name, truth in self.plant.truth(keep).items():
            value = truth * factor * max(LEAST_READ, 1 + self.rng.gauss(0, self.weather.noise))
            half = CONFIDENCE * self.weather.noise * self.weather.honesty * value
            seen[name] = Observed(value, value - half, value + half, costs[name], stale=keep != self.now)
        return seen

    def until(self, when: int, enough: Callable[[Sequence[Mapping[str, Observed]]], bool]) -> list[dict[str, Observed]]:
        """Take readings until they suffice."""
        seen = [self.read(when)]
        while not enough(seen):
            seen.append(self.read(when))
        return seen


def simulate(
    plant: Simulated[S],
    weather: Weather,
    settings: Settings,
    seed: int = 0,
    accepts: Callable[[S, S], bool] = lambda before, after: True,
) -> Outcome:
    """Run a training of `STEPS` steps on a simulated plant, as the closed loop does it.

    Parameters
    ----------
    settings
        Of the controller.
    seed
        Of the noise.
    accepts
        Tells of the structures before and after a cut whether the network recovers; if not, it is taken back.
    """
    board = _Board(plant, weather, random.Random(seed))
    state = control.init(settings, plant.limits, board.read(0), STEPS)
    events = []
    for when in range(STEPS):
        if not control.due(when, state):
            continue
        seen = board.until(when, partial(control.enough, step=when, state=state))
        demand, state = control.step(control.pooled(seen), when, state)
        before = board.now
        after = plant.shrunk(before, demand.targets) if demand.fraction > 0 else before
        cut = after != before and accepts(before, after)
        if cut:
            board.history.append((when, after))
            first = board.until(when, partial(control.enough_after_cut, state=state))
            state = control.after_cut(control.pooled(first), when, state)
        elif demand.fraction > 0:
            state = control.rolled_back(state, when) if after != before else control.exhausted(state)
        events.append(Event(when, len(seen), demand, used(plant, before), cut))
    said = control.endings(state, plant.costs(plant.smallest))
    return Outcome(
        used(plant, board.now), plant.granularity(board.now), said, tuple(events), board.readings, state.given_up
    )
