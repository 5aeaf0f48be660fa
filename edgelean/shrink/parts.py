"""A model that cannot be traced whole: the outermost of its modules that can, and what they are called with.

What such a part computes is the same function wherever and however often it is called, so an axis that lies wholly
inside one part can be cut: what the part reads and returns stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgelean.shrink.followers import named_tensors
from edgelean.shrink.trace import Trace, trace
from edgelean.shrink.untraceable import SHAPE, Reason, UntraceableError, as_it_infers

INSIDE = "module"
"""The name of a part's module in the call that is traced."""

CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""What else than tensors a part may be called with; it is taken as fixed."""


MODULES = "or put what comes before and after that line into modules of their own: they are then cut each for itself"


class Call(nn.Module):
    """A module as the model calls it: only the tensors are left open.

    Parameters
    ----------
    arguments
        Positional and keyword arguments of one call.
    """

    def __init__(self, module: nn.Module, arguments: Any) -> None:
        super().__init__()
        self.module = module
        self._leaves, self._spec = _pytree.tree_flatten(arguments)

    def forward(self, *tensors: Tensor) -> Any:
        """Call the module with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        positional, named = _pytree.tree_unflatten(leaves, self._spec)
        return self.module(*positional, **named)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors of the recorded call."""
        return tensors_of_call(self._leaves)

    def kind(self) -> tuple[object, ...]:
        """Return what calls have in common that one trace holds for."""
        leaves = ((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in self._leaves)
        return (str(self._spec), *leaves)

    def strange(self) -> str:
        """Return the kind of an argument that is neither a tensor nor a constant, empty if there is none."""
        return next((type(x).__name__ for x in self._leaves if not isinstance(x, (Tensor, *CONSTANTS))), "")


@dataclass(frozen=True)
class Parts:
    """The modules that are traced in place of the whole.

    Attributes
    ----------
    reason
        Why the model cannot be traced whole.
    calls
        By the path of each part, how the model calls it.
    refused
        By the path of a module that is left alone, why.
    """

    reason: Reason
    calls: Mapping[str, Call]
    refused: Mapping[str, str]

    def words(self) -> str:
        """Return in a sentence what was done, for the log."""
        count = f"{len(self.calls)} of its modules are" if len(self.calls) > 1 else "one of its modules is"
        return (
            f"torch.export cannot trace the model whole: {self.reason.words()}. {count} taken apart instead "
            f"({', '.join(self.calls)}); what lies between them is neither cut nor in the predicted costs"
        )

    def untraceable(self) -> Reason | None:
        """Return why no tracing of the whole can go well; shapes that depend on the data are no such reason."""
        return None if self.reason.what == SHAPE[0] else self.reason

    def called_with(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Call]:
        """Return how the model calls its parts for other inputs; a part that it then does not call is left out."""
        recorded = record(model, inputs)
        return {path: recorded[path][0] for path in self.calls if not unfit(recorded.get(path, []))}


def tensors_of_call(arguments: Any) -> tuple[Tensor, ...]:
    """Return the tensors among the arguments of a call, in order."""
    return tuple(leaf for leaf in _pytree.tree_leaves(arguments) if isinstance(leaf, Tensor))


def cut_apart(model: nn.Module, example: tuple[Tensor, ...], reason: Reason) -> tuple[Parts, dict[str, Trace]]:
    """Find the outermost modules that can be traced.

    Parameters
    ----------
    model
        Cannot be traced whole.
    reason
        Why.

    Returns
    -------
    tuple
        The parts, and the trace of each.

    Raises
    ------
    UntraceableError
        If no module can be traced.
    """
    recorded = record(model, example)
    calls: dict[str, Call] = {}
    traces: dict[str, Trace] = {}
    refused: dict[str, str] = {}

    def visit(path: str, module: nn.Module) -> None:
        why = unfit(recorded.get(path, []))
        if not why:
            try:
                traces[path], calls[path] = traced(model, path, recorded[path][0]), recorded[path][0]
            except UntraceableError as error:
                why = f"it cannot be traced: {error.reason.words()}"
            else:
                return
        children = _children(module) if any(called.startswith(f"{path}.") for called in recorded) else []
        if not children:
            refused[path] = why
        for name, child in children:
            visit(f"{path}.{name}", child)

    for name, child in _children(model):
        visit(name, child)
    if not calls:
        raise in_vain(model, reason)
    return Parts(reason, calls, refused), traces


def in_vain(model: nn.Module, reason: Reason) -> UntraceableError:
    """Return the error for a model that cannot be traced, and neither can a module in it that has an axis inside."""
    message = (
        f"torch.export cannot trace {type(model).__name__}, nor a module in it that could be cut: {reason.message()}"
    )
    return UntraceableError(f"{message}; {MODULES}", reason)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]


def traced(model: nn.Module, path: str, call: Call) -> Trace:
    """Trace a part of a model; tensors that the rest of the model has, too, stay whole.

    Raises
    ------
    UntraceableError
        If it cannot be traced.
    """
    found = trace(call, call.inputs(), path)
    outside = {id(tensor) for name, tensor in named_tensors(model).items() if not name.startswith(f"{path}.")}
    inside = named_tensors(call)
    for name, value in found.tensors.items():
        if id(inside[name]) in outside:
            found.labels.freeze_all(value, f"it is shared with what is outside of {path}")
    return found


def record(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, list[Call]]:
    """Run a model in evaluation mode, and return how it called each of its modules that have parameters."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def seen(path: str) -> Callable[..., None]:
        def take(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept = _pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (positional, named))
            calls[path].append(Call(module, kept))

        return take

    with ExitStack() as stack, torch.no_grad(), as_it_infers(model):
        for path, module in model.named_modules():
            if path and any(True for _ in module.parameters()):
                stack.callback(module.register_forward_pre_hook(seen(path), with_kwargs=True).remove)
        model(*inputs)
    return dict(calls)


def unfit(calls: list[Call]) -> str:
    """Return why one trace cannot stand for some calls of a module, empty if it can."""
    if not calls:
        return "it is not called on the probe batch"
    if strange := calls[0].strange():
        return f"it is called with a {strange}"
    if any(call.kind() != calls[0].kind() for call in calls):
        return f"it is called {len(calls)} times, with inputs of different shapes"
    if not calls[0].inputs():
        return "it is called without a tensor"
    return ""


def inside(name: str, path: str) -> str:
    """Return the name within the call of a part of what has a name in the model."""
    return INSIDE + name.removeprefix(path)


def renamed(value: Any, path: str) -> Any:
    """Return what was found of a part, with the names that things have in the whole model.

    Parameters
    ----------
    value
        Strings, tuples, mappings and dataclasses of them; anything else stays.
    path
        Where the part is in the model.
    """
    if isinstance(value, str):
        return path + value[len(INSIDE) :] if value == INSIDE or value.startswith(f"{INSIDE}.") else value
    if isinstance(value, tuple):
        items = [renamed(item, path) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, Mapping):
        return {renamed(key, path): renamed(item, path) for key, item in value.items()}
    if isinstance(value, frozenset):
        return frozenset(renamed(item, path) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: renamed(getattr(value, field.name), path) for field in fields(value)})
    return value


def outside_of(model: nn.Module, parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model that no part has, by name."""
    within = {id(tensor) for call in parts.calls.values() for tensor in named_tensors(call).values()}
    seen: set[int] = set()
    for name, tensor in named_tensors(model).items():
        if id(tensor) not in within | seen:
            seen.add(id(tensor))
            yield name, tensor
