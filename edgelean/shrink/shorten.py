"""A traced model without some of its operators: what is left to be launched when blocks are gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edgelean.shrink.trace import Step


def shortened(steps: Sequence[Step], outputs: Collection[str], same: Mapping[str, str]) -> tuple[Step, ...]:
    """Return the operators that are left when some tensors are the same as others that come before them.

    Parameters
    ----------
    steps
        In the order of execution.
    outputs
        What the model returns.
    same
        By the name of a tensor, the one that takes its place. What is then read by nobody goes, too.
    """
    if not same:
        return tuple(steps)
    known = {name: followed(same, name) for name in same}
    wanted = {known.get(name, name) for name in outputs}
    read = read_by(steps)
    left: list[Step] = []
    for step in reversed(steps):
        inputs = tuple(known.get(name, name) for name in step.inputs)
        # What nobody reads works in place: it stays with the tensor that it changes.
        silent = step.name not in read and wanted.issuperset(inputs)
        if step.name in wanted or (silent and step.name not in known):
            wanted.update(inputs)
            left.append(step if inputs == step.inputs else replace(step, inputs=inputs))
    return tuple(reversed(left))


def read_by(steps: Sequence[Step]) -> set[str]:
    """Return the names of all tensors that some operators read."""
    return {name for step in steps for name in step.inputs}


def followed(same: Mapping[str, str], name: str) -> str:
    """Return the tensor that a tensor is the same as in the end; itself where there is none."""
    while name in same:
        name = same[name]
    return name
