"""Readers: the operators of a traced graph that multiply what they read by a parameter.

Linear layers, convolutions, and products with a slice of a parameter all do the same to a row of features: a matrix
product. So they are repaired alike, whatever module, or no module at all, has called them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from edgelean.shrink.trace import Trace

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")

VIEWS = {
    *("alias", "chunk", "contiguous", "detach", "flatten", "getitem", "numpy_T", "permute", "reshape", "select"),
    *("slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unflatten", "unsqueeze", "view"),
}
"""What only moves the elements of a parameter about, or takes some of them."""


@dataclass(frozen=True)
class Part:
    """A view of a parameter in the graph: the parameter's name in the model, and the operators that lead to it."""

    name: str
    steps: tuple[Node, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Return the same view of any tensor of the parameter's shape."""
        value: Any = whole
        for step in self.steps:
            function: Any = step.target
            value = function(value, *step.args[1:], **step.kwargs)
        view: Tensor = value
        return view

    def back(self, view: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a tensor of a parameter's shape with a view put in its place, zero elsewhere."""
        with torch.enable_grad():
            whole = torch.zeros(tuple(shape), dtype=view.dtype, device=view.device, requires_grad=True)
            (placed,) = torch.autograd.grad(self.of(whole), whole, view)
        return placed


@dataclass(frozen=True)
class Reader:
    """An operator that multiplies what it reads by a parameter.

    Attributes
    ----------
    node
        Of the graph.
    source
        What it reads.
    weight, bias
        Where its parameters come from; None where they are computed, frozen, or used elsewhere as well.
    weight_node, bias_node
        Their nodes in the graph; there may be no bias.
    """

    node: Node
    source: Node
    weight: Part | None
    weight_node: Node
    bias: Part | None
    bias_node: Node | None

    def matrices(self, weight: Tensor) -> Tensor:
        """Return a weight as one matrix a group, ``[groups, outputs, features]``."""
        if self.convolves():
            return weight.reshape(self.groups(), weight.shape[0] // self.groups(), -1)
        return (weight if self._operator() == "linear" else weight.mT)[None]

    def weight_of(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight that `matrices` took apart."""
        if self.convolves():
            return matrices.reshape(shape)
        return matrices[0] if self._operator() == "linear" else matrices[0].mT

    def rows(self, output: Tensor) -> int:
        """Return how many rows an output has: positions of all samples."""
        return output.numel() // output.shape[1 if self.convolves() else -1]

    def outputs(self, output: Tensor, rows: Tensor) -> Tensor:
        """Return some rows of its output, ``[groups, rows, outputs]``; rows run through samples, then positions."""
        place = 1 if self.convolves() else -1
        groups = self.groups()
        return torch.unflatten(output.movedim(place, -1).flatten(0, -2)[rows], -1, (groups, -1)).movedim(1, 0)

    def features(self, x: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        """Return some rows of what it reads, ``[groups, rows, features]``, of a convolution the patches."""
        if self._operator() not in CONVOLUTIONS:
            return x.flatten(0, -2)[rows][None]
        options = self._options()
        shape = self.weight_node.meta["val"].shape
        x = functional.pad(x, _padding(options["padding"], shape[2:], options["dilation"])).movedim(1, -1)
        sample, *place = _unravelled(rows, (output.shape[0], *output.shape[2:]))
        corner = [p * s for p, s in zip(place, options["stride"], strict=True)]
        patches = torch.stack([x[(sample, *at)] for at in _taps(corner, shape[2:], options["dilation"])], -1)
        return torch.unflatten(patches, 1, (self.groups(), -1)).flatten(2).movedim(1, 0)

    def _operator(self) -> str:
        return str(getattr(self.node.target, "_opname", ""))

    def groups(self) -> int:
        """Return into how many groups a convolution falls."""
        return int(self._options()["groups"]) if self.convolves() else 1

    def convolves(self) -> bool:
        """Tell whether it is a convolution: features are the second dimension then."""
        return self._operator() in CONVOLUTIONS

    def writes_first(self) -> bool:
        """Tell whether the first dimension of the weight is that of the outputs."""
        return self._operator() in ("linear", *CONVOLUTIONS)

    def _options(self) -> dict[str, Any]:
        """Return stride, padding, dilation and groups of a convolution."""
        dims = len(self.weight_node.meta["val"].shape) - 2
        given: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given |= dict(zip(given, self.node.args[3:], strict=False)) | {
            key: value for key, value in self.node.kwargs.items() if key in given
        }
        for key in ("stride", "padding", "dilation"):
            value = [given[key]] if isinstance(given[key], int) else given[key]
            given[key] = value * dims if isinstance(value, list) and len(value) == 1 else value
        return given


def readers(found: Trace, trained: Container[str]) -> dict[Node, Reader]:
    """Return the readers of a graph by their nodes.

    Parameters
    ----------
    trained
        The parameters that may change; no reader gets another one.
    """
    parts = {}
    for node in found.program.graph.nodes:
        operands = _operands(node)
        if operands is not None:
            source, weight, bias = operands
            parts[node] = (source, weight, _part(found, weight), bias, None if bias is None else _part(found, bias))
    all_parts = {part for _, _, weight, _, bias in parts.values() for part in (weight, bias) if part is not None}
    alone = {part for part in _used_once(found, all_parts) if part.name in trained}
    return {
        node: Reader(
            node, source, weight if weight in alone else None, weight_node, bias if bias in alone else None, bias_node
        )
        for node, (source, weight_node, weight, bias_node, bias) in parts.items()
    }


def _operands(node: Node) -> tuple[Node, Node, Node | None] | None:
    """Return what an operator reads, its weight and its bias, if it multiplies by a weight."""
    name = str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""
    arguments = [*node.args, None, None, None]
    if name in ("linear", *CONVOLUTIONS):
        source, weight, bias = arguments[:3]
        bias = node.kwargs.get("bias", bias)
    elif name == "addmm" and not node.kwargs:
        bias, source, weight = arguments[:3]
    elif name in ("mm", "matmul"):
        (source, weight), bias = arguments[:2], None
    else:
        return None
    if not isinstance(source, Node) or not isinstance(weight, Node) or not (bias is None or isinstance(bias, Node)):
        return None
    least = {"addmm": 2, "mm": 2, "matmul": 2, "linear": 2}.get(name, 3)
    fits = len(weight.meta["val"].shape) == 2 if least == 2 else True
    return (source, weight, bias) if fits and source.meta["val"].ndim >= least else None


def _part(found: Trace, node: Node) -> Part | None:
    """Return where a weight comes from, if it is a view of a parameter."""
    steps: list[Node] = []
    while node.op == "call_function":
        name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", "")))
        if name not in VIEWS or not isinstance(node.args[0], Node) or node.all_input_nodes != [node.args[0]]:
            return None
        steps.insert(0, node)
        node = node.args[0]
    name = found.names.get(node.name, "")
    return Part(name, tuple(steps)) if name and node.meta["val"].is_floating_point() else None


def _used_once(found: Trace, parts: set[Part]) -> set[Part]:
    """Return the parts of parameters that nothing else reads, and no other part overlaps."""
    by_name: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_name[part.name].append(part)
    alone = set()
    for name, mine in by_name.items():
        shape = found.tensors[name].shape
        uses = [leaf for node in _placeholders(found, name) for leaf in _leaves(node)]
        total = sum(part.back(torch.ones_like(part.of(torch.zeros(shape))), shape) for part in mine)
        if len(uses) == len(mine) and isinstance(total, Tensor) and float(total.max()) <= 1:
            alone |= set(mine)
    return alone


def _placeholders(found: Trace, name: str) -> Iterator[Node]:
    for node in found.program.graph.nodes:
        if node.op == "placeholder" and found.names.get(node.name) == name:
            yield node


def _leaves(node: Node) -> Iterator[tuple[Node, Node]]:
    """Yield the users of a node that are no views, followed through those that are; once for each use."""
    for user in node.users:
        name = str(getattr(user.target, "_opname", getattr(user.target, "__name__", "")))
        if name in VIEWS and user.args[0] is node:
            yield from _leaves(user)
        else:
            yield user, node


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return what functional.pad is told: before and after, the last dimension first."""
    if padding == "valid":
        padding = [0] * len(kernel)
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(whole // 2, whole - whole // 2) for whole in both]
    else:
        pairs = [(p, p) for p in padding]
    return [number for pair in reversed(pairs) for number in pair]


def _unravelled(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the indices along each dimension of flat indices."""
    found: list[Tensor] = []
    for size in reversed(sizes):
        found.insert(0, rows % size)
        rows = rows // size
    return found


def _taps(corner: Sequence[Tensor], kernel: Sequence[int], dilation: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the places that each position of a kernel reads, the last dimension fastest."""
    for offset in torch.cartesian_prod(*(torch.arange(k) for k in kernel)).reshape(-1, len(kernel)).tolist():
        yield tuple(c + o * d for c, o, d in zip(corner, offset, dilation, strict=True))


def norms(found: Trace) -> Mapping[Node, tuple[Node, Node]]:
    """Return the running mean and variance that each batch norm reads, where nothing else reads them."""
    pairs = {}
    for node in found.program.graph.nodes:
        if str(getattr(node.target, "_opname", "")) == "batch_norm" and len(node.args) > 4:
            mean, variance = node.args[3:5]
            both = [each for each in (mean, variance) if isinstance(each, Node) and len(each.users) == 1]
            if len(both) == 2 and all(each.name in found.names for each in both):
                pairs[node] = (both[0], both[1])
    return pairs
