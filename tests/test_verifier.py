import json
from dataclasses import asdict

import numpy as np
import pytest
import small_onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgelean.errors import InputError, VerificationError
from edgelean.exporter import load_target
from edgelean.verifier import ArtifactCheck, Evidence, lost_ties, relative_l2, verify

FP32 = load_target("onnx-fp32")
FP16 = load_target("onnx-fp16")


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).mean())


def batches_of(x, size=5):
    return [(x[start : start + size],) for start in range(0, len(x), size)]


def evidence_for(outputs, x, targets=None, metric=accuracy, name="accuracy"):
    targets = outputs.argmax(1) if targets is None else targets
    return Evidence(batches=batches_of(x), outputs=outputs, targets=targets, metric=metric, metric_name=name)


def perceptron_evidence():
    x = small_onnx.samples()
    outputs = small_onnx.expected(small_onnx.weights(), x).astype(np.float32)
    targets = outputs.argmax(1)
    targets[:3] += 1  # a model that is right about everything would hide a metric that is not compared
    return evidence_for(outputs, x, targets % 4)


def shifted(path, shift, nodes=None):
    """A file that adds ``shift [classes]`` to its input."""
    nodes = nodes or [helper.make_node("Add", ["input", "shift"], ["output"])]
    return small_onnx.save(path, nodes, {"shift": np.asarray(shift, np.float32)}, (len(shift), len(shift)))


def test_a_faithful_file_passes_with_its_figures(tmp_path):
    check = verify(small_onnx.save_perceptron(tmp_path / "model.onnx"), FP32, perceptron_evidence())
    assert check.passed
    assert (check.file, check.precision, check.samples) == ("model.onnx", "fp32", 23)
    assert check.runtime.startswith("onnxruntime ")
    assert (check.metric_name, check.metric_model, check.metric_artifact) == ("accuracy", 20 / 23, 20 / 23)
    assert check.agreement == 1
    assert 0 < check.rel_l2 < 1e-6
    assert "all 23 test samples" in check.reason


@pytest.mark.parametrize(("target", "change"), [(FP32, 1e-3), (FP16, 0.1)])
@pytest.mark.parametrize("name", ["w1", "b2"])
def test_one_changed_weight_fails(name, target, change, tmp_path):
    values = small_onnx.weights()
    values[name].flat[2] += change
    check = verify(small_onnx.save_perceptron(tmp_path / "model.onnx", values), target, perceptron_evidence())
    assert not check.passed
    assert check.rel_l2 > target.tolerances.rel_l2
    assert "samples: its outputs are off by up to" in check.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_a_number_fails_and_leaves_figures_that_can_be_written(value, tmp_path):
    values = small_onnx.weights()
    values["w2"][0, 1] = value
    check = verify(small_onnx.save_perceptron(tmp_path / "model.onnx", values), FP16, perceptron_evidence())
    assert not check.passed
    assert "NaN or infinity" in check.reason
    json.dumps(asdict(check), allow_nan=False)


def test_a_flip_at_a_near_tie_passes_and_is_told(tmp_path):
    x = np.eye(4, dtype=np.float32) * 3
    x[2] = [1, 0, 1 + 1e-6, 0]
    check = verify(shifted(tmp_path / "model.onnx", [4e-6, 0, 0, 0]), FP32, evidence_for(x, x))
    assert check.passed
    assert check.agreement == 0.75
    assert (check.metric_model, check.metric_artifact) == (1.0, 0.75)
    assert "1 near ties went the other way" in check.reason


def test_a_flip_of_a_clear_winner_fails(tmp_path):
    x = np.eye(4, dtype=np.float32) * 3
    x[2] = [1, 0, 1.001, 0]
    loose = FP32.model_copy(update={"tolerances": FP32.tolerances.model_copy(update={"rel_l2": 0.1})})
    check = verify(shifted(tmp_path / "model.onnx", [2e-3, 0, 0, 0]), loose, evidence_for(x, x))
    assert not check.passed
    assert "another class wins in 25.00% of the samples" in check.reason
    assert "accuracy falls by 0.25" in check.reason


def test_a_metric_that_falls_fails_by_itself(tmp_path):
    x = small_onnx.samples()

    def tight(outputs, targets):
        return -1e3 * float(np.abs(outputs - targets).mean())

    loose = FP16.model_copy(update={"tolerances": FP16.tolerances.model_copy(update={"rel_l2": 1.0, "agreement": 0.1})})
    check = verify(shifted(tmp_path / "model.onnx", [1e-3] * 6), loose, evidence_for(x, x, x, tight, "closeness"))
    assert not check.passed
    assert "closeness falls by 1, allowed" in check.reason
    assert "off by" not in check.reason


def test_a_graph_that_is_right_for_batches_only_fails(tmp_path):
    x = small_onnx.samples(20)
    outputs = np.concatenate([batch - batch.mean(0) for (batch,) in batches_of(x)])
    nodes = [
        helper.make_node("ReduceMean", ["input", "shift"], ["mean"]),
        helper.make_node("Sub", ["input", "mean"], ["output"]),
    ]
    path = small_onnx.save(tmp_path / "model.onnx", nodes, {"shift": np.zeros(1, np.int64)}, (6, 6))
    check = verify(path, FP32, evidence_for(outputs, x))
    assert not check.passed
    assert check.rel_l2 < 1e-6
    assert "in a batch of one" in check.reason


def test_a_graph_of_fixed_batch_fails_with_the_batch_in_the_reason(tmp_path, capfd):
    nodes = [helper.make_node("Reshape", ["input", "shift"], ["output"])]
    path = small_onnx.save(tmp_path / "model.onnx", nodes, {"shift": np.array([5, 6])}, (6, 6))
    x = small_onnx.samples(20)
    check = verify(path, FP32, evidence_for(x, x))
    assert not check.passed
    assert "cannot be run on a batch of 1" in check.reason
    assert capfd.readouterr() == ("", "")


def test_a_file_that_does_not_open_fails_without_raising(tmp_path):
    path = small_onnx.save_perceptron(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:100])
    check = verify(path, FP32, perceptron_evidence())
    assert not check.passed
    assert "onnxruntime cannot open it" in check.reason
    assert "\n" not in check.reason


def test_outputs_of_another_shape_fail(tmp_path):
    x = small_onnx.samples()
    check = verify(shifted(tmp_path / "model.onnx", [0.0] * 6), FP32, evidence_for(x[:, :4], x))
    assert not check.passed
    assert "shape [23, 6], wanted [23, 4]" in check.reason


def test_a_graph_that_loses_the_batch_of_one_fails(tmp_path):
    x = small_onnx.samples()
    nodes = [helper.make_node("Mul", ["input", "ones"], ["same"]), helper.make_node("Squeeze", ["same"], ["output"])]
    path = small_onnx.save(tmp_path / "model.onnx", nodes, {"ones": np.ones(6, np.float32)}, (6, 6))
    check = verify(path, FP32, evidence_for(x, x))
    assert not check.passed
    assert "for a batch of 1 its output has the shape [6]" in check.reason


def test_a_trained_model_that_gives_nan_cannot_be_verified_against(tmp_path):
    x = small_onnx.samples()
    outputs = x.copy()
    outputs[4, 1] = np.nan
    with pytest.raises(VerificationError, match="trained model itself gives NaN or infinity in 1"):
        verify(shifted(tmp_path / "model.onnx", [0.0] * 6), FP32, evidence_for(outputs, x))


def test_a_metric_that_is_no_number_cannot_be_compared(tmp_path):
    x = small_onnx.samples()
    evidence = evidence_for(x, x, x, lambda outputs, targets: float("nan"), "r2")
    with pytest.raises(VerificationError, match="r2 is nan on the test split"):
        verify(shifted(tmp_path / "model.onnx", [0.0] * 6), FP32, evidence)


@pytest.mark.parametrize("count", [0, 22])
def test_a_split_of_another_length_than_the_outputs_is_refused(count, tmp_path):
    x = small_onnx.samples()
    evidence = Evidence(batches=batches_of(x[:count]), outputs=x, targets=x, metric=accuracy, metric_name="accuracy")
    with pytest.raises(InputError, match="test split"):
        verify(shifted(tmp_path / "model.onnx", [0.0] * 6), FP32, evidence)


def test_inputs_of_another_number_are_refused(tmp_path):
    x = small_onnx.samples()
    pairs = [(x, x)]
    evidence = Evidence(batches=pairs, outputs=x, targets=x, metric=accuracy, metric_name="accuracy")
    with pytest.raises(InputError, match="the artifact has the inputs input, the split gives 2 arrays"):
        verify(shifted(tmp_path / "model.onnx", [0.0] * 6), FP32, evidence)


def test_a_regression_has_no_agreement_and_may_be_near_zero(tmp_path):
    x = small_onnx.samples(23)[:, :1]
    x[5] = 1e-9

    def closeness(outputs, targets):
        return -float(np.abs(outputs - targets).max())

    check = verify(shifted(tmp_path / "model.onnx", [2e-6]), FP32, evidence_for(x, x, x, closeness, "closeness"))
    assert check.passed
    assert check.agreement is None
    assert check.rel_l2 < 1e-5


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_relative_error_does_not_know_the_scale_of_the_outputs(scale, seed):
    wanted = np.random.default_rng(seed).normal(size=(7, 2, 3))
    found = wanted + 1e-2 * np.random.default_rng(seed + 1).normal(size=wanted.shape)
    error = relative_l2(found, wanted)
    assert error.shape == (7,)
    assert np.allclose(relative_l2(scale * found, scale * wanted), error)
    assert np.allclose(relative_l2(wanted + 3 * (found - wanted), wanted), 3 * error)


@given(st.integers(0, 200))
def test_a_loss_is_a_near_tie_only_when_the_lead_was_below_the_share(seed):
    random = np.random.default_rng(seed)
    wanted = random.normal(size=(50, 3))
    found = wanted + 0.2 * random.normal(size=wanted.shape)
    lost, tied = lost_ties(found, wanted, 0.1)
    for row in range(50):
        lead = wanted[row].max() - wanted[row, found[row].argmax()]
        assert lost[row] == (lead > 0)
        assert tied[row] == (0 < lead <= 0.1 * np.sqrt((wanted[row] ** 2).sum()))


def test_the_check_has_the_fields_that_the_report_prints():
    fields = "file precision runtime samples metric_name metric_model metric_artifact agreement rel_l2 passed reason"
    assert list(ArtifactCheck.__dataclass_fields__) == [*fields.split(), "form", "tolerances"]
