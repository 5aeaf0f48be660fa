"""Blocks: residual branches that can go as a whole, found in the traced graph.

Where a sum adds to a tensor what a branch made of that same tensor, and nothing else reads what is in between, the
branch at zero is the same as no branch: y = x + f(x) becomes y = x. So the branch is a unit. What it reads beside x
makes no difference: masks, rotary tables, the memory of an encoder.

There are two ways to take it out of the model's code. A module that does nothing else, such as a block of a ResNet with
its last activation, is skipped as a whole. Else the modules of the branch give zeros, so that the sum adds nothing.
Which is right is not guessed: :mod:`edgelean.shrink.prove_blocks` tries. The exporter leaves out sums that add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Graph, Node

SUMS = ("add", "add_", "sub", "sub_")
ZEROS = ("zeros", "zeros_like", "new_zeros")

OF_ZEROS = frozenset({
    "alias", "clone", "contiguous", "detach", "dropout", "dropout_", "expand", "feature_dropout", "flatten", "gelu",
    "hardswish", "hardswish_", "leaky_relu", "leaky_relu_", "movedim", "permute", "relu", "relu_", "relu6", "reshape",
    "select", "silu", "silu_", "slice", "squeeze", "tanh", "to", "_to_copy", "transpose", "type_as", "unflatten",
    "unsqueeze", "view", "_unsafe_view",
})  # fmt: skip
"""Operators that make zeros of zeros."""

PRODUCTS = ("mul", "mul_")

LAYERS = ("linear", "bilinear", "conv", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "lstm", "gru", "rnn")
"""How the names of operators begin that compute with a matrix of weights."""

CALLED_AGAIN = "@"
"""In the path of a module that the graph calls more than once."""


@dataclass(frozen=True)
class Way:
    """How a block may be taken out.

    Attributes
    ----------
    kind
        ``"skip"``: its one module hands its input through. ``"zeros"``: its modules give zeros.
    modules
        Their paths, in the order of execution.
    result
        The tensor of the graph that is then the same as the stream.
    """

    kind: Literal["skip", "zeros"]
    modules: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Block:
    """A residual branch.

    Attributes
    ----------
    name
        The last layer of the branch that has weights, with ``.block`` behind it; the same for every trace of a model.
    stream
        The tensor of the graph that goes around the branch.
    branch
        The tensor that the branch adds to it.
    ways
        How it may be taken out, the best first.
    """

    name: str
    stream: str
    branch: str
    ways: tuple[Way, ...]


def find_blocks(graph: Graph, weights: Iterable[str]) -> tuple[Block, ...]:
    """Return the residual branches of a graph, in the order of execution.

    Parameters
    ----------
    graph
        Of an exported program.
    weights
        The names of parameters and buffers in it.
    """
    calls = _Calls(graph, frozenset(weights))
    blocks: dict[str, Block] = {}
    for node in calls.nodes:
        for stream, branch in _operands(node):
            inside = calls.between(stream, branch, node)
            layers = [each for each in inside if calls.is_layer(each)]
            if not layers:
                continue
            name = f"{_path(layers[-1])}.block"
            unique = name if name not in blocks else f"{name}.{sum(each.startswith(name) for each in blocks) + 1}"
            ways = (*calls.skips(stream, node, layers), *calls.zeros(inside, node, layers))
            blocks[unique] = Block(unique, stream.name, branch.name, ways)
            break
    return tuple(blocks.values())


def idle_sums(graph: Graph) -> dict[Node, Node]:
    """Return the sums of a graph that add zeros to a tensor, each with that tensor."""
    return _zeros_and_idle_sums(graph)[1]


def without_idle_sums(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Leave out, in place, the sums of a program that add zeros, and what only they read."""
    graph = program.graph
    empty, idle = _zeros_and_idle_sums(graph)
    for node, stream in idle.items():
        program.graph_signature.replace_all_uses(node.name, stream.name)
        node.replace_all_uses_with(stream)
        graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node in empty and not node.users:  # torch keeps those that work in place
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _zeros_and_idle_sums(graph: Graph) -> tuple[set[Node], dict[Node, Node]]:
    empty: set[Node] = set()
    idle: dict[Node, Node] = {}
    for node in graph.nodes:
        name, sources = opname(node), node.all_input_nodes
        zeros = name in OF_ZEROS and sources and sources[0] in empty
        if name in ZEROS or zeros or (name in PRODUCTS and not empty.isdisjoint(sources)):
            empty.add(node)
        stream = next((stream for stream, branch in _operands(node) if branch in empty), None)
        if stream is not None:
            idle[node] = idle.get(stream, stream)
    return empty, idle


def opname(node: Node) -> str:
    """Return the name of a node's ATen operator without its overload; empty where it has none."""
    return str(getattr(node.target, "_opname", ""))


def _operands(node: Node) -> list[tuple[Node, Node]]:
    """Return (stream, branch) for each operand of a sum that may be the stream; a difference has one."""
    name = opname(node)
    if name not in SUMS or len(node.args) < 2:
        return []
    left, right = node.args[:2]
    if not (isinstance(left, Node) and isinstance(right, Node)) or left is right:
        return []
    shapes = {_shape(each) for each in (left, right, node)}
    if len(shapes) != 1 or None in shapes or left.meta["val"].dtype != node.meta["val"].dtype:
        return []
    return [(left, right)] if name.startswith("sub") else [(left, right), (right, left)]


def _shape(node: Node) -> tuple[str, ...] | None:
    """Return the shape of a tensor; sizes that are free are compared by their names."""
    value = node.meta.get("val")
    return tuple(str(size) for size in value.shape) if isinstance(value, Tensor) else None


def _dims(node: Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0


def _paths(node: Node) -> tuple[str, ...]:
    """Return the modules that a node is in, from the outside in."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return tuple(path for path, _ in stack.values() if path)


def _path(node: Node) -> str:
    return _paths(node)[-1] if _paths(node) else ""


class _Calls:
    """The operators of a graph and the modules that they are in."""

    def __init__(self, graph: Graph, weights: frozenset[str]) -> None:
        self.nodes = [node for node in graph.nodes if node.op == "call_function"]
        self._weights = weights
        self._order = {node: place for place, node in enumerate(graph.nodes)}

    @cached_property
    def _members(self) -> dict[str, list[Node]]:
        members: dict[str, list[Node]] = {}
        for node in self.nodes:
            for path in _paths(node):
                members.setdefault(path, []).append(node)
        return members

    @cached_property
    def _idle(self) -> set[Node]:
        """Nodes that nobody reads, such as assertions, and what only they read."""
        idle: set[Node] = set()
        for node in reversed(self.nodes):
            if all(user in idle for user in node.users):
                idle.add(node)
        return idle

    @cached_property
    def _known(self) -> set[Node]:
        """Nodes whose values are known before any input arrives: weights, and what is made of them."""
        known: set[Node] = set()
        for node in self._order:
            sources = node.all_input_nodes
            if node.name in self._weights or (sources and known.issuperset(sources)):
                known.add(node)
        return known

    def is_layer(self, node: Node) -> bool:
        """Tell whether an operator computes with a matrix of weights, or with a larger tensor of them."""
        weights = (source for source in node.all_input_nodes if source in self._known)
        return opname(node).startswith(LAYERS) and any(_dims(source) > 1 for source in weights)

    def between(self, stream: Node, branch: Node, total: Node) -> list[Node]:
        """Return the operators through which a stream reaches a branch; none if something else reads one of them."""
        if stream.name in self._weights or self._order[stream] >= self._order[branch]:
            return []
        backward, waiting = set[Node](), [branch]
        while waiting:
            node = waiting.pop()
            if node not in backward and self._order[node] > self._order[stream]:
                backward.add(node)
                waiting += node.all_input_nodes
        reached = {stream}
        inside = []
        for node in sorted(backward, key=self._order.__getitem__):
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                inside.append(node)
        if branch not in reached:
            return []
        reached.add(total)
        closed = all(user in reached or user in self._idle for node in inside for user in node.users)
        return inside if closed else []

    def skips(self, stream: Node, total: Node, layers: list[Node]) -> list[Way]:
        """Return the modules, from the inside out, that do nothing but the block."""
        ways = []
        for path in reversed(_paths(total)):
            members = set(self._members[path])
            mine = {node for node in members if self.is_layer(node)}
            if stream in members or mine > set(layers):
                break
            seen = [node for node in members if any(user not in members for user in node.users)]
            if mine == set(layers) and len(seen) == 1 and CALLED_AGAIN not in path:
                ways.append(Way("skip", (path,), seen[0].name))
        return ways

    def zeros(self, inside: list[Node], total: Node, layers: list[Node]) -> list[Way]:
        """Return the largest modules that are in nothing but the branch, if together they have all its layers."""
        own = {*inside, total}
        found: dict[str, None] = {}
        for node in inside:
            path = next((path for path in _paths(node) if self._only_in(path, own, total)), None)
            if path is not None:
                found[path] = None
        covered = all(any(path in found for path in _paths(layer)) for layer in layers)
        if not covered or any(CALLED_AGAIN in path for path in found):
            return []
        return [Way("zeros", tuple(found), total.name)]

    def _only_in(self, path: str, own: set[Node], total: Node) -> bool:
        members = self._members[path]
        inside = {*members, *own}
        return total not in members and all(user in inside or user in self._idle for m in members for user in m.users)
