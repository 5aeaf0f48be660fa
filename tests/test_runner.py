import ast
import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import small_onnx

from edgelean.exporter import BundleFacts, write_bundle
from edgelean.shelf import shelf

LABELS = ["north", "east", "south", "west"]


@pytest.fixture
def bundle(tmp_path):
    model = small_onnx.save_perceptron(tmp_path / "model.onnx")
    facts = BundleFacts(
        title="compass", batch=4, checks=[{"file": "model.onnx", "passed": True, "reason": "Right."}], labels=LABELS
    )
    return write_bundle(tmp_path / "bundle", [model], facts)


@pytest.fixture
def samples(tmp_path):
    """The path of ten samples, and the label that each should get."""
    x = small_onnx.samples(10)
    np.save(tmp_path / "x.npy", x)
    return str(tmp_path / "x.npy"), [LABELS[row] for row in small_onnx.expected(small_onnx.weights(), x).argmax(1)]


def run(bundle, *words):
    """Run the bundle's copy of the runner in this process; returns its exit code."""
    return runpy.run_path(str(bundle / "run_onnx.py"))["main"]([str(word) for word in words])


def test_it_runs_isolated_from_everything_but_numpy_and_onnxruntime(bundle, samples, tmp_path):
    path, labels = samples
    words = [sys.executable, "-I", str(bundle / "run_onnx.py"), path]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [re.fullmatch(r"(\d+): (\w+) \(-?[\d.e-]+\)", line) for line in answer.stdout.splitlines()]
    assert [match[1] for match in found] == [str(index) for index in range(10)]
    assert [match[2] for match in found] == labels
    assert answer.stderr == ""


def test_running_it_leaves_nothing_behind_in_the_bundle(bundle, samples, tmp_path):
    before = sorted(path.name for path in bundle.iterdir())
    subprocess.run([sys.executable, "run_onnx.py", samples[0]], capture_output=True, check=True, cwd=bundle)
    assert sorted(path.name for path in bundle.iterdir()) == before


@pytest.mark.parametrize("name", ["run_onnx", "run_tensorrt", "running", "samples"])
def test_it_is_python_3_8_and_imports_nothing_else(name):
    tree = ast.parse((shelf("export") / "runners" / f"{name}.py").read_text(), feature_version=(3, 8))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imports} <= {
        *sys.stdlib_module_names,
        "numpy",
        "onnxruntime",
        "PIL",
        "running",
        "samples",
    }


def test_benchmark_prints_percentiles_of_one_batch(bundle, samples, capsys):
    assert run(bundle, samples[0], "--benchmark") == 0
    figures = re.fullmatch(
        r"batch 4, 1 thread: p50 ([\d.]+) ms, p90 ([\d.]+) ms, p99 ([\d.]+) ms\n", capsys.readouterr().out
    )
    p50, p90, p99 = map(float, figures.groups())
    assert 0 < p50 <= p90 <= p99


def test_a_class_without_a_label_is_a_number(bundle, samples, capsys):
    rewrite(bundle, labels=[])
    assert run(bundle, samples[0]) == 0
    found = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert found == [str(LABELS.index(label)) for label in samples[1]]


def test_a_bundle_that_is_not_verified_says_so_on_stderr(bundle, samples, capsys):
    rewrite(bundle, verified=False)
    assert run(bundle, samples[0]) == 0
    assert "not verified" in capsys.readouterr().err


def test_a_changed_model_is_not_run(bundle, samples, capsys):
    other = small_onnx.save_perceptron(bundle / "other.onnx", small_onnx.weights(seed=9))
    other.replace(bundle / "model.onnx")
    assert run(bundle, samples[0]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "model.onnx: is not the file that manifest.json describes" in printed.err


def test_a_model_that_the_manifest_does_not_list_is_not_run(bundle, samples, capsys):
    small_onnx.save_perceptron(bundle / "other.onnx")
    assert run(bundle, samples[0], "--model", "other.onnx") == 2
    assert "not in manifest.json, which has model.onnx" in capsys.readouterr().err


def test_a_manifest_cannot_lead_to_a_model_outside(bundle, samples, tmp_path, capsys):
    entry = json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]
    rewrite(bundle, files={"../model.onnx": entry}, forms=[])
    assert run(bundle, samples[0], "--model", "../model.onnx") == 2
    assert "outside of the bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros(6, np.float32), "takes an array of shape [samples, 6], found (6,)"),
        (np.zeros((3, 5), np.float32), "takes an array of shape [samples, 6], found (3, 5)"),
        (np.zeros((0, 6), np.float32), "found (0, 6)"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as a .npy file"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(array, complaint, bundle, tmp_path, capsys):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    assert run(bundle, tmp_path / "bad.npy") == 2
    assert complaint in capsys.readouterr().err


def test_a_wrong_number_of_files_and_a_missing_file_are_refused(bundle, samples, tmp_path, capsys):
    assert run(bundle, samples[0], samples[0]) == 2
    assert "the model has 1 inputs (input), found 2 files" in capsys.readouterr().err
    assert run(bundle, tmp_path / "gone.npy") == 2
    assert "gone.npy: cannot be read" in capsys.readouterr().err


def rewrite(bundle, **change):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
