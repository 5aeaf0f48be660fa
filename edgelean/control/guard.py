"""The guard: tells whether the network has recovered from a cut, or the cut must be taken back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Guard:
    """What the validation metric has to come back to after a cut.

    A cut is judged against the best metric seen before it, not against the last one: with the last one every cut could
    lose the tolerance anew, and ten of them ten times. A metric that has not come back yet but climbs is on its way:
    early in a training it may need longer than the pause between two cuts.

    Attributes
    ----------
    tolerance
        Largest drop of the metric that is accepted, in units of the metric.
    best
        Best metric so far, higher is better; None before the first.
    since
        Best metric since the last cut, the one right after it included; None where none waits for its judgement.
    first
        The first metric that was seen.
    """

    tolerance: float
    best: float | None = None
    since: float | None = None
    first: float | None = None

    @property
    def learned(self) -> bool:
        """Whether the metric has risen by more than the tolerance since it was first seen; so too where it never is.

        Before, the network may know nothing, and nothing that is taken from it would be missed.
        """
        return self.best is None or self.first is None or self.best > self.first + self.tolerance

    def seen(self, metric: float) -> Guard:
        """Return the guard after one more validation; a metric that is not a number changes nothing."""
        if math.isnan(metric) or (self.best is not None and metric <= self.best):
            return self
        return replace(self, best=metric, first=metric if self.first is None else self.first)

    def after_cut(self, metric: float | None) -> Guard:
        """Return the guard that waits for a network to recover which has this metric right after a cut."""
        return replace(self, since=None if metric is None or math.isnan(metric) else metric)

    def climbs(self, metric: float) -> bool:
        """Tell whether the metric is higher than ever since the last cut."""
        return self.since is not None and metric > self.since

    def accepts(self, metric: float) -> bool:
        """Tell whether a cut may stay that left this metric after recovery."""
        return not math.isnan(metric) if self.best is None else recovered(self.best, metric, self.tolerance)


def recovered(before: float, now: float, tolerance: float) -> bool:
    """Tell whether a metric came back after a cut.

    Parameters
    ----------
    before, now
        The metric before the cut and after recovery, higher is better. A metric that is not a number has not recovered.
    tolerance
        Largest drop that is accepted, in units of the metric.
    """
    return now >= before - tolerance
