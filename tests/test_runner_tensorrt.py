"""The runner of engines against the runner of ONNX files: what needs a GPU is played by onnxruntime and a fake CUDA."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import small_onnx
from test_runner import LABELS
from test_streaming import LENGTH, save_system, save_whole, signal

from edgelean.evidence import Evidence, write_evidence
from edgelean.exporter import BundleFacts, load_target, write_bundle
from edgelean.recheck import verify_again

MOST = 4
"""Samples that the engine takes at once."""


@pytest.fixture(scope="module")
def cudart(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a fake libcudart with")
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    source = Path(__file__).with_name("fake_cudart.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    return library


class Engine:
    """An engine and its context: an ONNX file, run by onnxruntime on the memory that addresses lead to."""

    def __init__(self, content):
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.entries = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.entries)
        self.shapes, self.places = {}, {}

    def create_execution_context(self):
        return self

    def get_tensor_name(self, index):
        return self.entries[index].name

    def entry(self, name):
        return next(entry for entry in self.entries if entry.name == name)

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name="FLOAT")

    def get_tensor_mode(self, name):
        return "input" if name in [entry.name for entry in self.session.get_inputs()] else "output"

    def get_tensor_shape(self, name):
        free = next(iter(self.shapes.values()), (-1,))[0]
        return [free, *self.entry(name).shape[1:]]

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return 1 <= shape[0] <= MOST and list(shape[1:]) == self.entry(name).shape[1:]

    def set_tensor_address(self, name, place):
        self.places[name] = place

    def array(self, name):
        shape = self.get_tensor_shape(name)
        place = (ctypes.c_float * int(np.prod(shape))).from_address(self.places[name])
        return np.ctypeslib.as_array(place).reshape(shape)

    def execute_async_v3(self, stream):
        feeds = {entry.name: self.array(entry.name) for entry in self.session.get_inputs()}
        for entry, output in zip(self.session.get_outputs(), self.session.run(None, feeds), strict=True):
            self.array(entry.name)[:] = output
        return stream == 77


def fake_tensorrt(version="10.3.0"):
    package = ModuleType("tensorrt")
    package.__version__ = version
    package.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    package.TensorIOMode = SimpleNamespace(INPUT="input")

    def deserialize(content):
        return None if content == b"of another GPU" else Engine(content)

    package.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=deserialize)
    return package


@pytest.fixture
def tensorrt(cudart, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: str(cudart))
    library = ctypes.CDLL(str(cudart))
    library.fake_lose(0)
    return library


def with_engines(folder, models, others=(), **facts):
    """A bundle of ONNX files with an engine of each, whose bytes are those of the ONNX file."""
    files = [*models, *others]
    for model in models:
        engine = model.with_suffix(".engine")
        engine.write_bytes(model.read_bytes())
        car = Path(f"{engine}.json")
        car.write_text(json.dumps({"package": "tensorrt", "version": "10.3.0", "batch": {"max": MOST}}))
        files += [engine, car]
    plain = {"precision": "fp32", "form": None, "tolerances": load_target("onnx-fp32").tolerances.model_dump()}
    checks = [{"file": model.name, "passed": True, "reason": "Right.", **plain} for model in models]
    told = BundleFacts(title="compass", batch=MOST, checks=checks, labels=LABELS, metric="accuracy", **facts)
    return write_bundle(folder / "bundle", files, told)


@pytest.fixture
def bundle(tmp_path):
    return with_engines(tmp_path, [small_onnx.save_perceptron(tmp_path / "model.onnx")])


def run(bundle, runner, *words):
    return runpy.run_path(str(bundle / runner))["main"]([str(word) for word in words])


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("count", [1, MOST, 2 * MOST + 1])
def test_it_says_what_the_runner_of_onnx_files_says(count, bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", small_onnx.samples(count))
    assert run(bundle, "run_onnx.py", tmp_path / "x.npy") == 0
    wanted = capsys.readouterr().out
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 0
    assert capsys.readouterr().out == wanted
    assert len(wanted.splitlines()) == count


@pytest.mark.usefixtures("tensorrt")
def test_it_follows_a_signal_as_the_runner_of_onnx_files_does(tmp_path, capsys):
    models = [save_whole(tmp_path / "model.onnx", 2), save_system(tmp_path / "model.step.onnx", 2)]
    cost = {"provenance": "modelled", "latency_ms": 1.0, "call_ms": 1.0}
    forms = [{"form": "step", "files": ["model.step.onnx"], "chosen": True, **cost}]
    stream = {"sequence_length": LENGTH, "state_size": 4, "answers": "last"}
    bundle = with_engines(tmp_path, models, forms=forms, stream=stream)
    np.save(tmp_path / "x.npy", signal(11))
    for runner in ("run_onnx.py", "run_tensorrt.py"):
        assert run(bundle, runner, "--stream", tmp_path / "x.npy", "--every", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[:4] == lines[4:]


@pytest.mark.usefixtures("tensorrt")
def test_benchmark_prints_percentiles_of_the_largest_batch(bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy", "--benchmark") == 0
    line = r"batch 4, tensorrt 10\.3\.0: p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_memory_is_taken_once_and_again_only_for_a_larger_batch(bundle, tensorrt, tmp_path):
    before = tensorrt.fake_held()
    np.save(tmp_path / "x.npy", small_onnx.samples(3 * MOST))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 0
    assert tensorrt.fake_held() - before == 2


def test_a_gpu_without_memory_is_named_with_the_call(bundle, tensorrt, tmp_path, capsys):
    tensorrt.fake_lose(1)
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 5
    assert "cudaMalloc: out of memory" in capsys.readouterr().err


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("name", ["model.engine", "model.engine.json"])
def test_a_changed_engine_is_not_run(name, bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 4
    printed = capsys.readouterr()
    assert f"{name}: is not the file that manifest.json describes" in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    ("package", "complaint"),
    [
        (fake_tensorrt("10.7.0"), "was built by tensorrt 10.3.0, found 10.7.0: pip install tensorrt==10.3.0"),
        (None, "model.engine: needs tensorrt 10.3.0, which cannot be imported"),
    ],
)
def test_a_wrong_or_missing_package_is_named(package, complaint, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.usefixtures("tensorrt")
def test_an_engine_of_another_kind_of_gpu_is_told_to_be_one(tmp_path, capsys):
    model = small_onnx.save_perceptron(tmp_path / "model.onnx")
    bundle = with_engines(tmp_path, [model])
    (bundle / "model.engine").write_bytes(b"of another GPU")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.engine"]["sha256"] = hashlib.sha256(b"of another GPU").hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 5
    assert "was it built for another kind of GPU? Build it anew" in capsys.readouterr().err


def test_a_machine_without_cuda_says_what_to_install(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError("not here")))
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_tensorrt.py", tmp_path / "x.npy") == 2
    assert "libcudart.so is not found" in capsys.readouterr().err


def test_a_missing_onnxruntime_is_named_with_the_version_that_made_the_bundle(bundle, tmp_path, capsys, monkeypatch):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"versions": {"onnxruntime": "1.32.0"}}))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    np.save(tmp_path / "x.npy", small_onnx.samples(1))
    assert run(bundle, "run_onnx.py", tmp_path / "x.npy") == 2
    assert "pip install onnxruntime; this bundle was made with onnxruntime 1.32.0" in capsys.readouterr().err


def spoken(values=None):
    """What the trained model says of more samples than the engine takes at once."""
    x = small_onnx.samples(3 * MOST + 1)
    outputs = small_onnx.expected(small_onnx.weights() if values is None else values, x).astype(np.float32)
    return Evidence(
        batches=[(x,)], outputs=outputs, targets=outputs.argmax(1), metric=lambda a, b: 1.0, metric_name="accuracy"
    )


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("faithful", [True, False])
def test_an_engine_is_verified_where_there_is_a_gpu(faithful, tmp_path):
    model = small_onnx.save_perceptron(tmp_path / "model.onnx")
    other = spoken() if faithful else spoken(small_onnx.weights(seed=3))
    proof = write_evidence(other, 256, tmp_path / "evidence.npz")
    bundle = with_engines(tmp_path, [model], [proof])
    found = verify_again(bundle)
    check = next(check for check in found.checks if check.file == "model.engine")
    assert (check.passed, check.runtime, check.samples) == (faithful, "tensorrt 10.3.0", 3 * MOST + 1)
    assert found.passed is faithful
    assert found.notes == ()


def test_an_engine_that_cannot_be_run_here_is_said_not_to_have_been(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    model = small_onnx.save_perceptron(tmp_path / "model.onnx")
    bundle = with_engines(tmp_path, [model], [write_evidence(spoken(), 256, tmp_path / "evidence.npz")])
    path = list(sys.path)
    found = verify_again(bundle)
    assert "model.engine: its hash is right; it was not run: model.engine: needs tensorrt 10.3.0" in found.notes[0]
    assert found.passed
    assert sys.path == path
