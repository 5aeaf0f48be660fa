"""What a cut model has to compute: the graph of the uncut model with the removed units masked to zero.

Where an operator takes statistics over units (the mean and variance of a layer norm, a mean over channels), a unit at
zero is not the same as a unit that is not there. There the reference takes them over the units that are kept, as the
cut model does. Everything else of the graph runs at full size, on masked parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.nn import functional

from edgelean.errors import InputError
from edgelean.shrink.labels import Line, Value
from edgelean.shrink.plan import Plan
from edgelean.shrink.rules.reductions import REDUCTIONS, reduced_dims
from edgelean.shrink.trace import Trace
from edgelean.shrink.wide import Wide

CASTS = ("to", "_to_copy", "float", "type_as")
NORMS = ("layer_norm", "rms_norm", "group_norm")
QUOTIENTS = (
    "div",
    "div_",
    "true_divide",
    "divide",
    "reciprocal",
    "rsqrt",
    "rsqrt_",
    "log",
    "log_",
    "log2",
    "log10",
    "pow",
)
"""What may make no number of a unit that is zero: a step size, a variance. What is gone is zero all the same."""


def casts_to_single(found: Trace) -> bool:
    """Tell whether a model's own code computes in single precision, whatever it is given."""
    return any(
        str(getattr(node.target, "_opname", "")) in CASTS and node.meta["val"].dtype == torch.float32
        for node in found.program.graph.nodes
    )


def graph_outputs(
    found: Trace,
    atoms: frozenset[int],
    contents: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
    branches: frozenset[str] = frozenset(),
) -> list[Tensor]:
    """Run a graph on masked contents, with statistics over the units that are kept.

    Parameters
    ----------
    found
        The graph, traced with inputs of the shapes of the probe.
    atoms
        The units that are gone.
    contents
        Parameters and buffers of the uncut model, masked.
    branches
        Tensors of the graph that are zeros, whatever they are made of.
    """
    with torch.no_grad():
        return [double(output) for output in Masked(found, atoms, branches, _widened).outputs(contents, probe)]


def removed_atoms(found: Trace, plan: Plan) -> frozenset[int]:
    """Return the units that a plan removes: those all of whose elements go."""
    lost: set[int] = set()
    left: set[int] = set()
    for removal in plan.removals:
        line = found.tensors[removal.tensor].labels[removal.dim]
        if line is not None:
            flags = np.zeros(len(line), bool)
            flags[list(removal.indices)] = True
            lost |= _atoms(found, line[flags])
            left |= _atoms(found, line[~flags])
    return frozenset(lost - left)


def _atoms(found: Trace, line: Line) -> set[int]:
    return {atom for label in np.unique(line).tolist() for atom in found.labels.atoms(label)}


def traced_with(found: Trace, probe: tuple[Tensor, ...]) -> bool:
    """Tell whether a graph was traced with inputs of the shapes and types of a probe."""
    values = _traced_inputs(found)
    return len(values) == len(probe) and all(
        isinstance(value, Tensor) and value.shape == x.shape and value.dtype == x.dtype
        for value, x in zip(values, probe, strict=True)
    )


def in_batches(found: Trace, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Return samples in batches of the size that a graph was traced with, without the first that fill none.

    None where there are too few for one, or samples of other shapes were traced.
    """
    sizes = {len(value) for value in _traced_inputs(found) if isinstance(value, Tensor) and value.ndim}
    if len(sizes) != 1 or 0 in sizes or len({len(x) for x in inputs}) != 1:
        return []
    size, count = sizes.pop(), len(inputs[0])
    ends = range(count % size + size, count + 1, size)
    batches = [tuple(x[end - size : end] for x in inputs) for end in ends]
    return batches if batches and traced_with(found, batches[0]) else []


def _traced_inputs(found: Trace) -> list[Any]:
    """Return what stands for the inputs in a graph, in their order."""
    kind = torch.export.graph_signature.InputKind.USER_INPUT
    names = {spec.arg.name for spec in found.program.graph_signature.input_specs if spec.kind is kind}
    nodes = [node for node in found.program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [node.meta.get("val") for node in nodes]


def removed_branches(found: Trace, plan: Plan) -> frozenset[str]:
    """Return the tensors of the graph that the blocks which a plan removes would add.

    Raises
    ------
    InputError
        If the graph has no such block.
    """
    names = [cut.axis for cut in plan.cuts if cut.kind == "blocks"]
    known = {block.name: block.branch for block in found.blocks()} if names else {}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise InputError(f"the plan is of another model: there is no block {', '.join(unknown)}")
    return frozenset(known[name] for name in names)


def _gone(found: Trace, value: Value | None, atoms: frozenset[int]) -> dict[int, list[int]]:
    """Return the removed places along each dimension of a tensor that has any."""
    places: dict[int, list[int]] = {}
    for dim, line in enumerate(value.labels if value is not None else ()):
        if line is not None:
            removed = [i for i, label in enumerate(line.tolist()) if not atoms.isdisjoint(found.labels.atoms(label))]
            if removed:
                places[dim] = removed
    return places


class Masked(Interpreter):
    """Runs a graph whose removed units are masked, with statistics over the units that are kept.

    Parameters
    ----------
    atoms
        The units that are gone.
    branches
        Tensors of the graph that are zeros, whatever they are made of.
    number
        Gives floating-point tensors the precision of the run.
    """

    def __init__(
        self, found: Trace, atoms: frozenset[int], branches: frozenset[str], number: Callable[[Any], Any]
    ) -> None:
        super().__init__(found.program.graph_module)
        self._found, self._atoms, self._branches, self._number = found, atoms, branches, number

    def outputs(self, contents: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> list[Tensor]:
        """Return every output tensor; for the parameters see `given`."""
        return leaves(self.run(*self.given(contents, probe)))

    def given(self, contents: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> list[Any]:
        """Return what the graph is given, in its order.

        Parameters
        ----------
        contents
            Parameters and buffers, masked, by their name in the model.
        probe
            Inputs of the shapes that were traced.
        """
        signature, given, inputs = self._found.program.graph_signature, iter(probe), []
        known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for spec in signature.input_specs:
            name = spec.arg.name
            if name in known:
                inputs.append(self._number(contents[self._found.names[name]]))
            elif spec.kind is torch.export.graph_signature.InputKind.CONSTANT_TENSOR:
                inputs.append(self._number(self._found.program.constants[str(spec.target)]))
            else:
                inputs.append(self._number(next(given)))
        return inputs

    def run_node(self, node: Node) -> Any:
        """Run one operator."""
        result = self._computed(node)
        if self._atoms and str(getattr(node.target, "_opname", "")) in QUOTIENTS and not torch.isfinite(result).all():
            for dim, places in _gone(self._found, self._found.values.get(node.name), self._atoms).items():
                result = result.index_fill(dim, torch.tensor(places, device=result.device), 0)
        return torch.zeros_like(result) if node.name in self._branches else result

    def _computed(self, node: Node) -> Any:
        operator = str(getattr(node.target, "_opname", ""))
        if operator in CASTS and node.meta["val"].dtype == torch.float32:
            arguments, _ = self.fetch_args_kwargs_from_env(node)
            x: Tensor = arguments[0]
            return self._number(x if x.is_floating_point() else x.float())
        if operator in ("_assert_tensor_metadata", "_assert_scalar"):
            return None
        if operator in (*NORMS, *REDUCTIONS, "batch_norm"):
            source = node.all_input_nodes[0]
            gone = _gone(self._found, self._found.values.get(source.name), self._atoms)
            if gone:
                return self._over_the_kept(node, operator, gone)
        result = super().run_node(node)
        return self._number(result) if not node.all_input_nodes else result

    def _over_the_kept(self, node: Node, operator: str, gone: Mapping[int, list[int]]) -> Any:
        arguments, named = self.fetch_args_kwargs_from_env(node)
        x = arguments[0]
        kept = {dim: _left(x.shape[dim], places, x.device) for dim, places in gone.items()}
        if operator in REDUCTIONS:
            for dim in set(kept) & reduced_dims(operator, arguments, named, x.ndim):
                x = x.index_select(dim, kept[dim])
            return node.target(x, *arguments[1:], **named)  # type: ignore[operator]  # an ATen operator
        if operator == "batch_norm":
            within = {dim: index for dim, index in kept.items() if dim != 1} if _of_the_batch(arguments, named) else {}
            for where, left in within.items():
                x = x.index_select(where, left)
            out = node.target(x, *arguments[1:], **named)  # type: ignore[operator]  # an ATen operator
            return _spread(out, within, arguments[0].shape)
        dim = 1 if operator == "group_norm" else x.ndim - 1
        index = kept.get(dim)
        if index is None:
            return super().run_node(node)
        out = torch.zeros_like(x)
        return out.index_copy(dim, index, _normed(operator, arguments, named, x.index_select(dim, index), index))


def _normed(operator: str, arguments: tuple[Any, ...], named: Mapping[str, Any], x: Tensor, index: Tensor) -> Tensor:
    names = {"layer_norm": ("shape", "weight", "bias", "eps"), "rms_norm": ("shape", "weight", "eps")}
    places = names.get(operator, ("groups", "weight", "bias", "eps"))
    given = {**dict(zip(places, arguments[1:], strict=False)), **named}
    weight, bias = (None if given.get(key) is None else given[key].index_select(0, index) for key in ("weight", "bias"))
    if operator == "layer_norm":
        return functional.layer_norm(x, (len(index),), weight, bias, given.get("eps", 1e-5))
    if operator == "rms_norm":
        return functional.rms_norm(x, (len(index),), weight, given.get("eps"))
    return functional.group_norm(x, given["groups"], weight, bias, given.get("eps", 1e-5))


def _of_the_batch(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Tell whether a batch norm takes the statistics of what it is given, as weight standardisation does."""
    return bool(named.get("training", arguments[5] if len(arguments) > 5 else False))


def _spread(x: Tensor, places: Mapping[int, Tensor], shape: torch.Size) -> Tensor:
    """Put what was computed at some places of some dimensions there, and zero elsewhere."""
    for dim, index in places.items():
        whole = x.new_zeros(*x.shape[:dim], shape[dim], *x.shape[dim + 1 :])
        x = whole.index_copy(dim, index, x)
    return x


def _left(size: int, gone: list[int], device: torch.device) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(gone)), device=device, dtype=torch.int64)


def double(value: Any) -> Any:
    """Return a floating-point tensor in float64, anything else as it is."""
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _widened(value: Any) -> Any:
    return value if isinstance(value, Wide) else double(value)


def doubled(probe: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs in float64."""
    return tuple(double(x) for x in probe)


def leaves(output: Any) -> list[Tensor]:
    """Return every tensor of a model's output."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [leaf for item in output for leaf in leaves(item)]
    return []
