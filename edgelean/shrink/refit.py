"""Refit: what read the removed units learns to do without them, by least squares.

A removed unit is predicted from the kept ones that the same layer reads, x_r = m + A x_k, with the second moments that
the scores have collected; the layer's weights on it are then moved over, W_k + W_r A, and what is left of the mean goes
into its bias. Where batch norm follows, the running mean takes it: training does not see the difference, and evaluation
need not wait for it. A convolution does the same at every position of its kernel.

References
----------
He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (reconstruction by least squares).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.shrink.axes import Anatomy
from edgelean.shrink.cut import Tensors, tensors_of
from edgelean.shrink.plan import Plan
from edgelean.shrink.scores import RIDGE, Flow

_CONVOLVE: dict[type[nn.Module], Any] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


@dataclass(frozen=True)
class Prediction:
    """How a reader's removed inputs follow from its kept ones: ``x[gone] = mean + matrix @ x[kept]``."""

    gone: Tensor
    kept: Tensor
    mean: Tensor
    matrix: Tensor | None


def by_mean(flow: Flow, gone: Tensor, kept: Tensor) -> Prediction:
    """Predict removed inputs by their mean."""
    assert flow.mean is not None
    return Prediction(gone, kept, flow.mean[gone], None)


def by_least_squares(flow: Flow, gone: Tensor, kept: Tensor) -> Prediction:
    """Predict removed inputs from the kept ones; by their mean where no pairs were observed."""
    if flow.second is None or flow.mean is None:
        return by_mean(flow, gone, kept)
    covariance = (flow.second - torch.outer(flow.mean, flow.mean)).double()
    among = covariance[kept][:, kept]
    among = among + RIDGE * among.diagonal().mean().clamp_min(1e-12) * torch.eye(len(kept), device=among.device)
    matrix = torch.linalg.solve(among, covariance[kept][:, gone]).T.to(flow.mean.dtype)
    return Prediction(gone, kept, flow.mean[gone] - matrix @ flow.mean[kept], matrix)


def amounts(
    model: nn.Module, anatomy: Anatomy, plan: Plan, flows: Mapping[str, Flow], predict: Any = by_least_squares
) -> Tensors:
    """Return what has to be added to weights, biases and running means once a plan is applied.

    Parameters
    ----------
    model
        Not cut yet.
    flows
        What has been observed of the modules that read the axes.
    predict
        `by_least_squares` or `by_mean`.

    Returns
    -------
    dict
        By the name of the tensor, with the size that it has before the cut.
    """
    found: Tensors = {}
    for path, name, gone in _readers(anatomy, plan):
        module: Any
        module, flow = model.get_submodule(path), flows.get(path, Flow())
        place = _place(module, path, anatomy)
        if flow.mean is None or place is None:
            continue
        everything = torch.arange(len(flow.mean), device=flow.mean.device)
        lost = torch.tensor(gone, device=flow.mean.device)
        kept = everything[~torch.isin(everything, lost)]
        prediction = predict(flow, lost, kept)
        offset = _average_output(module, prediction.mean, lost, flow.space)
        target, sign = place
        _accumulate(found, target, sign * offset)
        if prediction.matrix is not None:
            weight = module.weight.detach()
            moved = torch.zeros_like(weight)
            taken = weight.index_select(1, lost).movedim(1, -1) @ prediction.matrix.to(weight.dtype)
            _accumulate(found, name, moved.index_copy(1, kept, taken.movedim(-1, 1)))
    return found


def add(model: nn.Module, found: Mapping[str, Tensor], plan: Plan) -> None:
    """Add amounts to a model that has been cut by the same plan."""
    named = tensors_of(model)
    with torch.no_grad():
        for name, amount in found.items():
            for removal in plan.removals:
                if removal.tensor == name:
                    left = sorted(set(range(amount.shape[removal.dim])) - set(removal.indices))
                    amount = amount.index_select(removal.dim, torch.tensor(left, device=amount.device))
            named[name] += amount.to(named[name].dtype)


def _readers(anatomy: Anatomy, plan: Plan) -> Iterator[tuple[str, str, list[int]]]:
    """Yield the modules that read what goes: path, name of the weight, and which of its inputs go."""
    gone = {(removal.tensor, removal.dim): list(removal.indices) for removal in plan.removals}
    for path, slot in dict.fromkeys(reader for cut in plan.cuts for reader in anatomy.axes[cut.axis].readers):
        if slot in gone:
            yield path, slot[0], gone[slot]


def _accumulate(found: Tensors, name: str, amount: Tensor) -> None:
    found[name] = found[name] + amount if name in found else amount


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
        return torch.mv(weight, mean.to(weight.dtype))
    image = mean.to(weight.dtype).reshape(1, -1, *(1 for _ in space)).expand(1, -1, *space)
    convolved = _CONVOLVE[type(module)](image, weight, None, module.stride, module.padding, module.dilation)
    average: Tensor = convolved.flatten(2).mean(2)[0]
    return average
