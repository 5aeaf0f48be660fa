"""How much has to be held at once while a model runs: which tensors are alive while each operator is launched.

What is fused into one launch is never written, so only what launches write is alive: from the launch that makes it to
the last one that reads it. Inputs belong to the caller and stay for the whole call, and so do outputs once they are
there. A runtime that works in place needs less, one that keeps copies of weights in another order needs more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from edgelean.board.cost import Node, fuse, views
from edgelean.board.model import Precision
from edgelean.board.price import BYTES


@dataclass(frozen=True, slots=True)
class Held:
    """Elements that a model holds: its weights, and the most activations that are alive at once for one batch."""

    weights: float
    alive: float

    def bytes(self, precision: Precision) -> float:
        """Return the bytes that both take in a precision."""
        return (self.weights + self.alive) * BYTES[precision]


@dataclass(frozen=True, slots=True)
class Launch:
    """The tensors that one launched operator reads and writes, by name; views go by the name of what they show."""

    reads: frozenset[str]
    writes: frozenset[str]


def launches(nodes: Sequence[Node]) -> tuple[Launch, ...]:
    """Return what the fused operators of a graph read and write, in the order of execution."""
    viewed, groups = views(nodes), fuse(nodes)
    made = [frozenset(nodes[place].output for place in group) for group in groups]
    reads = [
        frozenset(viewed.get(name, name) for place in group for name in nodes[place].inputs) - inside
        for group, inside in zip(groups, made, strict=True)
    ]
    elsewhere = frozenset().union(*reads)
    ends = [nodes[group[-1]].output for group in groups]
    return tuple(
        Launch(read, (inside & elsewhere) | {end}) for read, inside, end in zip(reads, made, ends, strict=True)
    )


def alive(order: Sequence[Launch], inputs: Iterable[str], outputs: Collection[str]) -> tuple[frozenset[str], ...]:
    """Return the sets of tensors that are held together, of which none is within another.

    Parameters
    ----------
    order
        The launches.
    inputs
        Tensors that the caller holds during the call.
    outputs
        Tensors that the caller gets; views go by the name of what they show.
    """
    last: dict[str, int] = {}
    for place, launch in enumerate(order):
        last.update(dict.fromkeys(launch.reads | launch.writes, place))
    last.update(dict.fromkeys(outputs, len(order)))
    held = set(inputs)
    fixed = frozenset(held)
    sets: list[frozenset[str]] = []
    for place, launch in enumerate(order):
        held |= launch.writes
        sets.append(frozenset(held))
        held = {name for name in held if name in fixed or last[name] > place}
    return _largest(sets or [fixed])


def _largest(sets: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Return the sets that are not within another one, each once."""
    unique = sorted(dict.fromkeys(sets), key=len, reverse=True)
    kept: list[frozenset[str]] = []
    for each in unique:
        if not any(each <= other for other in kept):
            kept.append(each)
    return tuple(kept)
