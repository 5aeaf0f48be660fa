"""Refit: what removed units gave on average goes into the bias of whatever read them.

The price of a unit counts its variance only; its mean is worth nothing if the next bias takes it over. Where batch
norm follows, its running mean does: training does not see the difference, and evaluation need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.shrink.axes import Anatomy
from edgelean.shrink.cut import Tensors, tensors_of
from edgelean.shrink.plan import Plan
from edgelean.shrink.scores import Flow

_CONVOLVE: dict[type[nn.Module], Any] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


def shifts(model: nn.Module, anatomy: Anatomy, plan: Plan, flows: Mapping[str, Flow]) -> Tensors:
    """Return what has to be added to biases and running means once a plan is applied.

    Parameters
    ----------
    model
        Not cut yet.
    flows
        What has been observed of the modules that read the axes.

    Returns
    -------
    dict
        By the name of the tensor, with the size that it has before the cut.
    """
    amounts: Tensors = {}
    for cut in plan.cuts:
        axis = anatomy.axes[cut.axis]
        for path, slot in axis.readers if cut.removed else ():
            module, flow = model.get_submodule(path), flows.get(path, Flow())
            place = _place(module, path, anatomy)
            if flow.mean is None or place is None:
                continue
            gone = torch.from_numpy(axis.slots[slot][list(cut.removed)].reshape(-1)).to(flow.mean.device)
            lost = _average_output(module, flow.mean.index_select(0, gone), gone, flow.space)
            name, sign = place
            amounts[name] = amounts.get(name, torch.zeros_like(lost)) + sign * lost
    return amounts


def add(model: nn.Module, amounts: Mapping[str, Tensor], plan: Plan) -> None:
    """Add shifts to a model that has been cut by the same plan."""
    named = tensors_of(model)
    gone = {removal.tensor: removal.indices for removal in plan.removals if removal.dim == 0}
    with torch.no_grad():
        for name, amount in amounts.items():
            left = sorted(set(range(len(amount))) - set(gone.get(name, ())))
            named[name] += amount[left].to(named[name].dtype)


def _place(module: nn.Module, path: str, anatomy: Anatomy) -> tuple[str, float] | None:
    """Return the tensor that takes over the mean of a reader's lost inputs, and with which sign."""
    if getattr(module, "groups", 1) != 1 or not isinstance(module, (nn.Linear, *_CONVOLVE)):
        return None
    if path in anatomy.norms:
        return f"{anatomy.norms[path]}.running_mean", -1.0
    return (f"{path}.bias", 1.0) if module.bias is not None else None


def _average_output(module: Any, mean: Tensor, gone: Tensor, space: tuple[int, ...]) -> Tensor:
    """Return the mean output, over all positions, that a module makes of the mean of some of its inputs."""
    weight = module.weight.detach().index_select(1, gone)
    if isinstance(module, nn.Linear):
        return torch.mv(weight, mean)
    image = mean.reshape(1, -1, *(1 for _ in space)).expand(1, -1, *space)
    convolved = _CONVOLVE[type(module)](image, weight, None, module.stride, module.padding, module.dilation)
    average: Tensor = convolved.flatten(2).mean(2)[0]
    return average
