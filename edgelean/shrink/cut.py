"""Cuts: a plan applied to a model and to all that follows it, with every parameter staying the same Python object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.attention import freed
from edgelean.shrink.attributes import Numbers, numbers_of, set_numbers
from edgelean.shrink.balance import Reduction
from edgelean.shrink.bypass import Modules, modules_of, put_in, take_out
from edgelean.shrink.followers import (
    Follower,
    Groups,
    Keep,
    Optimizer,
    Part,
    State,
    counterpart,
    cut_state,
    groups_of,
    leave,
    load_state,
    named_tensors,
    restart,
    saved_state,
    set_groups,
    sliced,
)
from edgelean.shrink.modules import align, follow
from edgelean.shrink.parametrized import gains, refresh, refuse
from edgelean.shrink.plan import Plan
from edgelean.shrink.states import check_states, parameter_in, reduced, state_layer, system_of
from edgelean.shrink.wrappers import rewire, unwrapped

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Applied:
    """What a cut did beside slicing.

    Attributes
    ----------
    reductions
        For each truncated state space layer what was reduced.
    notes
        What a person should know: state that was dropped, code that is compiled anew.
    """

    reductions: Mapping[str, Reduction]
    notes: tuple[str, ...]


def tensors_of(model: nn.Module) -> Tensors:
    """Return the parameters and buffers of a model by name; shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def apply(model: nn.Module, plan: Plan, *followers: Follower, read: Mapping[str, Tensor] | None = None) -> Applied:
    """Cut a model, its gradients, and what follows it.

    Parameters
    ----------
    model
        Changed in place; parameters stay the same objects with less in them. It may be wrapped for several processes
        or compiled: names in the plan are those of the network inside.
    followers
        Optimizers, whose state is cut along, and copies of the model such as an average of it. The state of the
        tensors of truncated state space layers whose basis changes is dropped, and copies of them become what the layer
        is. The parameters of a block that goes leave the groups of the optimizers.
    read
        Sequences that state space layers read once the channels are gone, by the path of the layer, ``[batch, time,
        width]``: states are then balanced for what really arrives; without them for white noise.

    Raises
    ------
    InputError
        If the plan is of another model, a follower is no copy of this one, or a layer has fewer states than the plan
        leaves it, or is not stable. Nothing has been changed then.
    LawError
        If a weight is computed in a way in which it cannot be cut exactly. Nothing has been changed then.
    """
    network = unwrapped(model)
    kept = kept_of(network, plan)
    refuse(network, kept)
    for path, states in plan.states.items():
        check_states(network, path, states)
    optimizers = [follower for follower in followers if isinstance(follower, Optimizer)]
    modules = [follower for follower in followers if isinstance(follower, nn.Module)]
    copies = [counterpart(follower, network) for follower in modules]
    notes = _remove((network, *copies), kept, optimizers)
    for each in (network, *copies):
        follow(freed(each), plan)
        align(each)
        gone = take_out(each, plan.detours)
        notes += [note for optimizer in optimizers for note in leave(optimizer, gone)]
    reductions = {path: _reduce(network, path, states, (read or {}).get(path)) for path, states in plan.states.items()}
    for path in reductions:
        notes += _begin_anew(path, network, optimizers, copies)
    if kept or reductions or plan.detours:
        torch.clear_autocast_cache()
        notes += [note for each in (model, *modules) for note in rewire(each)]
    return Applied(reductions, tuple(dict.fromkeys(notes)))


def kept_of(network: nn.Module, plan: Plan) -> dict[str, Keep]:
    """Return what stays of every tensor that a plan cuts, under every name that the tensor has.

    Raises
    ------
    InputError
        If the plan names a tensor, dimension or element that is not there, or would leave nothing of it.
    """
    named = named_tensors(network)
    staying: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for removal in plan.removals:
        tensor = named.get(removal.tensor)
        size = tensor.shape[removal.dim] if tensor is not None and removal.dim < tensor.ndim else 0
        if tensor is None or not 0 <= min(removal.indices, default=0) <= max(removal.indices, default=0) < size:
            what = f"{removal.tensor} has no such elements in dimension {removal.dim}"
            raise InputError(f"the plan is of another model: {what}")
        flags = staying[id(tensor)].setdefault(removal.dim, torch.ones(size, dtype=torch.bool))
        flags[list(removal.indices)] = False
        if not flags.any():
            raise InputError(f"the plan would leave nothing of {removal.tensor}")
    keep = {key: {dim: flags.nonzero()[:, 0] for dim, flags in dims.items()} for key, dims in staying.items()}
    return {name: keep[id(tensor)] for name, tensor in named.items() if id(tensor) in keep}


def _remove(networks: Sequence[nn.Module], kept: Mapping[str, Keep], optimizers: Sequence[Optimizer]) -> list[str]:
    """Slice the tensors of a network and its copies, each tensor once, and their state."""
    named = [named_tensors(network) for network in networks]
    whole = [{name: tensor.detach() for name, tensor in tensors.items()} for tensors in named]
    parts = {
        id(tensors[name]): Part(name, tensors[name], kept[name])
        for tensors in named
        for name in kept
        if name in tensors
    }
    notes = [note for optimizer in optimizers for note in cut_state(optimizer, list(parts.values()))]
    for part in parts.values():
        gradient = part.tensor.grad
        replace_data(part.tensor, sliced(part.tensor, part.keep))
        if gradient is not None:
            part.tensor.grad = sliced(gradient, part.keep)
    with torch.no_grad():
        for network, tensors, before in zip(networks, named, whole, strict=True):
            for name, contents in gains(network, before, tensors, kept).items():
                tensors[name].copy_(contents)
            refresh(network)
    return notes


def _reduce(network: nn.Module, path: str, states: int, inputs: Tensor | None) -> Reduction:
    reduction = reduced(system_of(network, path), states, inputs)
    state_layer(network, path).load_system(reduction.system)
    return reduction


def _begin_anew(
    path: str, network: nn.Module, optimizers: Sequence[Optimizer], copies: Sequence[nn.Module]
) -> list[str]:
    """Drop the moments of what has another basis in a layer, and give copies the same.

    The direct path, and the steps of features, have no states: what is known of them stays.
    """
    names = [parameter_in(path, name) for name in state_layer(network, path).state_dimensions]
    for optimizer in optimizers:
        restart(optimizer, [network.get_parameter(name) for name in names])
    twins = [each for each in copies if each.get_submodule(path) is not network.get_submodule(path)]
    for twin in twins:
        for name in names:
            mine, new = twin.get_parameter(name), network.get_parameter(name)
            replace_data(mine, new.detach().to(mine.device, mine.dtype, copy=True))
        align(twin)
    return [f"copies of {path} begin anew: its states have another basis now"] if twins else []


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer new contents of another shape; its gradient is dropped.

    While a graph of the previous step is alive, the parameter's gradient accumulator remembers the old shape and
    the next backward fails. A change of dtype in between makes torch forget it.
    """
    tensor.grad = None
    if tensor.is_floating_point() or tensor.is_complex():
        between = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=between, device=data.device)
    tensor.data = data


def restore(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, int] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> None:
    """Give a model the contents of `tensors_of` of the same model at another time, whatever the shapes were.

    Parameters
    ----------
    model
        It may be wrapped for several processes or compiled: names are those of the network inside.
    numbers
        Of `numbers_of` at that time.
    modules
        Of `modules_of` at that time.

    Raises
    ------
    InputError
        If the names do not belong to this model.
    """
    network = unwrapped(model)
    returned = put_in(network, modules or {})
    named = tensors_of(network)
    unknown = sorted(set(named) ^ set(tensors))
    if unknown:
        raise InputError(f"the saved tensors are those of another model: {', '.join(unknown[:5])} do not match")
    other = [name for name, tensor in named.items() if tensor.shape != tensors[name].shape]
    with torch.no_grad():
        for name, tensor in named.items():
            data = tensors[name].to(tensor.device)
            if name in other:
                replace_data(tensor, data.clone())
            else:
                tensor.copy_(data)
    set_numbers(freed(network), numbers or {})
    refresh(network)
    align(network)
    if other or returned:
        torch.clear_autocast_cache()
        rewire(model)


def cloned(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies that later changes do not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class Contents(NamedTuple):
    """What a cut changes in a module, apart from gradients. The modules are those themselves, the tensors copies."""

    tensors: Tensors
    numbers: Numbers
    modules: Modules


class Held(NamedTuple):
    """What a cut changes in an optimizer. The parameters are those themselves, the state is a copy."""

    groups: Groups
    state: State


def saved(follower: Follower) -> Contents | Held:
    """Return what a cut changes in an optimizer or a module."""
    return saved_optimizer(follower) if isinstance(follower, Optimizer) else saved_model(follower)


def saved_optimizer(optimizer: Optimizer) -> Held:
    """Return what a cut changes in an optimizer."""
    return Held(groups_of(optimizer), saved_state(optimizer))


def saved_model(model: nn.Module) -> Contents:
    """Return what a cut changes in a model, or in a copy of one."""
    network = unwrapped(model)
    return Contents(cloned(tensors_of(network)), numbers_of(network), modules_of(network))


def put_back(follower: Follower, before: Contents | Held) -> None:
    """Give an optimizer or a module what `saved` returned of it."""
    if isinstance(follower, Optimizer) and isinstance(before, Held):
        set_groups(follower, before.groups)
        load_state(follower, before.state)
    elif isinstance(follower, nn.Module) and isinstance(before, Contents):
        restore(follower, before.tensors, before.numbers, before.modules)
