"""The law: a cut model computes exactly what the uncut model computes with the removed units masked to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgelean.errors import LawError
from edgelean.nn import LRU, DiagonalSystem
from edgelean.shrink.balance import Reduction
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.plan import Plan

TOLERANCE = 1e-9

BOUND_SLACK = 1e-4
"""Parameters are stored in float32; the bound is computed in float64."""

FREQUENCIES = 128
"""Points on the upper half of the unit circle at which a truncated layer is compared with its original."""


def outputs(model: nn.Module, tensors: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a model in evaluation mode and float64 with other contents, leaving it as it is.

    Parameters
    ----------
    tensors
        Contents by name, as of `tensors_of`.
    probe
        Inputs of one small batch.

    Returns
    -------
    list
        Every output tensor.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            inputs = tuple(_double(x) for x in probe)
            return _leaves(functional_call(model, {name: _double(t) for name, t in tensors.items()}, inputs))
    finally:
        for module, training in modes.items():
            module.training = training


def masked(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the contents of a model with everything that the plan removes set to zero."""
    contents = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    for removal in plan.removals:
        whole = contents[removal.tensor].clone()
        whole.index_fill_(removal.dim, torch.tensor(removal.indices, device=whole.device), 0)
        contents[removal.tensor] = whole
    return contents


def deviation(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of the outputs, relative to the largest expected output.

    Raises
    ------
    LawError
        If shapes differ or something is not finite.
    """
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        if left.shape != right.shape or not torch.isfinite(right).all():
            raise LawError(f"the cut model returns {tuple(right.shape)}, the masked model {tuple(left.shape)}")
        scale = float(left.abs().max()) or 1.0
        worst = max(worst, float((left - right).abs().max()) / scale)
    return worst


def check(expected: list[Tensor], found: list[Tensor], tolerance: float = TOLERANCE) -> float:
    """Return the deviation if the law holds.

    Raises
    ------
    LawError
        If it does not.
    """
    error = deviation(expected, found)
    if error > tolerance:
        raise LawError(
            f"the cut model differs from the masked model by {error:.2g} (relative), allowed are {tolerance:g}"
        )
    return error


def check_bound(original: DiagonalSystem, layer: LRU, reduction: Reduction) -> float:
    """Return by how much a truncated layer differs from the original at worst, if that is within its bound.

    The layer is taken as its parameters are now, and compared on a grid of frequencies.

    Raises
    ------
    LawError
        If the error is above the bound of balanced truncation: twice the sum of the Hankel singular values that went.
    """
    z = torch.exp(1j * torch.linspace(0, torch.pi, FREQUENCIES, dtype=torch.float64))
    difference = _response(original, z) - _response(layer.system(), z)
    error = float(torch.linalg.matrix_norm(difference, 2).max())
    slack = BOUND_SLACK * (reduction.bound + float(reduction.hankel[0]))
    if reduction.method == "balanced" and error > reduction.bound + slack:
        raise LawError(f"the truncated states change the layer by {error:.3g}, their bound is {reduction.bound:.3g}")
    return error


def _response(system: DiagonalSystem, z: Tensor) -> Tensor:
    """Return the transfer function of the real map ``u -> Re(C x)`` at points ``z``, ``[points, P, H]``."""
    z = z.to(system.lam.device)
    direct = (system.C / (z[:, None, None] - system.lam)) @ system.B
    mirrored = (system.C.conj() / (z[:, None, None] - system.lam.conj())) @ system.B.conj()
    return 0.5 * (direct + mirrored)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [leaf for item in output for leaf in _leaves(item)]
    return []
