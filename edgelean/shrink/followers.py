"""What follows a parameter when it is cut: the state of its optimizers, and copies of its model.

What is exact, and what is not, when training goes on after a cut:

* Optimizers that treat every element on its own (SGD, Adam and its kin, Adadelta, Adagrad, ASGD, RMSprop, Rprop,
  SparseAdam) go on exactly as the uncut model would, had the removed elements of parameters, gradients and state been
  zero from then on. Averages of the model (EMA, SWA) do, too.
* Muon's momentum is cut exactly. Its steps are those of the masked model but for the factor that Muon takes from the
  shape of the matrix, and for the rounding of its bfloat16 iteration.
* Adafactor's factors are scaled so that the second moment that they stand for stays what it was for every element
  that is left. Its steps are relative to the root mean square of the whole tensor, which a cut changes.
* LBFGS keeps the pairs of its history whose curvature is still positive without the removed elements, and makes no pair
  of a gradient before the cut and one after it. The gradient after a cut is that of another function, so the history
  is an approximation. Where no pair is left it starts anew.
* State that cannot be told to belong to dimensions of the parameter is dropped for that parameter, and a note says so.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgelean.errors import InputError

Optimizer = torch.optim.Optimizer
Follower = Optimizer | nn.Module
"""An optimizer of the model's parameters, or a module with parameters of the same names."""

Keep = Mapping[int, Tensor]
"""For each dimension that shrinks the indices that stay."""

Entry = dict[str, Any]
State = dict[int, Entry]
"""The state of an optimizer by the number of the parameter, as in its ``state_dict()``."""

FACTORS = (
    ("row_var", "col_var", -2),
    ("exp_avg_sq_row", "exp_avg_sq_col", -1),
    ("exp_avg_res_row", "exp_avg_res_col", -1),
)
"""Pairs of state tensors whose product, over the mean of the first, is a second moment, and the dimension along which
the first varies; the second varies along its last one. Those of torch keep the dimension that they average over."""

CURVATURE = 1e-10
"""LBFGS takes no pair into its history whose curvature is below this."""


class Part(NamedTuple):
    """A parameter or buffer that is cut, and what stays of it."""

    name: str
    tensor: Tensor
    keep: Keep


def sliced(whole: Tensor, keep: Keep) -> Tensor:
    """Return what stays of a tensor, in the memory format that it has."""
    part = whole.detach()
    for dim, indices in keep.items():
        part = part.index_select(dim, indices.to(whole.device))
    return part if part.layout != torch.strided else part.contiguous(memory_format=_format(whole))


def _format(tensor: Tensor) -> torch.memory_format:
    if not tensor.is_contiguous():
        for dims, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if tensor.ndim == dims and tensor.is_contiguous(memory_format=form):
                return form
    return torch.contiguous_format


# -- optimizers --------------------------------------------------------------------------------------------------------


def cut_state(optimizer: Optimizer, parts: Sequence[Part]) -> list[str]:
    """Cut the state that an optimizer keeps of parameters which are cut right after.

    Parameters
    ----------
    parts
        Not cut yet. Those that the optimizer does not know are ignored.

    Returns
    -------
    list
        What a person should know: state that was dropped.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        return _cut_history(optimizer, {part.tensor: part.keep for part in parts})
    notes = []
    for part in parts:
        entry = optimizer.state.get(part.tensor)
        if not entry:
            continue
        places = {key: _places(key, value, part.tensor.shape) for key, value in entry.items()}
        lost = [key for key, found in places.items() if found is None]
        if lost:
            del optimizer.state[part.tensor]
            what = f"the state of {part.name} in {type(optimizer).__name__} starts anew"
            notes.append(f"{what}: {', '.join(lost)} cannot be matched with its dimensions")
            continue
        shares = dict(_shares(entry, places, part.keep))
        for key, found in places.items():
            if found:
                entry[key] = _selected(entry[key], found, part.keep)
            if key in shares:
                entry[key] *= shares[key]
    return notes


def _places(key: str, value: Any, shape: torch.Size) -> tuple[int, ...] | None:
    """Return to which dimension of the parameter each dimension of a state tensor belongs; None if nobody knows."""
    if not isinstance(value, Tensor):
        return None if _holds_tensors(value) else ()
    if value.ndim == len(shape) and all(size in (1, whole) for size, whole in zip(value.shape, shape, strict=True)):
        return tuple(range(len(shape)))
    if value.numel() == 1:
        return ()
    every = tuple(range(len(shape)))
    named = {"row": every[:-1], "col": (*every[:-2], *every[-1:])}.get(key.rpartition("_")[2])
    fitting = [
        dims
        for dims in ([named] if named else combinations(every, value.ndim))
        if tuple(shape[dim] for dim in dims) == tuple(value.shape)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)


def _selected(value: Tensor, places: Sequence[int], keep: Keep) -> Tensor:
    """Return what stays of a state tensor; dimensions that it averages over have length 1 and stay."""
    mine = {dim: keep[place] for dim, place in enumerate(places) if place in keep and value.shape[dim] > 1}
    return sliced(value, mine)


def _shares(entry: Entry, places: Mapping[str, tuple[int, ...] | None], keep: Keep) -> Iterator[tuple[str, Tensor]]:
    """Yield by what the factors of a second moment have to be multiplied.

    Row factors are means over the columns and the other way round. V = R C / mean(R) is what it was for every element
    left if R is multiplied by the share mean(kept C) / mean(C), and C by that of R.
    """
    for row, column, dim in FACTORS:
        if row in entry and column in entry:
            for key, other, along in ((row, column, -1), (column, row, dim)):
                whole, found = entry[other], places[other] or ()
                mean = _selected(whole.mean(along, keepdim=True), found, keep)
                share = _selected(whole, found, keep).mean(along, keepdim=True) / mean
                yield key, torch.where(mean > 0, share, 1.0)


def _cut_history(optimizer: torch.optim.LBFGS, keep: Mapping[Tensor, Keep], gone: Collection[Tensor] = ()) -> list[str]:
    """Cut the flat vectors of LBFGS, and compute anew what it has derived from them.

    Parameters
    ----------
    keep
        What stays of the parameters of which something goes.
    gone
        Parameters of which nothing stays.
    """
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    state = optimizer.state.get(parameters[0])
    if not any(parameter in keep or parameter in gone for parameter in parameters):
        return []
    optimizer._numel_cache = None
    if not state or "d" not in state:
        return []
    left = _flat_indices(parameters, keep, gone)
    pairs = [(y[left], s[left]) for y, s in zip(state["old_dirs"], state["old_stps"], strict=True)]
    pairs = [(y, s) for y, s in pairs if y.dot(s) > CURVATURE]
    if not pairs:
        optimizer.state.clear()
        return ["LBFGS starts anew: no pair of its history has positive curvature without what was removed"]
    state["ro"] = [1.0 / y.dot(s) for y, s in pairs]
    y, s = pairs[-1]
    state["H_diag"] = y.dot(s) / y.dot(y)
    dropped = len(state["old_dirs"]) - len(pairs)
    state["old_dirs"], state["old_stps"] = [y for y, _ in pairs], [s for _, s in pairs]
    state["prev_flat_grad"] = state["prev_flat_grad"][left]
    # A step of zero makes no pair: the next gradient is that of another function.
    state["d"] = torch.zeros_like(state["prev_flat_grad"])
    return [f"LBFGS dropped {dropped} of {dropped + len(pairs)} pairs of its history"] if dropped else []


def _flat_indices(parameters: Iterable[Tensor], keep: Mapping[Tensor, Keep], gone: Collection[Tensor]) -> Tensor:
    """Return which elements stay of all parameters one after the other; complex ones count twice."""
    pieces, start = [], 0
    for parameter in parameters:
        real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter
        numbers = torch.arange(start, start + real.numel(), device=real.device).view(real.shape)
        if parameter not in gone:
            pieces.append(sliced(numbers, keep.get(parameter, {})).flatten())
        start += real.numel()
    return torch.cat(pieces)


def restart(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Make an optimizer forget parameters whose contents have become others, so that its bias correction restarts."""
    parameters = list(parameters)
    if isinstance(optimizer, torch.optim.LBFGS):
        if set(parameters) & set(optimizer.param_groups[0]["params"]):
            optimizer.state.clear()
            optimizer._numel_cache = None
        return
    for parameter in parameters:
        entry = optimizer.state.pop(parameter, None)
        if entry and isinstance(optimizer, torch.optim.Adagrad):  # torch 2.9 makes it when it is built, and never again
            total = torch.full_like(parameter, optimizer.defaults["initial_accumulator_value"], requires_grad=False)
            optimizer.state[parameter] = {"step": torch.zeros_like(entry["step"]), "sum": total}


def leave(optimizer: Optimizer, gone: Sequence[Tensor]) -> list[str]:
    """Make an optimizer forget parameters that are no longer in the model: its groups, and its state.

    Returns
    -------
    list
        What a person should know: state of other parameters that was dropped.
    """
    lost = set(gone) & set(_parameters(optimizer))
    notes: list[str] = []
    if isinstance(optimizer, torch.optim.LBFGS) and lost:
        first = optimizer.param_groups[0]["params"][0]
        notes = _cut_history(optimizer, {}, lost)
        whole = optimizer.state.pop(first, {})
    for group in optimizer.param_groups:
        group["params"][:] = [parameter for parameter in group["params"] if parameter not in lost]
    if isinstance(optimizer, torch.optim.LBFGS) and lost:
        optimizer.state[optimizer.param_groups[0]["params"][0]] = whole
    for parameter in lost:
        optimizer.state.pop(parameter, None)
    return notes


Groups = tuple[tuple[Tensor, ...], ...]
"""The parameters of each group of an optimizer."""


def groups_of(optimizer: Optimizer) -> Groups:
    """Return the parameters of each group."""
    return tuple(tuple(group["params"]) for group in optimizer.param_groups)


def set_groups(optimizer: Optimizer, groups: Groups) -> None:
    """Give the groups of an optimizer the parameters that they had."""
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = parameters
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer._numel_cache = None


def saved_state(optimizer: Optimizer) -> State:
    """Return a copy of an optimizer's state, by the number of the parameter."""
    known = enumerate(_parameters(optimizer))
    return {
        index: copy.deepcopy(optimizer.state[parameter]) for index, parameter in known if parameter in optimizer.state
    }


def load_state(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Give an optimizer a saved state, whatever the shapes were; unlike ``load_state_dict`` no dtype is changed."""
    for index, parameter in enumerate(_parameters(optimizer)):
        present = optimizer.state.pop(parameter, {})
        if index in saved:
            optimizer.state[parameter] = {
                key: _placed(copy.deepcopy(value), present.get(key), parameter) for key, value in saved[index].items()
            }
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer._numel_cache = None


def _placed(value: Any, present: Any, parameter: Tensor) -> Any:
    """Return a value on the device where it belongs: step counts stay where they are."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(present, Tensor):
        return value.to(present.device)
    return value.to(parameter.device) if value.ndim else value


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# -- copies of the model -----------------------------------------------------------------------------------------------


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones under every name that they have."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def counterpart(follower: nn.Module, network: nn.Module) -> nn.Module:
    """Return the module inside a follower that has the parameters of a network, by name.

    An average such as `torch.optim.swa_utils.AveragedModel` keeps its copy one level below itself.

    Raises
    ------
    InputError
        If there is none, or one of other shapes.
    """
    wanted = dict(network.named_parameters(remove_duplicate=False))
    for module in follower.modules():
        found = dict(module.named_parameters(remove_duplicate=False))
        if module is network or not wanted.keys() <= found.keys():
            continue
        for name, parameter in wanted.items():
            if found[name].shape != parameter.shape:
                raise InputError(
                    f"a {type(follower).__name__} cannot follow the model: its {name} is {tuple(found[name].shape)}, "
                    f"the model's is {tuple(parameter.shape)}; copy the model as it is now"
                )
        return module
    missing = sorted(wanted.keys() - {name for name, _ in follower.named_parameters()})
    raise InputError(
        f"a {type(follower).__name__} cannot follow the model: it holds no copy of it with parameters of the same "
        f"names ({', '.join(missing[:3])})"
    )
