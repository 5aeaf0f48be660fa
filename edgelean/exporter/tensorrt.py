"""A TensorRT engine from an ONNX file, with whichever of NVIDIA's two packages can be imported."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelean.target.tensorrt import PACKAGES, Ranges, capabilities, configure, logger, parse, serialize


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
    logger(trt).lines.clear()
    builder = trt.Builder(logger(trt))
    network = parse(trt, builder, onnx_path)
    config = configure(trt, builder, _ranges(network, largest_batch))
    engine = serialize(trt, builder, network, config)
    made_by = {"package": trt.__name__, "version": str(trt.__version__), "capabilities": capabilities(trt)}
    facts = {**made_by, "flags": _flags(trt, config), **_source(network, onnx_path, largest_batch)}
    engine_path.write_bytes(engine)
    side_car(engine_path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(network.num_layers)


def _ranges(network: Any, largest_batch: int) -> Ranges:
    """Return the shapes for batches from 1 to the largest, for which the engine is tuned."""
    shapes = {tensor.name: tuple(tensor.shape)[1:] for tensor in _inputs(network)}
    largest = {name: (largest_batch, *shape) for name, shape in shapes.items()}
    return {name: ((1, *shape), largest[name], largest[name]) for name, shape in shapes.items()}


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
