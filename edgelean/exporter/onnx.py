"""From a PyTorch model to an ONNX file: quiet, reproducible, and checked after it was written."""

from __future__ import annotations

import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelean.errors import InputError, VerificationError

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

OPSET = 18
"""Written natively by torch's exporter, and inside the range of every TensorRT from 10.0 on (which read 9 to 20)."""

BATCH = "batch"
"""The name of the free axis in the file."""

PRECISION_KEY = "edgelean.precision"

_CHATTY_LOGGERS = ("torch", "onnxscript", "onnx_ir")


def export_onnx(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path | str,
    *,
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> Path:
    """Write ``model``, as it infers, to one ONNX file.

    The batch, dimension 0 of every input, stays free under the name ``batch``. Inputs are called ``input``, ``input_1``
    and so on, outputs ``output``, ``output_1`` and so on. Equal models give equal bytes: no time, no path and no source
    line goes into the file. Nothing is written to the terminal, the random state is not touched, and every module is
    left in the training mode in which it was found.

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

    path = Path(path)
    wide = tuple(torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor for tensor in example)
    with _as_it_infers(model), _silence(), torch.no_grad():
        try:
            proto = _translate(model, wide, opset)
        except Exception as error:  # torch raises what it likes here: RuntimeError, TypeError, sympy's own
            raise InputError(f"the model cannot be exported to ONNX: {_reason(error)}") from error
    _strip_notes(proto)
    return write_onnx(proto, path, {**metadata, PRECISION_KEY: "fp32"}, opset)


def _translate(model: torch.nn.Module, example: tuple[torch.Tensor, ...], opset: int) -> ModelProto:
    """Trace and translate; raises whatever torch raises."""
    import torch

    from edgelean.shrink.blocks import without_idle_sums

    free = torch.export.Dim(BATCH, min=1)
    # Tracing here and not inside torch.onnx.export keeps the first error: that function would try two more ways to
    # trace, each taking seconds, before it gives up.
    traced = torch.export.export(model, example, dynamic_shapes=tuple({0: free} for _ in example))
    program = without_idle_sums(traced)
    translated = torch.onnx.export(
        program,
        example,
        dynamo=True,
        opset_version=opset,
        input_names=_numbered("input", len(example)),
        output_names=_numbered("output", len(program.graph_signature.user_outputs)),
        dynamic_shapes=tuple({0: BATCH} for _ in example),  # only names the axis: the program is traced already
        verbose=False,
    )
    if translated is None:
        raise TypeError("torch.onnx.export gave no model")
    return translated.model_proto


def write_onnx(proto: ModelProto, path: Path, metadata: Mapping[str, str], opset: int) -> Path:
    """Write ``proto`` with exactly this metadata, and check what is on the disk; returns ``path``."""
    import onnx

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
        raise VerificationError(f"{path.name} is not valid ONNX: {_first_line(error)}") from error
    return path


def _numbered(name: str, count: int) -> list[str]:
    return [name if index == 0 else f"{name}_{index}" for index in range(count)]


def _strip_notes(message: Any) -> None:
    """Clear the notes of a protobuf message and its parts: torch leaves stack traces there, with local paths."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip_notes(part)


@contextmanager
def _as_it_infers(model: torch.nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _silence() -> Iterator[None]:
    """Keep warnings, log lines and what torch prints on stderr away from the terminal."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Say in one sentence why torch could not trace or translate a model."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    root, where = _first_line(causes[-1]), _line_of_the_model(error)
    if operator := re.search(r"OpOverload\(op='([\w.]+)'", root):
        return f"ONNX has nothing that computes the operator {operator[1]}; replace it in the forward by others"
    if "Constraints violated (batch)" in root:
        return "its forward holds for one batch size only; take the batch from x.shape[0], or write -1 for it"
    if "data-dependent" in root:
        return f"its forward decides by the value of a tensor{where}; compute both sides and use torch.where"
    return f"{root}{where}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__


def _line_of_the_model(error: BaseException) -> str:
    """Return ``" (file:line)"`` of the last frame that belongs neither to torch nor to this file, or nothing."""
    import torch

    machinery = (str(Path(torch.__file__).parent), __file__, "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(machinery)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
