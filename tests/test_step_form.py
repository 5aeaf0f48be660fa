"""The step form of sequence models: found, exported, priced, held against the trained model, built by TensorRT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sequence_nets import FEATURES, LAYERS, WIDTH, sequence_model
from torch import nn

from edgelean.board import load_board
from edgelean.board.cost import predict
from edgelean.delivery import evidence
from edgelean.errors import InputError
from edgelean.exporter import build_engine, export_onnx, find_steps, load_target, to_fp16
from edgelean.exporter.fp16 import products_to_fp16
from edgelean.exporter.steps import export_steps, step_name
from edgelean.nn import LRU, Bidirectional, SequenceBlock, SequenceClassifier, StepForm
from edgelean.nn.bypass import Skip, Zeros
from edgelean.recipe import accuracy
from edgelean.target.onnx_graph import operators_of
from edgelean.verifier import Evidence, bounded, verify

LENGTH = 11
FP32, FP16 = load_target("onnx-fp32"), load_target("onnx-fp16")


def signals(samples=6, length=LENGTH, seed=1):
    return torch.randn(samples, length, FEATURES, generator=torch.Generator().manual_seed(seed))


def found(model, inputs):
    return find_steps(model, (inputs[:2],), (inputs,))


@pytest.fixture(scope="module", params=LAYERS)
def exported(request, tmp_path_factory):
    """A model of one kind of layer, its step form, and the four files of both forms."""
    folder, inputs = tmp_path_factory.mktemp(request.param), signals()
    model = sequence_model(request.param)
    steps = found(model, inputs)
    files = {"sequence": folder / "model.onnx", "step": folder / step_name("model.onnx")}
    export_onnx(model, (inputs[:2],), files["sequence"], metadata=steps.metadata("sequence"))
    export_steps(steps, files["step"], metadata={})
    halves = {form: file.with_suffix(".fp16.onnx") for form, file in files.items()}
    to_fp16(files["sequence"], halves["sequence"])
    products_to_fp16(files["step"], halves["step"])
    return model, steps, files, halves


def evidence_of(model, inputs):
    targets = torch.arange(len(inputs)) % 3
    return evidence(model, [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], accuracy, "accuracy")


@pytest.mark.parametrize("form", ["sequence", "step"])
def test_both_forms_give_the_models_answers_in_both_precisions(exported, form):
    model, _, files, halves = exported
    inputs = evidence_of(model, signals(9, seed=3))
    single, half = verify(files[form], FP32, inputs, form), verify(halves[form], FP16, inputs, form)
    for check in (single, half):
        assert check.passed, check.reason
        assert check.form == form
        assert check.samples == 9
    assert half.rel_l2 > single.rel_l2
    assert ("step by step" in single.reason) == (form == "step")


def test_the_step_form_answers_for_any_length(exported):
    model, _, files, _ = exported
    for length in (1, 5, 40):
        assert verify(files["step"], FP32, evidence_of(model, signals(length=length)), "step").passed


def test_the_whole_sequence_has_one_length_and_says_which(exported):
    model, _, files, _ = exported
    check = verify(files["sequence"], FP32, evidence_of(model, signals(length=LENGTH + 1)), "sequence")
    assert not check.passed
    assert f"takes sequences of {LENGTH} time steps and the split has one of {LENGTH + 1}" in check.reason
    assert "the step form, which takes any" in check.reason


def test_a_step_form_with_another_weight_fails(exported, tmp_path):
    model, _, files, _ = exported
    proto = onnx.load(files["step"])
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("head.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.5, bias.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    check = verify(tmp_path / "changed.onnx", FP32, evidence_of(model, signals()), "step")
    assert not check.passed
    assert "Failed on 6 test samples, step by step" in check.reason


def test_inputs_outputs_and_metadata_of_the_step_form(exported):
    _, steps, files, _ = exported
    graph, told = onnx.load(files["step"]).graph, onnxruntime.InferenceSession(files["step"]).get_modelmeta()
    assert [value.name for value in graph.input] == ["input", "state"]
    assert [value.name for value in graph.output] == ["output", "new_state"]
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in graph.input]
    assert sizes == [[FEATURES], [steps.size]]
    wanted = {"form": "step", "sequence_length": str(LENGTH), "state_size": str(steps.size), "answers": "last"}
    assert told.custom_metadata_map.items() >= {f"edgelean.{key}": value for key, value in wanted.items()}.items()
    whole = onnxruntime.InferenceSession(files["sequence"]).get_modelmeta().custom_metadata_map
    assert whole["edgelean.form"] == "sequence"
    assert whole["edgelean.sequence_length"] == str(LENGTH)
    assert whole["edgelean.step_form"] == "model.step.onnx"


def test_what_is_carried_from_step_to_step_stays_in_single_precision(exported):
    *_, halves = exported
    graph = onnx.load(halves["step"]).graph
    kinds = {"Gemm", "MatMul", "Conv"}
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    read = {node.op_type for node in graph.node if half.intersection(node.input)}
    assert half
    assert read <= kinds
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_a_step_costs_less_than_the_sequence_and_the_sequence_less_than_its_steps(exported):
    _, _, files, _ = exported
    board = load_board("raspberry-pi-5")
    one, whole = (predict(operators_of(files[form], 1), board, "fp32", 1) for form in ("step", "sequence"))
    assert 0 < one.latency_ms < whole.latency_ms < LENGTH * one.latency_ms
    assert not any(operator.kind == "unknown" for operator in operators_of(files["step"], 1))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", ["sequence", "step"])
def test_tensorrt_builds_both_forms_in_both_precisions(exported, form, precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="parses and builds engines without a GPU; pip install tensorrt-rtx")
    _, _, files, halves = exported
    note = build_engine((files if precision == "fp32" else halves)[form], tmp_path / "model.engine", largest_batch=2)
    assert note.built, note.text


def test_a_model_that_answers_at_every_step_streams_every_answer(tmp_path):
    inputs = signals()
    model = sequence_model("LRU", "none")
    steps = found(model, inputs)
    assert steps.answers == "every"
    file = export_steps(steps, tmp_path / "model.step.onnx", metadata={})
    with torch.no_grad():
        outputs = model(inputs).numpy()
    proof = Evidence(
        batches=[(inputs.numpy(),)], outputs=outputs, targets=outputs, metric=lambda a, b: float(-np.abs(a - b).max()),
        metric_name="closeness",
    )  # fmt: skip
    assert outputs.shape == (6, LENGTH, 3)
    assert verify(file, FP32, proof, "step").passed
    assert not verify(file, FP32, replace(proof, outputs=outputs[:, ::-1].copy()), "step").passed


def test_blocks_that_were_cut_out_are_no_obstacle():
    inputs = signals()
    model = SequenceClassifier(
        nn.Linear(FEATURES, WIDTH), [SequenceBlock(LRU(WIDTH, 5)) for _ in range(4)], nn.Linear(WIDTH, 3)
    ).eval()
    model.blocks[0] = Skip()
    model.blocks[1].layer = Zeros()
    model.blocks[2].value = Zeros()
    steps = found(model, inputs)
    assert steps.size == 2 * 2 * 5 + WIDTH + 1


class Counter(nn.Module):
    """A running sum whose step does as it is told."""

    def __init__(self, step):
        super().__init__()
        self.weight, self.stepped = nn.Parameter(torch.ones(FEATURES)), step

    def forward(self, x):
        return (self.weight * x).sum(1)

    def step(self, inputs, state):
        return self.stepped(self.weight * inputs, state)


def summed(inputs, state):
    total = inputs if state is None else state + inputs
    return total, total


def test_any_module_with_a_step_has_a_step_form():
    assert found(Counter(summed), signals()).size == FEATURES
    assert found(nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, 2)), signals()) is None


def off_by_one(inputs, state):
    total, _ = summed(inputs, state)
    return total + 0.01, total


def unkind(inputs, state):
    raise KeyError("window")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Counter(off_by_one), "over 11 time steps its step gives other outputs than the model"),
        (Counter(lambda inputs, state: (inputs[:, :1], inputs)), r"its step gives \[6, 1\] after each of 11 steps"),
        (Counter(unkind), "its step does not run: KeyError"),
        (Counter(lambda inputs, state: (inputs, ())), "what it remembers has to be tensors"),
        (Counter(lambda inputs, state: (inputs, {"h": inputs})), "tuples of them; found dict"),
        (
            Counter(lambda inputs, state: (inputs, inputs.sum()[None])),
            r"tensors \[2, ...\] for a batch of 2, found \[1\]",
        ),
        (
            SequenceClassifier(
                nn.Linear(FEATURES, WIDTH),
                [SequenceBlock(Bidirectional(LRU(WIDTH, 5), LRU(WIDTH, 5)))],
                nn.Linear(WIDTH, 3),
            ),
            "reads the sequence from its end",
        ),
    ],
    ids=["wrong", "shape", "raises", "nothing", "dict", "no batch", "bidirectional"],
)
def test_a_step_that_cannot_be_used_is_refused_with_the_reason(model, complaint):
    with pytest.raises(InputError, match=complaint):
        found(model, signals())


def test_a_large_test_split_is_sampled_from_its_beginning_to_its_end():
    count, length = 4000, 5000
    inputs = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, length, 1))
    outputs = np.arange(count, dtype=np.float32)[:, None]
    batches = [(inputs[start : start + 100],) for start in range(0, count, 100)]
    whole = Evidence(batches=batches, outputs=outputs, targets=outputs[:, 0], metric=accuracy, metric_name="accuracy")
    some = bounded(whole)
    assert len(some.batches) * length <= 20_000
    rows = np.concatenate([batch[0][:, 0, 0] for batch in some.batches])
    assert np.array_equal(rows, some.outputs[:, 0])
    assert np.array_equal(rows, some.targets)
    assert rows[0] == 0
    assert rows[-1] == count - 1
    assert 0 < len(rows) < count
    assert len(bounded(replace(whole, batches=[(batch[0][:, :3],) for batch in batches])).outputs) == count


def test_start_is_zeros_for_every_sample():
    model = sequence_model("LRU")
    state = StepForm(model, signals()[:, 0]).start(signals(3)[:, 0])
    assert state.shape == (3, 2 * 5 + WIDTH + 1)
    assert not state.any()
