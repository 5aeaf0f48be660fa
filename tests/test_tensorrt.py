import hashlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import small_onnx
from onnx import helper

from edgelean.exporter import build_engine, to_fp16
from edgelean.exporter.tensorrt import side_car
from edgelean.target.tensorrt import capabilities


@pytest.fixture
def only_rtx(monkeypatch):
    """Pretend that the standard package is not installed; needs the one that builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("only_rtx")
def test_an_engine_is_built_without_a_gpu_and_describes_itself(tmp_path, capfd):
    source = small_onnx.save_perceptron(tmp_path / "model.onnx")
    note = build_engine(source, tmp_path / "model.engine", largest_batch=8)
    assert note.built, note.text
    assert note.package == "tensorrt_rtx"
    assert note.layers >= 3
    assert (tmp_path / "model.engine").stat().st_size > source.stat().st_size
    facts = json.loads(side_car(tmp_path / "model.engine").read_text())
    assert (facts["package"], facts["version"], facts["layers"]) == (note.package, note.version, note.layers)
    assert facts["onnx"] == {"file": "model.onnx", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert facts["inputs"] == [{"name": "input", "dtype": "FLOAT", "shape": [-1, 6]}]
    assert facts["outputs"] == [{"name": "output", "dtype": "FLOAT", "shape": [-1, 4]}]
    assert facts["batch"] == {"min": 1, "opt": 8, "max": 8}
    assert "TF32" not in facts["flags"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("only_rtx")
def test_the_text_says_that_such_an_engine_is_not_for_a_jetson(tmp_path):
    source = small_onnx.save_perceptron(tmp_path / "model.onnx")
    text = build_engine(source, tmp_path / "model.engine", largest_batch=4).text
    for word in ("model.engine", "model.onnx", "batches of 1 to 4", "not for a Jetson Orin", "8.7"):
        assert word in text


@pytest.mark.usefixtures("only_rtx")
def test_the_precision_of_the_engine_is_the_one_of_the_graph(tmp_path):
    wide = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    values = {"w1": wide, "b1": wide[0], "w2": np.ascontiguousarray(wide.T)[:, :4], "b2": wide[0, :4]}
    source = small_onnx.save_perceptron(tmp_path / "model.onnx", values)
    to_fp16(source, tmp_path / "half.onnx")
    for name in ("model", "half"):
        assert build_engine(tmp_path / f"{name}.onnx", tmp_path / f"{name}.engine", largest_batch=1).built
    weights_bytes = sum(array.nbytes for array in values.values())
    saved = (tmp_path / "model.engine").stat().st_size - (tmp_path / "half.engine").stat().st_size
    assert saved == pytest.approx(weights_bytes / 2, rel=0.5)


@pytest.mark.usefixtures("only_rtx")
def test_an_operator_that_cannot_be_parsed_is_named_and_raises_nothing(tmp_path, capfd):
    nodes = [helper.make_node("Fourier", ["input"], ["output"], domain="nobody.knows")]
    source = small_onnx.save(tmp_path / "model.onnx", nodes, {}, (6, 6))
    (tmp_path / "model.engine").write_bytes(b"of an older model")
    note = build_engine(source, tmp_path / "model.engine", largest_batch=8)
    assert not note.built
    assert "Fourier" in note.text
    assert note.package == "tensorrt_rtx"
    assert not (tmp_path / "model.engine").exists()
    assert not side_car(tmp_path / "model.engine").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("only_rtx")
def test_an_onnx_file_that_is_not_there_becomes_a_note(tmp_path):
    note = build_engine(tmp_path / "none.onnx", tmp_path / "model.engine", largest_batch=8)
    assert not note.built
    assert "none.onnx" in note.text


def test_without_a_package_the_note_says_what_to_install_and_what_it_would_have_built(tmp_path, monkeypatch):
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    note = build_engine(tmp_path / "model.fp16.onnx", tmp_path / "model.fp16.engine", largest_batch=8)
    assert (note.built, note.package, note.version, note.layers) == (False, "", "", 0)
    for word in ("'edgelean[tensorrt]'", "'edgelean[tensorrt-rtx]'", "NVIDIA's", "model.fp16.engine", "1 to 8"):
        assert word in note.text


def fake_package(monkeypatch, **parts):
    """Put a package in the place of ``tensorrt`` that has only these parts."""

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    package = ModuleType("tensorrt")
    types = {"NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1), "BuilderFlag": SimpleNamespace()}
    vars(package).update({"__version__": "8.6.1", "ILogger": ILogger, **types, **parts})
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    return package


def no_gpu(log):
    raise TypeError("pybind11::init(): factory function returned nullptr")


def test_a_package_that_fails_without_a_gpu_makes_room_for_the_one_that_needs_none(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    fake_package(monkeypatch, Builder=no_gpu)
    note = build_engine(small_onnx.save_perceptron(tmp_path / "m.onnx"), tmp_path / "m.engine", largest_batch=2)
    assert (note.built, note.package) == (True, "tensorrt_rtx")


def test_a_package_that_fails_alone_is_named_with_its_version_and_its_reason(tmp_path, monkeypatch):
    fake_package(monkeypatch, Builder=no_gpu)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    note = build_engine(small_onnx.save_perceptron(tmp_path / "m.onnx"), tmp_path / "m.engine", largest_batch=2)
    assert (note.built, note.package, note.version) == (False, "tensorrt", "8.6.1")
    assert "factory function returned nullptr" in note.text


def test_a_package_that_would_choose_the_precision_itself_is_not_used(tmp_path, monkeypatch):
    package = fake_package(monkeypatch, Builder=lambda log: None, NetworkDefinitionCreationFlag=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert not any(capabilities(package).values())
    note = build_engine(small_onnx.save_perceptron(tmp_path / "m.onnx"), tmp_path / "m.engine", largest_batch=2)
    assert not note.built
    assert "no strongly typed networks" in note.text


def test_a_package_that_is_an_empty_folder_is_no_crash(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert not build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", largest_batch=2).built


def test_a_package_whose_libraries_are_missing_counts_as_missing_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    note = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", largest_batch=2)
    assert not note.built
    assert "libnvinfer.so.10: cannot open" in note.text


def test_an_engine_that_comes_out_empty_becomes_a_note_with_what_was_logged(tmp_path, monkeypatch):
    class Parser:
        def __init__(self, network, log):
            self.log = log

        def parse_from_file(self, path):
            self.log.log(1, "no implementation for node 7")
            self.log.log(3, "this is only information")
            return True

    builder = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(num_layers=5, num_inputs=0, num_outputs=0),
        create_builder_config=lambda: SimpleNamespace(add_optimization_profile=lambda profile: 0),
        create_optimization_profile=lambda: None,
        build_serialized_network=lambda network, config: None,
    )
    fake_package(monkeypatch, Builder=lambda log: builder, OnnxParser=Parser)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    source = small_onnx.save_perceptron(tmp_path / "m.onnx")
    for _ in range(2):  # what the first build logged is not told again
        note = build_engine(source, tmp_path / "m.engine", largest_batch=2)
        assert not note.built
        assert note.text.endswith("from m.onnx: no implementation for node 7")
