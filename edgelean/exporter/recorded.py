"""ONNX for a model that torch.export cannot trace: one path through its code is recorded, and compared with it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgelean.errors import InputError

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from edgelean.shrink.untraceable import Reason

RECORDED_KEY = "edgelean.exported"
"""In the metadata of a recorded file: how it came about, in words."""

RECORDED = "by recording one path through the code, because torch.export cannot trace it"


class Names(NamedTuple):
    """What the inputs and the outputs of a file are called; of what is empty, by what they are and their number."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


NUMBERED = Names()

FAITHFUL = 1e-3
"""How far the outputs of a recording may be off, relative to the largest."""


def recorded(
    model: torch.nn.Module, example: tuple[torch.Tensor, ...], opset: int, reason: Reason, names: Names
) -> ModelProto:
    """Return what a model does with one batch as ONNX; whatever its code decides is decided for good.

    Parameters
    ----------
    model
        In evaluation mode.
    reason
        Why it cannot be traced.
    names
        Of its inputs, whose first dimension stays free, and of its outputs.

    Raises
    ------
    InputError
        If it cannot be recorded, or an input leaves no trace in the outputs.
    """
    import onnx
    import torch

    from edgelean.shrink.reference import leaves
    from edgelean.shrink.untraceable import first_line

    file = io.BytesIO()
    place: Any = file  # with dynamo=False a buffer is taken, too, which torch has not typed
    fused = torch.backends.mha.get_fastpath_enabled()
    # ONNX has nothing for the one operator that a whole layer of a transformer is in evaluation mode.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        outputs = names.outputs or numbered("output", len(leaves(model(*example))))
        named: dict[str, Any] = {"input_names": list(names.inputs), "output_names": list(outputs)}
        free = {name: {0: "batch"} for name in (*names.inputs, *outputs)}
        torch.onnx.export(model, example, place, dynamo=False, opset_version=opset, dynamic_axes=free, **named)
    except Exception as error:  # torch raises what it likes here
        raise InputError(_refused(reason, f"cannot be done either ({first_line(error)})")) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    proto = onnx.load_from_string(file.getvalue())
    lost = sorted(set(names.inputs) - {value.name for value in proto.graph.input})
    if lost:
        raise InputError(_refused(reason, f"does not help: the outputs would not depend on {', '.join(lost)}"))
    return proto


def recording_of(path: Path) -> str:
    """Return how an exported file was recorded, in words; empty if it was traced."""
    import onnx

    entries = onnx.load(path, load_external_data=False).metadata_props
    return next((entry.value for entry in entries if entry.key == RECORDED_KEY), "")


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Return ``name``, ``name_1`` and so on."""
    return tuple(name if index == 0 else f"{name}_{index}" for index in range(count))


def check_recording(path: Path, model: torch.nn.Module, probe: tuple[torch.Tensor, ...]) -> None:
    """Compare a recorded file with the model, on a batch and on each of its samples alone.

    Raises
    ------
    InputError
        If the outputs differ: the one path that was recorded is not the one that these samples take.
    """
    import onnxruntime
    import torch

    from edgelean.shrink.reference import leaves
    from edgelean.shrink.untraceable import as_it_infers

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    singles = [tuple(x[index : index + 1] for x in probe) for index in range(len(probe[0]))]
    for inputs in (probe, *singles):
        with torch.no_grad(), as_it_infers(model):
            wanted = [x.cpu().double().numpy() for x in leaves(model(*inputs))]
        try:
            found = session.run(None, {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)})
            same = all(_close(a, b) for a, b in zip(found, wanted, strict=True))
        except Exception:  # onnxruntime's kinds share no base class that it exports
            same = False
        if not same:
            what = "a batch of them" if inputs is probe else "one of them alone"
            raise InputError(
                f"the model can only be exported {recording_of(path)}; for {len(probe[0])} samples of the validation "
                f"data the recorded path gives other outputs than the model, for {what}. Rewrite that line, so that "
                "every input takes the same path"
            )


def _close(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape:
        return False
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(found - wanted).max(initial=0.0)) <= FAITHFUL * scale


def _refused(reason: Reason, recording: str) -> str:
    return (
        f"the model cannot be exported to ONNX: {reason.words()}. To record one path through its code {recording}. "
        f"What to do: {reason.advice}"
    )
