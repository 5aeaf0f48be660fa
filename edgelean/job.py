"""What is asked of a run, found and checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgelean
from edgelean.board import Board, load_board
from edgelean.errors import MissingError
from edgelean.profile import ControlSettings, Profile, load_profile
from edgelean.recipe import Recipe, checked, load_recipe
from edgelean.training.run import Run


@dataclass(frozen=True)
class Job:
    """A recipe, a profile with its board, and the rest of what was asked.

    Attributes
    ----------
    target
        Where candidates are measured: ``"local"``, ``"modelled"``, or None for what suits the board.
    asked
        The same in plain JSON types, from which a later process can resume; its recipe is None if that was a Python
        object.
    """

    recipe: Recipe
    profile: Profile
    board: Board
    target: str | None
    seed: int
    asked: Mapping[str, Any]


def ask(
    recipe: str | Recipe,
    profile: str | Path | Profile,
    *,
    latency: str | None = None,
    energy: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    accuracy_loss: str | None = None,
    target: str | None = None,
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Job:
    """Find and check what a run needs.

    Raises
    ------
    MissingError, InputError
        If something does not exist or cannot be used; says what, and what to do.
    """
    found = load_recipe(recipe) if isinstance(recipe, str) else checked(recipe)
    steering = {key: text for key, text in (settings or {}).items() if key in ControlSettings.model_fields}
    own = {key: text for key, text in (settings or {}).items() if key not in steering}
    found = checked(found.with_settings(own))
    wanted = profile if isinstance(profile, Profile) else load_profile(profile)
    wanted = wanted.with_budgets(latency, energy, memory, size, accuracy_loss).with_control(steering)
    asked = {
        "edgelean": edgelean.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": _lasting(recipe) if isinstance(recipe, str) else None,
        "settings": own,
        "protect": list(found.protect),
        "profile": wanted.model_dump(mode="json"),
        "target": target,
        "seed": seed,
    }
    return Job(found, wanted, load_board(wanted.board), target, seed, asked)


def asked_before(run: Run) -> Job:
    """Return the job of an earlier run.

    Raises
    ------
    MissingError
        If its recipe was a Python object, which only its own program has.
    """
    asked = run.asked()
    if asked["recipe"] is None:
        raise MissingError(f"the recipe of {run.folder} was a Python object: only the program that made it can go on")
    recipe = checked(load_recipe(asked["recipe"]).with_settings(asked["settings"]))
    recipe = replace(recipe, protect=tuple(asked["protect"]))
    profile = Profile.model_validate(asked["profile"])
    return Job(recipe, profile, load_board(profile.board), asked["target"], asked["seed"], asked)


def new_folder(job: Job) -> Path:
    """Return a folder under ``runs/`` that tells what ran and when."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{job.recipe.name}-{job.profile.name}-{moment}"


def _lasting(spec: str) -> str:
    """Return a recipe's name such that it still means the same from another folder."""
    return str(Path(spec).resolve()) if spec.endswith(".py") else spec
