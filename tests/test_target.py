"""Targets: the board as a formula, and this machine with onnxruntime for real."""

from dataclasses import replace
from pathlib import Path
from types import FunctionType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelean.board import Board, Fact, load_board
from edgelean.board.cost import Operator, predict
from edgelean.errors import DeviceError
from edgelean.reading import Provenance
from edgelean.sensors import Energy, PowerEstimate
from edgelean.sensors.protocol import EnergyProtocol
from edgelean.target import Candidate, probe_this_machine
from edgelean.target import local as local_module
from edgelean.target import probe as probe_module
from edgelean.target.latency import Patience, Timing, percentile_interval, pooled
from edgelean.target.local import LocalTarget, Routine, doubts, quality
from edgelean.target.modelled import ModelledTarget
from edgelean.target.runtime import OnnxRuntimeCpu

BATCH = 4
QUICK = Routine(
    repeats=2,
    attempts=1,
    pause_s=0.0,
    rest_s=0.0,
    patience=Patience(warm_up_s=0.01, least_s=0.02, cap_s=0.1),
    energy=EnergyProtocol(window_s=0.01, idle_s=0.01, longest_delay_s=0.001, warm_up_s=0.0, cool_down_s=0.0),
)
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
    assert probed.compute.int8_tops.value == pytest.approx(2 * 384**3 / 1e-3 / 1e12)
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
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=QUICK).read(candidate)
    latency = reading.latency
    assert latency.provenance is Provenance.MEASURED
    assert 0 < latency.low <= latency.value <= latency.high
    assert len(reading.samples_ms) >= QUICK.repeats * QUICK.patience.least_calls
    assert {"processor", "runtime", "threads", "precision", "interval", "spread", "sessions"} <= set(reading.conditions)
    assert "onnxruntime" in latency.method


def test_local_energy_without_a_sensor_is_a_guess_times_the_latency_and_says_so(machine, candidate):
    guessed = board_like(machine, machine.name, max_w=5.0)
    reading = LocalTarget(guessed, guessed, "fp32", BATCH, routine=QUICK).read(candidate)
    assert reading.energy.provenance is Provenance.MODELLED
    assert reading.energy.value == pytest.approx(5.0 * reading.latency.value / BATCH)
    assert reading.energy.low <= reading.energy.value <= reading.energy.high
    assert "a test, times the median latency" in reading.energy.method
    assert reading.energy_net is None


class StrongSensor:
    """Finds 2 J in 100 calls that take a second of work, and 0.5 W while nothing is done."""

    name = "strong"
    method = "a sensor of a test"

    def over(self, work, seconds):
        if isinstance(work, FunctionType):  # the model is an object, doing nothing a function
            return Energy(0.5, 1.0, 1, self.method)
        return Energy(2.0, 1.0, 100, self.method)


def test_local_energy_with_a_sensor_is_measured_per_inference_gross_and_net(machine, candidate):
    reading = LocalTarget(machine, machine, "fp32", BATCH, sensor=StrongSensor(), routine=QUICK).read(candidate)
    assert reading.energy.value == pytest.approx(2.0 / 100 / BATCH * 1e3)
    assert reading.energy_net.value == pytest.approx(1.5 / 100 / BATCH * 1e3)
    for figure in (reading.energy, reading.energy_net):
        assert figure.low <= figure.value <= figure.high
        assert figure.provenance is Provenance.MEASURED
        assert "a sensor of a test" in figure.method
    assert reading.energy.method.endswith("gross")
    assert reading.energy_net.method.endswith("net of the idle power")


def timing_of(*samples):
    return Timing(samples, percentile_interval(samples, 50), narrow=True)


@pytest.fixture
def one_ms(monkeypatch):
    """Every measurement finds the same few samples around 1 ms."""
    timing = timing_of(0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 1.2)
    monkeypatch.setattr(local_module, "time_calls", lambda *_: timing)
    return timing


def test_figures_for_another_board_are_transferred_by_the_ratio_of_the_cost_models(machine, candidate, one_ms):
    board = load_board("jetson-orin-nano-8gb-super")
    reading = LocalTarget(board, machine, "fp16", BATCH, sensor=StrongSensor(), routine=QUICK).read(candidate)
    there, here = predict(OPERATORS, board, "fp16", BATCH), predict(OPERATORS, machine, "fp32", BATCH)
    ratio = there.latency_ms / here.latency_ms
    assert reading.latency.value == pytest.approx(1.0 * ratio)
    assert reading.latency.low == pytest.approx(pooled([one_ms, one_ms], 50).low * ratio)
    assert reading.samples_ms == pytest.approx(2 * [sample * ratio for sample in one_ms.samples_ms])
    assert reading.energy.value == pytest.approx(2.0 / 100 / BATCH * 1e3 * there.energy_mj / here.energy_mj)
    for figure in (reading.latency, reading.energy):
        assert figure.provenance is Provenance.TRANSFERRED
        assert board.title in figure.method
    assert reading.energy_net is None, "the idle power of the board is another one"
    assert reading.conditions["precision"] == "fp32", "what ran here, not what the board would compute"


def test_guessed_energy_is_not_transferred_but_modelled(machine, candidate, one_ms):
    board = load_board("jetson-orin-nano-8gb-super")
    reading = LocalTarget(board, machine, "fp16", BATCH, routine=QUICK).read(candidate)
    assert reading.latency.provenance is Provenance.TRANSFERRED
    assert reading.energy.provenance is Provenance.MODELLED
    assert reading.energy.value == predict(OPERATORS, board, "fp16", BATCH).energy_mj


def test_prediction_of_a_local_target_is_for_the_board_that_is_meant(machine):
    board = load_board("jetson-orin-nano-8gb-super")
    assert LocalTarget(board, machine, "fp16", BATCH).predict(OPERATORS) == predict(OPERATORS, board, "fp16", BATCH)


def test_model_that_does_not_load_or_run_is_a_device_error_with_its_file(machine, candidate, mlp, tmp_path):
    target = LocalTarget(machine, machine, "fp32", BATCH, routine=QUICK)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no protobuf")
    with pytest.raises(DeviceError, match=r"broken\.onnx"):
        target.read(Candidate(lambda _: broken, OPERATORS, candidate.sample))
    with pytest.raises(DeviceError, match=r"mlp\.onnx"):
        target.read(Candidate(lambda _: mlp, OPERATORS, lambda: {"x": np.zeros((BATCH, 5), np.float32)}))


def timings(monkeypatch, *repeats):
    """Let every session find these samples in turn."""
    left = iter(repeats)
    monkeypatch.setattr(local_module, "time_calls", lambda *_: timing_of(*next(left)))
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "")
    monkeypatch.setattr(local_module, "clock_yardstick", lambda: 1.0)
    monkeypatch.setattr(local_module.time, "sleep", lambda _: None)


QUIET, SLOW = [1.0] * 20, [1.1] * 20


def test_every_repeat_has_a_session_of_its_own_and_all_their_samples_count(machine, candidate, monkeypatch):
    opened = []

    class Counting(OnnxRuntimeCpu):
        def open(self, model, feeds):
            opened.append(super().open(model, feeds))
            return opened[-1]

    timings(monkeypatch, [1.00] * 20, [1.01] * 20, [1.02] * 20)
    target = LocalTarget(machine, machine, "fp32", BATCH, runtime=Counting(), routine=replace(QUICK, repeats=3))
    reading = target.read(candidate)
    assert len({id(work.session) for work in opened}) == len(opened) >= 3
    assert reading.samples_ms == (*[1.00] * 20, *[1.01] * 20, *[1.02] * 20)
    assert (reading.latency.low, reading.latency.value, reading.latency.high) == (1.00, 1.01, 1.02)
    assert reading.noise == ""


def test_noisy_reading_is_taken_again_and_a_quiet_one_is_returned(machine, candidate, monkeypatch):
    timings(monkeypatch, QUIET, SLOW, QUIET, QUIET)
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=replace(QUICK, attempts=3)).read(candidate)
    assert reading.noise == ""
    assert reading.samples_ms == (*QUIET, *QUIET)


def test_reading_that_stays_noisy_says_so_and_keeps_its_figures(machine, candidate, monkeypatch):
    timings(monkeypatch, *[QUIET, SLOW] * 3)
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=replace(QUICK, attempts=3)).read(candidate)
    assert "session" in reading.noise
    assert reading.latency.low <= 1.0 < 1.1 <= reading.latency.high


def test_disturbed_session_is_opened_again_and_the_quiet_ones_stay(machine, candidate, monkeypatch):
    timings(monkeypatch, [1.00] * 20, [5.0] * 20, [1.01] * 20)
    disturbed = iter(["", "a neighbour", ""])
    monkeypatch.setattr(local_module, "disturbance", lambda *_: next(disturbed))
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=replace(QUICK, attempts=2)).read(candidate)
    assert reading.noise == ""
    assert reading.samples_ms == (*[1.00] * 20, *[1.01] * 20)


def test_slow_session_that_nothing_disturbed_is_not_dropped(machine, candidate, monkeypatch):
    timings(monkeypatch, [1.00] * 20, [1.02] * 20)
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=replace(QUICK, attempts=5)).read(candidate)
    assert max(reading.samples_ms) == 1.02


def test_disturbed_machine_makes_the_reading_noisy(machine, candidate, monkeypatch):
    timings(monkeypatch, *[QUIET] * 4)
    monkeypatch.setattr(local_module, "disturbance", lambda *_: "a neighbour: ask it to stop")
    reading = LocalTarget(machine, machine, "fp32", BATCH, routine=replace(QUICK, attempts=2)).read(candidate)
    assert reading.noise == "a neighbour: ask it to stop"


def test_energy_beside_others_that_the_sensor_counts_too_is_noisy(machine, candidate, monkeypatch):
    timings(monkeypatch, *[QUIET] * 2)
    monkeypatch.setattr(local_module, "energy_disturbance", lambda *_: "others used energy")
    reading = LocalTarget(machine, machine, "fp32", BATCH, sensor=StrongSensor(), routine=QUICK).read(candidate)
    assert reading.noise == "others used energy"


@pytest.mark.parametrize(
    ("repeats", "paces", "word"),
    [
        ([QUIET, QUIET], [1.0, 1.01, 1.0], ""),
        ([QUIET, [1.02] * 20], [1.0, 1.0, 1.0], ""),
        ([QUIET, SLOW], [1.0, 1.0, 1.0], "session"),
        ([QUIET, QUIET], [1.0, 1.0, 1.05], "processor became"),
        ([[0.9, 1.1] * 10, [0.9, 1.1] * 10], [1.0, 1.0, 1.0], "median is known"),
        ([[1.0, 1.0]], [1.0, 1.0], "median is known"),
    ],
)
def test_timings_are_doubted_for_what_they_show_themselves(repeats, paces, word):
    found = doubts([timing_of(*samples) for samples in repeats], paces)
    assert word in found
    assert bool(found) == bool(word)


def test_wide_tail_is_told_and_is_no_reason_to_doubt():
    tail = Timing((*[1.0] * 97, 1.5, 2.0, 3.0), percentile_interval([1.0] * 97 + [1.5, 2.0, 3.0], 99), narrow=False)
    assert doubts([tail, tail], [1.0, 1.0, 1.0]) == ""
    assert "too few" in quality([tail], 99)["interval"]


def test_limit_of_the_board_is_looked_for_in_the_time_of_this_machine(machine, candidate, monkeypatch):
    board = load_board("jetson-orin-nano-8gb-super")
    seen = []
    timings(monkeypatch)
    monkeypatch.setattr(
        local_module, "time_calls", lambda call, percentile, patience: seen.append(patience) or timing_of(*QUIET)
    )
    routine = replace(QUICK, patience=replace(QUICK.patience, limit_ms=3.0))
    LocalTarget(board, machine, "fp16", BATCH, routine=routine).read(candidate)
    there, here = predict(OPERATORS, board, "fp16", BATCH), predict(OPERATORS, machine, "fp32", BATCH)
    assert seen[0].limit_ms == pytest.approx(3.0 * here.latency_ms / there.latency_ms)
