"""TensorRT: an engine is built from the ONNX file, once, and runs with inputs and outputs in the memory of the GPU.

Building needs no GPU and is shared with the exporter, which ships engines. Running needs one, and torch with CUDA,
whose tensors are the buffers and whose stream is the queue.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgelean.board import Precision
from edgelean.errors import DeviceError
from edgelean.sensors.kernel_files import processor_name
from edgelean.sensors.window import Work
from edgelean.target.candidate import Feeds
from edgelean.target.runtime import Device

PACKAGES = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are tried: the first knows every board, the second builds without a GPU."""

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""Per input the smallest shape, the one that the engine is tuned for, and the largest."""


class RefusedError(Exception):
    """A package cannot build the engine; the message says why."""


def capabilities(trt: Any) -> dict[str, bool]:
    """Return what this package can do, by looking for the names and not at its version."""
    return {
        "strongly_typed": hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        "tf32_switch": hasattr(trt.BuilderFlag, "TF32"),
        "detailed_profiling": hasattr(trt, "ProfilingVerbosity"),
    }


def parse(trt: Any, builder: Any, model: Path | bytes) -> Any:
    """Return the network of an ONNX file, strongly typed: its precision is the file's, and no other is chosen.

    Raises
    ------
    RefusedError
        The package is too old, or cannot read the file; the message has every complaint of its parser.
    """
    if not capabilities(trt)["strongly_typed"]:
        raise RefusedError(
            "it has no strongly typed networks, so it would choose the precision itself; use 10 or newer"
        )
    log = logger(trt)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # From a path, because the weights may lie in files beside it.
    if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise RefusedError("; ".join(_parser_error(error) for error in errors) or log.complaint())
    return network


def configure(trt: Any, builder: Any, ranges: Ranges) -> Any:
    """Return the build's configuration: one optimisation profile, and no precision but the graph's."""
    able = capabilities(trt)
    config = builder.create_builder_config()
    if able["tf32_switch"]:
        config.clear_flag(trt.BuilderFlag.TF32)  # it rounds FP32 factors to 10 bits, which is not the FP32 we verified
    if able["detailed_profiling"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the engine inspector shows no layers
    profile = builder.create_optimization_profile()
    for name, shapes in ranges.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return config


def serialize(trt: Any, builder: Any, network: Any, config: Any) -> Any:
    """Return the engine as bytes.

    Raises
    ------
    RefusedError
        It cannot be built; the message has what the package logged.
    """
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError(logger(trt).complaint())
    return engine


@cache
def logger(trt: Any) -> Any:
    """Return the logger of this package; TensorRT keeps the first that it ever sees, so there is one per process."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(message)

        def complaint(self) -> str:
            return "; ".join(self.lines) or "it gave no reason"

    return Log()


def open_tensorrt(gpu: str | None) -> TensorRt:
    """Return TensorRT, from whichever of NVIDIA's two packages can be imported.

    Parameters
    ----------
    gpu
        The name of the GPU, or None where there is none.

    Raises
    ------
    DeviceError
        There is no GPU, or no package.
    """
    if gpu is None:
        raise DeviceError("TensorRT: torch sees no CUDA GPU here: install its driver, and a torch built for CUDA")
    reasons = []
    for package in PACKAGES:
        try:
            return TensorRt(importlib.import_module(package), gpu)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries are not there
            reasons.append(f"{package}: {error}")
    raise DeviceError(
        f"TensorRT: no package can be imported ({'; '.join(reasons)}): pip install 'edgelean[tensorrt]'; on a Jetson "
        "it comes with JetPack"
    )


@dataclass(frozen=True)
class TensorRt:
    """TensorRT on the first CUDA GPU that is visible.

    Every call is queued and waited for, so the launch of each kernel counts, as it does for an application that does
    not capture a CUDA graph. An engine is built for exactly the shapes of the feeds; the last one is kept, so that the
    repeats of a reading differ in their memory and not in the tactics that a second build may choose.

    Attributes
    ----------
    trt
        The package.
    gpu
        The name of the GPU.

    Notes
    -----
    The build is tested against the real package. The calls that run an engine follow its documented interface (that of
    10.0 and later) and are tested against a stand-in; `pytest -m gpu` runs them where there is a GPU.
    """

    trt: Any
    gpu: str
    name: str = "tensorrt"
    device: Device = "gpu"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def conditions(self) -> dict[str, str]:
        """Return the GPU, the processor that feeds it, and the version of the package."""
        return {
            "gpu": self.gpu,
            "processor": processor_name(),
            "runtime": f"{self.trt.__name__} {self.trt.__version__}",
            "threads": "1",
        }

    def open(self, model: Path | bytes, feeds: Feeds) -> Work:
        """Return a call of a new execution context, tried once; see :class:`edgelean.target.runtime.Runtime`."""
        import torch

        name = "a probe" if isinstance(model, bytes) else str(model)
        try:
            runtime = self.trt.Runtime(logger(self.trt))
            engine = runtime.deserialize_cuda_engine(self.engine(model, feeds))
            if engine is None:
                raise RefusedError(logger(self.trt).complaint())
            context = engine.create_execution_context()
            tensors = bind(engine, context, feeds, torch.device("cuda"))
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has not typed it
            call = EngineCall(context, stream, (runtime, engine, tensors))
            torch.cuda.synchronize()  # the inputs are being copied in another stream
            call()
        except Exception as error:  # a binding of C++ and torch: RuntimeError, TypeError and more
            raise DeviceError(f"{self.trt.__name__} {self.trt.__version__} does not run {name}: {error}") from error
        return call

    def engine(self, model: Path | bytes, feeds: Feeds) -> Any:
        """Return the engine as bytes, from the last build where that was of the same file and shapes."""
        content = model if isinstance(model, bytes) else model.read_bytes()
        shapes = {name: tuple(feed.shape) for name, feed in feeds.items()}
        key = f"{hashlib.sha256(content).hexdigest()} {shapes}"
        if key not in self._kept:
            self._kept.clear()
            logger(self.trt).lines.clear()
            builder = self.trt.Builder(logger(self.trt))
            network = parse(self.trt, builder, model)
            config = configure(self.trt, builder, {name: (shape,) * 3 for name, shape in shapes.items()})
            self._kept[key] = serialize(self.trt, builder, network, config)
        return self._kept[key]


@dataclass(frozen=True)
class EngineCall:
    """One batch through an execution context; holds what the context uses without owning it.

    Attributes
    ----------
    context
        Its addresses and shapes are set.
    stream
        Not the default stream, which TensorRT would synchronise more often than needed.
    held
        Runtime, engine and buffers.
    """

    context: Any
    stream: Any
    held: tuple[Any, ...]

    def __call__(self) -> None:
        """Queue the batch and wait for it."""
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise DeviceError("TensorRT did not queue the batch: its log says why")
        self.stream.synchronize()


def bind(engine: Any, context: Any, feeds: Feeds, place: Any) -> dict[str, Any]:
    """Give every input and output of an engine its memory; return the tensors, which have to live as long.

    Parameters
    ----------
    engine, context
        Of TensorRT.
    feeds
        Inputs by name; each is converted to the type that the engine wants.
    place
        The device of torch on which the memory lies.

    Raises
    ------
    DeviceError
        An output whose shape depends on the values of the inputs, or an input that is a shape.
    """
    import torch

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors: dict[str, Any] = {}
    for name in (name for name in names if name in feeds):
        if engine.is_shape_inference_io(name):
            raise DeviceError(f"the input {name} decides about shapes, which is not supported: fix it in the ONNX file")
        kind = _torch_kind(torch, engine.get_tensor_dtype(name))
        tensors[name] = torch.as_tensor(feeds[name]).to(place, kind).contiguous()
        context.set_input_shape(name, tuple(tensors[name].shape))
    for name in (name for name in names if name not in feeds):
        shape = tuple(context.get_tensor_shape(name))
        if any(extent < 0 for extent in shape):
            raise DeviceError(f"the shape of {name} depends on the values of the inputs: leave that part out")
        tensors[name] = torch.empty(shape, dtype=_torch_kind(torch, engine.get_tensor_dtype(name)), device=place)
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    return tensors


_KINDS = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def _torch_kind(torch: Any, kind: Any) -> Any:
    if kind.name not in _KINDS:
        raise DeviceError(f"tensors of the type {kind.name} cannot be fed: give the model inputs of FP32, FP16 or INT8")
    return getattr(torch, _KINDS[kind.name])


def _parser_error(error: Any) -> str:
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"operator {operator}: {error.desc()}" if operator else str(error.desc())
