"""What the runners have in common: the command line, the manifest, and what is printed. Needs numpy, Python 3.8.

A runner gives ``open_model(name, bundle)``, which opens a file of the bundle as an object with ``get_inputs()`` (each
with name, shape and type), ``run(None, feeds)`` and ``words``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from samples import RefusedError, load, prepared, time_steps

WARM_UP = 20
REPEATS = 200
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Bundle:
    """The folder of a bundle, and what its manifest.json says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        path = self.folder / "manifest.json"
        try:
            self.manifest = dict(json.loads(path.read_text(encoding="utf-8")))
            self.files = self.manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RefusedError("{}: is not the manifest of a bundle: {}".format(path, error)) from None
        if not isinstance(self.files, dict):
            raise RefusedError("{}: files: must list the files of the bundle".format(path))

    def content(self, name: str) -> bytes:
        """Return the bytes of the file ``name`` if they are the ones that the manifest describes."""
        path = (self.folder / name).resolve()
        if path.parent != self.folder:
            raise RefusedError("{}: lies outside of the bundle".format(name))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RefusedError("{}: cannot be read: {}".format(path, error), exit_code=4) from None
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            told = "{}: is not the file that manifest.json describes; copy the bundle again"
            raise RefusedError(told.format(path), 4)
        return content


Open = Callable[[str, Bundle], Any]


def chosen_model(arguments: argparse.Namespace, manifest: Dict[str, Any], ending: str) -> str:
    """Return the name of the model that is asked for, if it reads what it is given: samples, or a signal."""
    steps = [name for form in manifest.get("forms", []) if form["form"] == "step" for name in form["files"]]
    steps = [Path(name).stem + ending for name in steps]
    models = sorted(file for file in manifest["files"] if file.endswith(ending))
    if arguments.stream and not [name for name in steps if name in models]:
        raise RefusedError("--stream: this bundle has no step model; see README.md")
    fitting = [name for name in models if (name in steps) == bool(arguments.stream)]
    first = "model" + ending
    name = arguments.model or (first if first in fitting or not fitting else fitting[0])
    if name in models and name in steps and not arguments.stream:
        raise RefusedError("--model {}: takes one time step a call: use --stream FILE".format(name))
    if name in models and name not in steps and arguments.stream:
        told = " and ".join(fitting)
        raise RefusedError("--model {}: is no step model; for --stream there is {}".format(name, told))
    if name not in models:
        has = " and ".join(models) or "none"
        raise RefusedError("--model {}: not in manifest.json, which has {}".format(name, has))
    return str(name)


def read_feeds(paths: Sequence[str], session: Any, manifest: Dict[str, Any]) -> Dict[str, Any]:
    """Return the arrays of the files under the names of the model's inputs, samples first.

    A .npy file holds all samples of an input; every other file is one sample of the only input.
    """
    inputs = session.get_inputs()
    if any(not path.lower().endswith(".npy") for path in paths) and len(inputs) == 1:
        entry, preparation = inputs[0], manifest.get("preparation") or {}
        shape = [int(size) for size in entry.shape[1:]]
        return {entry.name: typed(np.stack([prepared(path, preparation, shape) for path in paths]), entry)}
    if len(paths) != len(inputs):
        names = ", ".join(entry.name for entry in inputs)
        raise RefusedError("the model has {} inputs ({}), found {} files".format(len(inputs), names, len(paths)))
    feeds = {entry.name: read_array(path, entry, manifest) for path, entry in zip(paths, inputs)}
    if len({len(array) for array in feeds.values()}) != 1:
        raise RefusedError("every file must hold the same number of samples")
    return feeds


def refuse_length(path: str, shape: Sequence[int], wanted: Sequence[Any], manifest: Dict[str, Any]) -> None:
    """Refuse sequences of another length than the model takes in one call, and say what takes them."""
    stream = manifest.get("stream")
    if stream and len(shape) == len(wanted) and shape[0] and shape[2:] == tuple(wanted[2:]) and shape[1] != wanted[1]:
        raise RefusedError(
            "{}: the model takes sequences of {} time steps, found {}; the step model takes any length: "
            "{} --stream FILE with one of them".format(path, wanted[1], shape[1], Path(sys.argv[0]).name)
        )


def read_array(path: str, entry: Any, manifest: Dict[str, Any]) -> Any:
    """Return the array of a .npy file in the type of the input ``entry``."""
    array = load(path)
    wanted = [size if isinstance(size, int) and size >= 0 else None for size in entry.shape]
    refuse_length(path, array.shape, wanted, manifest)
    fits = array.ndim == len(wanted) and all(size in (None, found) for size, found in zip(wanted[1:], array.shape[1:]))
    if not fits or array.shape[0] == 0:
        shape = ", ".join(["samples"] + [str(size or "any") for size in wanted[1:]])
        raise RefusedError("{}: {} takes an array of shape [{}], found {}".format(path, entry.name, shape, array.shape))
    return typed(array, entry)


def typed(array: Any, entry: Any) -> Any:
    """Return an array in the type of the input ``entry``."""
    return np.ascontiguousarray(np.asarray(array).astype(KINDS.get(entry.type, array.dtype), copy=False))


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


class Stream:
    """A step model with what it remembers of the signal so far; the state is zeros at the start."""

    def __init__(self, session: Any, arguments: argparse.Namespace) -> None:
        self.session = session
        self.entry, memory = session.get_inputs()
        self.names = [self.entry.name, memory.name]
        self.state = np.zeros((1, int(memory.shape[1])), np.float32)
        self.steps = 0
        self.complaints: List[str] = []
        shape = [int(size) for size in self.entry.shape[1:]]
        self.signal = time_steps(arguments.stream, shape, arguments.hop, arguments.gain, self.complaints)
        self.told = ", ".join(arguments.stream)

    def feeds(self, step: Any) -> Dict[str, Any]:
        """Return one time step and the state by the names of the inputs."""
        return dict(zip(self.names, [typed(step, self.entry), self.state]))

    def advance(self, step: Any) -> Any:
        """Return the answer after one more time step."""
        output, self.state = self.session.run(None, self.feeds(step))
        self.steps += 1
        return output[0]

    def follow(self, every: int, labels: Sequence[str]) -> None:
        """Print the answer after the last time step, and after every so many; 0 for the last only."""
        answer = None
        for step in self.signal:
            if every and answer is not None and self.steps % every == 0:
                print("{}: {}".format(self.steps, line(answer, labels)))
            answer = self.advance(step)
        for complaint in self.complaints:
            print("warning: {}".format(complaint), file=sys.stderr)
        if answer is None:
            raise RefusedError("{}: there is no time step in it".format(self.told))
        print("{}: {}".format(self.steps, line(answer, labels)))

    def first(self) -> Dict[str, Any]:
        """Return the feeds of the first time step."""
        for step in self.signal:
            return self.feeds(step)
        raise RefusedError("{}: there is no time step in it".format(self.told))


def benchmark(session: Any, feeds: Dict[str, Any], batch: int) -> None:
    """Print percentiles of the latency of one batch, copies to and from a GPU included."""
    one = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feeds.items()}
    for _ in range(WARM_UP):
        session.run(None, one)
    times_ms = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        session.run(None, one)
        times_ms.append(1e3 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    print("batch {}, {}: p50 {:.3f} ms, p90 {:.3f} ms, p99 {:.3f} ms".format(batch, session.words, p50, p90, p99))


def run(arguments: argparse.Namespace, open_model: Open, ending: str, folder: Path) -> None:
    """Do what the command line asks."""
    bundle = Bundle(folder)
    manifest = bundle.manifest
    session = open_model(chosen_model(arguments, manifest, ending), bundle)
    labels = manifest.get("labels", [])
    if not manifest.get("verified"):
        print("warning: this bundle is not verified, see README.md", file=sys.stderr)
    if arguments.stream:
        stream = Stream(session, arguments)
        if arguments.benchmark:
            benchmark(session, stream.first(), 1)
        else:
            stream.follow(arguments.every, labels)
        return
    feeds = read_feeds(arguments.inputs, session, manifest)
    batch = int(manifest.get("batch", 1))
    if arguments.benchmark:
        benchmark(session, feeds, batch)
    else:
        predict(session, feeds, batch, labels)


def main(words: Optional[List[str]], open_model: Open, ending: str, script: str) -> int:
    """Run the command line ``words`` of the runner in the file ``script``; returns the exit code."""
    program = Path(script).name
    parser = argparse.ArgumentParser(
        prog=program, description="Run an exported model on samples, or step by step on a signal."
    )
    told = "samples: a .npy file per input of the model, or images, or .wav files"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=told)
    parser.add_argument(
        "--stream", nargs="+", metavar="FILE", help="a signal, .npy or .wav; several files are its parts"
    )
    parser.add_argument("--every", type=int, default=0, metavar="N", help="answer after every N steps of a signal, too")
    parser.add_argument("--hop", type=int, default=0, metavar="N", help="time steps overlap, and begin N numbers apart")
    parser.add_argument("--gain", type=float, default=1.0, metavar="X", help="multiply the numbers of a signal by X")
    parser.add_argument("--model", help="one of the {} files of this bundle".format(ending))
    parser.add_argument("--benchmark", action="store_true", help="print the latency of a call instead of answers")
    arguments = parser.parse_args(words)
    if bool(arguments.inputs) == bool(arguments.stream):
        parser.error("give samples in INPUT, or a signal after --stream")
    if min(arguments.every, arguments.hop) < 0 or ((arguments.every or arguments.hop) and not arguments.stream):
        parser.error("--every N and --hop N are positive numbers, and go with --stream")
    try:
        run(arguments, open_model, ending, Path(script).resolve().parent)
    except RefusedError as error:
        print("{}: {}".format(program, error), file=sys.stderr)
        return error.exit_code
    return 0
