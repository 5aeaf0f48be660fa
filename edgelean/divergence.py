"""Where an exported file begins to differ from the model: the first layer whose outputs are not found in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

Array = NDArray[Any]

SAMPLES = 4
"""So many are run; they are enough to tell one layer from another, and every value of the graph is kept."""

LARGEST = 4_000_000
"""Numbers of a value that is looked at; larger ones are skipped."""


@dataclass(frozen=True)
class Seen:
    """What one layer of the user's model puts out.

    Attributes
    ----------
    path, kind
        The module's path in the model, and its class.
    output
        The first tensor that it returns.
    folded
        Whether a batch norm reads it, with which it becomes one operator in the file.
    """

    path: str
    kind: str
    output: Array
    folded: bool


def first_divergence(
    path: Path, model: nn.Module, inputs: Sequence[Tensor], allowed: float, sound: Path | None = None
) -> str:
    """Return a sentence on the first layer of ``model`` that an ONNX file computes differently; "" where none is seen.

    Both are run on the same samples. A layer agrees where some value of the file is its output, to ``allowed`` of its
    norm, in any layout.

    Parameters
    ----------
    path
        The file; one that does not run has no values, and nothing is said of it.
    inputs
        One batch.
    allowed
        The largest relative L2 error of a layer.
    sound
        A file of the same model that is right: a layer that is not found in it either was folded into another one, and
        is passed over. Without it only those are that a batch norm reads.
    """
    some = [x[:SAMPLES] for x in inputs]
    seen = layers(model, some)
    errors = _errors(path, seen, some)
    if errors is None:
        return ""
    if sound is not None and (right := _errors(sound, seen, some)) is not None:
        wrong = [index for index, error in enumerate(errors) if error > allowed >= right[index]]
    else:
        wrong = [index for index, error in enumerate(errors) if error > allowed and not seen[index].folded]
        good = [index for index, error in enumerate(errors) if error <= allowed]
        wrong = [index for index in wrong if good and index > good[-1]] or wrong
    return _words(seen, errors, wrong[0], allowed) if wrong else ""


def _errors(path: Path, seen: Sequence[Seen], inputs: Sequence[Tensor]) -> list[float] | None:
    """Return for every layer how far the nearest value of a file is off; None where the file does not run."""
    try:
        values = values_of(path, [x.cpu().numpy() for x in inputs])
    except Exception:  # onnxruntime's kinds share no base class that it exports; why it does not run was told before
        return None
    found = _by_size(values)
    return [nearest(each.output, found.get(each.output.size, ())) for each in seen]


def _words(seen: Sequence[Seen], errors: Sequence[float], index: int, allowed: float) -> str:
    told = f"the first layer that is off is {seen[index].path!r} ({seen[index].kind})"
    if np.isfinite(errors[index]):
        told += f", by {errors[index]:.2g} of its norm"
    before = [each.path for each, error in zip(seen[:index], errors, strict=False) if error <= allowed]
    return f"{told}; the last before it that agrees is {before[-1]!r}" if before else told


def layers(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Seen, ...]:
    """Return what every module without children puts out, in the order of execution; one that is called twice, once."""
    import torch

    from edgelean.shrink.untraceable import as_it_infers

    outputs: dict[str, tuple[nn.Module, Any]] = {}
    normed: list[Any] = []
    kept: list[Any] = []  # an identity is only one while the tensor lives

    def look(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            kept.append((given, output))
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                normed.append(given[0])
            if isinstance(first, torch.Tensor) and first.is_floating_point() and 1 < first.numel() <= LARGEST:
                outputs.setdefault(name, (module, first))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        with torch.no_grad(), as_it_infers(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    read = {id(tensor) for tensor in normed}
    return tuple(
        Seen(name, type(module).__name__, tensor.cpu().double().numpy(), id(tensor) in read)
        for name, (module, tensor) in outputs.items()
    )


def values_of(path: Path, inputs: Sequence[Array]) -> dict[str, Array]:
    """Return every floating-point value that is computed on the way through an ONNX file, outputs included."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = _show_everything(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As the file says, not as onnxruntime would rewrite it: a fused operator has none of the values inside.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: array for entry, array in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _show_everything(model: ModelProto) -> list[str]:
    """Make every floating-point value of a graph one of its outputs; return their names."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    computed = [name for node in model.graph.node for name in node.output if name in kinds]
    names = [name for name in computed if kinds[name].type.tensor_type.elem_type in floats]
    del model.graph.output[:]
    model.graph.output.extend(kinds[name] for name in names)
    return names


def nearest(wanted: Array, found: Iterable[Array]) -> float:
    """Return the smallest relative L2 error of some arrays against one, infinite where there is none.

    Where shapes differ the numbers are compared in their order of size, which no layout changes.
    """
    norm = float(np.linalg.norm(wanted)) or 1.0
    flat: Array | None = None
    least = np.inf
    for value in found:
        if value.shape == wanted.shape:
            error = np.linalg.norm(value - wanted)
        else:
            flat = np.sort(wanted, axis=None) if flat is None else flat
            error = np.linalg.norm(np.sort(value, axis=None) - flat)
        least = min(least, float(error) / norm if np.isfinite(error) else np.inf)
    return float(least)


def _by_size(values: Mapping[str, Array]) -> dict[int, list[Array]]:
    sizes: dict[int, list[Array]] = {}
    for value in values.values():
        sizes.setdefault(value.size, []).append(value.astype(np.float64))
    return sizes
