"""INT8, written into the graph as pairs of QuantizeLinear and DequantizeLinear.

What onnxruntime runs fast on a processor and what TensorRT accepts are two graphs. The first has activations from 0 to
255 with a zero point, and keeps them in INT8 from operator to operator. TensorRT wants them symmetric around zero, at
the inputs of convolutions and products only, and biases in floating point.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelean.errors import InputError
from edgelean.exporter.fp16 import PRODUCTS, SINGLE_KEY
from edgelean.exporter.onnx import PRECISION_KEY, write_onnx
from edgelean.exporter.packages import tools_of_onnxruntime
from edgelean.exporter.search import Array, HeldOut, Judge, Loss, spared
from edgelean.exporter.targets import ExportTarget

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

CALIBRATOR_KEY = "edgelean.calibrator"
"""Metadata of an INT8 file: how the ranges of activations were found."""

WEIGHED = (*PRODUCTS, "ConvTranspose")
"""Operators that are quantised where one of their operands is a constant; a product of two activations is not."""

CALIBRATORS: Mapping[str, Mapping[str, Any]] = {
    "MinMax": {},
    "Percentile": {"CalibPercentile": 99.99},
    "Entropy": {},
}
"""How the range of an activation is found: all that was seen, all but one in 10,000, or what keeps the most
information (Migacz, 8-bit inference with TensorRT, 2017)."""

_LARGEST_BATCH = 64
"""Samples that a calibration runs at once."""

_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


@dataclass(frozen=True)
class Scheme:
    """One way to write INT8 into a graph.

    Attributes
    ----------
    activations
        The type of activations, as onnxruntime calls it.
    computing
        Operators that compute in INT8, and that may be left in floating point one by one.
    passing
        Operators that hand INT8 on as it is.
    options
        Of onnxruntime's quantiser.
    """

    activations: str
    computing: tuple[str, ...]
    passing: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


ON_A_CPU = Scheme(
    "QUInt8",
    (*WEIGHED, "Add", "AveragePool", "GlobalAveragePool", "Concat"),
    ("Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
)
IN_TENSORRT = Scheme(
    "QInt8",
    WEIGHED,
    options={
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        # A pair behind a convolution would part it from the activation that TensorRT fuses into it.
        "OpTypesToExcludeOutputQuantization": list(WEIGHED),
    },
)


@dataclass(frozen=True)
class Quantised:
    """An INT8 file, and how it came about.

    Attributes
    ----------
    calibrator
        How the ranges of activations were found: a key of `CALIBRATORS`.
    operators
        How many operators could compute in INT8.
    kept
        Those that stayed in floating point, by the layer whose weight they read, the most sensitive first.
    loss
        Against the FP32 file, on the held-out samples.
    notes
        For the report, in sentences.
    """

    path: Path
    calibrator: str
    operators: int
    kept: tuple[str, ...]
    loss: Loss
    notes: tuple[str, ...]


def quantised(
    path: Path | str,
    out: Path | str,
    target: ExportTarget,
    calibration: Sequence[Sequence[Array]],
    held_out: HeldOut | None = None,
) -> Quantised:
    """Write the FP32 file ``path`` as an INT8 file ``out`` for the runtime of an export target.

    Every calibrator is tried, and the one with the highest metric on the held-out samples stays; at a tie the one with
    the smallest error. Where more than half of a tolerance of the target is used up there, the operators that lose the
    most stay in floating point.

    Parameters
    ----------
    target
        Says the runtime and the tolerances.
    calibration
        Inputs from which the ranges of activations are found: per batch a tuple of arrays, one per input of the model.
    held_out
        What the choices are judged by; None for the calibration data themselves.

    Raises
    ------
    InputError
        Nothing in the graph can be quantised, or onnxruntime does not run it on these samples.
    VerificationError
        The file is not valid ONNX.
    """
    path, out = Path(path), Path(out)
    with tempfile.TemporaryDirectory() as scratch:
        press = _Press(path, scheme_of(target), calibration, Path(scratch))
        judge = Judge(path, held_out or HeldOut(calibration), target.tolerances)
        best, whole = _best(press, judge)
        kept, loss = spared(press.names, lambda spare: press.pressed(best, spare), judge)
        layers = tuple(press.layer(name) for name in kept)
        _written(press.pressed(best, kept), press.source, out, best, layers)
    notes = _told(out.name, best, len(press.names), layers, whole, loss)
    return Quantised(out, best, len(press.names), layers, loss, notes)


def int8_loss(
    path: Path | str, target: ExportTarget, calibration: Sequence[Sequence[Array]], held_out: HeldOut
) -> Loss:
    """Return what an FP32 file would lose with every operator in INT8 that can be; no file is kept. See `quantised`."""
    with tempfile.TemporaryDirectory() as scratch:
        press = _Press(Path(path), scheme_of(target), calibration, Path(scratch))
        return _best(press, Judge(Path(path), held_out, target.tolerances))[1]


def _best(press: _Press, judge: Judge) -> tuple[str, Loss]:
    """Return the calibrator that loses least with every operator in INT8, and what it loses."""
    losses = {name: judge.loss(press.pressed(name, ())) for name in CALIBRATORS}
    best = min(losses, key=lambda name: (losses[name].drop, losses[name].mean))
    return best, losses[best]


def roughly_quantised(path: Path | str, out: Path | str, target: ExportTarget, batch: Sequence[Array]) -> Path:
    """Write an INT8 file for timing: ranges from one batch, and nothing is judged. See `quantised`."""
    with tempfile.TemporaryDirectory() as scratch:
        press = _Press(Path(path), scheme_of(target), [batch], Path(scratch))
        _written(press.pressed("MinMax", ()), press.source, Path(out), "MinMax", ())
    return Path(out)


def scheme_of(target: ExportTarget) -> Scheme:
    """Return how INT8 is written for the runtime of a target."""
    return IN_TENSORRT if target.format == "tensorrt" else ON_A_CPU


class _Press:
    """Makes INT8 files of one FP32 file; the ranges of activations are found once per calibrator.

    Attributes
    ----------
    names
        The operators that can compute in INT8.
    """

    def __init__(self, path: Path, scheme: Scheme, calibration: Sequence[Sequence[Array]], scratch: Path) -> None:
        import onnx

        self.source = onnx.load(path)
        self._scheme, self._calibration, self._scratch = scheme, calibration, scratch
        ready = _prepared(self.source)
        self._ready = scratch / "ready.onnx"
        onnx.save(ready, self._ready)
        constants = _constants(ready.graph)
        nodes = [node for node in ready.graph.node if node.op_type in scheme.computing]
        self._layers = {node.name: _layer(node, constants) for node in nodes if _is_weighed(node, constants)}
        self._never = [node.name for node in nodes if node.name not in self._layers]
        self.names = tuple(self._layers)
        if not any(node.op_type in WEIGHED for node in nodes if node.name in self._layers):
            found = ", ".join(sorted({node.op_type for node in self.source.graph.node}))
            raise InputError(
                f"{path.name}: nothing in it can be quantised: INT8 is for {', '.join(WEIGHED)} with constant weights, "
                f"and the graph has {found}; take fp16 or fp32"
            )

    def layer(self, name: str) -> str:
        """Return the layer that an operator belongs to, as far as the file tells."""
        return self._layers[name]

    def pressed(self, calibrator: str, spare: Collection[str]) -> Path:
        """Return a new INT8 file in which some operators stay in floating point."""
        path = self._scratch / "pressed.onnx"
        try:
            self._quantise(path, calibrator, spare)
        except Exception as error:  # onnxruntime's quantiser raises what it likes
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"onnxruntime cannot make an INT8 file of this model ({line}); export fp16 or fp32 instead"
            ) from error
        return path

    def _quantise(self, path: Path, calibrator: str, spare: Collection[str]) -> None:
        with _quietly(), tools_of_onnxruntime():
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

            quantize_static(
                self._ready,
                path,
                _reader(self.source.graph, self._calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*self._scheme.computing, *self._scheme.passing],
                per_channel=True,
                activation_type=QuantType[self._scheme.activations],
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*self._never, *spare],
                calibrate_method=CalibrationMethod[calibrator],
                calibration_providers=["CPUExecutionProvider"],
                calibration_cache_path=self._scratch / f"{calibrator}.json",
                extra_options={**self._scheme.options, **CALIBRATORS[calibrator]},
            )


def _prepared(source: ModelProto) -> ModelProto:
    """Return a copy in which every operator has a name, marked so that onnxruntime asks for no preparation."""
    ready = type(source)()
    ready.CopyFrom(source)
    for index, node in enumerate(ready.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    key, value = _PREPARED
    ready.metadata_props.add(key=key, value=value)
    return ready


def _constants(graph: GraphProto) -> set[str]:
    """Return the tensors that depend on no input."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
    return constants


def _is_weighed(node: NodeProto, constants: set[str]) -> bool:
    return node.op_type not in WEIGHED or not constants.isdisjoint(node.input[:2])


def _layer(node: NodeProto, constants: set[str]) -> str:
    """Return the name of the module that an operator's weight has, or that of the operator."""
    weight = next((name for name in node.input if name in constants), "")
    return weight.rpartition(".")[0] or node.name


def _reader(graph: GraphProto, batches: Sequence[Sequence[Array]]) -> Any:
    with tools_of_onnxruntime():
        from onnxruntime.quantization import CalibrationDataReader

    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    feeds = iter([dict(zip(names, batch, strict=True)) for batch in _of_one_size(batches)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    return Reader()


def _of_one_size(batches: Sequence[Sequence[Array]]) -> list[Sequence[Array]]:
    """Return the samples in batches of one size, as onnxruntime's histograms want them; of one shape, the commonest."""
    import numpy as np

    kinds: dict[tuple[tuple[int, ...], ...], list[Sequence[Array]]] = {}
    for batch in batches:
        kinds.setdefault(tuple(array.shape[1:] for array in batch), []).append(batch)
    alike = max(kinds.values(), key=lambda each: sum(len(batch[0]) for batch in each))
    whole = [np.concatenate(arrays) for arrays in zip(*alike, strict=True)]
    count = len(whole[0])
    size = next(size for size in range(min(count, _LARGEST_BATCH), 0, -1) if count % size == 0)
    return [[array[start : start + size] for array in whole] for start in range(0, count, size)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what onnxruntime's quantiser prints and logs away from the terminal, and from the root logger."""
    from edgelean.shrink.untraceable import silence

    before, nothing = logging.root.manager.disable, logging.NullHandler()
    # Its logging.warning() would set up the logging of the whole process, unless the root has a handler.
    logging.root.addHandler(nothing)
    logging.disable(logging.CRITICAL)
    try:
        with silence(), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(nothing)


def _written(pressed: Path, source: ModelProto, out: Path, calibrator: str, kept: Sequence[str]) -> None:
    """Write the file with the metadata of its source."""
    import onnx

    proto = onnx.load(pressed)
    used = {node.domain for node in proto.graph.node} | {""}
    opsets = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    metadata = {entry.key: entry.value for entry in source.metadata_props}
    metadata |= {PRECISION_KEY: "int8", CALIBRATOR_KEY: calibrator}
    if kept:
        metadata[SINGLE_KEY] = ", ".join(kept)
    opset = next(entry.version for entry in source.opset_import if entry.domain == "")
    write_onnx(proto, out, metadata, opset)


def _told(file: str, calibrator: str, operators: int, kept: Sequence[str], whole: Loss, loss: Loss) -> tuple[str, ...]:
    """Return in sentences how an INT8 file was made."""
    start = f"{file}: {operators - len(kept)} of {operators} operators compute in INT8, ranges by {calibrator}"
    if len(kept) == operators:
        return (
            f"{file}: no operator computes in INT8: with all of them the outputs were off by {whole.mean:.2g} of their "
            f"norm and the metric by {whole.drop:.2g}, and with any of them by more than the tolerances allow.",
        )
    if not kept:
        return (f"{start}; its outputs are off by {loss.mean:.2g} of their norm in the mean.",)
    return (
        f"{start}; in floating point stay {', '.join(kept)}, since with all in INT8 the outputs were off by "
        f"{whole.mean:.2g} of their norm and the metric by {whole.drop:.2g}, now {loss.mean:.2g} and {loss.drop:.2g}.",
    )
