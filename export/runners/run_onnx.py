"""Run an exported model on samples from .npy files: stands alone, needs numpy and onnxruntime, Python 3.8 or newer.

    python run_onnx.py INPUT.npy [--model model.onnx] [--benchmark]

One file per input of the model, the samples along the first dimension. Prints one line per sample. The SHA-256 of the
model is compared with manifest.json, which lies beside this script, before anything is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

HERE = Path(__file__).resolve().parent
WARM_UP = 20
REPEATS = 200


class RefusedError(Exception):
    """What was asked cannot be done; the message says why, ``exit_code`` tells bad input (2) from bad files (4)."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def read_manifest() -> Dict[str, Any]:
    """Return manifest.json."""
    path = HERE / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError("{}: is not the manifest of a bundle: {}".format(path, error)) from None
    if not isinstance(files, dict):
        raise RefusedError("{}: files: must list the files of the bundle".format(path))
    return dict(manifest)


def checked_model(name: str, manifest: Dict[str, Any]) -> bytes:
    """Return the bytes of the model ``name`` if they are the ones that the manifest describes."""
    models = sorted(file for file in manifest["files"] if file.endswith(".onnx"))
    if name not in models:
        raise RefusedError(
            "--model {}: not in manifest.json, which has {}".format(name, " and ".join(models) or "none")
        )
    path = (HERE / name).resolve()
    if path.parent != HERE:
        raise RefusedError("{}: lies outside of the bundle".format(name))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RefusedError("{}: cannot be read: {}".format(path, error), exit_code=4) from None
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise RefusedError("{}: is not the file that manifest.json describes; copy the bundle again".format(path), 4)
    return content


def open_session(content: bytes) -> Any:
    """Return an onnxruntime session on one thread of the processor, as edgelean measures."""
    try:
        import onnxruntime
    except ImportError:
        raise RefusedError("onnxruntime cannot be imported: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds, which share no base that it exports
        version = onnxruntime.__version__
        raise RefusedError("onnxruntime {} cannot open this model: {}".format(version, error), 4) from None


def read_feeds(paths: Sequence[str], session: Any) -> Dict[str, Any]:
    """Return the arrays of the files under the names of the model's inputs, samples first."""
    inputs = session.get_inputs()
    if len(paths) != len(inputs):
        names = ", ".join(entry.name for entry in inputs)
        raise RefusedError("the model has {} inputs ({}), found {} files".format(len(inputs), names, len(paths)))
    feeds = {entry.name: read_array(path, entry) for path, entry in zip(paths, inputs)}
    if len({len(array) for array in feeds.values()}) != 1:
        raise RefusedError("every file must hold the same number of samples")
    return feeds


def read_array(path: str, entry: Any) -> Any:
    """Return the array of a .npy file in the type of the input ``entry``."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RefusedError("{}: cannot be read as a .npy file: {}".format(path, error)) from None
    wanted = [size if isinstance(size, int) else None for size in entry.shape]
    fits = array.ndim == len(wanted) and all(size in (None, found) for size, found in zip(wanted[1:], array.shape[1:]))
    if not fits or array.shape[0] == 0:
        shape = ", ".join(["samples"] + [str(size or "any") for size in wanted[1:]])
        raise RefusedError("{}: {} takes an array of shape [{}], found {}".format(path, entry.name, shape, array.shape))
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return array.astype(kinds.get(entry.type, array.dtype), copy=False)


def line(output: Any, labels: Sequence[str]) -> str:
    """Return what there is to say about the output of one sample."""
    if output.ndim != 1 or output.size < 2:
        return np.array2string(output, precision=5, threshold=8)
    winner = int(output.argmax())
    name = labels[winner] if winner < len(labels) else str(winner)
    return "{} ({:.5g})".format(name, float(output[winner]))


def predict(session: Any, feeds: Dict[str, Any], batch: int, labels: Sequence[str]) -> None:
    """Print one line per sample."""
    samples = len(next(iter(feeds.values())))
    for start in range(0, samples, batch):
        outputs = session.run(None, {name: array[start : start + batch] for name, array in feeds.items()})[0]
        for index, output in enumerate(outputs, start):
            print("{}: {}".format(index, line(output, labels)))


def benchmark(session: Any, feeds: Dict[str, Any], batch: int) -> None:
    """Print percentiles of the latency of one batch."""
    one = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feeds.items()}
    for _ in range(WARM_UP):
        session.run(None, one)
    times_ms = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        session.run(None, one)
        times_ms.append(1e3 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    print("batch {}, 1 thread: p50 {:.3f} ms, p90 {:.3f} ms, p99 {:.3f} ms".format(batch, p50, p90, p99))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks."""
    manifest = read_manifest()
    session = open_session(checked_model(arguments.model, manifest))
    feeds = read_feeds(arguments.inputs, session)
    batch = int(manifest.get("batch", 1))
    if not manifest.get("verified"):
        print("warning: this bundle is not verified, see README.md", file=sys.stderr)
    if arguments.benchmark:
        benchmark(session, feeds, batch)
    else:
        predict(session, feeds, batch, manifest.get("labels", []))


def main(words: Optional[List[str]] = None) -> int:
    """Run the command line ``words``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run an exported model on samples from .npy files.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT.npy", help="samples, one file per input of the model")
    parser.add_argument("--model", default="model.onnx", help="an ONNX file of this bundle (default: model.onnx)")
    parser.add_argument("--benchmark", action="store_true", help="print the latency of a batch instead of answers")
    try:
        run(parser.parse_args(words))
    except RefusedError as error:
        print("run_onnx.py: {}".format(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
