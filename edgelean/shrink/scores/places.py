"""At which places of what layers read, and of the gradients there, is looked: at some of them, to cost little."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

SHARE, FEWEST, POSITIONS = 8, 256, 2048
"""Moments are taken of one in so many positions of a batch, but of at least (and at most) so many; and of no fewer than
a third of the features."""


def layout(module: nn.Module) -> tuple[bool, int]:
    """Return whether features are the second dimension, and in how many groups they are shared."""
    convolution = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    return convolution, module.groups if isinstance(module, CONVOLUTIONS) else 1


def _stride(places: int, wanted: int, sizes: Sequence[int]) -> int:
    """Return every how many of the places of a grid are taken, so that no row or column of it is left out."""
    stride = max(1, places // max(1, wanted))
    while stride < places and any(size > 1 and math.gcd(stride, size) > 1 for size in sizes):
        stride += 1
    return stride


def _enough(positions: int, features: int) -> int:
    """Return how many positions tell the moments of so many features at a small part of the cost of the layer."""
    return min(positions, max(features // 3, FEWEST, min(positions // SHARE, POSITIONS)))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Return ``[samples, features, places]`` of a convolution; groups share their features."""
    return x if groups == 1 else torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(2)


def some_positions(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``[positions, features]`` of what a layer reads, of some positions only."""
    convolution, groups = layout(module)
    if not convolution:
        rows = x.flatten(0, -2)
        return rows[:: _stride(len(rows), _enough(len(rows), rows.shape[1]), x.shape[:-1])]
    flat = x.flatten(2)
    samples, features, places = flat.shape
    stride = _stride(places, _enough(samples * places, features) // samples, x.shape[2:])
    return _by_group(flat[..., stride // 2 :: stride], groups).transpose(1, 2).flatten(0, 1)


def energy(module: nn.Module, gradient: Tensor) -> Tensor:
    """Return the squared gradient, summed over the places of a sample, from some of them: ``[samples, features]``."""
    convolution, groups = layout(module)
    if gradient.ndim == 2:
        return gradient.float().square()
    flat, sizes = (
        (gradient.flatten(2), gradient.shape[2:]) if convolution else (gradient.flatten(1, -2), gradient.shape[1:-1])
    )
    dim = 2 if convolution else 1
    samples, places, features = len(flat), flat.shape[dim], flat.shape[3 - dim]
    stride = _stride(places, _enough(samples * places, features) // samples, sizes)
    some = flat[..., stride // 2 :: stride] if convolution else flat[:, stride // 2 :: stride]
    taken = places / some.shape[dim]
    return _by_group(some, groups).float().square().sum(dim) * taken


def per_sample(module: nn.Module, x: Tensor) -> Tensor:
    """Return the sum over all places of each sample, ``[samples, features]``."""
    convolution, groups = layout(module)
    if not convolution:
        return x.float() if x.ndim == 2 else x.flatten(1, -2).sum(1, dtype=torch.float32)
    total = x.flatten(2).sum(2, dtype=torch.float32)
    return total if groups == 1 else torch.unflatten(total, 1, (groups, -1)).sum(1)
