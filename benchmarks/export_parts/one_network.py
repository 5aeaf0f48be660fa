"""What comes of exporting one network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.export_parts.networks import Entry, Lean
from edgelean.exporter import build_engine, export_onnx, to_fp16
from edgelean.shrink.reference import leaves
from edgelean.target.runtime import EagerTorch, OnnxRuntimeCpu

ROUNDS, ROUND_S = 30, 0.01
LARGEST_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network.

    Attributes
    ----------
    export_s
        CPU seconds of the export to ONNX.
    error
        Largest difference between file and model on batches of 1, 2 and 8, relative to the largest output.
    drops
        By precision, how far the metric of a trained network falls, in points; empty where it was not trained.
    latency_ms
        Median CPU time by what is run, in turns, on one thread: ``full``, ``lean``, ``eager``, and other precisions.
    engines
        By precision: whether TensorRT-RTX parsed and built it, layers and seconds, or why not.
    problem
        Why it was not exported.
    """

    name: str
    kind: str
    parameters: tuple[int, int] = (0, 0)
    sizes_bytes: tuple[int, int] = (0, 0)
    export_s: float = 0.0
    error: float = float("nan")
    metric: float | None = None
    drops: Mapping[str, float] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    engines: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    problem: str = ""

    def ratio(self, slow: str, fast: str) -> float | None:
        """Return how many times faster ``fast`` is than ``slow``; None where one was not run."""
        times = self.latency_ms
        return times[slow] / times[fast] if slow in times and fast in times else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return asdict(self)


def measure(entry: Entry, folder: Path, quick: bool) -> Row:
    """Make, export, compare, time and build one network."""
    try:
        lean = entry.make(folder, quick)
        started = time.process_time()
        file = export_onnx(lean.model, lean.inputs, folder / "lean.onnx", metadata={})
        export_s = time.process_time() - started
        whole = export_onnx(lean.full, lean.inputs, folder / "full.onnx", metadata={})
    except Exception as error:  # a benchmark reports whatever happens and goes on
        return Row(name=entry.name, kind=entry.kind, problem=f"{type(error).__name__}: {error}"[:300])
    drops = {check.precision: 100 * (check.metric_model - check.metric_artifact) for check in lean.checks}
    return Row(
        name=entry.name,
        kind=entry.kind,
        parameters=(_count(lean.full), _count(lean.model)),
        sizes_bytes=(whole.stat().st_size, file.stat().st_size),
        export_s=export_s,
        error=_error(file, lean.model, lean.inputs),
        metric=lean.checks[0].metric_model if lean.checks else None,
        drops=drops,
        latency_ms=_latencies(lean, whole, file),
        engines={"fp32": _engine(file), "fp16": _half_engine(file, folder / "lean.fp16.onnx")},
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _sized(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    return tuple(x[[index % len(x) for index in range(batch)]] for x in inputs)


def _error(file: Path, model: nn.Module, inputs: Sequence[Tensor]) -> float:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    worst = 0.0
    for batch in (1, 2, 8):
        some = _sized(inputs, batch)
        with torch.no_grad():
            wanted = [x.double().numpy() for x in leaves(model(*some))]
        found = session.run(None, {name: x.numpy() for name, x in zip(names, some, strict=True)})
        for a, b in zip(found, wanted, strict=True):
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return worst


def _latencies(lean: Lean, whole: Path, file: Path) -> dict[str, float]:
    """Return the median CPU time of one sample of each, all of them in turns and on one thread."""
    some = _sized(lean.inputs, 1)
    feeds = {f"input_{index}" if index else "input": x.numpy() for index, x in enumerate(some)}
    runtime = OnnxRuntimeCpu()
    calls: dict[str, Callable[[], object]] = {
        "full": runtime.open(whole, feeds),
        "lean": runtime.open(file, feeds),
        "eager": EagerTorch(lean.model).open(file, feeds),
    }
    others = {name: path for name, path in lean.files.items() if name not in ("fp32", "fp16")}
    calls |= {name: runtime.open(path, feeds) for name, path in others.items()}
    repeats = {name: max(1, round(ROUND_S / _seconds(call, 3))) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name].append(1e3 * _seconds(call, repeats[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def _seconds(call: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return max(time.process_time() - started, 1e-9) / repeats


def _half_engine(file: Path, path: Path) -> tuple[bool, str]:
    try:
        to_fp16(file, path)
    except Exception as error:  # as above
        return False, f"not converted: {error}"
    return _engine(path)


def _engine(path: Path) -> tuple[bool, str]:
    note = build_engine(path, path.with_suffix(".engine"), LARGEST_BATCH)
    return note.built, f"{note.layers} layers, {note.seconds:.1f} s" if note.built else note.text
