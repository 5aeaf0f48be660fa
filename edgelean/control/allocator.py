"""The allocator: which units of which axes go, so that the predicted cost falls under its targets for the fewest nats.

The costs of the axes do not add up (a convolution costs inputs times outputs), so this is a knapsack whose weights
change with every move. Three passes, each of which asks the cost model again after every move:

1. *take*: the move with the fewest nats per saved share of what is still over target, over all axes and one or more
   steps of each, until the targets hold. Saved shares only shrink while other axes shrink, so a ratio computed
   earlier is a lower bound and most moves need not be priced again (lazy evaluation [1]_).
2. *give back*: what turned out unnecessary, most nats first.
3. *exchange*: one or two axes get levels back and one or two others give some, while that saves nats and the targets
   hold.

With A axes and G levels given up in all, the passes ask for about ``2 (A + 2 G)``, ``A + G`` and at most
``3 NEIGHBOURS`` costs per accepted exchange plus `EXCHANGES`: some 500 for 20 axes of 16 levels.

References
----------
.. [1] M. Minoux, Accelerated greedy algorithms for maximizing submodular set functions, 1978.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import chain, combinations, pairwise, product
from typing import Any

from edgelean.errors import InputError

Costs = Callable[[Mapping[str, int]], Mapping[str, float]]
"""Predicted cost per quantity of a structure that keeps so many units of each axis."""

LOOK_AHEAD = 4
"""Steps of one axis that are weighed as a single move: wide enough to cross a plateau of the cost."""

EXCHANGES = 200
"""Exchanges that may be tried."""

NEIGHBOURS = 16
"""Moves up and moves down that the exchange combines: those that regain most and those that give least."""

SLACK = 0.01
"""Share of a target by which the sum of single moves may miss it for their combination to be tried."""

TOLERANCE = 1e-9
"""Relative: costs this close to a target hold it."""


@dataclass(frozen=True)
class Choice:
    """An axis that may give up units.

    Attributes
    ----------
    axis
        Its name.
    size
        Units it has now.
    step
        Kept counts below `size` are multiples of this.
    floor
        Fewest units that must stay; 0 for what may go as a whole.
    prices
        ``prices[k]`` is the predicted loss in nats of removing the k cheapest units; starts at 0 and never falls.

    Raises
    ------
    InputError
        When the prices are too few, not finite, or fall.
    """

    axis: str
    size: int
    step: int
    floor: int
    prices: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.size < 1 or self.step < 1 or self.floor < 0:
            found = f"size {self.size}, step {self.step} and floor {self.floor}"
            raise InputError(f"Axis {self.axis}: size and step must be 1 or more, the floor 0 or more; found {found}.")
        needed = self.size - self.levels[-1] + 1
        if len(self.prices) < needed:
            raise InputError(f"Axis {self.axis}: {needed} prices are needed, and {len(self.prices)} were given.")
        falls = any(later < earlier for earlier, later in pairwise(self.prices))
        if falls or self.prices[0] != 0 or not all(map(math.isfinite, self.prices)):
            raise InputError(f"Axis {self.axis}: prices must start at 0, be finite and never fall. Check the scores.")

    @property
    def levels(self) -> tuple[int, ...]:
        """Counts that may be kept, from `size` down to the smallest multiple of `step` that is not below the floor."""
        return (self.size, *range((self.size - 1) // self.step * self.step, self.floor - 1, -self.step))


@dataclass(frozen=True)
class Allocation:
    """How many units each axis keeps, and what that is predicted to cost.

    Attributes
    ----------
    keep
        Units to keep, for every axis that was offered.
    nats
        Predicted loss.
    cost_before, cost_after
        Predicted cost per quantity.
    feasible
        False when the targets do not hold although nothing is left that would save.
    prices
        Per quantity with a target, the nats that a further unit of its predicted cost would buy back: the most of any
        step back along one axis that this target forbids, alone or with others; 0 where it forbids none.
    """

    keep: Mapping[str, int]
    nats: float
    cost_before: Mapping[str, float]
    cost_after: Mapping[str, float]
    feasible: bool
    prices: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the allocation as plain JSON types."""
        return asdict(self)


def allocate(choices: Sequence[Choice], cost: Costs, targets: Mapping[str, float]) -> Allocation:
    """Return which units to keep: the fewest nats given up for costs at or under their targets.

    Parameters
    ----------
    choices
        The axes; their names differ.
    cost
        The cost model.
    targets
        Largest allowed cost per quantity; quantities without a target may cost what they like.

    Returns
    -------
    Allocation
        Where the targets are out of reach, ``feasible`` is False and every axis has given what it can save.

    Raises
    ------
    InputError
        When two axes have the same name, or the cost model does not know a quantity of the targets.
    """
    if len({choice.axis for choice in choices}) < len(choices):
        raise InputError("Two axes have the same name. Give every axis a name of its own.")
    problem = _Problem.of(choices, cost, targets)
    whole = (0,) * len(choices)
    before = problem.costs(whole)
    for name, target in targets.items():
        if name not in before:
            raise InputError(f"There is a target for {name}, but the cost model predicts only {', '.join(before)}.")
        if not target > 0:
            raise InputError(f"The target of {name} must be above 0; found {target}.")
    at = _exchange(problem, _give_back(problem, _take(problem, whole)))
    after = problem.costs(at)
    feasible = problem.excess(at) <= TOLERANCE
    return Allocation(problem.keep(at), problem.nats(at), before, after, feasible, _prices(problem, at, after))


def reachable(choices: Sequence[Choice], cost: Costs) -> Mapping[str, float]:
    """Return the predicted cost per quantity with every axis at its floor: nothing below it can be promised."""
    return cost({choice.axis: choice.levels[-1] for choice in choices})


def _prices(problem: _Problem, at: Position, costs: Mapping[str, float]) -> dict[str, float]:
    """Return what a further unit of each target would buy, by the single steps back that it keeps from happening."""
    bought = dict.fromkeys(problem.targets, 0.0)
    for axis, gone in enumerate(at):
        for by in range(1, min(LOOK_AHEAD, gone) + 1):
            back = problem.costs(problem.moved(at, axis, -by))
            nats = problem.prices[axis][gone] - problem.prices[axis][gone - by]
            for name, target in problem.targets.items():
                if back[name] > max(target, costs[name]) * (1 + TOLERANCE):
                    bought[name] = max(bought[name], nats / (back[name] - costs[name]))
    return bought


Position = tuple[int, ...]
"""Per axis, how many levels it has given up."""


@dataclass(frozen=True)
class _Problem:
    """The knapsack in levels: what is asked again and again, worked out once."""

    axes: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...]
    prices: tuple[tuple[float, ...], ...]
    cost: Costs
    targets: Mapping[str, float]

    @classmethod
    def of(cls, choices: Sequence[Choice], cost: Costs, targets: Mapping[str, float]) -> _Problem:
        levels = tuple(choice.levels for choice in choices)
        prices = tuple(tuple(choice.prices[choice.size - kept] for kept in choice.levels) for choice in choices)
        return cls(tuple(choice.axis for choice in choices), levels, prices, cost, targets)

    def keep(self, at: Position) -> dict[str, int]:
        return {axis: levels[gone] for axis, levels, gone in zip(self.axes, self.levels, at, strict=True)}

    def costs(self, at: Position) -> Mapping[str, float]:
        return self.cost(self.keep(at))

    def excess(self, at: Position) -> float:
        """Return by how much the costs are above their targets, in shares of the targets, added up."""
        return sum(max(0.0, -room) for room in self.room(at))

    def room(self, at: Position) -> tuple[float, ...]:
        """Return what is left under each target, as a share of it; negative above."""
        costs = self.costs(at)
        return tuple(1 - costs[name] / target for name, target in self.targets.items())

    def nats(self, at: Position) -> float:
        return sum(prices[gone] for prices, gone in zip(self.prices, at, strict=True))

    def moved(self, at: Position, axis: int, by: int) -> Position:
        return (*at[:axis], at[axis] + by, *at[axis + 1 :])


def _take(problem: _Problem, at: Position) -> Position:
    """Give up the cheapest shares until the targets hold or nothing saves any more."""
    excess = problem.excess(at)
    progress = True
    while progress and excess > TOLERANCE:
        progress = False
        waiting = [(-math.inf, axis, 0, 0.0) for axis in range(len(at))]
        while waiting and excess > TOLERANCE:
            _, axis, _, _ = heapq.heappop(waiting)
            best = _best_move(problem, at, axis, excess)
            if best is None:
                continue
            if waiting and best[0] > waiting[0][0]:
                heapq.heappush(waiting, best)
                continue
            _, _, by, saved = best
            at, excess, progress = problem.moved(at, axis, by), excess - saved, True
            heapq.heappush(waiting, best)
    return at


def _best_move(problem: _Problem, at: Position, axis: int, excess: float) -> tuple[float, int, int, float] | None:
    """Return (nats per saved share, axis, levels, saved share) of the best move along one axis; None if none saves."""
    best = None
    gone, prices = at[axis], problem.prices[axis]
    for by in range(1, min(LOOK_AHEAD, len(prices) - 1 - gone) + 1):
        saved = excess - problem.excess(problem.moved(at, axis, by))
        if saved <= TOLERANCE:
            continue
        move = ((prices[gone + by] - prices[gone]) / saved, axis, by, saved)
        if best is not None and move[0] >= best[0]:
            break
        best = move
    return best


def _give_back(problem: _Problem, at: Position) -> Position:
    """Give back what was not needed, most nats first. What cannot go back now cannot later: costs only rise."""
    allowed = max(problem.excess(at), TOLERANCE)
    waiting = [entry for axis in range(len(at)) for entry in _regained(problem, at, axis)]
    heapq.heapify(waiting)
    while waiting:
        _, axis = heapq.heappop(waiting)
        back = problem.moved(at, axis, -1)
        if problem.excess(back) <= allowed:
            at = back
            for entry in _regained(problem, at, axis):
                heapq.heappush(waiting, entry)
    return at


def _regained(problem: _Problem, at: Position, axis: int) -> Iterator[tuple[float, int]]:
    gone = at[axis]
    if gone:
        yield problem.prices[axis][gone - 1] - problem.prices[axis][gone], axis


@dataclass(frozen=True)
class _Move:
    """A change of one axis: by how many levels, what it adds in nats, and in share of each target."""

    axis: int
    by: int
    nats: float
    shares: tuple[float, ...]


def _exchange(problem: _Problem, at: Position) -> Position:
    """Let one or two axes take levels back and others give some, as long as that saves nats."""
    allowed = max(problem.excess(at), TOLERANCE)
    swaps = _swaps(problem, at)
    for _ in range(EXCHANGES):
        if not swaps:
            break
        there = swaps.pop()
        if problem.excess(there) <= allowed:
            at = _give_back(problem, there)
            swaps = _swaps(problem, at)
    return at


def _swaps(problem: _Problem, at: Position) -> list[Position]:
    """Return the positions two or three moves away that save nats and may hold the targets, the best last."""
    room = problem.room(at)
    backs = _moves(problem, at, (-1, -2), room)
    gives = _moves(problem, at, (1, 2, 3), room)
    combined = chain(
        product(backs, gives),
        ((back, *two) for back in backs for two in combinations(gives, 2)),
        ((*two, give) for two in combinations(backs, 2) for give in gives),
    )
    found = []
    for moves in combined:
        saved = -sum(move.nats for move in moves)
        if saved <= 0 or len({move.axis for move in moves}) < len(moves):
            continue
        shares = map(sum, zip(*(move.shares for move in moves), strict=True))
        if all(share <= left + SLACK for share, left in zip(shares, room, strict=True)):
            found.append((saved, reduce(lambda place, move: problem.moved(place, move.axis, move.by), moves, at)))
    return [there for _, there in sorted(found)]


def _moves(problem: _Problem, at: Position, steps: Sequence[int], room: tuple[float, ...]) -> list[_Move]:
    """Return the single moves that give the fewest nats (or regain the most), with what each adds to the costs."""
    possible = [
        (prices[gone + by] - prices[gone], axis, by)
        for axis, (prices, gone) in enumerate(zip(problem.prices, at, strict=True))
        for by in steps
        if 0 <= gone + by < len(prices)
    ]
    moves = []
    for nats, axis, by in sorted(possible)[:NEIGHBOURS]:
        there = problem.room(problem.moved(at, axis, by))
        moves.append(_Move(axis, by, nats, tuple(before - after for before, after in zip(room, there, strict=True))))
    return moves
