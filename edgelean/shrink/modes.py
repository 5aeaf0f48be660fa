"""What is looked at in a state space layer while it learns: its spectrum, and what its single modes are worth.

Modes tell whether the order has settled. A truncation keeps balanced coordinates, whose values have no name that lasts
from one step of the training to the next: the largest is always the first. The modes of a layer are parameters of it
and do last. When their order stands, so does the space that balancing keeps, at a hundredth of what balancing costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance import hankel_singular_values, measured_gramians

MOST_STEPS = 1024
"""Recorded sequences are followed for so many steps."""

MOST_SAMPLES = 4096
"""So many steps, of all sequences together, tell what arrives at a layer, if no plan rests on it."""


def spectra_of(system: DiagonalSystem, inputs: Tensor | None = None) -> Tensor:
    """Return the Hankel singular values of a system, or of each of a bank, ``[systems, 2 N]``, largest first.

    Parameters
    ----------
    inputs
        What the layer reads, ``[batch, time, width]``; feature i goes to system i of a bank. Without it for white
        noise.
    """
    if system.lam.ndim == 1:
        given = None if inputs is None else measured_gramians(system, inputs)
        return hankel_singular_values(system, given)[None]
    each = map(DiagonalSystem, system.lam, system.B, system.C)
    read: Sequence[Tensor | None] = [None] * len(system.lam) if inputs is None else torch.split(inputs, 1, -1)
    return torch.cat([spectra_of(one, its) for one, its in zip(each, read, strict=True)])


def pooled(sigma: Tensor) -> Tensor:
    """Return one spectrum ``[2 N]`` of all systems ``[systems, 2 N]``: the sum of their largest, and so on.

    All systems of a bank keep equally many states, so what a rank keeps of the bank is what it keeps of this.
    """
    return sigma.reshape(-1, sigma.shape[-1]).sum(0)


def mode_prices(system: DiagonalSystem, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return what each mode would cost, in nats, if it went alone and nothing made up for it: ``[N]``.

    Half the weighted energy that recorded inputs send through the mode to the outputs.

    Parameters
    ----------
    system
        The layer's system, or a bank of them.
    weight
        Diagonal of the Fisher information of the loss at the outputs, summed over time, ``[P]``; of a bank, at the
        output of each.
    inputs
        What the layer reads, ``[batch, time, width]``; feature i goes to system i of a bank.

    Returns
    -------
    Tensor
        ``[N]``, of a bank ``[systems, N]``, in double precision.
    """
    weights = weight.to(system.lam.device, torch.float64)
    outputs = weights.unsqueeze(-1) if system.lam.ndim > 1 else weights
    # A mode swings: its real part carries half of the energy.
    seen = 0.5 * (outputs.unsqueeze(-1) * system.C.abs().square()).sum(-2)
    return 0.5 * _energy(system, inputs) * seen


def some(inputs: Tensor) -> Tensor:
    """Return as many of the recorded sequences ``[batch, time, width]``, and as much of each, as a look takes."""
    steps = min(inputs.shape[1], MOST_STEPS)
    return inputs[: max(1, MOST_SAMPLES // steps), :steps]


def _energy(system: DiagonalSystem, inputs: Tensor) -> Tensor:
    """Return the mean square of each state under recorded inputs, ``[..., N]``."""
    driven = drive(system, some(inputs))
    state, total = torch.zeros_like(driven[0]), torch.zeros_like(system.lam.real)
    for step in driven:
        state = system.lam * state + step
        total += state.abs().square().sum(0)
    return total / (driven.shape[0] * driven.shape[1])


def drive(system: DiagonalSystem, inputs: Tensor) -> Tensor:
    """Return what inputs ``[batch, time, width]`` add to the states at each step, ``[time, batch, ..., N]``."""
    u = inputs.detach().to(system.lam.device, torch.float64).transpose(0, 1).to(system.B.dtype)
    return u @ system.B.mT if system.lam.ndim == 1 else u.unsqueeze(-1) * system.B.squeeze(-1)
