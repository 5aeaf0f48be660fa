"""Take modules out of a model, leave a bypass in their place, and put them back: the same objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from edgelean.nn.bypass import Bypass, Skip, Zeros, plain_of

Modules = dict[str, nn.Module]
"""Modules of a model by their path; parents before what is in them."""

Kind = Literal["skip", "zeros"]
KINDS: Mapping[Kind, type[Bypass]] = {"skip": Skip, "zeros": Zeros}


@dataclass(frozen=True)
class Detour:
    """A module that is replaced when a block goes.

    Attributes
    ----------
    path
        Where it is in the model.
    kind
        ``"skip"``: by one that hands its first tensor through. ``"zeros"``: by one that gives zeros of its shape.
    parts
        See :class:`edgelean.nn.bypass.Bypass`.
    """

    path: str
    kind: Kind
    parts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)


def modules_of(model: nn.Module) -> Modules:
    """Return every module inside a model by its path; the modules themselves, not copies."""
    return {path: module for path, module in model.named_modules(remove_duplicate=False) if path}


def detours_of(model: nn.Module) -> tuple[Detour, ...]:
    """Return which modules of a model have been replaced by a bypass."""
    return detours_among(modules_of(model))


def detours_among(modules: Modules) -> tuple[Detour, ...]:
    """Return which of some modules are bypasses."""
    return tuple(
        Detour(path, kind, module.parts)
        for path, module in modules.items()
        for kind, made in KINDS.items()
        if isinstance(module, made)
    )


def take_out(model: nn.Module, detours: Iterable[Detour]) -> list[Tensor]:
    """Replace modules by bypasses; return the parameters that are no longer in the model, their gradients dropped.

    What is inside of a module that is replaced goes with it; where a bypass stands already, nothing happens.
    """
    before = dict.fromkeys(model.parameters())
    for detour in sorted(detours, key=lambda each: each.path.count(".")):
        try:
            module = model.get_submodule(detour.path)
        except AttributeError:  # what it was in is gone
            continue
        if not isinstance(module, Bypass):
            replaced = KINDS[detour.kind](detour.parts, plain_of(module))
            _put(model, detour.path, replaced.train(module.training))
    left = set(model.parameters())
    gone: list[Tensor] = [parameter for parameter in before if parameter not in left]
    for parameter in gone:
        parameter.grad = None
    return gone


def put_in(model: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Put modules back where `modules_of` found them; tell whether any had been replaced."""
    changed = False
    for path, module in modules.items():
        if model.get_submodule(path) is not module:
            _put(model, path, module)
            changed = True
    return changed


@contextmanager
def without(model: nn.Module, detours: Iterable[Detour]) -> Iterator[None]:
    """Leave modules out of a model, for a while; gradients stay."""
    detours = tuple(detours)
    modules = modules_of(model) if detours else {}
    gradients = {parameter: parameter.grad for parameter in model.parameters()} if detours else {}
    take_out(model, detours)
    try:
        yield
    finally:
        put_in(model, modules)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
