"""Lower precisions: what stays in a higher one, why, and what the files are worth."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgelean.errors import InputError
from edgelean.exporter import build_engine, load_target, to_fp16
from edgelean.exporter.fp16 import halved
from edgelean.exporter.int8 import CALIBRATORS, quantised, roughly_quantised
from edgelean.exporter.search import HeldOut, outputs_of, spared

FP16, CPU, TENSORRT = (load_target(name) for name in ("onnx-fp16", "onnx-int8", "tensorrt-int8"))


def batches(x, size=8):
    return [(x[start : start + size],) for start in range(0, len(x), size)]


def run(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"input": x})[0]


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def classes_of(values, x):
    """A metric: how often the class is the one that the perceptron gives in float64."""
    truth = small_onnx.expected(values, x).argmax(1)
    return lambda outputs: float((outputs.argmax(1) == truth).mean())


def big_middle(path, size=400.0):
    """Three products; between the first two squares grow beyond what FP16 can hold, and a division brings them back."""
    random = np.random.default_rng(0)
    constants = {f"w{i}": random.normal(size=(6, 6)).astype(np.float32) for i in range(3)}
    constants |= {"size": np.float32([size]), "small": np.float32([size**2])}
    nodes = [
        helper.make_node("MatMul", ["input", "w0"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "size"], ["b"], name="grow"),
        helper.make_node("Mul", ["b", "b"], ["c"], name="square"),
        helper.make_node("Div", ["c", "small"], ["d"], name="shrink"),
        helper.make_node("MatMul", ["d", "w1"], ["e"], name="second"),
        helper.make_node("MatMul", ["e", "w2"], ["output"], name="third"),
    ]
    return small_onnx.save(path, nodes, constants, (6, 6))


def test_only_what_leaves_the_range_of_half_precision_stays_in_single(tmp_path):
    path, x = big_middle(tmp_path / "m.onnx"), small_onnx.samples()
    to_fp16(path, tmp_path / "all.onnx")
    assert np.isfinite(run(tmp_path / "all.onnx", x)).all(), "onnxruntime computes it in FP32 on a processor"
    assert not np.isfinite(outputs_of(tmp_path / "all.onnx", batches(x))).all()
    made = halved(path, tmp_path / "half.onnx", FP16, HeldOut(batches(x)))
    assert set(made.kept) == {"square", "shrink"}
    found, wanted = outputs_of(made.path, batches(x)), run(path, x)
    assert np.linalg.norm(found - wanted) < 2e-3 * np.linalg.norm(wanted)
    half = {node.name: node for node in onnx.load(made.path).graph.node}
    assert half["shrink"].input[0] == half["square"].output[0], "the large value must not pass through FP16"
    assert all(name in made.notes[0] for name in made.kept)
    assert metadata(made.path)["edgelean.kept_in_fp32"] == "Div, Mul"


def test_nothing_is_kept_where_half_precision_loses_nothing(tmp_path):
    path = small_onnx.save_perceptron(tmp_path / "m.onnx")
    made = halved(path, tmp_path / "half.onnx", FP16, HeldOut(batches(small_onnx.samples())))
    assert (made.kept, made.notes) == ((), ())
    to_fp16(path, tmp_path / "plain.onnx")
    assert made.path.read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize("spare", [["first"], ["first", "relu"], ["second"], ["relu"], ["first", "relu", "second"]])
def test_between_operators_of_single_precision_nothing_is_rounded(spare, tmp_path):
    path, x = small_onnx.save_perceptron(tmp_path / "m.onnx"), small_onnx.samples()
    to_fp16(path, tmp_path / "half.onnx", spare)
    found, wanted = outputs_of(tmp_path / "half.onnx", batches(x)), run(path, x)
    assert np.linalg.norm(found - wanted) < 2e-3 * np.linalg.norm(wanted)
    half = onnx.load(tmp_path / "half.onnx").graph.node
    made = {output: node for node in half for output in node.output}
    for node in half:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and node.input[0] in made:
            source = made[node.input[0]]
            assert source.op_type != "Cast", "rounded between two values of FP32"
    if len(spare) == 3:
        assert np.array_equal(found, wanted)
        assert not any(node.op_type == "Cast" for node in half)


def by_hand(x):
    """Round to FP16, as numpy does."""
    return x.astype(np.float16).astype(np.float32)


def test_a_file_of_half_precision_is_judged_with_every_value_rounded(tmp_path):
    values, x = small_onnx.weights(), small_onnx.samples()
    to_fp16(small_onnx.save_perceptron(tmp_path / "m.onnx"), tmp_path / "half.onnx")
    half = {name: by_hand(array) for name, array in values.items()}
    inner = np.maximum(by_hand(by_hand(x) @ half["w1"] + half["b1"]), 0)
    wanted = by_hand(inner @ half["w2"] + half["b2"])
    found = outputs_of(tmp_path / "half.onnx", batches(x))
    assert np.abs(found - wanted).max() <= 2**-10 * np.abs(wanted).max()
    assert (found == wanted).mean() > 0.9
    assert np.array_equal(found, by_hand(found))


# -- INT8 --------------------------------------------------------------------------------------------------------------


def many(count=2000, seed=5):
    return small_onnx.samples(count, seed)


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    """The perceptron in both INT8 graphs, by the name of the target."""
    folder, x = tmp_path_factory.mktemp("pressed"), many()
    path = small_onnx.save_perceptron(folder / "m.onnx")
    held_out = HeldOut(batches(x, 500))
    return path, {
        target.name: quantised(path, folder / target.graph, target, batches(many(512, 9)), held_out)
        for target in (CPU, TENSORRT)
    }


@pytest.mark.parametrize("name", [CPU.name, TENSORRT.name])
def test_an_int8_file_computes_what_the_model_does_to_a_percent_or_two(name, pressed):
    path, made = pressed
    x = many(300, 11)
    found, wanted = run(made[name].path, x), run(path, x)
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.03
    assert found.dtype == np.float32
    assert made[name].kept == ()
    assert made[name].calibrator in CALIBRATORS
    assert metadata(made[name].path) == {
        "edgelean.precision": "int8",
        "edgelean.calibrator": made[name].calibrator,
    }


def test_weights_are_stored_in_eight_bits(pressed):
    _, made = pressed
    for each in made.values():
        graph = onnx.load(each.path).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
        assert set(kinds.values()) == {TensorProto.INT8}


def test_the_graph_for_tensorrt_is_symmetric_and_leaves_biases_and_results_alone(pressed):
    graph = onnx.load(pressed[1][TENSORRT.name].path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * 2 + 2, "one pair for what each product reads, and one operator for each weight"
    for node in pairs:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
    made = {output: node for node in graph.node for output in node.output}
    for product in (node for node in graph.node if node.op_type == "Gemm"):
        assert product.input[2] in constants, "the bias stays as it is"
        weight = made[product.input[1]]
        assert constants[weight.input[1]].shape == (constants[product.input[2]].size,), "one scale for each channel"


def test_tensorrt_builds_an_engine_from_the_graph_that_is_meant_for_it(pressed, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    note = build_engine(pressed[1][TENSORRT.name].path, tmp_path / "model.engine", 8)
    assert note.built, note.text


def test_equal_runs_give_equal_bytes(pressed, tmp_path):
    path, made = pressed
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_precision import *\n"
        "for target in (CPU, TENSORRT):\n"
        "    place, ranges = Path(sys.argv[3]) / target.graph, batches(many(512, 9))\n"
        "    there = quantised(sys.argv[2], place, target, ranges, HeldOut(batches(many(), 500)))\n"
        "    print(hashlib.sha256(there.path.read_bytes()).hexdigest())\n"
    )
    words = [sys.executable, "-c", script, str(Path(__file__).parent), str(path), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    there = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.split() == [hashlib.sha256(each.path.read_bytes()).hexdigest() for each in made.values()]
    assert there.stderr == ""


def test_making_int8_says_nothing_and_sets_up_no_logging(tmp_path, capfd):
    handlers = list(logging.root.handlers)
    path = small_onnx.save_perceptron(tmp_path / "m.onnx")
    quantised(path, tmp_path / "int8.onnx", CPU, batches(many(16)))
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == logging.NOTSET


def test_a_rough_file_for_timing_has_the_same_operators(pressed, tmp_path):
    path, made = pressed
    for target in (CPU, TENSORRT):
        rough = roughly_quantised(path, tmp_path / target.graph, target, batches(many(8))[0])
        kinds = [[node.op_type for node in onnx.load(file).graph.node] for file in (rough, made[target.name].path)]
        assert sorted(kinds[0]) == sorted(kinds[1])


def test_batches_of_any_sizes_give_the_same_file(pressed, tmp_path):
    path, made = pressed
    x = many(512, 9)
    ragged = [(x[:100],), (x[100:101],), (x[101:],)]
    again = quantised(path, tmp_path / "again.onnx", CPU, ragged, HeldOut(batches(many(), 500)))
    assert again.path.read_bytes() == made[CPU.name].path.read_bytes()


@pytest.mark.parametrize("target", [CPU, TENSORRT])
def test_the_calibrator_is_chosen_by_the_metric_on_held_out_samples(target, tmp_path):
    path, x = small_onnx.save_perceptron(tmp_path / "m.onnx"), many()
    held_out = HeldOut(batches(x, 500), classes_of(small_onnx.weights(), x))
    seen = many(4000, 9)
    made = quantised(path, tmp_path / "plain.onnx", target, batches(seen, 500), held_out)
    assert made.loss.drop <= 0.01
    seen[17] *= 100  # the range of all that was seen is that of one bad sample
    made = quantised(path, tmp_path / "outlier.onnx", target, batches(seen, 500), held_out)
    assert made.calibrator == "Percentile"
    assert made.loss.drop <= 0.01


def outlier(path):
    """Two products side by side; what the second reads has one element a thousand times larger than the others."""
    random = np.random.default_rng(3)
    constants = {"w1": random.normal(size=(6, 6)), "w2": random.normal(size=(6, 6)), "large": [1, 1, 1, 1, 1, 1e4]}
    constants["w2"][5] /= 1e4
    constants = {name: np.float32(array) for name, array in constants.items()}
    nodes = [
        helper.make_node("MatMul", ["input", "w1"], ["a"], name="easy"),
        helper.make_node("Mul", ["a", "large"], ["b"], name="spread"),
        helper.make_node("MatMul", ["b", "w2"], ["output"], name="hard"),
    ]
    return small_onnx.save(path, nodes, constants, (6, 6))


@pytest.mark.parametrize("target", [CPU, TENSORRT])
def test_the_layer_that_cannot_bear_int8_stays_in_floating_point_and_is_named(target, tmp_path):
    path, x = outlier(tmp_path / "m.onnx"), many()
    made = quantised(path, tmp_path / target.graph, target, batches(many(512, 9)), HeldOut(batches(x, 500)))
    assert made.kept == ("hard",)
    assert "stay hard" in made.notes[0]
    assert metadata(made.path)["edgelean.kept_in_fp32"] == "hard"
    found, wanted = run(made.path, x), run(path, x)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_graph_without_weights_is_refused_with_what_it_has(tmp_path):
    path = small_onnx.save(tmp_path / "m.onnx", [helper.make_node("Relu", ["input"], ["output"])], {}, (6, 6))
    with pytest.raises(InputError, match=r"m\.onnx: nothing in it can be quantised.*the graph has Relu"):
        quantised(path, tmp_path / "int8.onnx", CPU, batches(many(8)))


def test_a_product_of_two_activations_is_left_alone(tmp_path):
    constants = {"w": np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], name="weighed"),
        helper.make_node("Transpose", ["a"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["s"], name="scores"),
        helper.make_node("MatMul", ["s", "a"], ["output"], name="mixed"),
    ]
    path = small_onnx.save(tmp_path / "m.onnx", nodes, constants, (6, 6), batch=8)
    made = quantised(path, tmp_path / "int8.onnx", TENSORRT, batches(many(8)))
    assert made.operators == 1
    graph = onnx.load(made.path).graph
    written = {output: node.op_type for node in graph.node for output in node.output}
    scores = next(node for node in graph.node if node.name == "scores")
    assert [written[name] for name in scores.input] == ["MatMul", "Transpose"]


# -- the search --------------------------------------------------------------------------------------------------------


class Errors:
    """A judge of files that are sets of names: each operator that is not spared adds its error, as squares add."""

    def __init__(self, errors):
        self.errors, self.tries = errors, 0

    def error(self, spare):
        self.tries += 1
        return float(np.sqrt(sum(each**2 for name, each in self.errors.items() if name not in spare)))

    loss = error

    @staticmethod
    def holds(loss):
        return loss <= 1.0


@settings(max_examples=60)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_as_few_operators_as_possible_keep_their_precision_the_worst_first(sizes):
    errors = {f"n{index}": size for index, size in enumerate(sizes)}
    judge = Errors(errors)
    kept, loss = spared(tuple(errors), frozenset, judge)
    assert judge.holds(loss)
    assert list(kept) == sorted(errors, key=lambda name: -errors[name])[: len(kept)]
    assert not kept or not judge.holds(judge.error(kept[:-1]))
