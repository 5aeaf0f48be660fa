"""Cuts: a plan applied to a model and its optimizer, with every parameter staying the same Python object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn import LRU
from edgelean.shrink.balance import Reduction, measured_gramians, truncate
from edgelean.shrink.plan import Plan

Tensors = dict[str, Tensor]


def tensors_of(model: nn.Module) -> Tensors:
    """Return the parameters and persistent buffers of a model by name; shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def apply(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    read: Mapping[str, Tensor] | None = None,
) -> dict[str, Reduction]:
    """Cut a model, its gradients and its optimizer's state.

    Parameters
    ----------
    model
        Changed in place; parameters stay the same objects with less in them.
    optimizer
        Its moments are sliced like the parameters; the state of truncated state space layers, whose basis
        changes, is dropped, so that their bias correction restarts.
    read
        Sequences that state space layers read, by the path of the layer, ``[batch, time, width]``: states are then
        balanced for what really arrives; without them for white noise.

    Returns
    -------
    dict
        For each truncated linear recurrent unit what was reduced.
    """
    named = tensors_of(model)
    keep: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for removal in plan.removals:
        size = named[removal.tensor].shape[removal.dim]
        left = sorted(set(range(size)) - set(removal.indices))
        keep[removal.tensor][removal.dim] = torch.tensor(left, device=named[removal.tensor].device)
    for name, kept in keep.items():
        _shrink(named[name], kept, optimizer)
    align(model)
    reductions = {}
    for path, states in plan.states.items():
        layer = state_layer(model, path)
        system, inputs = layer.system(), (read or {}).get(path)
        reductions[path] = truncate(system, states, None if inputs is None else measured_gramians(system, inputs))
        layer.load_system(reductions[path].system)
        for parameter in layer.parameters():
            if optimizer is not None:
                optimizer.state.pop(parameter, None)
    return reductions


def state_layer(model: nn.Module, path: str) -> LRU:
    """Return the linear recurrent unit at a path of a model.

    Raises
    ------
    InputError
        If something else is there.
    """
    layer = model.get_submodule(path)
    if not isinstance(layer, LRU):
        raise InputError(f"{path} is a {type(layer).__name__}: only a linear recurrent unit has states to truncate")
    return layer


def _shrink(tensor: Tensor, keep: Mapping[int, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    def sliced(whole: Tensor) -> Tensor:
        for dim, indices in keep.items():
            whole = whole.index_select(dim, indices)
        return whole.contiguous()

    shape = tensor.shape
    state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[key] = sliced(value)
    gradient = tensor.grad
    replace_data(tensor, sliced(tensor.detach()))
    if gradient is not None:
        tensor.grad = sliced(gradient)


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer new contents of another shape; its gradient is dropped.

    While a graph of the previous step is alive, the parameter's gradient accumulator remembers the old shape and
    the next backward fails. A change of dtype in between makes torch forget it.
    """
    tensor.grad = None
    between = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    if tensor.is_floating_point():
        tensor.data = torch.empty(0, dtype=between, device=data.device)
    tensor.data = data


def align(model: nn.Module) -> None:
    """Bring the attributes of standard modules into line with the shapes of their parameters."""
    for module in model.modules():
        for kinds, aligner in _ALIGNERS:
            if isinstance(module, kinds):
                aligner(module)


def _align_convolution(module: Any) -> None:
    outputs, per_group = module.weight.shape[:2]
    if module.groups > 1 and module.in_channels == module.groups:
        module.groups = outputs * module.groups // module.out_channels
    module.in_channels, module.out_channels = per_group * module.groups, outputs


def _align_linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _align_norm(module: Any) -> None:
    known = module.weight if module.weight is not None else module.running_mean
    if known is not None:
        module.num_features = len(known)


def _align_states(module: Any) -> None:
    module.states = len(module.nu_log)


_ALIGNERS: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _align_convolution),
    (nn.Linear, _align_linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _align_norm),
    (LRU, _align_states),
)


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the contents of `tensors_of` of the same model at another time, whatever the shapes were.

    Raises
    ------
    InputError
        If the names do not belong to this model.
    """
    named = tensors_of(model)
    unknown = sorted(set(named) ^ set(tensors))
    if unknown:
        raise InputError(f"the saved tensors are those of another model: {', '.join(unknown[:5])} do not match")
    with torch.no_grad():
        for name, tensor in named.items():
            data = tensors[name].to(tensor.device)
            if tensor.shape == data.shape:
                tensor.copy_(data)
            else:
                replace_data(tensor, data.clone())
    align(model)


def cloned(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies that later changes do not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
