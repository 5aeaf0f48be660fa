"""Run an exported model on samples, or on a signal: stands alone, needs numpy and onnxruntime, Python 3.8 or newer.

    python run_onnx.py INPUT.npy [--model model.onnx] [--benchmark]
    python run_onnx.py --stream FILE.npy|FILE.wav [--model model.step.onnx] [--every N] [--hop N] [--gain X]

The first reads one file per input of the model, the samples along the first dimension, and prints one line per sample.
The second goes through one signal step by step, of any length, and prints the answer after the last step. The SHA-256
of the model is compared with manifest.json, which lies beside this script, before anything is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import wave
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

import numpy as np

HERE = Path(__file__).resolve().parent
WARM_UP = 20
REPEATS = 200
CHUNK = 4096
"""Time steps of a signal that are in memory at once."""

FULL_SCALE = 2.0**31
"""The largest sample of a .wav file, filled up to four bytes."""


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


def read_feeds(paths: Sequence[str], session: Any, manifest: Dict[str, Any]) -> Dict[str, Any]:
    """Return the arrays of the files under the names of the model's inputs, samples first."""
    inputs = session.get_inputs()
    if len(paths) != len(inputs):
        names = ", ".join(entry.name for entry in inputs)
        raise RefusedError("the model has {} inputs ({}), found {} files".format(len(inputs), names, len(paths)))
    feeds = {entry.name: read_array(path, entry, manifest) for path, entry in zip(paths, inputs)}
    if len({len(array) for array in feeds.values()}) != 1:
        raise RefusedError("every file must hold the same number of samples")
    return feeds


def load(path: str) -> Any:
    """Return the array of a .npy file, which stays on the disk."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RefusedError("{}: cannot be read as a .npy file: {}".format(path, error)) from None


def refuse_length(path: str, shape: Sequence[int], wanted: Sequence[Any], manifest: Dict[str, Any]) -> None:
    """Refuse sequences of another length than the model takes in one call, and say what takes them."""
    stream = manifest.get("stream")
    if stream and len(shape) == len(wanted) and shape[0] and shape[2:] == tuple(wanted[2:]) and shape[1] != wanted[1]:
        raise RefusedError(
            "{}: the model takes sequences of {} time steps, found {}; the step model takes any length: "
            "run_onnx.py --stream FILE with one of them".format(path, wanted[1], shape[1])
        )


def read_array(path: str, entry: Any, manifest: Dict[str, Any]) -> Any:
    """Return the array of a .npy file in the type of the input ``entry``."""
    array = load(path)
    wanted = [size if isinstance(size, int) else None for size in entry.shape]
    refuse_length(path, array.shape, wanted, manifest)
    fits = array.ndim == len(wanted) and all(size in (None, found) for size, found in zip(wanted[1:], array.shape[1:]))
    if not fits or array.shape[0] == 0:
        shape = ", ".join(["samples"] + [str(size or "any") for size in wanted[1:]])
        raise RefusedError("{}: {} takes an array of shape [{}], found {}".format(path, entry.name, shape, array.shape))
    return typed(array, entry)


def typed(array: Any, entry: Any) -> Any:
    """Return an array in the type of the input ``entry``."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return np.asarray(array).astype(kinds.get(entry.type, array.dtype), copy=False)


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


def numbers(path: str, shape: Sequence[int], framed: bool) -> Iterator[Any]:
    """Yield the numbers of a file in order; ``framed``: a .npy file may also have its time steps side by side."""
    if path.lower().endswith(".wav"):
        for samples in wav_samples(path, int(np.prod(shape))):
            yield samples
        return
    array = load(path)
    if framed and array.ndim == len(shape) + 2 and len(array) == 1:
        array = array[0]
    plain = array.ndim == 1 and len(shape) == 1
    if not (plain or (framed and array.shape[1:] == tuple(shape))) or array.dtype.kind not in "fiub":
        wanted = ", ".join(["time steps"] + [str(size) for size in shape])
        wanted = "[{}], or a row of them".format(wanted) if framed else "[numbers], where --hop is given"
        raise RefusedError(
            "{}: a signal is an array of numbers of shape {}, found {} of {}".format(
                path, wanted, array.shape, array.dtype
            )
        )
    for start in range(0, len(array), CHUNK):
        yield np.asarray(array[start : start + CHUNK]).reshape(-1)


def wav_samples(path: str, width: int) -> Iterator[Any]:
    """Yield the samples of a .wav file as numbers from -1 to 1, those of all channels at one time together."""
    try:
        with wave.open(path, "rb") as file:
            channels, size = file.getnchannels(), file.getsampwidth()
            if width % channels:
                raise RefusedError(
                    "{}: has {} channels, and the model reads {} numbers in a time step".format(path, channels, width)
                )
            while True:
                content = file.readframes(CHUNK)
                if not content:
                    return
                yield from_pcm(content, size)
    except (OSError, EOFError, wave.Error) as error:
        raise RefusedError("{}: cannot be read as a .wav file: {}".format(path, error)) from None


def from_pcm(content: bytes, size: int) -> Any:
    """Return samples of ``size`` bytes, little endian, as numbers from -1 to 1; those of one byte have no sign."""
    single = np.frombuffer(content, np.uint8).reshape(-1, size)
    if size == 1:
        return (single[:, 0] - np.float32(128)) / np.float32(128)
    wide = np.zeros((len(single), 4), np.uint8)
    wide[:, 4 - size :] = single  # the high bytes: the sign is then where it belongs
    return (wide.view("<i4")[:, 0] / FULL_SCALE).astype(np.float32)


def time_steps(paths: Iterable[str], entry: Any, hop: int, gain: float) -> Iterator[Any]:
    """Yield the time steps of a signal, as the input ``entry`` wants them; it goes on from file to file.

    ``hop``: how many numbers after the beginning of a time step the next one begins; 0 for right after its end.
    ``gain``: what all numbers are multiplied by.
    """
    shape = [int(size) for size in entry.shape[1:]]
    width = int(np.prod(shape))
    if hop > width:
        raise RefusedError("--hop {}: a time step has {} numbers, and none are left out between two".format(hop, width))
    framed, hop, rest, heard = not hop, hop or width, np.zeros(0), 0
    for path in paths:
        for chunk in numbers(path, shape, framed):
            rest = np.concatenate([rest, chunk]) if len(rest) else chunk
            whole = max(0, (len(rest) - width) // hop + 1)
            for first in range(0, whole * hop, hop):
                step = rest[first : first + width].reshape([1, *shape])
                yield typed(step if gain == 1 else gain * step, entry)
            rest, heard = rest[whole * hop :], width - hop if whole else heard
    if len(rest) > heard:
        left = len(rest) - heard
        print("warning: the last {} numbers fill no time step, and are left out".format(left), file=sys.stderr)


class Stream:
    """A step model with what it remembers of the signal so far; the state is zeros at the start."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.entry, memory = session.get_inputs()
        self.names = [self.entry.name, memory.name]
        self.state = np.zeros((1, memory.shape[1]), np.float32)
        self.steps = 0

    def advance(self, step: Any) -> Any:
        """Return the answer after one more time step."""
        output, self.state = self.session.run(None, dict(zip(self.names, [step, self.state])))
        self.steps += 1
        return output[0]


def follow(session: Any, arguments: argparse.Namespace, labels: Sequence[str]) -> None:
    """Print the answer after the last time step of a signal, and after every so many; 0 for the last only."""
    stream, answer, every = Stream(session), None, arguments.every
    for step in time_steps(arguments.stream, stream.entry, arguments.hop, arguments.gain):
        if every and answer is not None and stream.steps % every == 0:
            print("{}: {}".format(stream.steps, line(answer, labels)))
        answer = stream.advance(step)
    if answer is None:
        raise RefusedError("{}: there is no time step in it".format(", ".join(arguments.stream)))
    print("{}: {}".format(stream.steps, line(answer, labels)))


def first_step(session: Any, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Return the feeds of the first time step of a signal."""
    stream = Stream(session)
    for step in time_steps(arguments.stream, stream.entry, arguments.hop, arguments.gain):
        return dict(zip(stream.names, [step, stream.state]))
    raise RefusedError("{}: there is no time step in it".format(", ".join(arguments.stream)))


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


def chosen_model(arguments: argparse.Namespace, manifest: Dict[str, Any]) -> str:
    """Return the name of the model that is asked for, if it reads what it is given: samples, or a signal."""
    steps = [name for form in manifest.get("forms", []) if form["form"] == "step" for name in form["files"]]
    if not arguments.stream:
        name = arguments.model or "model.onnx"
        if name in steps:
            raise RefusedError("--model {}: takes one time step a call: use --stream FILE".format(name))
        return str(name)
    if not steps:
        raise RefusedError("--stream: this bundle has no step model; see README.md")
    name = arguments.model or steps[0]
    if name not in steps:
        raise RefusedError("--model {}: is no step model; for --stream there is {}".format(name, " and ".join(steps)))
    return str(name)


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks."""
    manifest = read_manifest()
    session = open_session(checked_model(chosen_model(arguments, manifest), manifest))
    labels = manifest.get("labels", [])
    if not manifest.get("verified"):
        print("warning: this bundle is not verified, see README.md", file=sys.stderr)
    if arguments.stream:
        if arguments.benchmark:
            benchmark(session, first_step(session, arguments), 1)
        else:
            follow(session, arguments, labels)
        return
    feeds = read_feeds(arguments.inputs, session, manifest)
    batch = int(manifest.get("batch", 1))
    if arguments.benchmark:
        benchmark(session, feeds, batch)
    else:
        predict(session, feeds, batch, labels)


def main(words: Optional[List[str]] = None) -> int:
    """Run the command line ``words``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run an exported model on samples, or step by step on a signal.")
    parser.add_argument("inputs", nargs="*", metavar="INPUT.npy", help="samples, one file per input of the model")
    parser.add_argument(
        "--stream", nargs="+", metavar="FILE", help="a signal, .npy or .wav; several files are its parts"
    )
    parser.add_argument("--every", type=int, default=0, metavar="N", help="answer after every N steps of a signal, too")
    parser.add_argument("--hop", type=int, default=0, metavar="N", help="time steps overlap, and begin N numbers apart")
    parser.add_argument("--gain", type=float, default=1.0, metavar="X", help="multiply the numbers of a signal by X")
    parser.add_argument("--model", help="an ONNX file of this bundle (default: model.onnx, or its step model)")
    parser.add_argument("--benchmark", action="store_true", help="print the latency of a call instead of answers")
    arguments = parser.parse_args(words)
    if bool(arguments.inputs) == bool(arguments.stream):
        parser.error("give samples in INPUT.npy, or a signal after --stream")
    if min(arguments.every, arguments.hop) < 0 or ((arguments.every or arguments.hop) and not arguments.stream):
        parser.error("--every N and --hop N are positive numbers, and go with --stream")
    try:
        run(arguments)
    except RefusedError as error:
        print("run_onnx.py: {}".format(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
