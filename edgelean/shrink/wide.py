"""Tensors that count as float64, and are in float64 only while something computes with them.

A model that runs in float64 to be compared needs twice its memory for its parameters, and most of the time goes into
making these copies. A tensor that is converted where it is read, and let go of afterwards, needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

SMALL = 1 << 12
"""Tensors of fewer elements are converted at once."""

_DTYPE = cast("Any", Tensor.dtype).__get__
_UNCHANGED = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "device", "layout", "requires_grad", "grad", "is_leaf")
    ),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point),
    *(Tensor.is_complex, Tensor.__len__),
}
"""What a tensor answers without its contents."""


class Wide(Tensor):
    """A tensor in some precision that any operator sees in float64, with zeros in some places."""

    zeros: tuple[tuple[int, Tensor], ...]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with tensors in float64."""
        if func == _DTYPE:
            return torch.float64
        with torch._C.DisableTorchFunctionSubclass():
            if func in _UNCHANGED:
                return func(*args, **(kwargs or {}))
            given, named = pytree.tree_map_only(Wide, _converted, (tuple(args), dict(kwargs or {})))
        return func(*given, **named)


def wide(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor as one in float64, a large one without a copy; anything else as it is."""
    if isinstance(tensor, Wide):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.detach()
    return tensor.detach().double() if tensor.numel() < SMALL else _lazy(tensor, ())


def zeroed(tensor: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """Return a tensor of `wide` with zeros at some places of a dimension; the original stays as it is."""
    where = torch.tensor(indices, device=tensor.device)
    if isinstance(tensor, Wide):
        return _lazy(tensor, (*tensor.zeros, (dim, where)))
    return tensor.index_fill(dim, where, 0)


def _lazy(tensor: Tensor, zeros: tuple[tuple[int, Tensor], ...]) -> Wide:
    with torch._C.DisableTorchFunctionSubclass():
        lazy = tensor.detach().as_subclass(Wide)
    lazy.zeros = zeros
    return lazy


def _converted(tensor: Wide) -> Tensor:
    plain = tensor.as_subclass(Tensor).to(torch.float64)
    for dim, where in tensor.zeros:
        plain.index_fill_(dim, where, 0)
    return plain
