"""The table: accuracy, states and training time of each tolerance, next to small networks from scratch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.ssm_parts.one_run import FULL, SCRATCH, TRUNCATED, Outcome

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""

ENOUGH = 0.75
"""Share of the tolerances at which truncation has to be above starting small."""


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield one table for each task; every figure is a mean over all seeds."""
    for task in dict.fromkeys(each.task for each in outcomes):
        mine = [each for each in outcomes if each.task == task]
        yield ""
        titles = f"{'states':>9s}  {'accuracy':15s}{'to full size':16s}{'to scratch':16s}{'time':>6s}{'seeds':>7s}"
        yield f"{task:24s}{titles}"
        for row, tolerance in dict.fromkeys((each.row, each.tolerance) for each in _ordered(mine)):
            yield _line(mine, row, tolerance)
    yield "Accuracy on the test split in %, of the epoch that was best on the validation split; differences in points"
    yield "on the same seeds; mean +- deviation over all seeds. Time: CPU time of all steps, attempts included, to as"
    yield "many at full size."


def _ordered(outcomes: Sequence[Outcome]) -> list[Outcome]:
    order = {FULL: 0, TRUNCATED: 1, SCRATCH: 2}
    return sorted(outcomes, key=lambda each: (each.tolerance, order[each.row]))


def _line(outcomes: Sequence[Outcome], row: str, tolerance: float) -> str:
    found = of(outcomes, row, tolerance)
    name = row if row == FULL else f"{tolerance:g}, {row}"
    states = statistics.fmean(each.states for each in found)
    scratch = gains(outcomes, row, tolerance, SCRATCH) if row == TRUNCATED else []
    return (
        f"{name:24s}{states:9.1f}  {_spread([100 * each.accuracy for each in found], ''):15s}"
        f"{_spread(gains(outcomes, row, tolerance, FULL), '+') if row != FULL else '':16s}{_spread(scratch, '+'):16s}"
        f"{statistics.fmean(each.cost for each in found):6.2f}{len(found):7d}"
    )


def of(outcomes: Sequence[Outcome], row: str, tolerance: float) -> list[Outcome]:
    """Return the trainings of a row, all seeds."""
    return [each for each in outcomes if each.row == row and (row == FULL or each.tolerance == tolerance)]


def gains(outcomes: Sequence[Outcome], row: str, tolerance: float, other: str) -> list[float]:
    """Return by how many points a row is above another, seed by seed."""
    base = {each.seed: each.accuracy for each in of(outcomes, other, tolerance)}
    return [100 * (each.accuracy - base[each.seed]) for each in of(outcomes, row, tolerance) if each.seed in base]


def _spread(values: Sequence[float], sign: str) -> str:
    if not values:
        return ""
    deviation = f" +-{statistics.stdev(values):5.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"


def goals(outcomes: Sequence[Outcome]) -> list[Goal]:
    """Compare truncation with small networks from scratch, and its training time with that of the full size."""
    found: list[Goal] = []
    for task in dict.fromkeys(each.task for each in outcomes):
        mine = [each for each in outcomes if each.task == task]
        tolerances = sorted({each.tolerance for each in mine if each.row == SCRATCH})
        if not tolerances:
            continue
        above = [statistics.fmean(gains(mine, TRUNCATED, tolerance, SCRATCH)) > 0 for tolerance in tolerances]
        least = round(ENOUGH * len(above))
        what = f"{task}: truncated above from scratch, by the mean"
        found.append((what, f"{sum(above)} of {len(above)}", f"{least} or more", sum(above) >= least))
        slowest = max(statistics.fmean(e.cost for e in of(mine, TRUNCATED, tolerance)) for tolerance in tolerances)
        found.append((f"{task}: longest training to full size", f"{slowest:.2f}", "below 1", slowest < 1))
    return found
