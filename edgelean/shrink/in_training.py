"""Parameters that a model reads in training only: auxiliary heads, deep supervision, noise with a scale of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AssertionError, ArithmeticError, AttributeError)
"""What code raises that wants other inputs in training than in evaluation."""


class _Watch(TorchFunctionMode):
    """Notes which of some tensors any function of torch is given."""

    def __init__(self, watched: Collection[Tensor]) -> None:
        super().__init__()
        self._watched = {id(tensor) for tensor in watched}
        self.seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or any(id(item) in self._watched for item in pytree.tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def enough(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs of at least two samples, of which batch norm can take statistics."""
    return tuple(torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x for x in example)


def read_in_training(model: nn.Module, example: tuple[Tensor, ...], known: Collection[str]) -> bool:
    """Tell whether the training reads a parameter that is not among those that evaluation reads.

    Parameters
    ----------
    model
        Left as it is, its buffers and training mode included.
    example
        Inputs, of which one batch is run, where there are other parameters at all.
    known
        Names of the parameters that evaluation reads.
    """
    others = [parameter for name, parameter in model.named_parameters() if name not in known]
    if not others:
        return False
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    watch = _Watch(others)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(), watch:
            functional_call(model, buffers, enough(example))
    except FAILURES:
        return False  # it cannot be called in training as it is in evaluation
    finally:
        for module, training in modes.items():
            module.training = training
    return watch.seen
