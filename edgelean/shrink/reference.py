"""What a cut model has to compute: the graph of the uncut model with the removed units masked to zero.

Where an operator takes statistics over units (the mean and variance of a layer norm, a mean over channels), a unit at
zero is not the same as a unit that is not there. There the reference takes them over the units that are kept, as the
cut model does. Everything else of the graph runs at full size, on masked parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.nn import functional

from edgelean.shrink.labels import Value
from edgelean.shrink.plan import Plan
from edgelean.shrink.rules.reductions import REDUCTIONS, reduced_dims
from edgelean.shrink.trace import Trace

CASTS = ("to", "_to_copy", "float", "type_as")
NORMS = ("layer_norm", "rms_norm", "group_norm")


def casts_to_single(found: Trace) -> bool:
    """Tell whether a model's own code computes in single precision, whatever it is given."""
    return any(
        str(getattr(node.target, "_opname", "")) in CASTS and node.meta["val"].dtype == torch.float32
        for node in found.program.graph.nodes
    )


def graph_outputs(
    found: Trace, atoms: frozenset[int], contents: Mapping[str, Tensor], probe: tuple[Tensor, ...]
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
    """
    with torch.no_grad():
        return Masked(found, atoms, double).outputs(contents, probe)


def removed_atoms(found: Trace, plan: Plan) -> frozenset[int]:
    """Return the units that a plan removes: those all of whose elements go."""
    gone: dict[int, bool] = {}
    for removal in plan.removals:
        line = found.tensors[removal.tensor].labels[removal.dim]
        for index, label in enumerate([] if line is None else line.tolist()):
            for atom in found.labels.atoms(label):
                gone[atom] = gone.get(atom, True) and index in set(removal.indices)
    return frozenset(atom for atom, all_of_it in gone.items() if all_of_it)


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
    number
        Gives floating-point tensors the precision of the run.
    """

    def __init__(self, found: Trace, atoms: frozenset[int], number: Callable[[Any], Any]) -> None:
        super().__init__(found.program.graph_module)
        self._found, self._atoms, self._number = found, atoms, number

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
        operator = str(getattr(node.target, "_opname", ""))
        if operator in CASTS and node.meta["val"].dtype == torch.float32:
            arguments, _ = self.fetch_args_kwargs_from_env(node)
            x: Tensor = arguments[0]
            return self._number(x if x.is_floating_point() else x.float())
        if operator in ("_assert_tensor_metadata", "_assert_scalar"):
            return None
        if operator in (*NORMS, *REDUCTIONS):
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


def _left(size: int, gone: list[int], device: torch.device) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(gone)), device=device, dtype=torch.int64)


def double(value: Any) -> Any:
    """Return a floating-point tensor in float64, anything else as it is."""
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


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
