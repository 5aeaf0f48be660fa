"""What is asked of a run, found and checked before anything is written."""

from __future__ import annotations

import hashlib
import itertools
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import edgelean
from edgelean.board import Board, load_board
from edgelean.errors import InputError, MissingError
from edgelean.profile import ControlSettings, Profile, load_profile
from edgelean.recipe import BUILT_IN, Recipe, checked, load_recipe
from edgelean.training.run import ASKED, Run


@dataclass(frozen=True)
class About:
    """What stands at the head of a report.

    Attributes
    ----------
    name
        What is trained.
    epochs, steps
        Of the whole training; no epochs where a training counts none.
    metric_name
        What the metric of the epochs is called.
    started
        ISO 8601, UTC.
    """

    name: str
    profile: Profile
    board: Board
    seed: int
    epochs: int
    steps: int
    metric_name: str
    started: str


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
    changes
        Of a resumed run: what is not as it was when it began, in sentences.
    """

    recipe: Recipe
    profile: Profile
    board: Board
    target: str | None
    seed: int
    asked: Mapping[str, Any]
    changes: tuple[str, ...] = ()

    def about(self, steps: int) -> About:
        """Return the head of the report of a training of so many steps."""
        recipe, started = self.recipe, str(self.asked["started"])
        metric = recipe.metric_name()
        return About(recipe.name, self.profile, self.board, self.seed, recipe.epochs, steps, metric, started)


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
        "recipe_sha256": source_hash(_lasting(recipe)) if isinstance(recipe, str) else None,
        "made_with": made_with(),
        "settings": own,
        "protect": list(found.protect),
        "profile": wanted.model_dump(mode="json"),
        "target": target,
        "seed": seed,
    }
    return Job(found, wanted, load_board(wanted.board), target, seed, asked)


def asked_before(run: Run, given: Recipe | None = None) -> Job:
    """Return the job of an earlier run.

    Parameters
    ----------
    given
        Its recipe, where that was a Python object.

    Raises
    ------
    MissingError
        If its recipe was a Python object, which only its own program has, and is not given.
    InputError
        If what was asked is damaged.
    """
    asked = run.asked()
    if asked.get("recipe", "") is None and given is None:
        raise MissingError(
            f"the recipe of {run.folder} was a Python object, which only the program that made it has: "
            "go on there with edgelean.pipeline.resume(folder, recipe=...)"
        )
    try:
        found = given or load_recipe(asked["recipe"])
        recipe = replace(checked(found.with_settings(asked["settings"])), protect=tuple(asked["protect"]))
        profile = Profile.model_validate(asked["profile"])
        changes = tuple(_changes(asked))
        return Job(recipe, profile, load_board(profile.board), asked["target"], asked["seed"], asked, changes)
    except (KeyError, TypeError, ValidationError) as error:
        what = f"{type(error).__name__}: {error}"
        remedy = "put it back, or start the run anew"
        raise InputError(f"{run.folder / ASKED} is not what this edgelean writes ({what}): {remedy}") from None


def _changes(asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield in sentences what is not as it was when a run began."""
    doubt = "the result is not that of one uninterrupted run"
    spec = asked["recipe"]
    if spec is not None and source_hash(spec) != asked["recipe_sha256"]:
        yield f"the recipe {spec} was changed after the run began: {doubt}"
    now = made_with()
    for name, before in asked["made_with"].items():
        if now.get(name) != before:
            yield f"the run began with {name} {before} and went on with {now.get(name)}: {doubt}"


def source_hash(spec: str) -> str | None:
    """Return the SHA-256 of the file that holds a recipe; None for what comes with edgelean, or has no file."""
    if spec in BUILT_IN:
        return None
    file = spec if spec.endswith(".py") or "/" in spec else sys.modules[spec.split(":")[0]].__file__
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def made_with() -> dict[str, str]:
    """Return what the numbers of a training depend on, beside the recipe: versions, threads, and the device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {"edgelean": edgelean.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "numpy")}
    return {**versions, "threads": str(torch.get_num_threads()), "device": device}


def new_folder(job: Job) -> Path:
    """Return a folder under ``runs/`` that tells what ran and when, and is not there yet."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{job.recipe.name}-{job.profile.name}-{moment}"
    # The clock may have been set back, and two runs may begin in one second.
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], others) if not folder.exists())


def _lasting(spec: str) -> str:
    """Return a recipe's name such that it still means the same from another folder."""
    return str(Path(spec).resolve()) if spec.endswith(".py") else spec
