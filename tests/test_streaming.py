"""The runner of a bundle goes through a signal with the step model, from arrays and from sound."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import wave

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sequence_nets import sequence_model

import edgelean
from edgelean.exporter import BundleFacts, write_bundle
from edgelean.profile import load_profile
from edgelean.recipe import accuracy

LABELS = ["yes", "no", "maybe"]
LENGTH = 5


def system(features):
    random = np.random.default_rng(0)
    return {
        "a": np.linspace(0.5, 0.95, 4, dtype=np.float32),
        "b": random.normal(size=(features, 4)).astype(np.float32),
        "c": random.normal(size=(4, 3)).astype(np.float32),
    }


def expected(signal):
    """What the system says after every step of a signal ``[time, features]``, in float64."""
    a, b, c = (array.astype(np.float64) for array in system(signal.shape[1]).values())
    state, answers = np.zeros(4), []
    for step in signal.astype(np.float64):
        state = a * state + step @ b
        answers.append(state @ c)
    return np.array(answers)


def save_system(path, features):
    nodes = [
        helper.make_node("MatMul", ["input", "b"], ["added"]),
        helper.make_node("Mul", ["state", "a"], ["kept"]),
        helper.make_node("Add", ["kept", "added"], ["new_state"]),
        helper.make_node("MatMul", ["new_state", "c"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", s]) for n, s in (("input", features), ("state", 4))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", s]) for n, s in (("output", 3), ("new_state", 4))],
        [numpy_helper.from_array(array, name) for name, array in system(features).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def save_whole(path, features):
    """A model of the whole sequence; it gives the same number for each class, which no test looks at."""
    nodes = [helper.make_node("ReduceSum", ["input", "axes"], ["output"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["b", LENGTH, features])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["b", features])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def make_bundle(folder, features):
    folder.mkdir()
    files = [save_whole(folder / "model.onnx", features), save_system(folder / "model.step.onnx", features)]
    cost = {"steps": LENGTH, "latency_ms": 1.0, "call_ms": 1.0, "provenance": "modelled"}
    facts = BundleFacts(
        title="a signal",
        batch=1,
        checks=[{"file": file.name, "passed": True, "reason": "Right.", "form": None} for file in files],
        labels=LABELS,
        form="sequence",
        forms=[
            {"form": "sequence", "files": ["model.onnx"], "chosen": True, **cost},
            {"form": "step", "files": ["model.step.onnx"], "chosen": False, **cost},
        ],
        stream={"sequence_length": LENGTH, "state_size": 4, "answers": "last"},
    )
    return write_bundle(folder / "bundle", files, facts)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle whose model reads two numbers in a time step."""
    return make_bundle(tmp_path_factory.mktemp("made") / "two", 2)


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    """One whose model reads one."""
    return make_bundle(tmp_path_factory.mktemp("made") / "one", 1)


def run(bundle, *words):
    """Run the bundle's copy of the runner in this process; returns its exit code."""
    return runpy.run_path(str(bundle / "run_onnx.py"))["main"]([str(word) for word in words])


def told(text):
    """The steps, labels and scores of the printed lines."""
    lines = [re.fullmatch(r"(\d+): (\w+) \((-?[\d.e+-]+)\)", line) for line in text.splitlines()]
    return [(int(line[1]), line[2], float(line[3])) for line in lines]


def right(lines, answers):
    """Whether every line says what the answers after that step are."""
    for step, label, score in lines:
        answer = answers[step - 1]
        assert label == LABELS[answer.argmax()]
        assert score == pytest.approx(answer.max(), rel=1e-3, abs=1e-4)
    return True


def signal(length, features=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, size=(length, features)).astype(np.float32)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 60), every=st.integers(0, 20), cuts=st.lists(st.integers(1, 59), max_size=3))
def test_answers_are_those_of_the_whole_signal_however_it_is_parted(length, every, cuts, bundle, tmp_path, capsys):
    x = signal(length)
    paths = [tmp_path / f"{index}.npy" for index in range(len(cuts) + 1)]
    for path, part in zip(paths, np.split(x, sorted(min(cut, length) for cut in cuts)), strict=True):
        np.save(path, part)
    assert run(bundle, "--stream", *paths, *(["--every", every] if every else [])) == 0
    lines = told(capsys.readouterr().out)
    assert [step for step, *_ in lines] == [*(range(every, length, every) if every else ()), length]
    assert right(lines, expected(x))


def test_it_streams_isolated_from_everything_but_numpy_and_onnxruntime(bundle, tmp_path):
    np.save(tmp_path / "x.npy", signal(9)[None])
    words = [sys.executable, "-I", str(bundle / "run_onnx.py"), "--stream", str(tmp_path / "x.npy")]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert right(told(answer.stdout), expected(signal(9)))
    assert answer.stderr == ""


def save_wav(path, x, size):
    """Write samples ``[time, channels]`` from -1 to 1 with so many bytes each; returns what was really written."""
    scale = 2 ** (8 * size - 1)
    whole = np.round(x.astype(np.float64) * scale).astype(np.int64)
    unsigned = whole + 128 if size == 1 else whole % 2 ** (8 * size)
    content = b"".join(int(value).to_bytes(size, "little") for value in unsigned.reshape(-1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(x.shape[1])
        file.setsampwidth(size)
        file.setframerate(8000)
        file.writeframes(content)
    return (whole / scale).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sound_of_every_width_is_read_as_numbers_from_minus_one_to_one(size, mono, tmp_path, capsys):
    written = save_wav(tmp_path / "x.wav", signal(30, 1), size)
    assert run(mono, "--stream", tmp_path / "x.wav", "--every", 1) == 0
    lines = told(capsys.readouterr().out)
    assert len(lines) == 30
    assert right(lines, expected(written))


def test_channels_are_features_and_mono_sound_fills_a_step_with_what_follows(bundle, tmp_path, capsys):
    x = signal(7, 2)
    stereo = save_wav(tmp_path / "stereo.wav", x, 2)
    line = save_wav(tmp_path / "mono.wav", x.reshape(-1, 1), 2)
    assert np.array_equal(line.reshape(-1, 2), stereo)
    for name in ("stereo", "mono"):
        assert run(bundle, "--stream", tmp_path / f"{name}.wav", "--every", 1) == 0
        assert right(told(capsys.readouterr().out), expected(stereo))


def test_what_does_not_fill_a_step_is_told(bundle, tmp_path, capsys):
    save_wav(tmp_path / "x.wav", signal(7, 1), 2)
    assert run(bundle, "--stream", tmp_path / "x.wav") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3: ")
    assert "the last 1 numbers fill no time step" in printed.err


@pytest.mark.parametrize("ending", ["wav", "npy"])
def test_time_steps_overlap_where_a_hop_is_given(ending, bundle, tmp_path, capsys):
    x = save_wav(tmp_path / "x.wav", signal(5000, 1), 2)[:, 0]  # more than is read at once
    np.save(tmp_path / "x.npy", x)
    assert run(bundle, "--stream", tmp_path / f"x.{ending}", "--hop", 1, "--every", 999) == 0
    printed = capsys.readouterr()
    lines = told(printed.out)
    assert lines[-1][0] == 4999
    assert right(lines, expected(np.stack([x[:-1], x[1:]], 1)))
    assert printed.err == ""


def test_sound_can_be_made_louder(mono, tmp_path, capsys):
    written = save_wav(tmp_path / "x.wav", signal(9, 1), 2)
    assert run(mono, "--stream", tmp_path / "x.wav", "--gain", 2.5) == 0
    assert right(told(capsys.readouterr().out), expected(2.5 * written))


def test_one_number_a_step_may_come_as_a_plain_row(mono, tmp_path, capsys):
    np.save(tmp_path / "x.npy", signal(12, 1)[:, 0])
    assert run(mono, "--stream", tmp_path / "x.npy") == 0
    assert right(told(capsys.readouterr().out), expected(signal(12, 1)))


def test_benchmark_of_a_stream_is_about_one_step(bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", signal(3))
    assert run(bundle, "--stream", tmp_path / "x.npy", "--benchmark") == 0
    assert re.fullmatch(r"batch 1, 1 thread: p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms\n", capsys.readouterr().out)


def test_another_length_than_the_model_takes_is_refused_with_the_way_out(bundle, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, LENGTH + 2, 2), np.float32))
    assert run(bundle, tmp_path / "x.npy") == 2
    complaint = capsys.readouterr().err
    assert "x.npy: the model takes sequences of 5 time steps, found 7" in complaint
    assert "the step model takes any length: " in complaint


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["x.npy", "--model", "model.step.onnx"], "takes one time step a call: use --stream"),
        (["--stream", "x.npy", "--model", "model.onnx"], "is no step model; for --stream there is model.step.onnx"),
        (["--stream", "gone.npy"], "gone.npy: cannot be read as a .npy file"),
        (["--stream", "gone.wav"], "gone.wav: cannot be read as a .wav file"),
        (["--stream", "text.wav"], "text.wav: cannot be read as a .wav file"),
        (["--stream", "three.wav"], "has 3 channels, and the model reads 2 numbers in a time step"),
        (
            ["--stream", "many.npy"],
            "a signal is an array of numbers of shape [time steps, 2], or a row of them, found (3, 5, 2)",
        ),
        (["--stream", "words.npy"], "array of numbers"),
        (["--stream", "x.npy", "--hop", "1"], "of shape [numbers], where --hop is given, found (4, 2)"),
        (["--stream", "x.npy", "--hop", "3"], "--hop 3: a time step has 2 numbers"),
        (["--stream", "empty.npy"], "empty.npy: there is no time step in it"),
    ],
)
def test_what_cannot_be_streamed_is_refused(words, complaint, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", signal(4))
    np.save("many.npy", np.zeros((3, 5, 2), np.float32))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("empty.npy", np.zeros((0, 2), np.float32))
    save_wav("three.wav", signal(4, 3), 2)
    (tmp_path / "text.wav").write_text("la la la")
    assert run(bundle, *words) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["x.npy", "--stream", "x.npy"], ["x.npy", "--every", "3"], ["x.npy", "--hop", "3"]]
)
def test_a_command_that_says_too_little_or_too_much_is_refused(words, bundle, capsys):
    with pytest.raises(SystemExit) as ended:
        run(bundle, *words)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_bundle_without_a_step_model_says_so(bundle, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("run_onnx.py", "running.py", "samples.py", "model.onnx", "manifest.json"):
        (other / name).write_bytes((bundle / name).read_bytes())
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"forms": [], "stream": None}))
    assert run(other, "--stream", "x.npy") == 2
    assert "this bundle has no step model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_model_leaves_in_both_forms_which_agree_in_the_runner(tmp_path, capsys):
    model, x, y = sequence_model("LRU"), torch.randn(24, LENGTH, 2), torch.arange(24) % 3
    optimizer = torch.optim.AdamW(model.parameters())
    profile = load_profile("raspberry-pi-5").model_copy(update={"targets": ("onnx-fp32", "onnx-fp16")})
    lean = edgelean.attach(model, optimizer, x[:4], profile, steps=10, latency="99%", energy="99%")
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    lean.step()
    delivery = lean.finish(x, y, accuracy, out=tmp_path / "bundle")
    files = ["model.onnx", "model.fp16.onnx", "model.step.onnx", "model.step.fp16.onnx"]
    assert [(check.file, check.passed) for check in delivery.checks] == [(file, True) for file in files]
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["form"] == delivery.form == "sequence"
    assert manifest["stream"] == {"sequence_length": LENGTH, "state_size": 2 * 5 + 4 + 1, "answers": "last"}
    whole, step = manifest["forms"]
    assert (whole["files"], step["files"]) == (files[:2], files[2:])
    assert whole["latency_ms"] < step["latency_ms"] == pytest.approx(LENGTH * step["call_ms"])
    assert (whole["chosen"], step["chosen"]) == (True, False)
    assert "run_onnx.py --stream FILE --model model.step.fp16.onnx" in (tmp_path / "bundle" / "README.md").read_text()
    np.save(tmp_path / "batch.npy", x[:1].numpy())
    np.save(tmp_path / "signal.npy", x[0].numpy())
    assert run(tmp_path / "bundle", tmp_path / "batch.npy") == 0
    at_once = capsys.readouterr().out.strip().removeprefix("0: ")
    for name in ("model.step.onnx", "model.step.fp16.onnx"):
        assert run(tmp_path / "bundle", "--stream", tmp_path / "signal.npy", "--model", name) == 0
        streamed = capsys.readouterr().out.strip().removeprefix(f"{LENGTH}: ")
        assert streamed.split()[0] == at_once.split()[0]
        score, wanted = (float(text.split("(")[1].rstrip(")")) for text in (streamed, at_once))
        assert score == pytest.approx(wanted, abs=1e-2 if "fp16" in name else 1e-4)
