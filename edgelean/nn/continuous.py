"""From continuous to discrete time and back, for diagonal systems."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.scan import Pair, Poles, product

Discretization = Literal["zoh", "bilinear"]

SMALLEST_MODULUS = 1e-12
"""A pole at 0 has no logarithm; this is far below what float32 outputs resolve."""


def discrete(A_re: Tensor, A_im: Tensor, step: Tensor, method: Discretization) -> tuple[Poles, Pair]:
    """Return the poles of the discrete system, and the factor that turns B into its input matrix.

    Zero-order hold: ``lam = exp(A step)`` and ``(lam - 1) / A``. Bilinear: ``lam = (1 + z) / (1 - z)`` and
    ``step / (1 - z)`` with ``z = A step / 2``.
    """
    if method == "zoh":
        poles = Poles(A_re * step, A_im * step)
        size = A_re * A_re + A_im * A_im
        # At an eigenvalue of 0, such as that of a state that is masked, the factor is the step.
        inside = size.clamp(min=torch.finfo(size.dtype).tiny)
        gain_re, gain_im = product(_less_one(poles), (A_re / inside, -A_im / inside))
        return poles, (torch.where(size > 0, gain_re, step), gain_im)
    z_re, z_im = 0.5 * step * A_re, 0.5 * step * A_im
    below = (1 - z_re).square() + z_im.square()
    above = (1 + z_re).square() + z_im.square()
    decay = 0.5 * torch.log(above.clamp(min=SMALLEST_MODULUS**2) / below)
    phase = torch.atan2(z_im, 1 + z_re) + torch.atan2(z_im, 1 - z_re)
    return Poles(decay, phase), (step * (1 - z_re) / below, step * z_im / below)


def _less_one(poles: Poles) -> Pair:
    """Return ``lam - 1`` without cancellation, in operators whose small values onnxruntime gets right, too."""
    modulus = torch.exp(poles.decay)
    longer = torch.tanh(0.5 * poles.decay) * (modulus + 1)
    return longer - 2 * modulus * torch.sin(0.5 * poles.phase).square(), modulus * torch.sin(poles.phase)


def continuous(lam: Tensor, step: Tensor, method: Discretization) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues whose discrete poles are ``lam`` (complex), and the factor that `discrete` returns."""
    lam = torch.where(lam.abs() < SMALLEST_MODULUS, torch.full_like(lam, SMALLEST_MODULUS), lam)
    if method == "zoh":
        A = lam.log() / step
        return A, (lam - 1) / A
    half = (lam - 1) / (lam + 1)
    return 2 * half / step, step / (1 - half)


def log_steps(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Draw logarithms of steps between two, uniformly."""
    return math.log(dt_min) + torch.rand(count) * (math.log(dt_max) - math.log(dt_min))


def check_steps(layer: str, method: str, dt_min: float, dt_max: float) -> None:
    """Refuse steps that are not positive and methods that do not exist.

    Raises
    ------
    InputError
        The message begins with ``layer``.
    """
    if not 0 < dt_min <= dt_max:
        raise InputError(f"{layer} needs 0 < dt_min <= dt_max, found dt_min={dt_min}, dt_max={dt_max}")
    if method not in get_args(Discretization):
        raise InputError(f"{layer} is discretised by {' or '.join(get_args(Discretization))}, not {method!r}")
