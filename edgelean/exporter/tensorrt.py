"""A TensorRT engine from an ONNX file, with whichever of NVIDIA's two packages can be imported."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are tried: the first knows every board, the second builds without a GPU."""


@dataclass(frozen=True)
class EngineNote:
    """What came of building an engine.

    Attributes
    ----------
    built
        Whether there is an engine.
    package, version
        What built it, or refused to; empty when neither package can be imported.
    text
        What a person has to know: what was built and where it runs, or why not and what to do.
    seconds
        How long it took.
    layers
        Layers of the network; 0 where no engine was built.
    """

    built: bool
    package: str
    version: str
    text: str
    seconds: float
    layers: int


class _RefusedError(Exception):
    """A package cannot build the engine; the message says why."""


def build_engine(onnx_path: Path | str, engine_path: Path | str, largest_batch: int) -> EngineNote:
    """Build a TensorRT engine for batches from 1 to ``largest_batch``, tuned for the largest.

    The network is strongly typed: the precision is the one of the ONNX file. Beside the engine goes a JSON file
    (``side_car``) with what an engine cannot say of itself. Nothing that goes wrong in the build raises: no engine is a
    result, too, and an older one at ``engine_path`` is gone then.

    Parameters
    ----------
    onnx_path
        The file to build from; the first dimension of its inputs is the batch.
    engine_path
        The file to write.
    largest_batch
        Samples per inference at most.
    """
    onnx_path, engine_path = Path(onnx_path), Path(engine_path)
    for stale in (engine_path, side_car(engine_path)):
        stale.unlink(missing_ok=True)
    failures: list[EngineNote] = []
    missing: list[str] = []
    for package in PACKAGES:
        try:
            trt = importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries are not there
            missing.append(f"{package}: {error}")
            continue
        note = _build(trt, onnx_path, engine_path, largest_batch)
        if note.built:
            return note
        failures.append(note)
    return failures[0] if failures else _no_package(onnx_path, engine_path, largest_batch, missing)


def side_car(engine_path: Path) -> Path:
    """Return the JSON file beside an engine: package, version, flags, source, inputs, outputs, layers."""
    return engine_path.with_name(engine_path.name + ".json")


def _no_package(onnx_path: Path, engine_path: Path, largest_batch: int, reasons: list[str]) -> EngineNote:
    text = (
        f"No TensorRT engine: neither tensorrt nor tensorrt_rtx can be imported ({'; '.join(reasons)}). It would have "
        f"built {engine_path.name} from {onnx_path.name} for {_batches(largest_batch)}. To get it: pip install "
        "'edgelean[tensorrt]' (pip has to reach NVIDIA's package index for it; on a Jetson it comes with JetPack), or "
        "pip install 'edgelean[tensorrt-rtx]' (for desktop GPUs; builds without a GPU)."
    )
    return EngineNote(built=False, package="", version="", text=text, seconds=0.0, layers=0)


def _batches(largest: int) -> str:
    return "batches of 1" if largest == 1 else f"batches of 1 to {largest}"


def _build(trt: Any, onnx_path: Path, engine_path: Path, largest_batch: int) -> EngineNote:
    """Build with one package; a failure of any kind becomes a note."""
    package, version, start = trt.__name__, str(getattr(trt, "__version__", "")), time.monotonic()
    try:
        layers = _construct(trt, onnx_path, engine_path, largest_batch)
    except Exception as error:  # a binding of C++: RuntimeError, TypeError where there is no GPU, and more
        failure = f"{package} {version} did not build {engine_path.name} from {onnx_path.name}"
        text = f"No TensorRT engine: {failure}: {error}"
        return EngineNote(False, package, version, text, time.monotonic() - start, 0)
    seconds = time.monotonic() - start
    size = f"{layers} layers, {_batches(largest_batch)}, {engine_path.stat().st_size / 1e6:.2f} MB, {seconds:.1f} s"
    text = f"{package} {version} built {engine_path.name} from {onnx_path.name}: {size}. {_REACH[package]}"
    return EngineNote(True, package, version, text, seconds, layers)


_REACH = {
    "tensorrt": (
        "An engine runs only on the kind of GPU and with the version of TensorRT that built it: for another board, "
        "build it there from the ONNX file."
    ),
    "tensorrt_rtx": (
        "An engine of TensorRT-RTX runs on desktop GPUs only, with this version: it is not for a Jetson Orin (compute "
        "capability 8.7). It proves that the graph parses and builds; build the engine for the board on the board."
    ),
}


def _construct(trt: Any, onnx_path: Path, engine_path: Path, largest_batch: int) -> int:
    """Write the engine and its side-car; returns the number of layers."""
    log = _log(trt)
    log.lines.clear()
    able = capabilities(trt)
    builder = trt.Builder(log)
    network = _parse(trt, builder, onnx_path, able, log)
    config = _config(trt, builder, network, able, largest_batch)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _RefusedError(log.complaint())
    made_by = {"package": trt.__name__, "version": str(trt.__version__), "capabilities": able}
    facts = {**made_by, "flags": _flags(trt, config), **_source(network, onnx_path, largest_batch)}
    engine_path.write_bytes(engine)
    side_car(engine_path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(network.num_layers)


def capabilities(trt: Any) -> dict[str, bool]:
    """Return what this package can do, by looking for the names and not at its version."""
    return {
        "strongly_typed": hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        "tf32_switch": hasattr(trt.BuilderFlag, "TF32"),
        "detailed_profiling": hasattr(trt, "ProfilingVerbosity"),
    }


def _parse(trt: Any, builder: Any, onnx_path: Path, able: Mapping[str, bool], log: Any) -> Any:
    """Return the network of the ONNX file."""
    if not able["strongly_typed"]:
        raise _RefusedError(
            "it has no strongly typed networks, so it would choose the precision itself; use 10 or newer"
        )
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise _RefusedError("; ".join(_parser_error(error) for error in errors) or log.complaint())
    return network


def _parser_error(error: Any) -> str:
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"operator {operator}: {error.desc()}" if operator else str(error.desc())


def _config(trt: Any, builder: Any, network: Any, able: Mapping[str, bool], largest_batch: int) -> Any:
    """Return the build's configuration: one optimisation profile, and no precision but the graph's."""
    config = builder.create_builder_config()
    if able["tf32_switch"]:
        config.clear_flag(trt.BuilderFlag.TF32)  # it rounds FP32 factors to 10 bits, which is not the FP32 we verified
    if able["detailed_profiling"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the engine inspector shows no layers
    profile = builder.create_optimization_profile()
    for tensor in _inputs(network):
        shape = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *shape), (largest_batch, *shape), (largest_batch, *shape))
    config.add_optimization_profile(profile)
    return config


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _flags(trt: Any, config: Any) -> list[str]:
    return [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]


def _source(network: Any, onnx_path: Path, largest_batch: int) -> dict[str, Any]:
    """Return what the engine was built from, and what goes in and out."""
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "onnx": {"file": onnx_path.name, "sha256": hashlib.sha256(onnx_path.read_bytes()).hexdigest()},
        "batch": {"min": 1, "opt": largest_batch, "max": largest_batch},
        "inputs": [_tensor(tensor) for tensor in _inputs(network)],
        "outputs": [_tensor(tensor) for tensor in outputs],
        "layers": network.num_layers,
    }


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}


@cache
def _log(trt: Any) -> Any:
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
