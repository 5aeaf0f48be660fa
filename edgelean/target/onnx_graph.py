"""The operators of an ONNX graph, as the cost model of a board wants them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgelean.board.cost import Detail, Kind, Node, Operator, convolution_form, fuse, unfused, views
from edgelean.board.memory import Held, alive, launches
from edgelean.board.model import Form
from edgelean.errors import InputError, MissingError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

_KINDS: Mapping[Kind, str] = {
    "contract": "Conv ConvTranspose Gemm MatMul",
    "pointwise": (
        "Abs Add And BatchNormalization Ceil Celu Clip Cos DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater "
        "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg "
        "Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum "
        "Tanh ThresholdedRelu Where Xor"
    ),
    "reduce": (
        "ArgMax ArgMin AveragePool CumSum GlobalAveragePool GlobalMaxPool GroupNormalization InstanceNormalization "
        "LayerNormalization LogSoftmax LpNormalization LpPool MaxPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
        "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RMSNormalization Softmax TopK"
    ),
    "move": (
        "Concat ConstantOfShape DepthToSpace Expand Gather GatherElements GatherND Pad Resize ReverseSequence "
        "ScatterElements ScatterND Slice SpaceToDepth Split Tile Transpose Trilu"
    ),
    "free": "Cast CastLike Constant Dropout Flatten Identity Reshape Shape Size Squeeze Unsqueeze",
}
KIND_OF: Mapping[str, Kind] = {operator: kind for kind, names in _KINDS.items() for operator in names.split()}
"""How each ONNX operator is launched; an operator that is not here counts by its traffic alone."""

EXPONENTIALS: Mapping[str, float] = dict.fromkeys(
    ["Celu", "Cos", "Elu", "Exp", "HardSwish", "Log", "Pow", "Selu", "Sigmoid", "Sin", "Softplus", "Sqrt", "Tanh"], 1.0
) | dict.fromkeys(["Erf", "Gelu", "Mish"], 3.0)
"""Pointwise operators that take about so many exponentials an element; all others take a few instructions."""

NORMS = {
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "RMSNormalization",
    "Softmax",
}
"""Reductions that also compute every element anew, which takes about as long as an exponential."""


def operators_of(model: onnx.ModelProto | Path, batch: int) -> tuple[Operator, ...]:
    """Return the fused operators of a model for one batch.

    What depends on no input (weights, shapes) is folded before a model runs, and costs nothing but its reading.

    Parameters
    ----------
    model
        The model, or the path of its file.
    batch
        Samples per call; takes the place of the symbolic dimension of the inputs.

    Raises
    ------
    MissingError
        The file does not exist.
    InputError
        The file is not an ONNX model, an input has another fixed batch or more than one symbolic dimension, or the
        shape of a convolution or matrix product cannot be inferred.
    """
    inferred = _inferred(model, batch)
    try:
        return _operators(inferred.graph)
    except InputError:
        # What recorded code computes from shapes is a number once the batch is one.
        return _operators(_folded(inferred).graph)


def _operators(graph: onnx.GraphProto) -> tuple[Operator, ...]:
    constants = _constants(graph)
    shapes = _shapes(graph, constants)
    live = [node for node in graph.node if not constants.issuperset(node.output)]
    nodes = [_node(index, node) for index, node in enumerate(live)]
    known = _Graph(shapes, views(nodes), constants)
    return tuple(_operator([nodes[i] for i in group], [live[i] for i in group], known) for group in fuse(nodes))


def held_by(model: onnx.ModelProto | Path, batch: int) -> Held:
    """Return the elements of the weights of a model, and of the activations that are alive at once for one batch.

    See `operators_of` for arguments and errors. What an operator needs for itself, such as the state of a loop, is not
    known here.
    """
    graph = _inferred(model, batch).graph
    constants = _constants(graph)
    known = _Graph(_shapes(graph, constants), {}, constants)
    live = [node for node in graph.node if not constants.issuperset(node.output)]
    # What an operator makes counts as one tensor, by the name of the first.
    first = {name: node.output[0] for node in live for name in node.output}
    nodes = [_node(index, node) for index, node in enumerate(live)]
    nodes = [replace(node, inputs=tuple(first.get(name, name) for name in node.inputs)) for node in nodes]
    inputs = [value.name for value in graph.input if value.name not in constants]
    sizes = {node.output[0]: known.elements(node.output) for node in live}
    sizes |= {name: known.elements([name]) for name in inputs}
    viewed = views(nodes)
    outputs = {viewed.get(name, name) for name in (first.get(value.name, value.name) for value in graph.output)}
    most = max(sum(sizes.get(name, 0.0) for name in each) for each in alive(launches(nodes), inputs, outputs))
    return Held(known.elements(tensor.name for tensor in graph.initializer), most)


def _node(index: int, node: onnx.NodeProto) -> Node:
    output = next((output for output in node.output if output), "")
    name = node.name or f"{node.op_type}_{index}"
    return Node(name, KIND_OF.get(node.op_type, "reduce"), tuple(node.input), output)


def _inferred(model: onnx.ModelProto | Path, batch: int) -> onnx.ModelProto:
    """Return a copy with the batch bound and every shape inferred anew."""
    import onnx
    import onnx.inliner

    if isinstance(model, Path):
        bound = _read(model)
    else:
        bound = onnx.ModelProto()
        bound.CopyFrom(model)
    weights = {tensor.name for tensor in bound.graph.initializer}
    inputs = [value for value in bound.graph.input if value.name not in weights]
    told = _told(bound.graph, inputs, batch)
    _bind(inputs, batch)
    del bound.graph.value_info[:]
    for value in bound.graph.output:
        value.type.tensor_type.ClearField("shape")
    if bound.functions:
        bound = onnx.inliner.inline_local_functions(bound)
    found = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    known = {value.name for value in found.graph.value_info if _complete(value)}
    missing = [value for name, value in told.items() if name not in known]
    if not missing:
        return found
    bound.graph.value_info.extend(missing)
    return onnx.shape_inference.infer_shapes(bound, data_prop=True)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with a fixed batch in which everything is a weight that depends on no input."""
    import onnx
    import onnxscript.optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnx.shape_inference.infer_shapes(onnxscript.optimizer.optimize(model), data_prop=True)


def _told(graph: onnx.GraphProto, inputs: Sequence[onnx.ValueInfoProto], batch: int) -> dict[str, onnx.ValueInfoProto]:
    """Return the shapes that the file tells, with the batch bound; an exporter knows more than can be inferred."""
    names = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim[:1] if dim.dim_param}
    told = {}
    for value in graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = batch
        if _complete(value):
            told[value.name] = type(value).FromString(value.SerializeToString())
    return told


def _complete(value: onnx.ValueInfoProto) -> bool:
    """Tell whether every dimension of a tensor is known."""
    kind = value.type.tensor_type
    return bool(kind.HasField("shape")) and all(dim.dim_value > 0 for dim in kind.shape.dim)


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no types

    if not path.is_file():
        raise MissingError(f"{path}: this ONNX file does not exist")
    try:
        return onnx.load(path)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: is not an ONNX model that can be read: {error}") from None


def _bind(inputs: Sequence[onnx.ValueInfoProto], batch: int) -> None:
    """Put the batch in place of the symbolic dimension, in place; there may be one symbol."""
    symbols: dict[str, str] = {}
    for value in inputs:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                symbols.setdefault(dim.dim_param or f"dimension {axis} of {value.name}", value.name)
                dim.dim_value = batch
    if len(symbols) > 1:
        raise InputError(
            f"the inputs of the ONNX model have the open dimensions {', '.join(symbols)}, and only the batch may be "
            "open: export it with the others fixed"
        )
    fixed = [value.type.tensor_type.shape.dim[0].dim_value for value in inputs if value.type.tensor_type.shape.dim]
    if not symbols and fixed and batch not in fixed:
        raise InputError(
            f"the ONNX model was exported for a batch of {fixed[0]}, and {batch} is asked for: export it with an open "
            "batch dimension, or set the profile's batch"
        )


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that depend on no input; with the batch bound, the shape of a tensor is one of them."""
    constants = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if node.op_type in ("Shape", "Size") or constants.issuperset(node.input):
            constants.update(node.output)
    return constants


def _shapes(graph: onnx.GraphProto, constants: set[str]) -> dict[str, Shape]:
    """Return the shape of every tensor whose dimensions are all known.

    A constant of 64-bit integers is an argument (a shape, an axis) and no data: it counts as empty.
    """
    import onnx

    shapes: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.name in constants and kind.elem_type == onnx.TensorProto.INT64:
            shapes[value.name] = (0,)
        elif kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    for tensor in graph.initializer:
        shapes[tensor.name] = (0,) if tensor.data_type == onnx.TensorProto.INT64 else tuple(tensor.dims)
    return shapes


@dataclass(frozen=True)
class _Graph:
    """What is known of a graph: the shapes of its tensors, those that are views, and those that depend on no input."""

    shapes: Mapping[str, Shape]
    viewed: Mapping[str, str]
    constants: Set[str]

    def elements(self, names: Iterable[str]) -> float:
        return float(sum(math.prod(self.shapes[name]) for name in names if name in self.shapes))

    def has_loose_bias(self, group: Sequence[onnx.NodeProto]) -> bool:
        """Tell whether a bias is added to a stack of products, which only a product of two dimensions takes in."""
        kinds, shape = [node.op_type for node in group[:2]], self.shapes.get(group[0].output[0], ())
        return kinds == ["MatMul", "Add"] and len(shape) > 2 and not self.constants.isdisjoint(group[1].input)


def _operator(nodes: Sequence[Node], group: Sequence[onnx.NodeProto], graph: _Graph) -> Operator:
    """Return one operator: its first node's arithmetic, and the traffic of the whole group."""
    first = nodes[0]
    written = {output for node in group for output in node.output}
    read = {graph.viewed.get(name, name) for node in group for name in node.input if name} - written
    results = {output for output in group[-1].output if output}
    inputs, outputs, weights = (graph.elements(names) for names in (read, results, read & graph.constants))
    if first.kind == "move":
        inputs = min(inputs, outputs)
    detail = _work(nodes, group, graph, min(weights, inputs))
    if first.kind == "contract":
        return _contraction(first.name, group[0], graph, inputs + outputs, detail)
    if group[0].op_type not in KIND_OF or not graph.shapes.keys() >= read | results:
        return Operator(f"{group[0].op_type} {first.name}", "unknown", 0.0, inputs + outputs, detail=detail)
    return Operator(first.name, first.kind, 0.0, inputs + outputs, detail=detail)


def _work(nodes: Sequence[Node], group: Sequence[onnx.NodeProto], graph: _Graph, weights: float) -> Detail:
    """Return the elements that a group computes beside its contraction."""
    exponentials = [EXPONENTIALS.get(node.op_type, 0.0) for node in group]
    sizes = [graph.elements(node.output[:1]) for node in group]
    passes = [(sizes[place], each) for place, each in unfused(nodes, exponentials, graph.constants)]
    if graph.has_loose_bias(group):
        passes.append((sizes[0], 0.0))
    light = sum(size for size, each in passes if not each)
    heavy = sum(each * size for size, each in passes)
    heavy += sum(size for node, size in zip(group, sizes, strict=True) if node.op_type in NORMS)
    return Detail(weights=weights, passes=len(passes), light=light, heavy=heavy)


def _contraction(name: str, node: onnx.NodeProto, graph: _Graph, elements: float, detail: Detail) -> Operator:
    shapes = graph.shapes
    missing = [tensor for tensor in (*node.input[:2], node.output[0]) if tensor not in shapes]
    if missing:
        raise InputError(
            f"the shape of {', '.join(missing)} at the {node.op_type} {name} cannot be inferred: export the model with "
            "fixed shapes but for the batch"
        )
    left, right, result = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    rows: float
    columns: float
    depth: float
    if node.op_type == "Conv":
        rows, columns, depth = math.prod(result) / right[0], right[0], right[1]
    elif node.op_type == "ConvTranspose":
        rows, columns, depth = math.prod(left) / right[0], result[1], right[0] / _integer(node, "group", 1)
    else:
        columns = result[-1] if len(right) > 1 else 1
        rows, depth = math.prod(result) / columns, left[0 if _integer(node, "transA", 0) else -1]
    positions = math.prod(right[2:]) if node.op_type.startswith("Conv") else 1
    form: Form = "product"
    stacks = 1
    if node.op_type.startswith("Conv"):
        stacks = _integer(node, "group", 1)
        form = convolution_form(stacks, right[1], len(right) - 2, node.op_type == "ConvTranspose")
    elif graph.constants.isdisjoint(node.input[:2]):
        stacks = math.prod(result[:-2])
    detail = replace(detail, form=form, stacks=float(stacks))
    flops = 2.0 * rows * columns * depth * positions
    return Operator(name, "contract", flops, elements, rows, columns, depth, detail)


def _integer(node: onnx.NodeProto, attribute: str, default: int) -> int:
    return next((one.i for one in node.attribute if one.name == attribute), default)
