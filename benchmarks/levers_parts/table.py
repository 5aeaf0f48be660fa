"""The table: what each row came to, and how that compares with the base."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.levers_parts.lever import BASE, FULL, LEVERS, SCRATCH, SHARES
from benchmarks.levers_parts.one_run import Outcome

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""

POINTS_LOST: Mapping[float, float] = {0.5: 2.0, 0.25: 4.0}
"""By how many points of accuracy the base may be below the full size."""


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the table: for each share accuracy in % with its deviation over seeds, difference to the base, cost."""
    yield ""
    yield f"{'':30s}" + "".join(f"|{f'  {share:.0%} of the MACs':42s}" for share in SHARES)
    titles = f"  {'accuracy':13s}{'against base':15s}{'cost':>5s}{'seeds':>6s} "
    yield f"{'':30s}" + "".join(f"|{titles:42s}" for _ in SHARES)
    for lever in LEVERS:
        cells = [_cell(outcomes, lever.name, share, 1.0 if lever is FULL else share) for share in SHARES]
        if any(cell.strip() for cell in cells):
            yield f"{lever.name:30s}" + "".join(f"|{cell:42s}" for cell in cells)
    yield "Accuracy in %, difference in points, mean +- deviation over seeds. Cost: CPU time of all steps to full size."


def _cell(outcomes: Sequence[Outcome], row: str, base_share: float, share: float) -> str:
    found = _of(outcomes, row, share)
    if not found:
        return ""
    accuracy = _spread([100 * each.accuracy for each in found.values()], "")
    base = _of(outcomes, BASE.name, base_share)
    both = [seed for seed in found if seed in base]
    points = [100 * (found[seed].accuracy - base[seed].accuracy) for seed in both] if row != BASE.name else []
    cost = statistics.fmean(each.cost for each in found.values())
    return f"  {accuracy:13s}{_spread(points, '+'):15s}{cost:5.2f}{len(found):6d} "


def _of(outcomes: Sequence[Outcome], row: str, share: float) -> dict[int, Outcome]:
    return {each.seed: each for each in outcomes if each.row == row and each.share == share}


def _spread(values: Sequence[float], sign: str) -> str:
    if not values:
        return ""
    deviation = f" +-{statistics.stdev(values):4.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"


def goals(outcomes: Sequence[Outcome]) -> list[Goal]:
    """Compare the base with a small network from scratch and with the full size, where these have been run."""
    found: list[Goal] = []
    for share in SHARES:
        gain = _difference(outcomes, (SCRATCH.name, share), share)
        if gain is not None:
            what = f"shrinking in training over small from scratch, {share:.0%}"
            found.append((what, f"{gain:+.2f} points", "above 0", gain > 0))
        loss = _difference(outcomes, (FULL.name, 1.0), share)
        if loss is not None:
            most = POINTS_LOST[share]
            what = f"shrinking in training against full size, {share:.0%}"
            found.append((what, f"{loss:+.2f} points", f"{-most:g} or more", loss >= -most))
    return found


def _difference(outcomes: Sequence[Outcome], other: tuple[str, float], share: float) -> float | None:
    """Return by how many points the base is above another row, the mean over the seeds of both."""
    base, others = _of(outcomes, BASE.name, share), _of(outcomes, *other)
    both = [seed for seed in base if seed in others]
    if not both:
        return None
    return statistics.fmean(100 * (base[seed].accuracy - others[seed].accuracy) for seed in both)
