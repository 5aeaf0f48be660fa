"""onnxruntime on one core of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edgelean.errors import DeviceError

PROVIDER = "CPUExecutionProvider"


def open_session(model: Path | bytes) -> Any:
    """Return an onnxruntime session that computes on one thread.

    One thread, because the others of a machine that trains are not free, and two threads that wait for each other on
    busy cores were measured 100 times slower than one.

    Raises
    ------
    DeviceError
        onnxruntime does not load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        name = "a probe" if isinstance(model, bytes) else model
        raise DeviceError(f"onnxruntime {onnxruntime.__version__} does not load {name}: {error}") from error


def runtime_conditions() -> dict[str, str]:
    """Return what has to be equal for two readings of this machine to be compared."""
    import onnxruntime

    conditions = {
        "processor": processor_name(),
        "runtime": f"onnxruntime {onnxruntime.__version__}, {PROVIDER}",
        "threads": "1",
    }
    if hasattr(os, "getloadavg"):
        conditions["load average"] = f"{os.getloadavg()[0]:.2f} on {os.cpu_count()} processors"
    return conditions


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's own name, else its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
