"""Trace a model once with torch.export and carry a label for every unit through its operators."""

from __future__ import annotations

import operator as python_operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node as GraphNode

from edgelean.errors import InputError
from edgelean.shrink.labels import Labels, Value
from edgelean.shrink.rules import RULES, Call, Flow, summed_dim, unknown

LINEAR = {
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
    *(
        "conv1d",
        "conv2d",
        "conv3d",
        "add",
        "add_",
        "sub",
        "mul",
        "mul_",
        "div",
        "div_",
        "neg",
        "dropout",
        "sum",
        "mean",
    ),
    *(
        "alias",
        "cat",
        "chunk",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "flatten",
        "index_select",
        "movedim",
        "permute",
    ),
    *(
        "repeat",
        "repeat_interleave",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
    ),
    *("transpose", "unbind", "unflatten", "unsqueeze", "view", "to", "_to_copy"),
}
"""Operators that may be linear in what they are given; whether they are is tried."""


@dataclass(frozen=True)
class Step:
    """One operator of the traced graph, in the order of execution."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    flow: Flow


@dataclass(frozen=True)
class Trace:
    """A traced model with its labels.

    Attributes
    ----------
    labels
        The union-find over all labels.
    tensors
        Parameters and buffers by their name in the model.
    values
        Every tensor of the graph by its graph name.
    steps
        The operators in order.
    names
        For the graph name of a parameter or buffer its name in the model.
    program
        The graph itself.
    reads
        Dimensions of parameters along which an operator sums what it reads.
    """

    labels: Labels
    tensors: Mapping[str, Value]
    values: Mapping[str, Value]
    steps: tuple[Step, ...]
    names: Mapping[str, str]
    program: torch.export.ExportedProgram
    reads: tuple[tuple[str, int], ...]

    def over(self) -> set[int]:
        """Return the units over which operators take statistics."""
        lines = (line for step in self.steps for line in step.flow.over if line is not None)
        return {atom for line in lines for label in line.tolist() for atom in self.labels.atoms(label)}

    def bent(self) -> set[int]:
        """Return the units that go through an operator that is not linear in them."""
        lines = {
            id(line): line
            for step in self.steps
            if step.operator not in LINEAR
            for output in step.flow.outputs
            for line in output.labels
            if line is not None
        }
        return {atom for line in lines.values() for label in line.tolist() for atom in self.labels.atoms(label)}


def trace(model: nn.Module, example: tuple[Tensor, ...]) -> Trace:
    """Trace a model in evaluation mode and label its units.

    Parameters
    ----------
    model
        Left as it is, its training mode included.
    example
        Inputs; their first dimension is the batch.

    Raises
    ------
    InputError
        If torch.export cannot trace the model; says where.
    """
    labels = Labels()
    program = _exported(model, example)
    signature = program.graph_signature
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    names = {
        key: first.get(id(_tensor(model, name)), name)
        for key, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
    }
    objects: dict[int, Value] = {}
    tensors: dict[str, Value] = {}
    values: dict[str, Value | tuple[Value, ...]] = {}
    steps: list[Step] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = _placeholder(model, node, names.get(node.name), labels, objects, tensors)
        elif node.op == "call_function":
            step, out = _call(node, labels, values)
            values[node.name] = out
            if step is not None:
                steps.append(step)
    for name in signature.user_outputs:
        value = values.get(name) if isinstance(name, str) else None
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Value):
                labels.freeze_all(part, "it is an output of the model")
    flat = {name: value for name, value in values.items() if isinstance(value, Value)}
    return Trace(labels, tensors, flat, tuple(steps), names, program, _reads(program, names))


def _reads(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Return the dimensions of parameters that operators sum over."""
    found: dict[tuple[str, int], None] = {}
    for node in program.graph.nodes:
        operator = str(getattr(node.target, "_opname", ""))
        flat = [item for argument in node.args for item in (argument if isinstance(argument, list) else [argument])]
        for place, argument in enumerate(flat):
            if isinstance(argument, GraphNode) and argument.name in names and len(_shape(argument.meta["val"])) > 1:
                dim = summed_dim(operator, place, len(_shape(argument.meta["val"])))
                if dim is not None:
                    found[names[argument.name], dim] = None
    return tuple(found)


def _exported(model: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # Without gradients a model's own no_grad blocks change nothing, and are not wrapped into graphs of their own.
        with torch.no_grad(), warnings.catch_warnings():
            # An LSTM of torch assigns a list of its own parameters.
            warnings.filterwarnings("ignore", message=".*were assigned during export", category=UserWarning)
            return torch.export.export(model, example)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"torch.export cannot trace {type(model).__name__}, so its units cannot be found: {first}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _placeholder(
    model: nn.Module,
    node: GraphNode,
    name: str | None,
    labels: Labels,
    objects: dict[int, Value],
    tensors: dict[str, Value],
) -> Value:
    shape = _shape(node.meta["val"])
    if name is None:
        value = Value(shape, (None,) * len(shape))
        if not node.name.startswith("c_"):
            return value
        return Value(shape, value.labels, constant=True)
    key = id(_tensor(model, name))
    if key not in objects:
        objects[key] = Value(shape, tuple(labels.fresh(size) for size in shape), constant=True)
        tensors[name] = objects[key]
    return objects[key]


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def _call(
    node: GraphNode, labels: Labels, values: Mapping[str, Value | tuple[Value, ...]]
) -> tuple[Step | None, Value | tuple[Value, ...]]:
    def resolve(argument: Any) -> Any:
        if isinstance(argument, GraphNode):
            return values.get(argument.name)
        if isinstance(argument, (list, tuple)):
            return [resolve(item) for item in argument]
        return argument

    if node.target is python_operator.getitem:
        source, place = resolve(node.args[0]), resolve(node.args[1])
        return None, source[place] if isinstance(source, (tuple, list)) else source
    arguments = tuple(resolve(argument) for argument in node.args)
    named = {key: resolve(argument) for key, argument in node.kwargs.items()}
    name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
    shapes = _shapes(node.meta.get("val"))
    call = Call(labels, name, arguments, shapes, named)
    flow = RULES.get(name, unknown)(call)
    sources = tuple(_root_name(source) for source in node.all_input_nodes)
    if all(value.constant for value in call.tensors()):
        # Known before any input arrives: the exporter folds it into a weight.
        outputs = tuple(replace(out, constant=True) for out in flow.outputs)
        flow = Flow(outputs, "free")
    single = isinstance(node.meta.get("val"), Tensor)
    return Step(node.name, name, sources, flow), flow.outputs[0] if single else flow.outputs


def _root_name(node: GraphNode) -> str:
    while node.target is python_operator.getitem:
        source = node.args[0]
        if not isinstance(source, GraphNode):
            break
        node = source
    return node.name


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_shape(item) for item in value)
    return (_shape(value),)
