"""Half precision, written into the graph itself so that one file means the same in every runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelean.exporter.casts import without_detours
from edgelean.exporter.onnx import PRECISION_KEY, write_onnx
from edgelean.exporter.packages import tools_of_onnxruntime
from edgelean.exporter.search import HeldOut, Judge, Loss, spared
from edgelean.exporter.targets import ExportTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import GraphProto, ModelProto, NodeProto

SINGLE_KEY = "edgelean.kept_in_fp32"
"""Metadata of an FP16 file: the operators that compute in FP32 all the same; absent when there are none."""

PRODUCTS = ("Conv", "Gemm", "MatMul")
_HALF = "_half"

# A state that is carried in FP16 from step to step loses ten times more than one in FP32, and onnxruntime 1.32 crashes
# the process when it opens an FP16 Scan.
_RECURRENCES = ("Scan", "Loop", "If")


@dataclass(frozen=True)
class Halved:
    """An FP16 file, and what it loses.

    Attributes
    ----------
    kept
        Operators that stayed in FP32 because of what they do to the outputs, the most sensitive first.
    loss
        Against the FP32 file, on the held-out samples.
    notes
        For the report, in sentences; empty where everything could be halved.
    """

    path: Path
    kept: tuple[str, ...]
    loss: Loss
    notes: tuple[str, ...]


def halved(path: Path | str, out: Path | str, target: ExportTarget, held_out: HeldOut) -> Halved:
    """Write the FP32 file ``path`` as an FP16 file ``out``; what loses too much in FP16 stays in FP32.

    Operators are tried one by one where more than half of a tolerance of the target is used up on the held-out
    samples. See `to_fp16` for what stays in FP32 in any case, and for what is raised.
    """
    import onnx

    path, out = Path(path), Path(out)
    names = [node.name for node in onnx.load(path).graph.node if node.name and node.op_type not in _RECURRENCES]
    with tempfile.TemporaryDirectory() as scratch:

        def make(spare: Collection[str]) -> Path:
            to_fp16(path, file := Path(scratch) / "half.onnx", spare)
            return file

        kept, loss = spared(names, make, Judge(path, held_out, target.tolerances))
    to_fp16(path, out, kept)
    told = (
        f"{out.name}: {len(kept)} of {len(names)} operators stay in FP32, {', '.join(kept)}: in FP16 they would have "
        f"cost more than the tolerances allow; now the outputs are off by {loss.worst:.2g} of their norm at most.",
    )
    return Halved(out, kept, loss, told if kept else ())


def to_fp16(path: Path | str, out: Path | str, spare: Collection[str] = ()) -> tuple[str, ...]:
    """Write the FP32 file ``path`` as an FP16 file ``out``; inputs and outputs stay FP32.

    Parameters
    ----------
    path
        An ONNX file in FP32.
    out
        The file to write; its metadata are those of ``path``, with the precision changed.
    spare
        Names of operators that stay in FP32.

    Returns
    -------
    tuple of str
        The kinds of operators that still compute in FP32, sorted: no FP16 form of them is known, or it would lose too
        much. Empty when everything became FP16; else they are in the metadata of the file, too.

    Raises
    ------
    VerificationError
        The converted file is not valid ONNX.
    """
    import onnx
    from onnxscript import ir

    convert, without_half = _converter()
    source = onnx.load(path)
    blocked: dict[str, Any] = {"op_block_list": [*without_half, *_RECURRENCES], "node_block_list": list(spare)}
    half = ir.from_proto(without_detours(convert(source, keep_io_types=True, **blocked)))
    half.graph.sort()  # the converter appends its casts at the end, and ONNX wants every value before it is read
    proto = ir.to_proto(half)
    return _written(proto, source, Path(out))


def products_to_fp16(path: Path | str, out: Path | str) -> tuple[str, ...]:
    """Write the FP32 file ``path`` as a file ``out`` whose matrix products compute in FP16, and nothing else.

    For a step form: what is carried from step to step must not be rounded to FP16. A pole near the unit circle, a sum
    over time and a count of steps would all be wrong before long. The converter behind `to_fp16` rounds every value
    between two operators, also between two that compute in FP32. Weights of products are most of what a step reads,
    and they are halved.

    See `to_fp16` for arguments, what is returned and raised.
    """
    import onnx

    source = onnx.load(path)
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    nodes = _with_half_products(proto.graph)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return _written(proto, source, Path(out))


def _with_half_products(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes with casts around the products, in an order in which they run; adds the weights in FP16."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    halves: set[str] = set()
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        for name in set(filter(None, node.input)) - halves:
            if name in weights:
                half = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(half, name + _HALF))
            else:
                nodes.append(helper.make_node("Cast", [name], [name + _HALF], to=TensorProto.FLOAT16))
            halves.add(name)
        result, product = node.output[0], type(node)()
        product.CopyFrom(node)
        product.input[:] = [name and name + _HALF for name in node.input]
        product.output[:] = [result + _HALF]
        halves.add(result)
        nodes += [product, helper.make_node("Cast", [result + _HALF], [result], to=TensorProto.FLOAT)]
    return nodes


def _written(proto: ModelProto, source: ModelProto, out: Path) -> tuple[str, ...]:
    """Write a file with the metadata of its source; return, and tell in them, what computes in FP32."""
    # The converter notes every constant as FP16, also those that an operator takes in FP32 only, such as Resize.
    constants = {tensor.name for tensor in proto.graph.initializer}
    noted = [value for value in proto.graph.value_info if value.name not in constants]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(noted)
    single = _still_single(proto)
    metadata = {entry.key: entry.value for entry in source.metadata_props} | {PRECISION_KEY: "fp16"}
    if single:
        metadata[SINGLE_KEY] = ", ".join(single)
    opset = next(entry.version for entry in source.opset_import if entry.domain == "")
    write_onnx(proto, out, metadata, opset)
    return single


def _converter() -> tuple[Callable[..., ModelProto], list[str]]:
    """Return onnxruntime's converter and the operators that it knows to have no FP16 form."""
    with tools_of_onnxruntime():
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    return convert_float_to_float16, DEFAULT_OP_BLOCK_LIST


def _still_single(model: ModelProto) -> tuple[str, ...]:
    """Return the kinds of operators that put out FP32, apart from the casts."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    single: set[str] = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    return tuple(sorted({node.op_type for node in inferred.node if node.op_type != "Cast" and single & {*node.output}}))
