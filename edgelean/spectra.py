"""State space layers over the training: their Hankel singular values, and the paper's rule for their ranks.

References
----------
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026: the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem, StateSpace
from edgelean.shrink.axes import Axis
from edgelean.shrink.modes import mode_prices, pooled, some, spectra_of
from edgelean.shrink.ranks import states_for
from edgelean.shrink.scores import Score
from edgelean.shrink.scores.flow import Flow
from edgelean.shrink.truncations import systems_at

MOMENTS = 32
"""So often in a training the spectra are looked at, beside the cuts."""

ROWS = 64
"""So many of the Hankel singular values of a layer are kept of each look."""

ATTEMPTS = 4
"""So often the paper's rule looks whether a layer has states to lose, evenly spaced in the window."""

DIGITS = 4
"""Significant digits of a recorded value."""


@dataclass(frozen=True)
class Looks:
    """When the spectra are looked at, and which of their values are kept.

    Attributes
    ----------
    steps
        Of the whole training.
    full
        Complex states of each state space layer before the first cut, by the path of the layer.
    """

    steps: int
    full: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, axes: Mapping[str, Axis], steps: int) -> Looks:
        """Return the looks at a model that is trained for so many steps."""
        return cls(steps, {axis.module(): axis.size for axis in state_space_axes(model, axes.values())})

    def due(self, step: int) -> bool:
        """Tell whether a look is due after so many steps."""
        return bool(self.full) and step * MOMENTS // self.steps > (step - 1) * MOMENTS // self.steps

    def look(self, model: nn.Module, flows: Mapping[str, Flow]) -> dict[str, Any]:
        """Return the spectra of all layers that have been observed, by the path of the layer, in plain JSON types."""
        found = {}
        for path, module in ((path, module) for path, module in model.named_modules() if path in self.full):
            inputs = flows.get(path, Flow()).inputs
            # A picture must not end a training: what cannot be computed is not there. Nor is a layer whose block went.
            with suppress(InputError, RuntimeError):
                if inputs is not None and isinstance(module, StateSpace):
                    found[path] = spectra_of(module.system(), some(inputs))
        return self.told(found)

    def told(self, sigma: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return spectra in plain JSON types: of each layer its states, and its values at `rows`.

        Parameters
        ----------
        sigma
            By the path of the layer, ``[2 N]``, or of a bank ``[systems, 2 N]``.
        """
        layers = {}
        for path, values in ((path, pooled(each)) for path, each in sigma.items() if path in self.full):
            kept = [row for row in rows(2 * self.full[path]) if row <= len(values)]
            told = [float(f"{float(values[row - 1]):.{DIGITS}g}") for row in kept]
            layers[path] = {"full": self.full[path], "states": len(values) // 2, "sigma": told}
        return layers


def rows(order: int) -> tuple[int, ...]:
    """Return the ranks, from 1 to the order of a real system, whose Hankel singular values are kept: few, in ratios."""
    spaced = np.geomspace(1, order, min(ROWS, order)).round().astype(int)
    return tuple(int(row) for row in np.unique(spaced))


def state_space_axes(model: nn.Module, axes: Iterable[Axis]) -> list[Axis]:
    """Return the axes of states of layers that have a system; those of a selective layer are not among them."""
    return [
        axis for axis in axes if axis.kind == "states" and isinstance(model.get_submodule(axis.module()), StateSpace)
    ]


def orders(model: nn.Module, axes: Mapping[str, Axis], scores: Score) -> dict[str, tuple[float, ...]]:
    """Return, for every axis that has been observed, what each of its units is worth alone.

    Channels by their prices; states by the prices of the modes of the layer as it is.

    Raises
    ------
    InputError
        If a layer is not stable; it is named.
    """
    found: dict[str, Tensor | None] = {}
    states = {axis.name for axis in state_space_axes(model, axes.values())}
    for name, axis in axes.items():
        if name in states:
            flow = scores.flows.get(axis.module(), Flow())
            if flow.fisher is not None and flow.inputs is not None:
                found[name] = mode_prices(_system(model, axis.module()), flow.fisher, flow.inputs)
        elif axis.kind == "channels":
            found[name] = scores.unit_prices(axis, model)
    return {name: tuple(values.flatten().tolist()) for name, values in found.items() if values is not None}


def attempts(window: tuple[float, float], steps: int) -> frozenset[int]:
    """Return the steps at which the paper's rule is applied: evenly spaced in the window, its end the last.

    Parameters
    ----------
    window
        Its start and end, as shares of all steps. An attempt after which nothing would be trained is left out.
    steps
        Of the whole training.
    """
    begins, ends = window
    at = {round(steps * (begins + (ends - begins) * number / ATTEMPTS)) for number in range(1, ATTEMPTS + 1)}
    return frozenset(step for step in at if 0 < step < steps)


@dataclass(frozen=True)
class Rule:
    """The paper's rule: a layer keeps the fewest states whose Hankel singular values are nearly all of the sum.

    Attributes
    ----------
    tolerance
        Share of the sum that may go.
    floor
        Fewest states that stay.
    """

    tolerance: float
    floor: int


def allowed(model: nn.Module, axes: Iterable[Axis], scores: Score, rule: Rule) -> tuple[dict[str, int], float]:
    """Return the states that layers keep by a rule, and the loss in nats that this is predicted to cost.

    Layers that would keep 95 % of their states or more are not among them, nor are those that have not been observed.
    The spectrum is that for white inputs, which the tolerances of the paper are meant for.

    Raises
    ------
    InputError
        If a layer is not stable; it is named.
    """
    keep, nats = {}, 0.0
    for axis in state_space_axes(model, axes):
        known = scores.removal_prices(axis, model)
        if known is None:
            continue
        sigma = pooled(spectra_of(_system(model, axis.module())))
        states = max(axis.least(rule.floor), states_for(sigma, rule.tolerance))
        if states < axis.size:
            keep[axis.name] = states
            nats += known[1][axis.size - states]
    return keep, nats


def _system(model: nn.Module, path: str) -> DiagonalSystem:
    try:
        return systems_at(model, [path])[path]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
