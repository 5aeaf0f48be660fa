"""Trace a model once with torch.export and carry a label for every unit through its operators."""

from __future__ import annotations

import operator as python_operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node as GraphNode

from edgelean.shrink.blocks import Block, find_blocks, idle_sums
from edgelean.shrink.in_training import enough, read_in_training
from edgelean.shrink.labels import Labels, Value
from edgelean.shrink.rules import RULES, Call, Flow, summed_dim, unknown
from edgelean.shrink.untraceable import (
    Mode,
    UntraceableError,
    as_it_infers,
    as_it_trains,
    exported,
    shape_reason,
    silence,
)

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
    """One operator of the traced graph, in the order of execution.

    Attributes
    ----------
    inputs
        The operators, parameters and inputs that made what it reads.
    read
        What it reads; another name where an operator makes several tensors.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    flow: Flow
    read: tuple[str, ...] = ()


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
    outputs
        What the model returns.
    idle
        Sums that add zeros to a tensor, each with that tensor: where a block was.
    """

    labels: Labels
    tensors: Mapping[str, Value]
    values: Mapping[str, Value]
    steps: tuple[Step, ...]
    names: Mapping[str, str]
    program: torch.export.ExportedProgram
    reads: tuple[tuple[str, int], ...]
    outputs: frozenset[str]
    idle: Mapping[str, str]

    def blocks(self) -> tuple[Block, ...]:
        """Return the residual branches, in the order of execution."""
        return find_blocks(self.program.graph, self.names)

    def source(self, name: str) -> str:
        """Return the operator that makes a tensor, which may be one of several that it makes."""
        return _root_name(next(node for node in self.program.graph.nodes if node.name == name))

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


def trace(model: nn.Module, example: tuple[Tensor, ...], what: str = "the model") -> Trace:
    """Trace a model in evaluation mode and label its units.

    Parameters
    ----------
    model
        Left as it is, its training mode included.
    example
        Inputs; their first dimension is the batch.
    what
        What is traced, in words for the log.

    Raises
    ------
    UntraceableError
        If torch.export cannot trace the model, or the shape of a tensor depends on the data; says where.
    """
    labels = Labels()
    walk = _Walk(model, labels, {}, {})
    program = _graph(model, example, as_it_infers)
    names, values, steps = walk.along(program, what)
    reads = dict.fromkeys(_reads(program, names))
    if read_in_training(model, example, _used(program, names)):
        reads |= dict.fromkeys(_in_training(walk, example))
    outputs = frozenset(map(_root_name, program.graph.output_node().all_input_nodes))
    idle = {total.name: _root_name(stream) for total, stream in idle_sums(program.graph).items()}
    return Trace(labels, walk.tensors, values, steps, names, program, tuple(reads), outputs, idle)


def _graph(model: nn.Module, example: tuple[Tensor, ...], mode: Mode) -> torch.export.ExportedProgram:
    """Return the graph of a model in which nothing is written into a part of a tensor and every shape is known."""
    program = _ruled(_functional(exported(model, example, mode=mode)))
    reason = shape_reason(program)
    if reason is not None:
        raise UntraceableError(f"{type(model).__name__} cannot be traced: {reason.message()}", reason)
    return program


def _used(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> set[str]:
    """Return the names of the parameters and buffers that a graph reads; it holds all there are."""
    return {names[node.name] for node in program.graph.nodes if node.name in names and node.users}


@dataclass(frozen=True)
class _Walk:
    """Labels that are carried through one or several graphs of a model.

    Attributes
    ----------
    objects, tensors
        The parameters and buffers met so far, by identity and by name.
    """

    model: nn.Module
    labels: Labels
    objects: dict[int, Value]
    tensors: dict[str, Value]

    def along(
        self, program: torch.export.ExportedProgram, what: str
    ) -> tuple[dict[str, str], dict[str, Value], tuple[Step, ...]]:
        """Carry labels through a graph; return the names of its parameters, its tensors and its operators."""
        model, labels, signature = self.model, self.labels, program.graph_signature
        first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        names = {
            key: first.get(id(_tensor(model, name)), name)
            for key, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
        }
        values: dict[str, Value | tuple[Value, ...]] = {}
        steps: list[Step] = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node.name] = _placeholder(model, node, names.get(node.name), labels, self.objects, self.tensors)
            elif node.op == "call_function":
                step, out = _call(node, labels, values)
                values[node.name] = out
                if step is not None:
                    steps.append(step)
        for name in signature.user_outputs:
            value = values.get(name) if isinstance(name, str) else None
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Value):
                    labels.freeze_all(part, f"it is an output of {what}")
        return names, {name: value for name, value in values.items() if isinstance(value, Value)}, tuple(steps)


def _in_training(walk: _Walk, example: tuple[Tensor, ...]) -> tuple[tuple[str, int], ...]:
    """Carry labels through the graph of the training, too; return the dimensions that it sums over."""
    try:
        program = _graph(walk.model, enough(example), as_it_trains)
    except UntraceableError as error:
        why = f"the training reads parameters that evaluation does not, and {error.reason.words()}"
        for value in walk.tensors.values():
            walk.labels.freeze_all(value, why)
        return ()
    names, _, _ = walk.along(program, "the model in training")
    return _reads(program, names)


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


VIEWS = ("slice", "select", "narrow", "unbind", "split", "split_with_sizes", "chunk", "diagonal")
WRITES = re.compile(r"(copy|fill|zero|(index|masked|scatter)\w*)_")


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a graph in which nothing is written into a part of a tensor: the tensor has to know of it."""
    for node in program.graph.nodes:
        operator = str(getattr(node.target, "_opname", ""))
        target = node.args[0] if node.args else None
        while isinstance(target, GraphNode) and target.target is python_operator.getitem:
            target = target.args[0]
        part = isinstance(target, GraphNode) and str(getattr(target.target, "_opname", "")) in VIEWS
        if WRITES.fullmatch(operator) or (part and operator.endswith("_") and not operator.endswith("__")):
            with silence():  # torch's own decompositions use what torch deprecates
                functional: torch.export.ExportedProgram = program.run_decompositions({})
            return functional
    return program


def _ruled(program: torch.export.ExportedProgram, rounds: int = 3) -> torch.export.ExportedProgram:
    """Return a graph in which operators without a rule are made of others, as far as torch knows how."""
    strange = {node.target for node in program.graph.nodes if node.op == "call_function" and not _has_rule(node)}
    known: Any = torch.export.default_decompositions() if strange else {}
    parts = {operator: known[operator] for operator in strange if operator in known}
    in_place = any(str(getattr(operator, "_opname", "")).endswith("_") for operator in strange)
    if not rounds or not (parts or in_place):
        return program
    try:
        with silence():  # as above
            made: torch.export.ExportedProgram = program.run_decompositions(parts)
    except Exception:  # torch raises what it likes; what meets the operator is left alone then
        return program
    if made.graph_signature.buffers_to_mutate or made.graph_signature.user_inputs_to_mutate:
        return program  # what is written would be an output of the model
    return _ruled(made, rounds - 1 if parts else 0)


def _has_rule(node: GraphNode) -> bool:
    return node.target is python_operator.getitem or str(getattr(node.target, "_opname", "")) in RULES


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
        flow = Flow(outputs, "free", over=flow.over)
    single = isinstance(node.meta.get("val"), Tensor)
    read = tuple(source.name for source in node.all_input_nodes)
    return Step(node.name, name, sources, flow, read), flow.outputs[0] if single else flow.outputs


def _root_name(node: GraphNode) -> str:
    while node.target is python_operator.getitem:
        source = node.args[0]
        if not isinstance(source, GraphNode):
            break
        node = source
    return node.name


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, Tensor):
        return ()
    return tuple(int(size) for size in value.shape)


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_shape(item) for item in value)
    return (_shape(value),)
