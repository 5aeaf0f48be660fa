"""Refit: what is left of a network after a cut learns, by least squares, to do what the whole one did.

The whole and the cut network run over a few recorded inputs in step, operator by operator. Wherever something is
multiplied by a weight, the weight is corrected so that its product with what the cut network gives it comes as near as
it can to the product in the whole network: later layers make up for what earlier ones could not. A convolution is
fitted with its whole kernel. A batch norm takes over the mean and the variance that it sees now.

All rows of a layer's output share their features, so no weighting of outputs, by their Fisher information or otherwise,
changes the solution.

References
----------
He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (reconstruction by least squares
of the outputs of the whole network on the inputs of the cut one).
Jordan et al.: REPAIR: REnormalizing Permuted Activations for Interpolation Repair, ICLR 2023 (batch statistics).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgelean.shrink import law
from edgelean.shrink.cut import Tensors, tensors_of
from edgelean.shrink.least_squares import RIDGES, Rows, correction
from edgelean.shrink.plan import Plan
from edgelean.shrink.readers import Part, Reader, norms, readers
from edgelean.shrink.reference import Masked, removed_atoms, removed_branches
from edgelean.shrink.trace import Trace

HELD_OUT = 4
"""One of so many samples takes no part in the fit; the ridge is chosen on it."""

LEAST_ROWS = 4096
ROWS_PER_FEATURE = 8
MOST_ELEMENTS = 1 << 26
"""Rows of a reader's input that are fitted: positions of samples, taken at random where there are more."""


def amounts(
    model: nn.Module,
    found: Trace,
    plan: Plan,
    batches: Sequence[tuple[Tensor, ...]],
    trained: Container[str],
    ridges: Sequence[float] = RIDGES,
) -> Tensors:
    """Return what has to be added to weights, biases and batch statistics once a plan is applied.

    Parameters
    ----------
    model
        Not cut yet.
    found
        Its trace, with inputs of the shapes of a batch.
    batches
        A few samples, in batches of one size.
    trained
        The parameters that may change; frozen ones stay what they are.
    ridges
        None of them: biases and batch statistics alone.

    Returns
    -------
    dict
        By the name of the tensor, with the size that it has before the cut.
    """
    with torch.no_grad():
        return _InStep(model, found, plan, trained, ridges, len(batches)).run(batches)


def add(model: nn.Module, found: Mapping[str, Tensor], plan: Plan) -> None:
    """Add amounts to a model that has been cut by the same plan; what went with a block gets none."""
    named = tensors_of(model)
    with torch.no_grad():
        for name, amount in ((name, amount) for name, amount in found.items() if name in named):
            for removal in plan.removals:
                if removal.tensor == name:
                    left = sorted(set(range(amount.shape[removal.dim])) - set(removal.indices))
                    amount = amount.index_select(removal.dim, torch.tensor(left, device=amount.device))
            named[name] += amount.to(named[name].dtype)


def single(value: Any) -> Any:
    """Return a floating-point tensor in single precision, and a copy of any tensor."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().float().clone() if value.is_floating_point() else value.detach().clone()


class _InStep:
    """The whole network and the cut one, which is the whole one with masked contents, run operator by operator.

    Each runs once for every batch, and all of them share their weights.
    """

    def __init__(
        self, model: nn.Module, found: Trace, plan: Plan, trained: Container[str], ridges: Sequence[float], count: int
    ) -> None:
        self._found, self._ridges = found, ridges
        self._whole_contents, self._cut_contents = tensors_of(model), law.masked(model, plan)
        gone, branches = removed_atoms(found, plan), removed_branches(found, plan)
        self._whole = [Masked(found, frozenset(), frozenset(), single) for _ in range(count)]
        self._cut = [Masked(found, gone, branches, single) for _ in range(count)]
        self._readers, self._norms = readers(found, trained), norms(found)
        self._staying = {
            name: torch.ones_like(tensor, dtype=torch.float32) for name, tensor in self._cut_contents.items()
        }
        for removal in plan.removals:
            indices = torch.tensor(removal.indices, device=self._staying[removal.tensor].device)
            self._staying[removal.tensor].index_fill_(removal.dim, indices, 0)
        self._amounts: Tensors = {}

    def run(self, batches: Sequence[tuple[Tensor, ...]]) -> Tensors:
        """Return the amounts."""
        self._give(self._whole, self._whole_contents, batches)
        self._give(self._cut, self._cut_contents, batches)
        for node in self._found.program.graph.nodes:
            if node.op == "output":
                break
            if node.op != "placeholder":
                self._run_node(node)
            for network in (*self._whole, *self._cut):
                for used in network.user_to_last_uses.get(node, []):
                    del network.env[used]
        return self._amounts

    def _give(
        self, networks: Sequence[Masked], contents: Mapping[str, Tensor], batches: Sequence[tuple[Tensor, ...]]
    ) -> None:
        nodes = [node for node in self._found.program.graph.nodes if node.op == "placeholder"]
        shared = dict(zip(nodes, networks[0].given(contents, batches[0]), strict=True))
        for network, batch in zip(networks, batches, strict=True):
            inputs = iter(batch)
            for node, value in shared.items():
                own = network is not networks[0] and node.name in self._found.program.graph_signature.user_inputs
                network.env[node] = single(next(inputs)) if own else value

    def _run_node(self, node: Node) -> None:
        for network in self._whole:
            network.env[node] = network.run_node(node)
        if node in self._norms:
            self._renormalise(node)
        for network in self._cut:
            network.env[node] = network.run_node(node)
        if node in self._readers:
            self._repair(self._readers[node])

    def _repair(self, reader: Reader) -> None:
        """Correct a weight and a bias so that the cut network's product comes nearest to the whole one's."""
        fitted = reader.weight is not None and bool(self._ridges)
        if not fitted and reader.bias is None:
            return
        both = zip(self._whole, self._cut, strict=True)
        if all(torch.equal(whole.env[reader.node], cut.env[reader.node]) for whole, cut in both):
            return
        followed = any(user in self._norms for user in reader.node.users) and len(reader.node.users) == 1
        weight = self._cut[0].env[reader.weight_node]
        centred = followed or reader.bias is not None
        change, shift = self._corrections(reader, centred) if fitted else (None, self._shift(reader))
        if reader.weight is not None and change is not None:
            moved = reader.weight_of(change, weight.shape)
            self._put(reader.weight_node, weight + moved)
            self._accumulate(reader.weight, moved)
        if reader.bias is not None and reader.bias_node is not None:
            shift = shift * reader.bias.of(self._staying[reader.bias.name])
            self._put(reader.bias_node, self._cut[0].env[reader.bias_node] + shift)
            self._accumulate(reader.bias, shift)
        for network in self._cut:
            network.env[reader.node] = network.run_node(reader.node)

    def _put(self, node: Node, value: Tensor) -> None:
        for network in self._cut:
            network.env[node] = value

    def _shift(self, reader: Reader) -> Tensor:
        """Return by how much the means of the cut network's product are off."""
        first = self._cut[0].env[reader.node]
        rest = self._missing(reader, [torch.arange(reader.rows(first), device=first.device)] * len(self._cut))
        return rest.mean(1).flatten()

    def _corrections(self, reader: Reader, centred: bool) -> tuple[Tensor, Tensor]:
        assert reader.weight is not None
        first = self._cut[0].env[reader.node]
        count = reader.rows(first)
        staying = reader.matrices(reader.weight.of(self._staying[reader.weight.name]))
        change = torch.zeros_like(staying)
        shift = torch.zeros(staying.shape[:2], device=staying.device)
        most = MOST_ELEMENTS // (staying.shape[0] * staying.shape[2])
        wanted = min(max(LEAST_ROWS, ROWS_PER_FEATURE * staying.shape[2]), most)
        parts = []
        for rows in _rows(count * len(self._cut), wanted, first.device):
            places = [rows[rows // count == batch] % count for batch in range(len(self._cut))]
            both = zip(self._cut, places, strict=True)
            features = [reader.features(cut.env[reader.source], first, within) for cut, within in both]
            parts.append((torch.cat(features, 1), self._missing(reader, places)))
        for group, mask in enumerate(staying):
            outputs, features_left = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            pairs = [Rows(a[group][:, features_left], b[group][:, outputs]) for a, b in parts]
            if len(outputs) and len(features_left):
                best = correction(pairs[0], pairs[1], centred, self._ridges)
                change[group][outputs[:, None], features_left] = best.matrix
                shift[group][outputs] = best.shift
        return change * staying, shift.flatten()

    def _missing(self, reader: Reader, places: Sequence[Tensor]) -> Tensor:
        """Return what the cut network's product lacks at some rows of every batch, ``[groups, rows, outputs]``."""
        both = zip(self._whole, self._cut, places, strict=True)
        parts = [
            reader.outputs(whole.env[reader.node], rows) - reader.outputs(cut.env[reader.node], rows)
            for whole, cut, rows in both
        ]
        return torch.cat(parts, 1)

    def _renormalise(self, node: Node) -> None:
        """Let a batch norm take over what has become of the mean and the variance of its inputs."""
        source = node.args[0]
        assert isinstance(source, Node)
        before, now = (_moments([network.env[source] for network in networks]) for networks in (self._whole, self._cut))
        share = torch.where(before[1] > 0, now[1] / before[1], 1.0)
        mean, variance = self._norms[node]
        known = self._cut[0].env
        for place, amount in ((mean, now[0] - before[0]), (variance, (share - 1) * known[variance])):
            part = Part(self._found.names[place.name], ())
            amount = amount * self._staying[part.name]
            self._put(place, known[place] + amount)
            self._accumulate(part, amount)

    def _accumulate(self, part: Part, amount: Tensor) -> None:
        placed = part.back(amount, self._staying[part.name].shape)
        self._amounts[part.name] = self._amounts[part.name] + placed if part.name in self._amounts else placed


def _moments(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of every channel over batches of one size."""
    others = [dim for dim in range(batches[0].ndim) if dim != 1]
    means = torch.stack([x.mean(others) for x in batches])
    mean = means.mean(0)
    place = [-1 if dim == 1 else 1 for dim in range(batches[0].ndim)]
    # torch's own variance takes several times as long.
    squares = torch.stack([(x - mean.view(place)).square().mean(others) for x in batches])
    return mean, squares.mean(0)


def _rows(count: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows to fit, of the first samples, and rows to hold out, of the last ones."""
    held_out = -(-count // HELD_OUT)
    generator = torch.Generator().manual_seed(0)
    fit = torch.randperm(count - held_out, generator=generator)[:wanted]
    rest = torch.randperm(held_out, generator=generator)[: -(-wanted // HELD_OUT)] + count - held_out
    return fit.to(device), rest.to(device)
