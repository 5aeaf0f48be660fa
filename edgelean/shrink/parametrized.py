"""Parametrized weights: those that are computed from other parameters before they are used.

A weight norm divides by a length that a cut changes. Its gain is multiplied by the same share, so that the weights that
are left stay what they were: w = g v / |v|. A spectral norm divides by a singular value that no factor puts right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from edgelean.errors import LawError
from edgelean.shrink.followers import Keep, sliced

REFUSED = {"_SpectralNorm": "spectral_norm", "SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
"""What makes weights that depend on all of their matrix, by the class that does it."""


class Lengths(NamedTuple):
    """A weight norm: the names of gain and direction, and the dimension whose elements have a gain each (-1: one)."""

    gain: str
    direction: str
    dim: int


def refuse(network: nn.Module, names: Collection[str]) -> None:
    """Refuse to cut weights that cannot be cut exactly.

    Parameters
    ----------
    names
        Of the parameters and buffers to be cut.

    Raises
    ------
    LawError
        If one of them is below a spectral norm or the like; names it.
    """
    for prefix, leaf, steps in _computed(network):
        kinds = [type(step).__name__ for step in steps]
        wrong = [REFUSED[kind] for kind in kinds if kind in REFUSED]
        if len(kinds) > 1 and {"_WeightNorm", "WeightNorm"} & set(kinds):
            wrong.append("weight_norm under another parametrization")
        mine = (f"{prefix}{leaf}_", f"{prefix}parametrizations.{leaf}.")
        if wrong and any(name.startswith(mine) for name in names):
            raise LawError(f"{prefix}{leaf} has a {wrong[0]}: what is left of it would not be what it was")


def _computed(network: nn.Module) -> Iterator[tuple[str, str, list[object]]]:
    """Yield the path of a module with a dot, the name of a weight of it, and what computes that weight."""
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for hook in module._forward_pre_hooks.values():
            if hasattr(hook, "name"):
                yield prefix, hook.name, [hook]
        if is_parametrized(module):
            for leaf, steps in cast("nn.ModuleDict", module.parametrizations).items():
                yield prefix, leaf, list(cast("nn.ModuleList", steps))


def _weight_norms(network: nn.Module) -> Iterator[Lengths]:
    for prefix, leaf, (step, *_) in _computed(network):
        if isinstance(step, WeightNorm):
            yield Lengths(f"{prefix}{leaf}_g", f"{prefix}{leaf}_v", step.dim)
        elif isinstance(step, nn.Module) and type(step).__name__ == "_WeightNorm":
            below = f"{prefix}parametrizations.{leaf}"
            yield Lengths(f"{below}.original0", f"{below}.original1", cast("int", step.dim))


def normed(network: nn.Module) -> set[str]:
    """Return the names of the gains and directions of all weight norms."""
    return {name for lengths in _weight_norms(network) for name in (lengths.gain, lengths.direction)}


def gains(
    network: nn.Module, whole: Mapping[str, Tensor], part: Mapping[str, Tensor], kept: Mapping[str, Keep]
) -> dict[str, Tensor]:
    """Return gains and directions with which the weights that are left stay what they were.

    Parameters
    ----------
    whole, part
        Contents by name: of the uncut model, and cut, or masked with zeros.
    kept
        What stayed in the cut, by name; empty where the part is masked.

    Returns
    -------
    dict
        Contents to replace in the part.
    """
    contents = {}
    for gain, direction, dim in _weight_norms(network):
        before = sliced(torch.norm_except_dim(whole[direction], 2, dim), kept.get(gain, {}))
        now = torch.norm_except_dim(part[direction], 2, dim)
        contents[gain] = part[gain] * now / before
        # A direction of length 0 would be divided by 0; a gain of 0 masks the weight as well.
        contents[direction] = torch.where(now > 0, part[direction], sliced(whole[direction], kept.get(direction, {})))
    return contents


def refresh(network: nn.Module) -> None:
    """Compute weights anew that old weight norms would leave in their old shape until the next forward."""
    with torch.no_grad():
        for module in network.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    hook(module, ())
