"""What goes into any ONNX file: its inputs with every dimension fixed, and a batch of numbers for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelean.board import Precision
from edgelean.errors import InputError, MissingError
from edgelean.target.candidate import Feeds

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

OWN_DOMAINS = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}
"""Domains whose operators are ONNX's own, by the name under which ONNX lists them."""

CONTRIBUTED = "com.microsoft"
"""Prefix of the domains of operators that onnxruntime brings along."""

LEAST_INDICES = 2
"""Integers that index nothing known are below this: small enough for any table."""


def read_model(path: Path) -> onnx.ModelProto:
    """Return the graph of an ONNX file without the weights that lie in other files.

    Raises
    ------
    MissingError
        The file, or one with its weights, does not exist.
    InputError
        It is not an ONNX model, or has operators that no runtime here knows.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no types

    if not path.is_file():
        raise MissingError(f"{path}: this ONNX file does not exist")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not an ONNX model that can be read: {error}") from None
    if not model.graph.node:
        raise InputError(f"{path}: is not an ONNX model that can be run: it has no operators")
    _refuse_custom_operators(path, model)
    _refuse_missing_weights(path, model)
    return model


def fix_shapes(model: onnx.ModelProto, batch: int, shapes: Mapping[str, Shape]) -> None:
    """Fix every open dimension of the inputs, in place.

    Parameters
    ----------
    batch
        Takes the place of an open first dimension, and of every other dimension with the same name.
    shapes
        Per input its shape, with the batch or without.

    Raises
    ------
    InputError
        A dimension stays open, the file has another fixed batch, or a shape does not fit the file.
    """
    inputs = {value.name: value.type.tensor_type.shape.dim for value in inputs_of(model)}
    for name in inputs.keys() & _without_rank(model):
        raise InputError(f"the input {name} has no shape in the ONNX file: export the model anew")
    for name in shapes:
        if name not in inputs:
            raise InputError(f"--shape {name}: the ONNX model has no such input, it has {', '.join(inputs)}")
    symbols = {dims[0].dim_param for dims in inputs.values() if dims} - {""}
    for name, dims in inputs.items():
        given = _with_batch(name, shapes[name], len(dims), batch) if name in shapes else None
        for axis, dim in enumerate(dims):
            if given is not None:
                _agree(name, axis, dim, given[axis])
                dim.dim_value = given[axis]
            elif not dim.HasField("dim_value") and (axis == 0 or dim.dim_param in symbols):
                dim.dim_value = batch
        if any(not dim.HasField("dim_value") for dim in dims):
            raise InputError(_open_words(name, dims))
    firsts = [dims[0].dim_value for dims in inputs.values() if dims]
    if firsts and batch not in firsts:
        raise InputError(
            f"the ONNX model was exported for a batch of {firsts[0]}, and {batch} is asked for: use "
            f"--batch {firsts[0]}, or export it with an open batch dimension"
        )


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller has to feed: weights may be listed as inputs, too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> Feeds:
    """Return one batch of random numbers for a model whose shapes are fixed.

    Standard normal numbers; for integers those that the table has which they index (an embedding), else 0 and 1.

    Raises
    ------
    InputError
        An input is no tensor of numbers.
    """
    random = np.random.default_rng(seed)
    return {value.name: _random(random, value, _rows(model, value.name)) for value in inputs_of(model)}


def feeds_from(file: Path, model: onnx.ModelProto, batch: int) -> Feeds:
    """Return one batch from arrays that ``numpy.save`` or ``numpy.savez`` wrote.

    Parameters
    ----------
    file
        ``.npy`` for a model with one input, ``.npz`` with an array per input under its name.
    model
        Its shapes are fixed by this: to those of the arrays, but for the batch.
    batch
        Samples that are taken; fewer are repeated.

    Raises
    ------
    MissingError
        The file does not exist.
    InputError
        It is not such a file, or its arrays do not fit the inputs.
    """
    arrays = _arrays(file, [value.name for value in inputs_of(model)])
    feeds: dict[str, Any] = {}
    for value in inputs_of(model):
        array, wanted = arrays[value.name], _numpy_kind(value)
        if not np.can_cast(array.dtype, wanted, casting="same_kind"):
            raise InputError(f"{file}: {value.name}: holds {array.dtype}, and the model wants {wanted}")
        feeds[value.name] = np.ascontiguousarray(_of_batch(array, value, batch), wanted)
    fix_shapes(model, batch, {name: tuple(feed.shape) for name, feed in feeds.items()})
    return feeds


def precision_of(model: onnx.ModelProto) -> Precision:
    """Return what a model computes in: INT8 where it quantises, else FP16 where it has more such weights than FP32."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if is_half(model) else "fp32"


def is_half(model: onnx.ModelProto) -> bool:
    """Tell whether the weights of a model are FP16, more of them than FP32."""
    import onnx

    kinds = [tensor.data_type for tensor in model.graph.initializer for _ in range(bool(tensor.dims))]
    return kinds.count(onnx.TensorProto.FLOAT16) > kinds.count(onnx.TensorProto.FLOAT)


def _arrays(file: Path, names: list[str]) -> dict[str, Any]:
    if not file.is_file():
        raise MissingError(f"--input {file}: this file does not exist")
    try:
        loaded = np.load(file)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"--input {file}: is not a .npy or .npz file of numbers: {error}") from None
    if isinstance(loaded, np.ndarray):
        if len(names) != 1:
            raise InputError(
                f"--input {file}: one array, the inputs are {', '.join(names)}: use a .npz with these names"
            )
        found = {names[0]: loaded}
    else:
        found = dict(loaded)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"--input {file}: has {', '.join(found)}, and the model also wants {', '.join(missing)}")
    return found


def _of_batch(array: Any, value: onnx.ValueInfoProto, batch: int) -> Any:
    """Return so many samples, the given ones over and over; an array that is no batch is returned as it is."""
    dims = value.type.tensor_type.shape.dim
    is_batch = array.ndim > 0 and dims and dims[0].dim_value in (0, batch)
    return np.resize(array, (batch, *array.shape[1:])) if is_batch else array


def _with_batch(name: str, shape: Shape, rank: int, batch: int) -> Shape:
    full = (batch, *shape) if len(shape) == rank - 1 else shape
    if len(full) != rank:
        words = "x".join(map(str, shape))
        raise InputError(f"--shape {name}={words}: the input has {rank} dimensions, the first of them the batch")
    return full


def _without_rank(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in inputs_of(model) if not value.type.tensor_type.HasField("shape")}


def _agree(name: str, axis: int, dim: Any, given: int) -> None:
    if dim.HasField("dim_value") and dim.dim_value != given:
        raise InputError(f"{name}: dimension {axis} is {dim.dim_value} in the ONNX model, and {given} is given")


def _open_words(name: str, dims: Any) -> str:
    words = "x".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)
    return f"the input {name} has open dimensions ({words}): give its shape, such as --shape {name}=3x224x224"


def _random(random: np.random.Generator, value: onnx.ValueInfoProto, rows: int) -> Any:
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    kind = _numpy_kind(value)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 2 if kind.kind == "b" else rows, shape).astype(kind)


def _rows(model: onnx.ModelProto, name: str) -> int:
    """Return how many rows the smallest table has that an input indexes."""
    heights = {tensor.name: int(tensor.dims[0]) for tensor in model.graph.initializer if tensor.dims}
    readers = [node for node in model.graph.node if name in node.input]
    tables = [node.input[0] for node in readers if node.op_type == "Gather" and node.input[1] == name]
    if not tables or len(tables) < len(readers):
        return LEAST_INDICES
    return min(heights.get(table, LEAST_INDICES) for table in tables)


def _numpy_kind(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    import onnx

    kind = value.type.tensor_type.elem_type
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING, onnx.TensorProto.BFLOAT16):
        name = onnx.TensorProto.DataType.Name(kind)
        raise InputError(f"the input {value.name} is of the type {name}, which cannot be fed: export it with another")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from _nodes(inner)


def _refuse_custom_operators(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    local = {(function.domain, function.name) for function in model.functions}
    custom = {
        f"{node.domain}.{node.op_type}".lstrip(".")
        for node in _nodes(model.graph)
        if (node.domain, node.op_type) not in local
        and not node.domain.startswith(CONTRIBUTED)
        and not (node.domain in OWN_DOMAINS and onnx.defs.has(node.op_type, OWN_DOMAINS[node.domain]))
    }
    if custom:
        raise InputError(
            f"{path}: has operators that are neither ONNX's nor onnxruntime's: {', '.join(sorted(custom))}: export the "
            "model without them"
        )


def _refuse_missing_weights(path: Path, model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise MissingError(
                    f"{path}: its weights are in {entry.value}, which is not beside it: copy both files together"
                )
