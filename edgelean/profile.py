"""A profile: a board plus what a model may cost there, and how the controller gets it down to that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from edgelean.board import Precision, load_board
from edgelean.board.document import (
    Frozen,
    complaints,
    document_names,
    find_document,
    is_path,
    knob,
    nearest,
    read_document,
)
from edgelean.budget import Budgets
from edgelean.electricity import Electricity, electricity, find_country
from edgelean.errors import EdgeleanError, InputError
from edgelean.quantity import QUANTITIES
from edgelean.shelf import shelf

ScoreName = Literal["energy", "magnitude", "taylor", "activation", "batch_norm", "random"]


class ControlSettings(Frozen):
    """How the controller goes from the full-size model to the budgets."""

    window: tuple[FiniteFloat, FiniteFloat] = knob(
        (0.05, 0.5), "share of the training steps", "Cuts are made between these two points of the training."
    )
    events: PositiveInt = knob(8, "cuts", "The window has room for this many cuts, evenly spaced.")
    largest_cut: FiniteFloat = knob(
        0.35, "share of the cost", "No single cut may remove more of the predicted cost.", gt=0, lt=1
    )
    largest_axis_cut: FiniteFloat = knob(
        0.5, "share of the units", "No single cut may remove more of any one axis.", gt=0, lt=1
    )
    dead_band: FiniteFloat = knob(
        0.02,
        "share of the cost",
        "A smaller cut is not worth its disturbance while the reference is still falling.",
        ge=0,
        lt=1,
    )
    settled: FiniteFloat = knob(
        0.8,
        "rank correlation",
        "Cuts wait until successive scores order the units of an axis at least this alike, in the mean over all units.",
        ge=0,
        le=1,
    )
    wait: FiniteFloat = knob(
        0.10, "share of the training steps", "From here on cuts no longer wait for settled scores.", ge=0, lt=1
    )
    margin: FiniteFloat = knob(
        0.03, "share of the budget", "The controller aims this far below each budget.", ge=0, lt=0.5
    )
    score: ScoreName = knob(
        "energy",
        "name of a score",
        'How units are priced: "energy" in nats of the loss, or for comparison "magnitude", "taylor", "activation", '
        '"batch_norm", "random".',
    )
    floor: PositiveInt = knob(8, "units", "No axis is cut below this many units (channels, heads, states).")
    refit_steps: NonNegativeInt = knob(
        200,
        "steps",
        "Cuts are refitted when no more steps of the training are left; before, only means and batch statistics are.",
    )
    hankel_tolerance: FiniteFloat | None = knob(
        None,
        "share of the sum of Hankel singular values",
        "At 4 points of the window each state space layer keeps the fewest states with all but this share, "
        "whatever the budgets.",
        gt=0,
        lt=1,
    )
    recovery_steps: PositiveInt | None = knob(
        None,
        "training steps",
        "Training between a cut and the judgement on it; the space between two cuts if left out.",
    )

    @model_validator(mode="after")
    def _times_are_in_order(self) -> Self:
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise ValueError(f"window must be two shares, 0 <= start < end <= 1, found [{start:g}, {end:g}]")
        if self.wait >= end:
            raise ValueError(f"wait ({self.wait:g}) must be before the end of the window ({end:g})")
        return self


class AccuracySettings(Frozen):
    """How much of the metric a run may give up."""

    cut_tolerance: FiniteFloat = knob(
        0.03, "drop of the metric", "A cut whose drop after recovery is larger is rolled back.", gt=0, le=1
    )
    int8_tail: FiniteFloat = knob(
        0.2,
        "share of the training steps",
        "If INT8 is exported and rounding after the training would lose too much, this last part of it rounds as well.",
        ge=0,
        le=1,
    )


class MeasuringSettings(Frozen):
    """How candidates are measured."""

    on_sensor_loss: Literal["next", "stop"] = knob(
        "next",
        "",
        'When a sensor fails in the middle of a run: the "next" one of the board goes on, or the run has to "stop".',
    )


class Profile(Frozen):
    """A board plus budgets, precision, batch size and export targets; ``name`` is the name of its file."""

    name: str
    title: str = ""
    board: str = knob(..., "", "The hardware: a board of the shelf, or a file beside the profile.")
    precision: Precision = knob(..., "", 'What the model computes with on the board; "auto" leaves that to the run.')
    precisions: tuple[Precision, ...] = knob(
        (),
        "names",
        "What the run may choose from before its first cut, from the highest precision to the lowest; empty for one.",
    )
    batch: PositiveInt = knob(..., "samples", "Samples per call; the latency is that of a whole batch.")
    targets: tuple[str, ...] = knob(..., "", "What is exported.", min_length=1)
    budgets: Budgets
    control: ControlSettings = ControlSettings()
    accuracy: AccuracySettings = AccuracySettings()
    measuring: MeasuringSettings = MeasuringSettings()
    country: str | None = knob(
        None,
        "ISO 3166 code",
        'Where the model is trained, such as "DEU": whose mean electricity the CO2 is computed for.',
    )
    carbon_g_per_kwh: FiniteFloat | None = knob(
        None,
        "g CO2e per kWh",
        "Carbon intensity of that electricity where it is known; world mean (475) by default.",
        ge=0,
    )

    @model_validator(mode="before")
    @classmethod
    def _opens_the_choice(cls, written: Any) -> Any:
        """Read ``precision = "auto"`` as a choice from all precisions, which starts in the highest."""
        if isinstance(written, dict) and written.get("precision") == "auto":
            among = written.get("precisions") or get_args(Precision)
            return {**written, "precision": among[0], "precisions": among}
        return written

    @field_validator("country")
    @classmethod
    def _is_a_country(cls, code: str | None) -> str | None:
        if code is not None:
            find_country(code)
        return code

    @model_validator(mode="after")
    def _has_one_carbon_intensity(self) -> Self:
        if self.country is not None and self.carbon_g_per_kwh is not None:
            raise ValueError("give either country or carbon_g_per_kwh, and not both")
        return self

    @property
    def electricity(self) -> Electricity:
        """The electricity that trains the model: of the country, or with the number, or the mean of the world."""
        return electricity(self.country, self.carbon_g_per_kwh)

    @property
    def tolerance(self) -> float:
        """Drop of the metric beyond which a cut is rolled back: of one cut, or all that may be lost if that is less."""
        loss = self.budgets.accuracy_loss
        return min(self.accuracy.cut_tolerance, math.inf if loss is None else loss.resolve(math.nan) / 100)

    def with_control(self, settings: Mapping[str, str]) -> Profile:
        """Return the profile with knobs of its ``[control]`` table replaced, as ``--set key=value`` asks.

        Raises
        ------
        InputError
            A key is no such knob, or its value is not allowed.
        """
        if not settings:
            return self
        written = {**self.control.model_dump(), **{key: _plain(text) for key, text in settings.items()}}
        try:
            return self.model_copy(update={"control": ControlSettings.model_validate(written)})
        except ValidationError as error:
            pairs = " ".join(f"--set {key}={text}" for key, text in settings.items())
            raise InputError(f"{pairs}: {'; '.join(complaints(ControlSettings, error))}") from None

    def with_budgets(
        self,
        latency: str | None = None,
        energy: str | None = None,
        memory: str | None = None,
        size: str | None = None,
        accuracy_loss: str | None = None,
    ) -> Profile:
        """Return the profile with other budgets, written as in a profile; None leaves a budget as it is.

        Raises
        ------
        InputError
            A text is not a budget.
        """
        texts = zip(QUANTITIES, (latency, energy, memory, size, accuracy_loss), strict=True)
        return self.model_copy(update={"budgets": self.budgets.replaced(dict(texts))})


def _plain(text: str) -> Any:
    """Return what a text means as JSON: a number, a list, null; else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that ship with edgelean, sorted."""
    return document_names(shelf("profiles"))


def target_names() -> tuple[str, ...]:
    """Return the names of the export targets that ship with edgelean, sorted."""
    return document_names(shelf("export") / "targets")


def load_profile(name_or_path: str | Path) -> Profile:
    """Return a profile by its name, or by the path of a TOML file of one's own.

    A board that is given as a path is looked for beside the profile.

    Raises
    ------
    MissingError
        There is no such profile; the message has the nearest names.
    InputError
        The file is malformed or contradicts itself: ``FILE: key: what is allowed``.
    """
    path = find_document("profile", shelf("profiles"), name_or_path)
    profile = read_document(Profile, path, {"name": path.stem})
    if is_path(profile.board):
        profile = profile.model_copy(update={"board": str((path.parent / profile.board).resolve())})
    try:
        load_board(profile.board)
    except EdgeleanError as error:
        raise InputError(f"{path}: board: {error}") from None
    for target in profile.targets:
        if target not in target_names():
            hint = nearest(target, target_names())
            raise InputError(f"{path}: targets: there is no export target {target!r}: {hint}")
    return profile
