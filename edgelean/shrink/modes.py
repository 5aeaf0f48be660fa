"""What is looked at in a state space layer while it learns: its spectrum, and what its single modes are worth.

Modes tell whether the order has settled. A truncation keeps balanced coordinates, whose values have no name that lasts
from one step of the training to the next: the largest is always the first. The modes of a layer are parameters of it
and do last. When their order stands, so does the space that balancing keeps, at a hundredth of what balancing costs.
"""

from __future__ import annotations

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
    found = hankel_singular_values(system, None if inputs is None else measured_gramians(system, inputs))
    return found.reshape(-1, found.shape[-1])


def pooled(sigma: Tensor) -> Tensor:
    """Return one line ``[K]`` of the lines of all systems ``[systems, K]``: their sum. That of one remains what it is.

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
    weights = weights[:, None, None] if system.lam.ndim > 1 else weights[:, None]
    driven = drive(system, some(inputs))
    state = torch.zeros_like(driven[0])
    power, square = torch.zeros_like(system.lam.real), torch.zeros_like(system.lam)
    for step in driven:
        state = system.lam * state + step
        power += state.abs().square().sum(0)
        square += state.square().sum(0)
    # The square of Re(c x) is half of |c x|^2 + Re(c^2 x^2).
    seen = system.C.abs().square() * power.unsqueeze(-2) + (system.C.square() * square.unsqueeze(-2)).real
    return 0.25 * (weights * seen).sum(-2) / (driven.shape[0] * driven.shape[1])


def some(inputs: Tensor) -> Tensor:
    """Return as many of the recorded sequences ``[batch, time, width]``, and as much of each, as a look takes."""
    steps = min(inputs.shape[1], MOST_STEPS)
    return inputs[: max(1, MOST_SAMPLES // steps), :steps]


def drive(system: DiagonalSystem, inputs: Tensor) -> Tensor:
    """Return what inputs ``[batch, time, width]`` add to the states at each step, ``[time, batch, ..., N]``."""
    u = inputs.detach().to(system.lam.device, torch.float64).transpose(0, 1).to(system.B.dtype)
    return u @ system.B.mT if system.lam.ndim == 1 else u.unsqueeze(-1) * system.B.squeeze(-1)
