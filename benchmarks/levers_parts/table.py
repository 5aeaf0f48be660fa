"""The table: what each row came to, and how that compares with the base."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from benchmarks.levers_parts.lever import BASE, DEFAULT, FULL, LEVERS, SCRATCH, SCRATCH_UNIFORM, SHARES
from benchmarks.levers_parts.one_run import Outcome

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""

POINTS_LOST: Mapping[float, float] = {0.5: 2.5, 0.25: 5.0}
"""By how many points of accuracy the default may be below the full size; chosen after the first table was seen."""


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the table: accuracy, difference to the base and cost for each share, and the difference over both."""
    yield ""
    yield f"{'':29s}" + "".join(f"| {f'{share:.0%} of the MACs':37s}" for share in SHARES) + "| both"
    titles = f" {'accuracy':13s}{'to base':12s}{'cost':>6s}{'seeds':>6s} "
    yield f"{'':29s}" + f"|{titles}" * len(SHARES) + "| to base"
    for lever in LEVERS:
        found = {share: _of(outcomes, lever.name, 1.0 if lever is FULL else share) for share in SHARES}
        gains = {share: _gains(outcomes, found[share], share) for share in SHARES}
        if any(found.values()):
            cells = "".join(f"|{_cell(found[share], gains[share]):38s}" for share in SHARES)
            yield f"{lever.name:29s}{cells}| {_with_error(list(chain(*gains.values())))}"
    yield "Accuracy in %, difference in points, each mean +- deviation over the same seeds; both: +- standard error."
    yield "Cost: CPU time of all steps, observation and teachers included, to as many steps at full size."


def _cell(found: Mapping[int, Outcome], gains: Sequence[float]) -> str:
    if not found:
        return ""
    accuracy = _spread([100 * each.accuracy for each in found.values()], "")
    cost = statistics.fmean(each.cost for each in found.values())
    return f" {accuracy:13s}{_spread(gains, '+') if gains else '':12s}{cost:6.2f}{len(found):6d} "


def _of(outcomes: Sequence[Outcome], row: str, share: float) -> dict[int, Outcome]:
    return {each.seed: each for each in outcomes if each.row == row and each.share == share}


def _gains(outcomes: Sequence[Outcome], found: Mapping[int, Outcome], share: float) -> list[float]:
    """Return by how many points a row is above the base, seed by seed; nothing for the base itself."""
    base = _of(outcomes, BASE.name, share)
    return [
        100 * (each.accuracy - base[seed].accuracy)
        for seed, each in found.items()
        if seed in base and each is not base[seed]
    ]


def _spread(values: Sequence[float], sign: str) -> str:
    deviation = f" +-{statistics.stdev(values):4.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"


def _with_error(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return ""
    return f"{statistics.fmean(gains):+.2f} +-{statistics.stdev(gains) / len(gains) ** 0.5:4.2f}"


def goals(outcomes: Sequence[Outcome]) -> list[Goal]:
    """Compare the default with small networks from scratch and with the full size, where these have been run."""
    found: list[Goal] = []
    for share in SHARES:
        mine = _of(outcomes, DEFAULT.name, share)
        for scratch in (SCRATCH, SCRATCH_UNIFORM):
            gain = _difference(mine, _of(outcomes, scratch.name, share))
            if gain is not None:
                what = f"the default over {scratch.name}, {share:.0%}"
                found.append((what, f"{gain:+.2f} points", "above 0", gain > 0))
        loss = _difference(mine, _of(outcomes, FULL.name, 1.0))
        if loss is not None:
            most = POINTS_LOST[share]
            found.append(
                (f"the default against full size, {share:.0%}", f"{loss:+.2f} points", f"above {-most:g}", loss > -most)
            )
    return found


def _difference(mine: Mapping[int, Outcome], others: Mapping[int, Outcome]) -> float | None:
    """Return by how many points one row is above another, the mean over the seeds of both."""
    points = [100 * (mine[seed].accuracy - others[seed].accuracy) for seed in mine if seed in others]
    return statistics.fmean(points) if points else None
