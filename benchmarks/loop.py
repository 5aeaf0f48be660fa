"""The controller against thousands of simulated plants, and the allocator against the optimum.

A plant has a gain, an offset, quantised steps, a cost model that is wrong by up to 3 times per layer, perhaps a power
cap; its readings have noise, intervals that may be wrong, drift while the board warms up, spells of throttling, and
dead time. Whether a budget was met is judged by the true output; what the controller believes stands beside it.
``benchmarks/loop_parts/draw.py`` tells what is drawn. Most plants have one axis; the real allocator cuts the others.
Prints each goal beside its figure, and exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.loop_parts.draw import EVERYTHING, chain, staircase
from benchmarks.loop_parts.gap import Gap, bounded, exhaustive, summary
from edgelean.profile import ControlSettings
from edgelean.testing.plants import Simulated, Weather, simulate, used

S = TypeVar("S")

PLANTS, QUICK_PLANTS = 10_000, 2_000
CHAINS, QUICK_CHAINS = 600, 120
GAPS, QUICK_GAPS = 400, 100

FEASIBLE, INFEASIBLE = 0.97, 1.02
"""The smallest structure needs at most, or at least, this share of the budget. In between no reading can tell."""

FULLY, AIM = 0.93, 0.97
"""A budget is used well from the first share on; or, with coarse steps, if one step more would lie above the second."""


@dataclass(frozen=True)
class Run:
    """One simulated run.

    Attributes
    ----------
    least
        What the smallest structure truly needs, as a share of the budget.
    used, step
        What the last structure truly needs, and by how much its last step lowered that.
    believed, named
        Whether the controller calls the budgets met, and whether it calls them out of reach.
    """

    seed: int
    weather: Weather
    least: float
    used: float
    step: float
    believed: bool
    named: bool
    cuts: int
    after_met: int
    within: int
    readings: int

    @property
    def truly(self) -> bool:
        """Whether the budgets are met, and the controller says so."""
        return self.believed and self.used <= 1

    @property
    def landed(self) -> bool:
        """Whether they are also used well."""
        return self.truly and (self.used >= FULLY or self.used + self.step > AIM)


def run_staircase(seed: int) -> Run:
    """Run the plant of one axis that a seed draws."""
    plant, weather = staircase(seed, EVERYTHING)
    return _run(seed, plant, weather)


def run_chain(seed: int) -> Run:
    """Run the plant of several axes that a seed draws."""
    plant, weather = chain(seed, EVERYTHING)
    return _run(seed, plant, weather)


def _run(seed: int, plant: Simulated[S], weather: Weather) -> Run:
    least, out = used(plant, plant.smallest), simulate(plant, weather, ControlSettings(), seed)
    return Run(
        seed,
        weather,
        least,
        out.used,
        out.step,
        out.met,
        out.named_out_of_reach,
        out.cuts,
        out.cuts_after_met,
        out.cuts_within,
        out.readings,
    )


def gap_small(seed: int) -> Gap:
    """Compare the allocator with trying everything, on one or two budgets."""
    return exhaustive(seed, Random(seed).uniform(0.4, 0.9), both=seed % 2 == 1)


def gap_large(seed: int) -> Gap:
    """Compare the allocator with the Lagrangian bound, on twenty axes."""
    return bounded(seed, Random(seed).uniform(0.4, 0.9), axes=20)


GROUPS: dict[str, Callable[[Run], bool]] = {
    "all": lambda run: True,
    "noise 0 to 2 %": lambda run: run.weather.noise < 0.02,
    "noise 2 to 5 %": lambda run: 0.02 <= run.weather.noise < 0.05,
    "noise 5 to 8 %": lambda run: 0.05 <= run.weather.noise < 0.08,
    "noise 8 to 10 %": lambda run: run.weather.noise >= 0.08,
    "calm": lambda run: not (run.weather.drift or run.weather.spells or run.weather.lag),
    "drift": lambda run: run.weather.drift > 0,
    "throttling": lambda run: bool(run.weather.spells),
    "dead time": lambda run: run.weather.lag > 0,
    "wrong intervals": lambda run: run.weather.honesty != 1,
}


def line(name: str, runs: Sequence[Run]) -> str:
    """Return one row of the table."""
    believed, truly, landed = (100 * _share(runs, key) for key in ("believed", "truly", "landed"))
    over = 100 * sum(run.believed and run.used > 1 for run in runs) / len(runs)
    cuts, readings = (sorted(getattr(run, key) for run in runs) for key in ("cuts", "readings"))
    return (
        f"{name:16} {len(runs):6} {believed:8.1f} % {truly:6.1f} % {over:6.2f} % {landed:8.2f} % "
        f"{statistics.median(run.used for run in runs):7.3f} {cuts[len(cuts) // 2]:4}, {cuts[-1]:2} "
        f"{readings[len(readings) // 2]:6}, {readings[int(0.95 * (len(readings) - 1))]:3}"
    )


HEAD = "plants                n  believed   truly   wrong    landed  median cuts: most  readings: 95th"


def _share(runs: Sequence[Run], key: str) -> float:
    return float(sum(getattr(run, key) for run in runs) / len(runs))


@dataclass(frozen=True)
class Goal:
    """A figure, its goal, and whether it is reached."""

    text: str
    figure: float
    reached: bool


def goals(runs: Sequence[Run], chains: Sequence[Run], small: Sequence[Gap], large: Sequence[Gap]) -> list[Goal]:
    """Return what was wanted, beside what came."""
    feasible = [run for run in runs if run.least <= FEASIBLE]
    never = [run for run in (*runs, *chains) if run.least >= INFEASIBLE]
    landed = 100 * _share(feasible, "landed")
    real = 100 * _share([run for run in chains if run.least <= FEASIBLE], "landed")
    after = sum(run.after_met for run in (*runs, *chains))
    cuts = statistics.median(run.cuts for run in feasible)
    called, named = sum(run.believed for run in never), 100 * _share(never, "named")
    few, many = summary(small), summary(large)
    return [
        Goal("feasible plants that end met, and use 0.93 to 1.00 or up to a step (>= 99 %)", landed, landed >= 99),
        Goal("the same, cut by the real allocator (>= 99 %)", real, real >= 99),
        Goal("cuts after the budgets were met (0)", after, after == 0),
        Goal("median of the cuts (<= 8)", cuts, cuts <= 8),
        Goal("infeasible plants called met (0)", called, called == 0),
        Goal("infeasible plants named out of reach (>= 99 %)", named, named >= 99),
        Goal("allocator above the optimum, 4 axes, mean (<= 0.5 %)", 100 * few["mean"], few["mean"] <= 0.005),
        Goal("allocator at the optimum, 4 axes (>= 90 %)", 100 * few["exact"], few["exact"] >= 0.9),
        Goal("allocator above a bound, 20 axes, mean (<= 2 %)", 100 * many["mean"], many["mean"] <= 0.02),
        Goal("allocator above a bound, 20 axes, largest (<= 5 %)", 100 * many["largest"], many["largest"] <= 0.05),
    ]


def report(runs: Sequence[Run], chains: Sequence[Run]) -> None:
    """Print the tables."""
    feasible = [run for run in runs if run.least <= FEASIBLE]
    print("feasible plants; met as the controller believes, truly, and believed though it is not")
    print(HEAD)
    for name, belongs in GROUPS.items():
        if group := [run for run in feasible if belongs(run)]:
            print(line(name, group))
    if real := [run for run in chains if run.least <= FEASIBLE]:
        print(line("real allocator", real))
    edge = [run for run in (*runs, *chains) if FEASIBLE < run.least < INFEASIBLE]
    print(
        f"on the edge of what can be reached ({FEASIBLE:g} to {INFEASIBLE:g} of the budget): {len(edge)}, of which "
        f"{sum(run.believed and run.used > 1 for run in edge)} are called met and are not\n"
        f"cuts of what was truly within, as the readings could not tell: {sum(run.within for run in feasible)} of "
        f"{sum(run.cuts for run in feasible)}"
    )


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PLANTS} plants instead of {PLANTS}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    quick, started = arguments.quick, time.perf_counter()
    with ProcessPoolExecutor() as pool:
        runs = list(pool.map(run_staircase, range(QUICK_PLANTS if quick else PLANTS), chunksize=50))
        chains = list(pool.map(run_chain, range(QUICK_CHAINS if quick else CHAINS), chunksize=5))
        seeds = range(QUICK_GAPS if quick else GAPS)
        small, large = (list(pool.map(gap, seeds, chunksize=10)) for gap in (gap_small, gap_large))
    report(runs, chains)
    reached = goals(runs, chains, small, large)
    for goal in reached:
        print(f"{'ok    ' if goal.reached else 'MISSED'} {goal.figure:8.2f}  {goal.text}")
    print(f"{time.perf_counter() - started:.0f} s")
    if arguments.json:
        figures = {"goals": [asdict(goal) for goal in reached], "runs": [asdict(run) for run in (*runs, *chains)]}
        arguments.json.write_text(json.dumps(figures))
    return 0 if all(goal.reached for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
