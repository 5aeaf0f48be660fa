"""The price of a block: what the loss is predicted to rise by when a whole residual branch becomes zero.

The branch output r goes at once, so its price is the quadratic form of the Fisher information in it, 1/2 E[(g . r)^2],
with g the gradient of one sample's loss at the place where r is added: summed over features and positions first, and
squared then, since what the features do to the loss may cancel. Observed on training steps, by hooks.

References
----------
Theis, Korshunova, Tejani, Huszar: Faster gaze prediction with dense networks and Fisher pruning, 2018 (eq. 8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgelean.shrink.axes import Axis

Observed = Callable[[nn.Module], int]
"""How many samples the coming step has that a module is called in; 0 where it is not observed."""


def watch_block(model: nn.Module, axis: Axis, samples: Observed, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Observe what a block does to the loss.

    Parameters
    ----------
    axis
        Of kind ``"blocks"``.
    samples
        Asked whenever the block is called.
    take
        Gets ``(g . r)^2`` of each sample, ``[samples, 1]``, in each backward pass of an observed step.
    """
    last = axis.detours[-1]

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        made = output[0] if isinstance(output, (tuple, list)) else output
        count = samples(module)
        if not (count and isinstance(made, Tensor) and made.requires_grad):
            return
        branch = made.detach().float()
        if last.kind == "skip":
            stream = next(each for each in (*arguments, *named.values()) if isinstance(each, Tensor))
            branch = branch - stream.detach().float()
        made.register_hook(lambda gradient: take(_energy(gradient.detach().float(), branch, count)))  # type: ignore[no-untyped-call]  # torch has not typed it

    return model.get_submodule(last.path).register_forward_hook(hook, with_kwargs=True)


def _energy(gradient: Tensor, branch: Tensor, samples: int) -> Tensor:
    """Return the mean over samples of (g . r)^2.

    The loss is a mean over the batch, so one sample's gradient is the batch size times the one seen here.
    """
    each = gradient * branch
    place = next((dim for dim, size in enumerate(each.shape) if size == samples), 0)
    return each.movedim(place, 0).flatten(1).sum(1, keepdim=True).square()
