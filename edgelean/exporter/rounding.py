"""An FP16 file on a processor that has no FP16: every value is rounded as the file says, or its check would be empty.

onnxruntime computes such a file in FP32 there. It puts casts of its own before and behind each operator, and takes out
those that meet: only weights are rounded then, and no value is too large (seen with 1.32 on x86, at every level of its
optimisation). It leaves the casts alone that a file has itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

_EXACT, _HALF = "_exact", "_half"


def open_as_written(path: Path, threads: int) -> Any:
    """Return a session of onnxruntime on the processor that rounds every value as a file says.

    What is accumulated within one operator stays FP32, as in the tensor cores of a GPU. Whatever onnxruntime raises is
    let through, also for what is no ONNX file.

    Parameters
    ----------
    threads
        0 for as many as there are processors.
    """
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package more

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception; its log would be in the live display
    options.intra_op_num_threads = threads
    source: Any = path
    try:
        proto = onnx.load(path)
    except (DecodeError, OSError):
        proto = onnx.ModelProto()
    if half := _half_values(proto):
        source = _in_single(proto, half).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _half_values(proto: ModelProto) -> set[str]:
    """Return the values that operators put out in FP16."""
    import onnx

    half = onnx.TensorProto.FLOAT16
    casts = (attribute.i for node in proto.graph.node if node.op_type == "Cast" for attribute in node.attribute)
    if half not in {*casts, *(tensor.data_type for tensor in proto.graph.initializer)}:
        return set()
    values = onnx.shape_inference.infer_shapes(proto).graph.value_info
    return {value.name for value in values if value.type.tensor_type.elem_type == half}


def _in_single(proto: ModelProto, half: set[str]) -> ModelProto:
    """Return the model, changed in place, computing in FP32 with every value of FP16 rounded by casts of its own."""
    nodes = [part for node in proto.graph.node for part in _rounded(node, half)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]
    attributes = (attribute for node in nodes for attribute in node.attribute)
    _widen([*proto.graph.initializer, *_tensors(attributes)])
    return proto


def _rounded(node: NodeProto, half: set[str]) -> Iterator[NodeProto]:
    from onnx import TensorProto, helper

    single = type(node)()
    single.CopyFrom(node)
    names = [name for name in node.output if name in half]
    single.output[:] = [name + _EXACT if name in half else name for name in node.output]
    if single.op_type == "Cast" and names:
        del single.attribute[:]
        single.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    yield single
    for name in names:
        yield helper.make_node("Cast", [name + _EXACT], [name + _HALF], to=TensorProto.FLOAT16)
        yield helper.make_node("Cast", [name + _HALF], [name], to=TensorProto.FLOAT)


def _tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _widen(tensors: Iterable[TensorProto]) -> None:
    """Give tensors of FP16 the type FP32, in place; their values stay those of FP16."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
