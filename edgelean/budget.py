"""Budgets: bounds on what a model may cost, as they are written and as they are kept."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from edgelean.board.document import Frozen, knob
from edgelean.errors import InputError
from edgelean.quantity import EXAMPLES, QUANTITIES, UNITS, WRITTEN, Quantity, scale, word

_AMOUNT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]+|%)\s*")


class Budget(Frozen):
    """A bound on one quantity, absolute or as a share of what the full-size model costs.

    Attributes
    ----------
    quantity
        ``latency`` of one batch; ``energy`` of one inference, that is of one sample; ``memory`` for the weights and the
        live activations of one batch; ``size`` of the exported file; ``accuracy_loss`` against the full-size model.
    limit
        The bound in ms, mJ, bytes, or points (hundredths of the metric).
    share
        The bound as a share of the full-size model, above 0 and up to 1. Exactly one of limit and share is given.
    percentile
        Which percentile of the latency must stay within the bound. All others have none (50).
    """

    quantity: Quantity
    limit: FiniteFloat | None = Field(default=None, gt=0)
    share: FiniteFloat | None = Field(default=None, gt=0, le=1)
    percentile: FiniteFloat = Field(default=50.0, gt=0, lt=100)

    @model_validator(mode="after")
    def _is_one_bound(self) -> Self:
        if (self.limit is None) == (self.share is None):
            raise ValueError('give either limit = "2ms" or share = "50%", and not both')
        if self.quantity != "latency" and self.percentile != 50:
            raise ValueError("percentile is for latency; the energy of an inference is a mean, the others are exact")
        if self.quantity == "accuracy_loss" and self.share is not None:
            raise ValueError(f"an accuracy loss is given in points, such as {EXAMPLES['accuracy_loss']}")
        return self

    @property
    def unit(self) -> str:
        """The unit of the limit: ms, mJ, bytes or points."""
        return UNITS[self.quantity]

    def resolve(self, full_size: float) -> float:
        """Return the bound in its unit, given what the full-size model costs in that unit.

        Raises
        ------
        InputError
            The budget is a share, and the cost of the full-size model is not a positive number.
        """
        if self.limit is not None:
            return self.limit
        if not (math.isfinite(full_size) and full_size > 0):
            raise InputError(
                f"the {self.quantity} budget {self} is a share of the full-size model, whose {self.quantity} is "
                f"{full_size} {self.unit}: give the budget in {self.unit}"
            )
        return (self.share or 1.0) * full_size

    def __str__(self) -> str:
        """Return the budget as it would be written in a profile."""
        if self.limit is None:
            return f"{100 * (self.share or 1.0):.12g}%"
        factor, unit = scale(self.limit, self.unit)
        return f"{self.limit / factor:.12g}{' ' if unit == 'points' else ''}{unit}"


def parse_budget(quantity: Quantity, text: str, percentile: float = 50.0) -> Budget:
    """Return the budget that a text such as "2ms", "350us", "10mJ", "300kB" or "50%" means.

    Raises
    ------
    InputError
        The text has no number, no unit or the unit of something else, or it is not above 0, or above 100 %.
    """
    value, unit = _amount(quantity, text)
    if not 0 < percentile < 100:
        raise InputError(
            f"{word(quantity)} budget {text!r}: the percentile must be between 0 and 100, found {percentile:g}"
        )
    if unit == "%":
        return Budget(quantity=quantity, share=value, percentile=percentile)
    return Budget(quantity=quantity, limit=value, percentile=percentile)


def _amount(quantity: Quantity, text: str) -> tuple[float, str]:
    """Return the value, in the unit of the quantity or as a share, and the unit that was written."""
    share = {} if quantity == "accuracy_loss" else {"%": 0.01}
    factors = {**WRITTEN[quantity], **share}
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in factors:
        or_share = ', or a share of the full-size model, such as "50%"' if share else ""
        raise InputError(
            f"{word(quantity)} budget {text!r}: write a number and a unit, such as {EXAMPLES[quantity]}{or_share}"
        )
    value = float(match[1]) * factors[match[2]]
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{word(quantity)} budget {text!r}: must be above 0 and finite")
    if match[2] == "%" and value > 1:
        raise InputError(f"{word(quantity)} budget {text!r}: a share of the full-size model is at most 100%")
    return value, match[2]


class Budgets(Frozen):
    """What a model may cost; at least one bound on a cost is given."""

    latency: Budget | None = knob(None, "ms or share", "Bound on a percentile of the latency of one batch.")
    energy: Budget | None = knob(None, "mJ or share", "Bound on the energy of one inference, that is of one sample.")
    memory: Budget | None = knob(
        None, "bytes or share", "Bound on the weights and the activations that are alive at once, for one batch."
    )
    size: Budget | None = knob(None, "bytes or share", "Bound on the exported ONNX file in the profile's precision.")
    accuracy_loss: Budget | None = knob(
        None,
        "points of the metric",
        "Bound on what the metric loses against the full-size model; a cut beyond it is rolled back.",
    )

    @field_validator(*QUANTITIES, mode="before")
    @classmethod
    def _read(cls, written: Any, info: ValidationInfo) -> Any:
        quantity = next(each for each in get_args(Quantity) if each == info.field_name)
        if isinstance(written, str):
            return parse_budget(quantity, written)
        if isinstance(written, dict) and "quantity" not in written:
            return {"quantity": quantity, **{key: _bound(quantity, key, value) for key, value in written.items()}}
        if isinstance(written, int | float):
            raise InputError(f"a number needs its unit, such as {EXAMPLES[quantity]}, found {written}")
        return written

    @model_validator(mode="after")
    def _is_a_budget(self) -> Self:
        if not self.costs:
            raise ValueError(
                'give a latency such as "2ms", an energy such as "10mJ", a memory such as "2MB", a size such as '
                '"300kB", or several of them'
            )
        return self

    @property
    def given(self) -> tuple[Budget, ...]:
        """The budgets that there are, in the order in which quantities are told."""
        return tuple(budget for name in QUANTITIES if (budget := getattr(self, name)) is not None)

    @property
    def costs(self) -> tuple[Budget, ...]:
        """Those of them that a cut brings nearer: all but the accuracy loss."""
        return tuple(budget for budget in self.given if budget.quantity != "accuracy_loss")

    def replaced(self, texts: Mapping[Quantity, str | None]) -> Budgets:
        """Return the budgets with others, written as in a profile, in their places; None leaves one as it is.

        A percentile stays.

        Raises
        ------
        InputError
            A text is not a budget.
        """
        update: dict[str, Budget] = {}
        for quantity, text in texts.items():
            if text is not None:
                before: Budget | None = getattr(self, quantity)
                update[quantity] = parse_budget(quantity, text, before.percentile if before else 50.0)
        return self.model_copy(update=update)


def _bound(quantity: Quantity, key: str, value: Any) -> Any:
    if key not in ("limit", "share"):
        return value
    amount, unit = _amount(quantity, str(value))
    if (unit == "%") != (key == "share"):
        raise InputError(f'{key} = {value!r}: a limit is such as {EXAMPLES[quantity]}, a share is such as "50%"')
    return amount
