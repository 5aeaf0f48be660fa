"""Targets: the board as a formula, and this machine with onnxruntime for real."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelean.board import Board, Fact, load_board
from edgelean.board.cost import Operator, predict
from edgelean.errors import DeviceError, InputError
from edgelean.profile import load_profile
from edgelean.reading import Provenance
from edgelean.sensors import Energy, PowerEstimate
from edgelean.target import Candidate, open_target, probe_this_machine
from edgelean.target import local as local_module
from edgelean.target import probe as probe_module
from edgelean.target.latency import Patience, Timing, percentile_interval
from edgelean.target.local import LocalTarget
from edgelean.target.modelled import ModelledTarget

BATCH = 4
QUICK = Patience(warm_up_s=0.01, least_s=0.02, cap_s=0.1)
OPERATORS = (
    Operator("fc1", "contract", 2 * BATCH * 32 * 64, BATCH * 32 + 32 * 64 + BATCH * 64, BATCH, 64, 32),
    Operator("fc2", "contract", 2 * BATCH * 64 * 10, BATCH * 64 + 64 * 10 + BATCH * 10, BATCH, 10, 64),
)


@pytest.fixture(scope="module")
def machine() -> Board:
    return probe_this_machine()


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """A two-layer network of 32 -> 64 -> 10 as an ONNX file."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((32, 64), (64, 10))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "w2"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, ("w1", "w2"), strict=True)],
    )
    file = tmp_path_factory.mktemp("mlp") / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture
def candidate(mlp):
    return Candidate(lambda _: mlp, OPERATORS, lambda: {"x": np.zeros((BATCH, 32), np.float32)})


def never():
    raise AssertionError("a target that only computes has to leave the model alone")


def fact(value, confidence="measured"):
    return Fact(value=value, source="a test", confidence=confidence)


def board_like(machine, name, **power):
    """A board that differs from this machine in its name and its power only."""
    update = {key: fact(value) for key, value in power.items()}
    return machine.model_copy(update={"name": name, "power": machine.power.model_copy(update=update)})


def test_modelled_target_says_what_the_cost_model_says_and_runs_nothing():
    board = load_board("jetson-orin-nano-8gb-super")
    target = ModelledTarget(board, "fp16", BATCH, 90)
    reading = target.read(Candidate(never, OPERATORS, never))
    cost = predict(OPERATORS, board, "fp16", BATCH)
    assert (reading.latency.value, reading.energy.value) == (cost.latency_ms, cost.energy_mj)
    for figure in (reading.latency, reading.energy):
        assert figure.low == figure.value == figure.high
        assert figure.provenance is Provenance.MODELLED
        assert board.title in figure.method
    assert (reading.batch, reading.percentile) == (BATCH, 90)


def test_modelled_figure_names_the_guesses_it_rests_on(machine):
    launch = machine.launch.model_copy(update={"overhead_us": fact(7.0, "guess")})
    target = ModelledTarget(machine.model_copy(update={"launch": launch}), "fp32", BATCH)
    assert "launch.overhead_us = 7" in target.read(Candidate(never, OPERATORS, never)).latency.method


def test_probe_measures_what_the_description_of_this_machine_lacks(machine):
    assert predict(OPERATORS, machine, "fp32", BATCH).latency_ms > 0
    for number in (machine.compute.fp32_tflops, machine.memory.bandwidth_gb_s, machine.launch.overhead_us):
        assert number.value > 0
        assert number.confidence == "measured"
    assert 0 < machine.power.idle_w.value <= machine.power.max_w.value
    assert machine.power.max_w.source


def test_probe_turns_durations_into_rates(monkeypatch):
    one_ms = Timing((1.0,), percentile_interval((1.0,), 50), narrow=True)
    monkeypatch.setattr(probe_module, "time_calls", lambda *_: one_ms)
    monkeypatch.setattr(probe_module, "estimate_power", lambda: PowerEstimate(7.0, "a guess of a test"))
    probed = probe_this_machine(root=Path("/nowhere"))
    assert probed.compute.fp32_tflops.value == pytest.approx(2 * 384**3 / 1e-3 / 1e12)
    assert probed.memory.bandwidth_gb_s.value == pytest.approx(3 * 4 * 2**22 / 1e-3 / 1e9)
    assert probed.launch.overhead_us.value == pytest.approx(1000 / 16)
    assert (probed.power.idle_w.value, probed.power.max_w.value) == (7.0, 7.0)
    assert probed.power.max_w.confidence == "guess"


def test_probe_keeps_the_numbers_that_are_known(machine):
    launch = machine.launch.model_copy(update={"overhead_us": Fact()})
    known = machine.compute.model_copy(update={"fp32_tflops": fact(123.0, "datasheet")})
    probed = probe_this_machine(machine.model_copy(update={"launch": launch, "compute": known}))
    assert probed.compute.fp32_tflops.value == 123.0
    assert probed.launch.overhead_us.value > 0
    assert probed.power == machine.power


def test_local_reading_of_this_machine_is_measured_with_an_interval(machine, candidate):
    reading = LocalTarget(machine, machine, "fp32", BATCH, patience=QUICK).read(candidate)
    latency = reading.latency
    assert latency.provenance is Provenance.MEASURED
    assert 0 < latency.low <= latency.value <= latency.high
    assert len(reading.samples_ms) >= QUICK.least_calls
    assert {"processor", "runtime", "threads", "interval", "spread"} <= set(reading.conditions)
    assert "onnxruntime" in latency.method


def test_local_energy_without_a_sensor_is_a_guess_times_the_latency_and_says_so(machine, candidate):
    guessed = board_like(machine, machine.name, max_w=5.0)
    reading = LocalTarget(guessed, guessed, "fp32", BATCH, patience=QUICK).read(candidate)
    assert reading.energy.provenance is Provenance.MODELLED
    assert reading.energy.value == pytest.approx(5.0 * reading.latency.value / BATCH)
    assert reading.energy.low <= reading.energy.value <= reading.energy.high
    assert "a test, times the median latency" in reading.energy.method


class StrongSensor:
    """Finds 2 J in 100 calls of whatever it is given."""

    name = "strong"
    method = "a sensor of a test"

    def __init__(self):
        self.windows = 0

    def over(self, work, seconds):
        work()
        self.windows += 1
        return Energy(2.0, seconds, 100, self.method)


def test_local_energy_with_a_sensor_is_measured_per_inference(machine, candidate):
    sensor = StrongSensor()
    reading = LocalTarget(machine, machine, "fp32", BATCH, sensor=sensor, patience=QUICK).read(candidate)
    assert sensor.windows > 1, "one window has no interval"
    assert reading.energy.value == pytest.approx(2.0 / 100 / BATCH * 1e3)
    assert reading.energy.low <= reading.energy.value <= reading.energy.high
    assert reading.energy.provenance is Provenance.MEASURED
    assert "a sensor of a test" in reading.energy.method


@pytest.fixture
def one_ms(monkeypatch):
    """Every measurement finds the same few samples around 1 ms."""
    samples = (0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 1.2)
    timing = Timing(samples, percentile_interval(samples, 50), narrow=True)
    monkeypatch.setattr(local_module, "time_calls", lambda *_: timing)
    return timing


def test_figures_for_another_board_are_transferred_by_the_ratio_of_the_cost_models(machine, candidate, one_ms):
    board = load_board("jetson-orin-nano-8gb-super")
    sensor = StrongSensor()
    reading = LocalTarget(board, machine, "fp16", BATCH, sensor=sensor).read(candidate)
    there, here = predict(OPERATORS, board, "fp16", BATCH), predict(OPERATORS, machine, "fp32", BATCH)
    ratio = there.latency_ms / here.latency_ms
    assert reading.latency.value == pytest.approx(1.0 * ratio)
    assert reading.latency.low == pytest.approx(one_ms.interval.low * ratio)
    assert reading.samples_ms == pytest.approx([sample * ratio for sample in one_ms.samples_ms])
    assert reading.energy.value == pytest.approx(2.0 / 100 / BATCH * 1e3 * there.energy_mj / here.energy_mj)
    for figure in (reading.latency, reading.energy):
        assert figure.provenance is Provenance.TRANSFERRED
        assert board.title in figure.method


def test_guessed_energy_is_not_transferred_but_modelled(machine, candidate, one_ms):
    board = load_board("jetson-orin-nano-8gb-super")
    reading = LocalTarget(board, machine, "fp16", BATCH).read(candidate)
    assert reading.latency.provenance is Provenance.TRANSFERRED
    assert reading.energy.provenance is Provenance.MODELLED
    assert reading.energy.value == predict(OPERATORS, board, "fp16", BATCH).energy_mj


def test_prediction_of_a_local_target_is_for_the_board_that_is_meant(machine):
    board = load_board("jetson-orin-nano-8gb-super")
    assert LocalTarget(board, machine, "fp16", BATCH).predict(OPERATORS) == predict(OPERATORS, board, "fp16", BATCH)


def test_model_that_does_not_load_or_run_is_a_device_error_with_its_file(machine, candidate, mlp, tmp_path):
    target = LocalTarget(machine, machine, "fp32", BATCH, patience=QUICK)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no protobuf")
    with pytest.raises(DeviceError, match=r"broken\.onnx"):
        target.read(Candidate(lambda _: broken, OPERATORS, candidate.sample))
    with pytest.raises(DeviceError, match=r"mlp\.onnx"):
        target.read(Candidate(lambda _: mlp, OPERATORS, lambda: {"x": np.zeros((BATCH, 5), np.float32)}))


def test_targets_are_opened_by_name_and_by_the_board(machine):
    here, there = load_profile("this-machine"), load_profile("jetson-orin")
    orin = load_board(there.board)
    assert open_target(None, here, machine).provenance is Provenance.MEASURED
    assert open_target(None, there, orin).provenance is Provenance.MODELLED
    assert open_target("local", there, orin).provenance is Provenance.TRANSFERRED
    assert open_target("modelled", here, machine).provenance is Provenance.MODELLED


@pytest.mark.parametrize("spec", ["ssh://orin", "cloud"])
def test_unknown_target_is_refused_with_those_that_exist(machine, spec):
    with pytest.raises(InputError, match=f"{spec}.*local or modelled"):
        open_target(spec, load_profile("this-machine"), machine)
