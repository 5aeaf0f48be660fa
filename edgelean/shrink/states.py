"""The states of state space layers: what they are worth, and how a layer comes to have fewer.

A time-invariant layer hands its system to balanced truncation. A bank, one system for each feature, has the same number
of states in all: each system is truncated on its own, and a state costs the sum over the features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn import DiagonalSystem, StateSpace
from edgelean.shrink.balance import Reduction, measured_gramians, measured_prices, refitted_to, truncate
from edgelean.shrink.modes import pooled, spectra_of
from edgelean.shrink.plan import Plan


def state_layer(model: nn.Module, path: str) -> StateSpace:
    """Return the state space layer at a path of a model.

    Raises
    ------
    InputError
        If something else is there.
    """
    layer = model.get_submodule(path)
    if not isinstance(layer, StateSpace):
        raise InputError(f"{path} is a {type(layer).__name__}: only a state space layer has states to truncate")
    return layer


def system_of(model: nn.Module, path: str) -> DiagonalSystem:
    """Return the system of the state space layer at a path of a model.

    Raises
    ------
    InputError
        If there is no such layer, or it is not stable; the layer, the feature and the state are named.
    """
    layer = state_layer(model, path)
    try:
        return layer.system()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_states(model: nn.Module, path: str, states: int) -> None:
    """Make sure that a state space layer can be truncated to so many states.

    Raises
    ------
    InputError
        If it cannot; the layer is named.
    """
    present = system_of(model, path).states
    if not 1 <= states <= present:
        raise InputError(
            f"{path} has {present} states, one for each conjugate pair, and can keep 1 to {present} of them, "
            f"not {states}"
        )


def parameter_in(path: str, name: str) -> str:
    """Return the name in the model of what a layer at a path calls by a name."""
    return f"{path}.{name}" if path else name


def left_to_read(model: nn.Module, plan: Plan, path: str, inputs: Tensor) -> Tensor:
    """Return recorded inputs of a state space layer without the features that a plan removes."""
    name, dim = state_layer(model, path).reads
    slot = parameter_in(path, name), dim
    gone = {index for each in plan.removals if (each.tensor, each.dim) == slot for index in each.indices}
    return inputs[..., [feature for feature in range(inputs.shape[-1]) if feature not in gone]]


def reduced(system: DiagonalSystem, states: int, inputs: Tensor | None = None) -> Reduction:
    """Return a system, or each of a bank, truncated to so many states.

    Parameters
    ----------
    inputs
        What the layer reads, ``[batch, time, width]``; states are balanced for that, and C refitted to it. Without it
        they are balanced for white noise.
    """
    if inputs is None:
        return truncate(system, states)
    found = truncate(system, states, measured_gramians(system, inputs))
    if found.method == "unchanged" or len(inputs) < 2:
        return found
    return replace(found, system=refitted_to(system, found.system, inputs))


def state_prices(system: DiagonalSystem, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the predicted loss of removing the first 0, 1, ... N states (of every feature of a bank), ``[N + 1]``.

    Parameters
    ----------
    weight
        Fisher information of the loss at the outputs, summed over time, ``[width]``.
    inputs
        What the layer reads, ``[batch, time, width]``.
    """
    return pooled(measured_prices(system, weight, inputs))


def state_spectrum(system: DiagonalSystem, inputs: Tensor | None = None) -> Tensor:
    """Return the Hankel singular values, ``[2N]``, largest first; of a bank the sum over its features."""
    return pooled(spectra_of(system, inputs))


def simulated(system: DiagonalSystem, inputs: Tensor) -> Tensor:
    """Return the outputs of a system, or of a bank, for inputs ``[batch, time, width]``, by its recurrence."""
    u = inputs.to(system.B.dtype)
    bank = system.lam.ndim > 1
    driven = u[..., None] * system.B[..., 0] if bank else u @ system.B.mT
    state, steps = torch.zeros_like(driven[:, 0]), []
    for step in driven.unbind(1):
        state = system.lam * state + step
        steps.append(((state * system.C[:, 0]).sum(-1) if bank else state @ system.C.mT).real)
    return torch.stack(steps, 1)
