"""The last inputs of a training, which a refit is computed from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MOST_SAMPLES = 256
MOST_ELEMENTS = 1 << 22
"""So much is kept of each input; of images of 224 x 224 pixels that is 28."""


@dataclass
class Recent:
    """Keeps the last samples that a network was trained on, seen by a hook while it is active.

    Attributes
    ----------
    batches
        What it was given, one tensor for each of its inputs, the last batch last.
    active
        Whether the coming step is observed.
    """

    batches: list[tuple[Tensor, ...]] = field(default_factory=list)
    active: bool = False
    _handles: list[Any] = field(default_factory=list)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the samples, one tensor for each input of the network; nothing before any was seen."""
        return tuple(torch.cat(each) for each in zip(*self.batches, strict=True))

    def watch(self, network: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Put a hook on a network.

        Parameters
        ----------
        example
            Inputs of the kinds that are kept; calls with others, such as more of them, are passed over.
        """
        signature = inspect.signature(network.forward)

        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.active and module.training:
                try:
                    given = tuple(signature.bind(*arguments, **named).arguments.values())
                except TypeError:
                    return  # a trainer calls the network in the place of a method of it that takes other arguments
                tensors = tuple(x for x in given if isinstance(x, Tensor))
                if len(tensors) == len(given) == len(example) and all(map(_alike, tensors, example)):
                    self._take(tensors)

        self._handles.append(network.register_forward_pre_hook(hook, with_kwargs=True))

    def release(self) -> None:
        """Take the hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _take(self, fresh: tuple[Tensor, ...]) -> None:
        """Add samples to those that are kept; samples of other lengths start anew."""
        most = min(MOST_SAMPLES, *(max(1, MOST_ELEMENTS // max(1, new[:1].numel())) for new in fresh))
        shapes = [new.shape[1:] for new in fresh]
        self.batches = [batch for batch in self.batches if [old.shape[1:] for old in batch] == shapes]
        # A copy: the caller may fill the same memory again.
        self.batches.append(tuple(new.detach()[-most:].clone() for new in fresh))
        while sum(len(batch[0]) for batch in self.batches) > most:
            del self.batches[0]


def _alike(given: Tensor, example: Tensor) -> bool:
    return given.ndim == example.ndim > 0 and given.is_floating_point() == example.is_floating_point()
