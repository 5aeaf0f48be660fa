"""From a PyTorch model to an ONNX file: quiet, reproducible, and checked after it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelean.errors import InputError, VerificationError
from edgelean.exporter.recorded import NUMBERED, RECORDED, RECORDED_KEY, Names, numbered, recorded
from edgelean.exporter.translations import read_once

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from edgelean.shrink.untraceable import Reason

OPSET = 18
"""Written natively by torch's exporter, and inside the range of every TensorRT from 10.0 on (which read 9 to 20)."""

BATCH = "batch"
"""The name of the free axis in the file."""

PRECISION_KEY = "edgelean.precision"


def export_onnx(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path | str,
    *,
    metadata: Mapping[str, str],
    opset: int = OPSET,
    untraceable: Reason | None = None,
    names: Names = NUMBERED,
) -> Path:
    """Write ``model``, as it infers, to one ONNX file.

    A model that torch.export cannot trace is recorded instead: what its code decides for ``example`` is decided for
    good, and ``edgelean.exported`` in the metadata says so, and why.

    The batch, dimension 0 of every input, stays free under the name ``batch``. Without ``names`` inputs are called
    ``input``, ``input_1`` and so on, outputs ``output``, ``output_1`` and so on. Equal models give equal bytes: no
    time, no path and no source line goes into the file. Nothing is written to the terminal, the random state is not
    touched, and every module is left in the training mode in which it was found.

    Parameters
    ----------
    model
        Its forward takes the tensors of ``example`` by position.
    example
        One batch of each input. A batch of one is doubled, since torch would take a size of one for a constant.
    path
        The file to write.
    metadata
        Goes into the ``metadata_props`` of the file, beside ``edgelean.precision``.
    opset
        The version of ONNX's operators.
    untraceable
        Why torch.export cannot trace the model, where that is known: it is then not tried again.
    names
        Of the inputs and of the outputs, all of them or none.

    Returns
    -------
    Path
        The file, read back and checked.

    Raises
    ------
    InputError
        The forward cannot be expressed in ONNX; the message names the operator, or the line of the model.
    VerificationError
        The file has another opset than asked, or is not valid ONNX.
    """
    import torch

    from edgelean.shrink.untraceable import Reason, as_it_infers, silence

    path = Path(path)
    wide = tuple(torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor for tensor in example)
    told = {**metadata, PRECISION_KEY: "fp32"}
    names = Names(names.inputs or numbered("input", len(wide)), names.outputs)
    with as_it_infers(model), silence(), torch.no_grad():
        traced = _translated(model, wide, opset, names) if untraceable is None else untraceable
        if isinstance(traced, Reason):
            told[RECORDED_KEY] = f"{RECORDED}: {traced.words()}"
            traced = recorded(model, wide, opset, traced, names)
    _strip_notes(traced)
    return write_onnx(traced, path, told, opset)


def _translated(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], opset: int, names: Names
) -> ModelProto | Reason:
    """Trace and translate; return why that does not go where code decides by what it computes.

    Raises
    ------
    InputError
        If it holds for one batch size only, or is traced and then not translated.
    """
    import torch

    from edgelean.shrink.blocks import without_idle_sums
    from edgelean.shrink.untraceable import ONE_BATCH, UntraceableError, exported

    free = torch.export.Dim(BATCH, min=1)
    # Tracing here and not inside torch.onnx.export keeps the first error: that function would try two more ways to
    # trace, each taking seconds, before it gives up.
    try:
        program = without_idle_sums(exported(model, example, tuple({0: free} for _ in example)))
    except UntraceableError as error:
        if error.reason.what == ONE_BATCH[0]:
            raise InputError(f"the model cannot be exported to ONNX: {_sentence(error.reason)}") from error
        return error.reason
    try:
        with read_once():
            translated = torch.onnx.export(
                program,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=names.inputs,
                output_names=names.outputs or numbered("output", len(program.graph_signature.user_outputs)),
                dynamic_shapes=tuple({0: BATCH} for _ in example),  # only names the axis: the program is traced already
                verbose=False,
            )
    except Exception as error:  # torch raises what it likes here: RuntimeError, TypeError, sympy's own
        raise InputError(f"the model cannot be exported to ONNX: {_untranslated(error)}") from error
    if translated is None:
        raise InputError("the model cannot be exported to ONNX: torch.onnx.export gave no model")
    return translated.model_proto


def write_onnx(proto: ModelProto, path: Path, metadata: Mapping[str, str], opset: int) -> Path:
    """Write ``proto`` with exactly this metadata, and check what is on the disk; returns ``path``."""
    import onnx

    from edgelean.shrink.untraceable import first_line

    del proto.metadata_props[:]
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    path.write_bytes(proto.SerializeToString(deterministic=True))
    written = onnx.load(path)
    found = {entry.domain: entry.version for entry in written.opset_import}.get("")
    if found != opset:
        raise VerificationError(f"{path.name}: asked for ONNX opset {opset}, the exporter wrote opset {found}")
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{path.name} is not valid ONNX: {first_line(error)}") from error
    return path


def _strip_notes(message: Any) -> None:
    """Clear the notes of a protobuf message and its parts: torch leaves stack traces there, with local paths."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip_notes(part)


def _untranslated(error: BaseException) -> str:
    """Say in one sentence why torch could not translate a traced model."""
    from edgelean.shrink.untraceable import reason_of

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if operator := re.search(r"OpOverload\(op='([\w.]+)'", str(causes[-1])):
        where = next(filter(None, map(_layer_of, causes)), "")
        return f"ONNX has nothing that computes the operator {operator[1]}{where}; replace it in the forward by others"
    return _sentence(reason_of(error))


def _layer_of(error: BaseException) -> str:
    """Return in which module the operator is that torch was translating when it failed; empty if it does not tell."""
    import torch

    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and (stack := node.meta.get("nn_module_stack")):
            path, kind = list(stack.values())[-1]
            name = kind if isinstance(kind, str) else kind.__qualname__
            return f" of the layer {path or 'of the model itself'} ({name.rpartition('.')[-1]})"
        trace = trace.tb_next
    return ""


def _sentence(reason: Reason) -> str:
    return f"{reason.words()}; {reason.advice}"
