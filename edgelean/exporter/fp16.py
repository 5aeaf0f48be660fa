"""Half precision, written into the graph itself so that one file means the same in every runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgelean.exporter.onnx import PRECISION_KEY, write_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from onnx import ModelProto

SINGLE_KEY = "edgelean.kept_in_fp32"
"""Metadata of an FP16 file: the operators that compute in FP32 all the same; absent when there are none."""

# A state that is carried in FP16 from step to step loses ten times more than one in FP32, and onnxruntime 1.32 crashes
# the process when it opens an FP16 Scan.
RECURRENCES = ("Scan", "Loop", "If")


def to_fp16(path: Path | str, out: Path | str, single: Collection[str] = RECURRENCES) -> tuple[str, ...]:
    """Write the FP32 file ``path`` as an FP16 file ``out``; inputs and outputs stay FP32.

    Parameters
    ----------
    path
        An ONNX file in FP32.
    out
        The file to write; its metadata are those of ``path``, with the precision changed.
    single
        Kinds of operators that stay in FP32, besides those that have no FP16 form.

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
    half = ir.from_proto(convert(source, keep_io_types=True, op_block_list=[*without_half, *single]))
    half.graph.sort()  # the converter appends its casts at the end, and ONNX wants every value before it is read
    proto = ir.to_proto(half)
    kept = _still_single(proto)
    metadata = {entry.key: entry.value for entry in source.metadata_props} | {PRECISION_KEY: "fp16"}
    if kept:
        metadata[SINGLE_KEY] = ", ".join(kept)
    opset = next(entry.version for entry in source.opset_import if entry.domain == "")
    write_onnx(proto, Path(out), metadata, opset)
    return kept


def _converter() -> tuple[Callable[..., ModelProto], list[str]]:
    """Return onnxruntime's converter and the operators that it knows to have no FP16 form."""
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    finally:
        sys.path[:] = before  # importing onnxruntime.transformers puts its own folder on the path of everybody
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
