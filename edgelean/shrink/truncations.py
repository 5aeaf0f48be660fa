"""What a truncation is known to cost before it is done, and what it did cost.

The certificate is twice the sum of the Hankel singular values that go: a truncation that is balanced for white noise
never makes a larger error at any frequency. Truncations here are balanced for what a layer really reads, which no
certificate covers; so their error is measured, at the worst frequency and on recorded inputs.

References
----------
Enns, "Model reduction with balanced realizations", 1984; Glover, "All optimal Hankel-norm approximations", 1984.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from edgelean.nn.system import DiagonalSystem, StateSpace
from edgelean.shrink.balance import Reduction, largest_gain, recorded_energy, recorded_error
from edgelean.shrink.certificate import Truncation
from edgelean.shrink.modes import some, spectra_of


def systems_at(model: nn.Module, paths: Iterable[str]) -> dict[str, DiagonalSystem]:
    """Return the systems of those layers of a model that have one."""
    layers = {path: model.get_submodule(path) for path in paths}
    return {path: layer.system() for path, layer in layers.items() if isinstance(layer, StateSpace)}


def certified(
    full: Mapping[str, DiagonalSystem], reductions: Mapping[str, Reduction], read: Mapping[str, Tensor]
) -> tuple[Truncation, ...]:
    """Return what is known of truncations, in the order of the reductions.

    Parameters
    ----------
    full
        The systems before, by the path of the layer; without one a layer is passed over.
    read
        What the layers read, ``[batch, time, width]``; without it a layer is passed over.
    """
    found = []
    for path, reduction in reductions.items():
        if path in full and path in read:
            # A solver that does not converge costs a figure, not the cut.
            with suppress(RuntimeError):
                found.append(_certified(path, full[path], reduction, read[path]))
    return tuple(found)


def _certified(path: str, full: DiagonalSystem, reduction: Reduction, inputs: Tensor) -> Truncation:
    some_inputs = some(inputs)
    whole = float(recorded_energy(full, some_inputs).sum())
    error = float(recorded_error(full, reduction.system, some_inputs).sum())
    tails = spectra_of(full)[:, int(reduction.orders.min()) :].sum(-1)
    return Truncation(
        layer=path,
        before=full.states,
        after=reduction.system.states,
        gain=largest_gain(full),
        certificate=2 * float(tails.max()),
        worst=largest_gain(full, reduction.system),
        energy=error / max(whole, torch.finfo(torch.float64).tiny),
    )
