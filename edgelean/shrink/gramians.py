"""Gramians of what flows between a pair of linear maps, and the turn that balances them.

The controllability Gramian is the covariance of what the one side hands to the other, over positions of recorded
samples. The observability Gramian is that of the gradients there, of random combinations of the outputs: it needs no
labels, and does not vanish as the training loss does. It knows no nats: `priced` takes their scale from the scores.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgelean.shrink.axes import Anatomy, Axis, Slot
from edgelean.shrink.balance import Gramians, coordinates
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.readers import Reader, readers
from edgelean.shrink.reference import Masked
from edgelean.shrink.refit import single
from edgelean.shrink.rotate import Basis, Column, Pair, Turn
from edgelean.shrink.trace import Trace, trace

DRAWS = 4
"""Random combinations of the outputs whose gradients are taken."""

SAMPLES = 128
"""So many recorded samples are enough for Gramians of the places within heads."""

RIDGE = 1e-4
"""Of the mean of a Gramian's diagonal; places that nothing reaches, or nobody sees, leave the turn well conditioned."""


@dataclass(frozen=True)
class Balanced:
    """An axis in its balanced basis.

    Attributes
    ----------
    turns
        One for each pair of columns; the most valuable unit comes first then.
    plain
        What removing all units would cost one by one in the present basis, in half squares of the outputs.
    values
        What each unit costs in the balanced basis, in the same currency, the first the most.
    """

    turns: tuple[Turn, ...]
    plain: float
    values: tuple[float, ...]


Places = dict[Slot, list[tuple[Reader, torch.Size, bool]]]
"""By dimensions of weights, the operators that go along them, the shape of the weight, and whether they read there."""


Prices = tuple[tuple[int, ...], tuple[float, ...]]
"""In which order the units of an axis go, and the summed price of removing the first 0, 1, 2, ... of them."""


class Interface(NamedTuple):
    """Where what a column writes, or reads, can be seen.

    Attributes
    ----------
    node, dim, features
        Of the graph: the tensor, the dimension of its features, and which of them, one a unit.
    read
        Whether the column reads it.
    takes_mean
        Whether it has a bias, to which a mean can go.
    """

    node: Node
    dim: int
    features: Tensor
    read: bool
    takes_mean: bool


class Side(NamedTuple):
    """The side of a pair on which its flow is looked at.

    Attributes
    ----------
    turns_as_ones
        Whether what flows there turns by the matrix by which the pair's ones do.
    centred
        Whether the mean of what flows costs nothing, because a bias can take it.
    """

    interfaces: tuple[Interface, ...]
    turns_as_ones: bool
    centred: bool


def balanced(
    model: nn.Module, anatomy: Anatomy, bases: Mapping[str, Basis], inputs: tuple[Tensor, ...]
) -> dict[str, Balanced]:
    """Balance every axis whose basis is free and whose flow can be seen.

    Parameters
    ----------
    bases
        Of `rotate.bases`.
    inputs
        A few samples of the training.

    Raises
    ------
    InputError
        If the model cannot be traced with these inputs.
    """
    samples = tuple(x[-SAMPLES:] for x in inputs)
    found = trace(model, samples)
    columns = _interfaces(found, dict(model.named_parameters()))
    sides: dict[str, list[Side]] = {}
    for name, basis in bases.items():
        chosen = [_side(anatomy.axes[name], pair, columns) for pair in basis]
        if all(side.interfaces for side in chosen):
            sides[name] = chosen
    nodes = {each.node for chosen in sides.values() for side in chosen for each in side.interfaces}
    flows = _Flows(found, nodes).seen(tensors_of(model), samples)
    return {name: _balanced(bases[name], chosen, flows, len(samples[0])) for name, chosen in sides.items()}


def priced(found: Mapping[str, Balanced], known: Mapping[str, Prices]) -> dict[str, Prices]:
    """Return order and running prices of balanced axes, in nats.

    Parameters
    ----------
    known
        What the scores say of the same axes, and of others, in their present basis. An axis of which they say nothing
        (queries and keys, which no module reads) has the scale of the other balanced ones; without any it has no price.
    """
    scales = {name: known[name][1][-1] / axis.plain for name, axis in found.items() if name in known and axis.plain > 0}
    prices = {}
    for name, axis in found.items() if scales else ():
        scale = scales.get(name, statistics.median(scales.values()))
        running = itertools.accumulate((scale * value for value in reversed(axis.values)), initial=0.0)
        prices[name] = tuple(reversed(range(len(axis.values)))), tuple(running)
    return prices


def _balanced(basis: Basis, sides: list[Side], flows: Mapping[Node, tuple[Tensor, ...]], samples: int) -> Balanced:
    plain, turns, values = 0.0, [], []
    for pair, side in zip(basis, sides, strict=True):
        pairs = [_gramians(each, side.centred, flows[each.node], samples) for each in side.interfaces]
        reach, see = (torch.stack(each).sum(0) for each in zip(*pairs, strict=True))
        plain += 0.5 * float((reach.diagonal() * see.diagonal()).sum())
        sigma, into, back = coordinates(Gramians(_lifted(reach), _lifted(see)))
        # What is left keeps the size that it had, so that the weights of neither side grow at the other's cost.
        size = (reach.diagonal().sum() / sigma.sum()).clamp_min(1e-12).sqrt()
        into, back = into * size, back / size
        turns.append(Turn(pair, into, back) if side.turns_as_ones else Turn(pair, back.mT, into.mT))
        values.append(0.5 * sigma.square())
    return Balanced(tuple(turns), plain, tuple(torch.stack(values).sum(0).tolist()))


def _gramians(interface: Interface, centred: bool, flow: tuple[Tensor, ...], samples: int) -> tuple[Tensor, Tensor]:
    """Return the covariance of what flows, over positions, and that of its gradients, summed over those of a sample."""
    x, *gradients = (
        each.movedim(interface.dim, -1).flatten(0, -2)[:, interface.features.to(each.device)].double() for each in flow
    )
    if centred:
        x = x - x.mean(0)
    stacked = torch.cat(gradients)
    return (x.mT @ x / len(x)).cpu(), (stacked.mT @ stacked / (samples * len(gradients))).cpu()


def _lifted(gramian: Tensor) -> Tensor:
    """Return a Gramian of full rank."""
    least = RIDGE * gramian.diagonal().mean().clamp_min(1e-30)
    return gramian + least * torch.eye(len(gramian), dtype=gramian.dtype)


# -- where flows are seen ----------------------------------------------------------------------------------------------


def _interfaces(found: Trace, parameters: Mapping[str, Tensor]) -> Places:
    """Return by dimensions of weights the operators that write or read along them."""
    places: Places = {}
    for reader in readers(found, parameters).values():
        if reader.weight is not None and reader.groups() == 1:
            dims = (0, 1) if reader.writes_first() else (1, 0)
            for dim, read in zip(dims, (False, True), strict=True):
                places.setdefault((reader.weight.name, dim), []).append(
                    (reader, parameters[reader.weight.name].shape, read)
                )
    return places


def _side(axis: Axis, pair: Pair, places: Places) -> Side:
    """Return the side of a pair with fewer operators, of two alike the one that reads; empty where neither is seen."""
    sides = []
    for ones, columns in ((True, pair.ones), (False, pair.others)):
        weights = [column for column in columns if column.slot in places]
        found = [_interface(axis, column, *each) for column in weights for each in places[column.slot]]
        whole = [each for each in found if each is not None]
        read = {each.read for each in whole}
        if len(whole) >= len(weights) > 0 and len(read) == 1 and _all_seen(columns, weights):
            sides.append((len(whole), read != {True}, ones, tuple(whole)))
    if not sides:
        return Side((), True, False)
    centred = any(each.takes_mean for *_, whole in sides for each in whole)
    _, written, ones, interfaces = min(sides, key=lambda side: side[:2])
    return Side(interfaces, ones == written, centred)


def _all_seen(columns: tuple[Column, ...], weights: list[Column]) -> bool:
    """Tell whether what is left of some columns are biases beside weights that are seen."""
    owners = {column.slot[0].rpartition(".")[0] for column in weights}
    return all(column.slot[0].rpartition(".")[0] in owners for column in columns)


def _interface(axis: Axis, column: Column, reader: Reader, shape: torch.Size, read: bool) -> Interface | None:
    """Return where an operator shows a column; None if its slice of the weight does not have it."""
    assert reader.weight is not None
    dim = column.slot[1]
    line = torch.arange(shape[dim], dtype=torch.float64).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    view = reader.matrices(reader.weight.of(line.expand(shape)))[0]
    numbers = (view[0] if read else view[:, 0]).long().tolist()
    wanted = axis.slots[column.slot][:, column.place].tolist()
    if not set(wanted) <= set(numbers):
        return None
    features = torch.tensor([numbers.index(number) for number in wanted])
    node = reader.source if read else reader.node
    return Interface(node, 1 if reader.convolves() else -1, features, read, read and reader.bias_node is not None)


class _Flows(Masked):
    """Runs a graph and remembers what flows through some nodes, and the gradients there."""

    def __init__(self, found: Trace, nodes: set[Node]) -> None:
        super().__init__(found, frozenset(), frozenset(), single)
        self._nodes = nodes
        self._values: dict[Node, Tensor] = {}

    def seen(self, contents: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> dict[Node, tuple[Tensor, ...]]:
        """Return for each node what flows there, and its gradients for a few random combinations of the outputs."""
        with torch.enable_grad():
            outputs = [each for each in self.outputs(contents, inputs) if each.requires_grad]
            nodes, generator = list(self._values), torch.Generator().manual_seed(0)
            found = {node: [self._values[node].detach()] for node in nodes}
            for _ in range(DRAWS if outputs else 0):
                seeds = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
                values = [self._values[node] for node in nodes]
                gradients = torch.autograd.grad(outputs, values, seeds, retain_graph=True, allow_unused=True)
                for node, value, gradient in zip(nodes, values, gradients, strict=True):
                    found[node].append(torch.zeros_like(value) if gradient is None else gradient)
        return {node: tuple(each) for node, each in found.items()}

    def run_node(self, node: Node) -> Any:
        """Run one operator."""
        result = super().run_node(node)
        if node in self._nodes and isinstance(result, Tensor):
            self._values[node] = result if result.requires_grad else result.requires_grad_()
        return result
