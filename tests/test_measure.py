"""``edgelean.measure``: an ONNX file, a run, a PyTorch model, and what is said about their budgets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import small_onnx
import torch
from torch import nn

import edgelean
from edgelean import measuring
from edgelean.board import load_board
from edgelean.errors import DeviceError, InputError, MissingError, VerificationError
from edgelean.exporter import to_fp16
from edgelean.exporter.bundle import BundleFacts, write_bundle
from edgelean.judging import judge, outcome
from edgelean.measuring import Wishes, measure_file, percentiles_of
from edgelean.profile import load_profile
from edgelean.reading import Figure, Provenance, Reading
from edgelean.sensors.protocol import EnergyProtocol
from edgelean.target import local as local_module
from edgelean.target.latency import Patience, percentile_interval, verdict
from edgelean.target.local import Routine
from edgelean.target.onnx_inputs import is_half, read_model

QUICK = Routine(2, 1, 0.0, 0.0, Patience(warm_up_s=0.01, least_s=0.02, cap_s=0.05), EnergyProtocol())


@pytest.fixture
def quiet(monkeypatch):
    """Readings are short, and whatever the machine does meanwhile is no noise."""
    monkeypatch.setattr(measuring, "THOROUGH", QUICK)
    monkeypatch.setattr("edgelean.target.probe_this_machine", lambda board=None: board or load_board("this-machine"))
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "")
    monkeypatch.setattr(local_module, "doubts", lambda *_: "")


@pytest.fixture
def perceptron(tmp_path):
    return small_onnx.save_perceptron(tmp_path / "perceptron.onnx")


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quiet")
def test_onnx_file_is_measured_on_this_machine(perceptron):
    reading = edgelean.measure(perceptron, batch=3)
    assert reading.latency.provenance is Provenance.MEASURED
    assert reading.batch == 3
    assert 0 < reading.latency.low <= reading.latency.value <= reading.latency.high


def test_target_modelled_runs_nothing(perceptron):
    reading = edgelean.measure(str(perceptron), "jetson-orin", "modelled")
    assert reading.latency.provenance is reading.energy.provenance is Provenance.MODELLED
    assert reading.samples_ms == ()
    assert percentiles_of(reading) == {}


def test_bad_file_is_refused_before_anything_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "open_target", lambda *_, **__: pytest.fail("nothing should have been opened"))
    (tmp_path / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(InputError, match="is not an ONNX model") as caught:
        measure_file(tmp_path / "model.onnx", None, Wishes())
    assert caught.value.exit_code == 2


def test_noisy_machine_is_refused_with_the_reason_and_no_number(perceptron, monkeypatch):
    monkeypatch.setattr(measuring, "THOROUGH", QUICK)
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "others took 90 % of a core: end them")
    with pytest.raises(DeviceError, match=r"too noisy.*others took 90 % of a core: end them") as caught:
        edgelean.measure(perceptron)
    assert caught.value.exit_code == 5


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("runtime", [None, "torch"])
def test_pytorch_model_is_measured_and_left_as_it_was(runtime):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reading = edgelean.measure(model, example_inputs=torch.randn(2, 6), batch=5, runtime=runtime)
    assert ("torch" in reading.conditions["runtime"]) == (runtime == "torch")
    assert reading.batch == 5
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_energy_that_nothing_can_tell_has_no_verdict_and_a_reason(perceptron, quiet):
    found = measure_file(perceptron, None, Wishes(latency="1s", energy="1J"))
    assert [verdict.quantity for verdict in found.verdicts] == ["latency"]
    assert "edgelean doctor" in found.unjudged[0]


def test_pytorch_model_without_inputs_is_refused():
    with pytest.raises(InputError, match="example_inputs"):
        edgelean.measure(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        (Wishes(runtime="torch"), "no PyTorch model"),
        (Wishes(runtime="tensorrt"), "NVIDIA GPU"),
        (Wishes(runtime="onnxruntime", target="modelled"), "the target is modelled"),
        (Wishes(batch=0), "at least one sample"),
        (Wishes(latency="fast"), "write a number and a unit"),
        (Wishes(target="moon"), "no such target"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_refused(perceptron, wishes, complaint):
    with pytest.raises(InputError, match=complaint):
        measure_file(perceptron, None, wishes)


def test_file_in_half_precision_is_not_transferred_from_a_processor(tmp_path, perceptron):
    to_fp16(perceptron, tmp_path / "half.onnx")
    with pytest.raises(InputError, match="is FP16, and this machine computes FP32"):
        edgelean.measure(tmp_path / "half.onnx", "jetson-orin", "local")


class GpuTarget:
    """Measures in FP16; keeps the file that it was given."""

    name, provenance = "local", Provenance.MEASURED
    closed = False

    def read(self, candidate):
        self.path = candidate.onnx("fp16")
        self.half = is_half(read_model(self.path))
        return reading_of(1.0, energy=figure(1.0, 0.9, 1.1, "mJ"))

    def close(self):
        self.closed = True


def test_board_with_half_precision_gets_the_file_as_it_is_or_converted(tmp_path, perceptron, monkeypatch):
    to_fp16(perceptron, tmp_path / "half.onnx")
    for path, is_itself in ((tmp_path / "half.onnx", True), (perceptron, False)):
        target = GpuTarget()
        monkeypatch.setattr(measuring, "open_target", lambda *_, target=target, **__: target)
        measure_file(path, "jetson-orin", Wishes())
        assert target.half
        assert (target.path == path) == is_itself
        assert target.closed


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, perceptron):
    """The folder of a run whose bundle has a file in FP32 and one in FP16, and a step form of each."""
    from sample_report import sample_report

    profile = load_profile("jetson-orin").with_budgets("50%", "0.04mJ")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"profile": profile.model_dump(mode="json")}))
    (folder / "report.json").write_text(json.dumps(sample_report().to_json()))
    to_fp16(perceptron, tmp_path / "model.fp16.onnx")
    (tmp_path / "model.onnx").write_bytes(perceptron.read_bytes())
    for kind in ("onnx", "fp16.onnx"):
        (tmp_path / f"model.step.{kind}").write_bytes((tmp_path / f"model.{kind}").read_bytes())
    checks = [
        {"file": f"model{part}.onnx", "precision": kind, "form": form, "passed": True, "reason": ""}
        for part, kind, form in KINDS
    ]
    files = [tmp_path / check["file"] for check in checks]
    write_bundle(folder / "bundle", files, BundleFacts(title="run", batch=1, checks=checks))
    return folder


KINDS = (
    ("", "fp32", "sequence"),
    (".fp16", "fp16", "sequence"),
    (".step", "fp32", "step"),
    (".step.fp16", "fp16", "step"),
)


def test_run_is_measured_in_the_precision_and_with_the_budgets_of_its_own_profile(run, monkeypatch):
    target = GpuTarget()
    monkeypatch.setattr(measuring, "open_target", lambda *_, **__: target)
    found = measure_file(run, None, Wishes())
    assert target.path == run / "bundle" / "model.fp16.onnx"
    full_ms = json.loads((run / "report.json").read_text())["full_size"]["latency_ms"]
    limits = {verdict.quantity: verdict.limit for verdict in found.verdicts}
    assert limits == {"latency": pytest.approx(full_ms / 2), "energy": pytest.approx(0.04)}
    assert found.unjudged == ()


def test_run_under_another_profile_has_no_full_size_model_to_be_a_share_of(run):
    found = measure_file(run, "jetson-orin", Wishes(target="modelled", latency="50%"))
    assert [verdict.quantity for verdict in found.verdicts] == ["energy"]
    assert "share of a full-size model" in found.unjudged[0]


def test_bundle_that_was_changed_is_not_measured(run):
    with (run / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        measure_file(run, None, Wishes(target="modelled"))


def test_folder_without_a_bundle_is_missing_input(tmp_path):
    with pytest.raises(MissingError, match="holds no bundle"):
        measure_file(tmp_path, None, Wishes())


# -- verdicts ----------------------------------------------------------------------------------------------------------


def figure(value, low, high, unit="ms"):
    return Figure(value, low, high, unit, Provenance.MEASURED, "a test")


def reading_of(milliseconds, reach=0.01, samples=(), energy=None, **more):
    latency = figure(milliseconds, milliseconds - reach, milliseconds + reach)
    return Reading(latency, energy, 1, 50, samples_ms=samples, **more)


@pytest.mark.parametrize(
    ("reading", "limit", "word"),
    [
        (reading_of(1.0, samples=[1.0] * 100), 1.1, "met"),
        (reading_of(1.0, samples=[1.0] * 100), 0.9, "not met"),
        (reading_of(1.0, samples=[1.0] * 5), 1.1, "undecided"),  # too few calls
        (reading_of(1.0, reach=0.2, samples=[1.0] * 100), 1.1, "undecided"),  # within what differs between sessions
        (reading_of(1.0, samples=[1.0] * 100, noise="a neighbour"), 1.1, "undecided"),
        (reading_of(1.0, reach=0.0), 1.0, "met"),
        (reading_of(1.0), 1.05, "met"),
        (reading_of(1.0), 0.9, "not met"),
    ],
)
def test_latency_is_judged_by_its_calls_and_by_its_interval(reading, limit, word):
    assert outcome(reading, "latency", limit) == word


@pytest.mark.parametrize(("limit", "word"), [(0.5, "not met"), (1.0, "undecided"), (1.5, "met")])
def test_energy_is_judged_by_its_interval(limit, word):
    reading = reading_of(1.0, energy=figure(1.0, 0.9, 1.1, "mJ"))
    assert outcome(reading, "energy", limit) == word


def test_verdicts_name_limit_margin_and_origin():
    budgets = load_profile("this-machine").with_budgets("2ms", "50%").budgets
    reading = reading_of(1.0, samples=[1.0] * 100, energy=figure(3.0, 2.9, 3.1, "mJ"))
    latency, energy = judge(budgets, reading, {"latency": 2.0, "energy": 4.0}, {"energy": 8.0})
    assert (latency.limit, latency.limit_text, latency.margin, latency.outcome) == (2.0, "2ms", 0.5, "met")
    assert (energy.limit_text, energy.full_size, energy.margin) == ("50 % of full-size", 8.0, 0.25)
    assert judge(budgets, replace(reading, energy=None), {"latency": 2.0}, {})[0].quantity == "latency"
    assert judge(budgets, reading, {}, {}) == ()


def test_percentiles_are_those_of_the_calls_widened_by_what_differs_between_sessions():
    samples = tuple(np.random.default_rng(0).lognormal(0, 0.1, 2000))
    interval = percentile_interval(samples, 50)
    latency = figure(interval.value, interval.low * 0.98, interval.high * 1.03)
    reading = replace(reading_of(1.0, samples=samples), latency=latency)
    found = percentiles_of(reading)
    assert list(found) == [50, 90, 99]
    assert found[50] == latency
    tail = percentile_interval(samples, 99)
    assert (found[99].low, found[99].high) == (pytest.approx(tail.low * 0.98), pytest.approx(tail.high * 1.03))
    few = replace(reading, samples_ms=samples[:100])
    assert list(percentiles_of(few)) == [50, 90], "a hundred calls know no 99th percentile"


def test_exit_code_is_3_unless_every_budget_is_met(perceptron):
    easy = measure_file(perceptron, "jetson-orin", Wishes(target="modelled", latency="1s", energy="1J"))
    hard = measure_file(perceptron, "jetson-orin", Wishes(target="modelled", latency="1us", energy="1J"))
    assert [verdict.outcome for verdict in easy.verdicts] == ["met", "met"]
    assert (easy.exit_code, hard.exit_code) == (0, 3)


def test_verdict_of_a_judgement_is_the_rule_of_the_latency():
    samples = [1.0] * 60 + [3.0] * 40
    for limit in (0.5, 0.98, 1.02, 2.0, 4.0):
        assert outcome(reading_of(1.0, samples=samples), "latency", limit) == verdict(samples, limit, 50)
