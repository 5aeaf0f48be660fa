"""One training that has to land on a budget."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import edgelean
from edgelean.budget import Budgets, parse_budget
from edgelean.errors import InputError
from edgelean.profile import load_profile
from edgelean.recipe import Recipe
from edgelean.report.model import Report

TARGETS: Mapping[str, str] = {"this-machine": "local", "jetson-orin": "modelled"}
"""Where the candidates of a profile are read."""


@dataclass(frozen=True)
class Landing:
    """How a training ended.

    Attributes
    ----------
    share
        The latency budget, as a share of what the full-size model takes.
    outcome
        ``"met"``, ``"undecided"``, ``"not met"``, or ``"refused"``: before the training, as out of reach.
    why
        A reason where it is not met.
    used
        The final latency as a share of the budget.
    full, lean
        Accuracy on the test split; the full-size model is trained once for each subject, its figure is None elsewhere.
    seconds, overhead
        Of the training with all that the loop does, and what the loop and its readings took of that.
    """

    subject: str
    profile: str
    share: float
    outcome: str
    why: str = ""
    used: float | None = None
    cuts: int = 0
    full: float | None = None
    lean: float | None = None
    seconds: float = 0.0
    overhead: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)


def land(recipe: Recipe, profile: str, share: float, compare: bool) -> Landing:
    """Train a recipe under a budget, in a folder that is gone afterwards.

    Parameters
    ----------
    compare
        Whether the full-size model is trained as well.
    """
    budget = parse_budget("latency", f"{100 * share:g}%")
    wanted = load_profile(profile).model_copy(update={"budgets": Budgets(latency=budget)})
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = edgelean.fit(
                replace(recipe, compare=compare), wanted, target=TARGETS[profile], out=Path(folder) / "run"
            )
        except InputError as error:
            return Landing(recipe.name, profile, share, "refused", str(error))
    return _told(recipe.name, profile, share, report)


def _told(subject: str, profile: str, share: float, report: Report) -> Landing:
    (verdict,) = report.verdicts
    spent = {name: report.timing.get(name, 0.0) for name in ("training", "evaluating", "control", "measuring")}
    why = f"{verdict.low:.4g} to {verdict.high:.4g} ms of {verdict.limit:.4g} ms; {'; '.join(report.notes)}"
    failed = [check.file for check in report.checks if not check.passed]
    return Landing(
        subject,
        profile,
        share,
        "not verified" if failed else verdict.outcome,
        "" if verdict.outcome == "met" and not failed else why,
        verdict.value / verdict.limit,
        sum(cut.kept for cut in report.cuts),
        report.full_size.accuracy,
        report.lean.accuracy,
        sum(spent.values()),
        (spent["control"] + spent["measuring"]) / spent["training"],
    )
