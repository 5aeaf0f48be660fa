"""What a bundle says about itself: where it comes from, what its outputs mean, and how a file becomes a sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import edgelean
from edgelean.job import Job
from edgelean.profile import Profile


@dataclass(frozen=True)
class Label:
    """What the bundle says about itself.

    Attributes
    ----------
    title
        The heading of its README.
    classes
        Names of the classes; empty where the recipe names none.
    preparation
        How an image or a recording becomes a sample, in plain JSON types; None where the recipe does not say it.
    evidence
        At most so many samples of the test split go along.
    origin
        Recipe, profile, board, seed and the hash of the plan. No time is in it: the same run gives the same bytes.
    """

    title: str
    classes: tuple[str, ...]
    preparation: Mapping[str, Any] | None = None
    evidence: int = 256
    origin: Mapping[str, str] = field(default_factory=dict)

    def of(self, profile: Profile) -> Label:
        """Return the label with profile and board in its origin, also where the caller's own loop trained the model."""
        return replace(self, origin={"profile": profile.name, "board": profile.board, **self.origin})

    def metadata(self) -> dict[str, str]:
        """Return the ``metadata_props`` of every ONNX file."""
        told = {"edgelean.version": edgelean.__version__, "edgelean.title": self.title}
        told |= {f"edgelean.{key}": value for key, value in self.origin.items()}
        if self.classes:
            told["edgelean.labels"] = ",".join(self.classes)
        if self.preparation is not None:
            told["edgelean.preparation"] = json.dumps(self.preparation, sort_keys=True)
        return told


def label_of(job: Job, events: Iterable[Mapping[str, Any]]) -> Label:
    """Return the label of a run.

    Parameters
    ----------
    events
        Of the run; its cuts are the plan.
    """
    recipe = job.recipe
    origin = {"recipe": recipe.name, "seed": str(job.seed), "plan": plan_hash(events)}
    preparation = None if recipe.preparation is None else recipe.preparation.to_json()
    return Label(f"{recipe.name} for {job.profile.name}", recipe.labels, preparation, recipe.evidence, origin)


def plan_hash(events: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of what was cut, in its order, without the cuts that were taken back."""
    plans: list[Any] = []
    for event in events:
        if event["event"] == "cut":
            plans.append(event["plan"])
        elif event["event"] == "rollback" and plans:
            plans.pop()
    return hashlib.sha256(json.dumps(plans, sort_keys=True).encode()).hexdigest()
