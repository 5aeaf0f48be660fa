"""What the user wants left alone."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from edgelean.errors import InputError
from edgelean.shrink.axes import Anatomy, Refusal
from edgelean.shrink.followers import named_tensors

PROTECTED = "protected by the user"


def protected(anatomy: Anatomy, model: nn.Module, patterns: Sequence[str]) -> Anatomy:
    """Return an anatomy in which every axis that touches a protected module is refused.

    Parameters
    ----------
    patterns
        Paths of modules or parameters. A ``*`` stands for one name of a path, or for a part of it: ``layers.*.attn``.
        What is below a protected module is protected, too.

    Raises
    ------
    InputError
        If nothing in the model has such a path; names what comes near.
    """
    if not patterns:
        return anatomy
    check_paths(model, patterns)
    known: dict[int, list[str]] = defaultdict(list)
    for name, tensor in named_tensors(model).items():
        known[id(tensor)].append(name)
    names = {name: together for together in known.values() for name in together}
    axes, refused = dict(anatomy.axes), list(anatomy.refused)
    for name, axis in anatomy.axes.items():
        touched = {alias for tensor, _ in axis.slots for alias in names[tensor]}
        if any(_lies_in(path, pattern) for path in touched for pattern in patterns):
            refused.append(Refusal(name, PROTECTED))
            del axes[name]
    return replace(anatomy, axes=axes, refused=tuple(refused))


def check_paths(model: nn.Module, patterns: Iterable[str]) -> None:
    """Compare protected paths with those that a model has.

    Raises
    ------
    InputError
        If there is none for one of them; names what comes near.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path] + list(named_tensors(model))
    for pattern in patterns:
        if not any(_lies_in(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
            top = [name for name, _ in model.named_children()][:8]
            hint = f"did you mean {' or '.join(near)}?" if near else f"at the top there are {', '.join(top) or 'none'}"
            raise InputError(f"protect: {type(model).__name__} has no module {pattern!r}: {hint}")


def _lies_in(path: str, pattern: str) -> bool:
    """Tell whether something is what a pattern names, or below it."""
    names, wanted = path.split("."), pattern.split(".")
    return len(names) >= len(wanted) and all(map(fnmatchcase, names, wanted))
