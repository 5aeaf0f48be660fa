"""What is made here of what a board over ssh sends: statistics, conditions, judgement; no connection is needed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import agent_program
import numpy as np
import onnx
import pytest
import small_onnx

from edgelean.board import Board, load_board
from edgelean.board.model import Match, Sensors
from edgelean.errors import DeviceError, InputError
from edgelean.sensors.window import Energy
from edgelean.target.agent import Agent, AgentError, one_file, packed
from edgelean.target.candidate import Candidate
from edgelean.target.describe import device_from, glance_of
from edgelean.target.latency import percentile_interval
from edgelean.target.ssh import SshTarget, energy_of, idle_power, moved, refuse_another, runtime_for

BOARD = Board(name="mine", title="My board", kind="cpu", sensors=Sensors(backend="pmic"))
CROWDED = {"proc/stat": "cpu 500 0 0 100 0 0 0 0"}
SAMPLES = (1.0, 1.01, 1.02, 0.99, 1.0, 1.01, 0.98, 1.0) * 3


@pytest.fixture(scope="module")
def parts():
    with agent_program.modules() as found:
        yield found


@pytest.fixture(scope="module")
def facts(parts, tmp_path_factory):
    """What the agent says of this machine, in the form in which it arrives."""
    return json.loads(json.dumps(parts.facts.examine(tmp_path_factory.mktemp("facts"))))


@pytest.fixture
def device(facts):
    return device_from(facts)


class Prepared:
    """A line to an agent that gives prepared answers."""

    words = "ssh://board"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def run(self, program, content, hear):
        self.asked.append(json.loads(content.split(b"\n", 1)[0]))
        hear("Welcome to my board")
        hear(json.dumps(self.answers.pop(0)))

    def close(self):
        self.asked.append("closed")


def state(at_s, **changed):
    files = {
        "proc/stat": f"cpu {int(at_s * 100)} 0 0 {int(at_s * 100)} 0 0 0 0",
        "proc/loadavg": "0.5 0.4 0.3 1/100 4242",
    }
    return {"at_s": at_s, "own_s": at_s, "processors": 2, "files": files, "throttled": "", "gpu": None, **changed}


def window(watts, calls=10, seconds=0.5):
    return {"joules": watts * seconds, "seconds": seconds, "calls": calls}


def answer(**changed):
    """What the agent sends after a quiet measurement: 1 ms, 8 W at work, 3 W idle."""
    energy = {
        "windows": [window(8.0), window(8.2), window(7.8)],
        "idle": [window(3.0), window(3.0)],
        "before": state(0.0),
        "after": state(1.0),
        "sensor": "pmic",
        "method": "PMIC rails",
        "refused": [],
    }
    measured = {
        "event": "result",
        "repeats": [{"samples_ms": SAMPLES, "narrow": True}, {"samples_ms": SAMPLES[::-1], "narrow": True}],
        "paces_s": [1e-3, 1e-3, 1e-3],
        "clocks_mhz": [],
        "energy": energy,
        "before": state(1.0),
        "after": state(3.0),
        "runtime": "onnxruntime 1.2.3, CPUExecutionProvider",
        "threads": "1",
    }
    return {**measured, **changed}


@pytest.fixture(scope="module")
def candidate(tmp_path_factory):
    model = small_onnx.save_perceptron(tmp_path_factory.mktemp("model") / "m.onnx")
    return Candidate(lambda precision: model, (), lambda: {"input": small_onnx.samples(4)})


def target_of(device, *answers, board=BOARD, percentile=50.0, runtime="onnxruntime CPU"):
    agent = Agent(Prepared(*answers), ("agent",), lambda words: None, lambda seconds: None)
    return SshTarget(agent, device, board, "fp32", 4, percentile, runtime)


# -- a reading ---------------------------------------------------------------------------------------------------------


def test_the_latency_is_the_exact_percentile_of_all_samples(device, candidate):
    reading = target_of(device, answer(), percentile=90.0).read(candidate)
    exact = percentile_interval(SAMPLES * 2, 90)
    assert reading.latency.value == exact.value
    assert reading.latency.low <= exact.low <= exact.high <= reading.latency.high
    assert sorted(reading.samples_ms) == sorted(SAMPLES * 2)
    assert reading.noise == ""
    assert "48 calls in 2 sessions" in reading.latency.method


def test_the_energy_is_that_of_one_inference_gross_and_net(device, candidate):
    reading = target_of(device, answer()).read(candidate)
    assert reading.energy.value == pytest.approx(8.0 * 0.5 / 10 / 4 * 1e3)
    assert reading.energy_net.value == pytest.approx((8.0 - 3.0) * 0.5 / 10 / 4 * 1e3)
    assert reading.energy.low < reading.energy.value < reading.energy.high
    assert "idle power 3 W" in reading.energy.method


def test_a_noisy_reading_is_taken_again_and_then_says_so(device, candidate):
    noisy = answer(paces_s=[1e-3, 1.2e-3, 1e-3])
    target = target_of(device, noisy, answer())
    assert target.read(candidate).noise == ""
    target = target_of(device, noisy, noisy)
    assert "the processor became 20.0 % slower" in target.read(candidate).noise


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"after": state(3.0, throttled="throttled=0x4")}, ""),
        ({"clocks_mhz": [612.0, 918.0, 918.0]}, "moved between 612 and 918 MHz"),
        ({"after": state(3.0, files=CROWDED)}, "other processes took 100 % of a core"),
        (
            {"repeats": [{"samples_ms": [1.0] * 9, "narrow": True}, {"samples_ms": [2.0] * 8, "narrow": True}]},
            "the median of one",
        ),
    ],
)
def test_what_disturbed_the_board_is_said_with_its_remedy(device, candidate, changed, words):
    noise = target_of(device, answer(**changed), answer(**changed)).read(candidate).noise
    assert words in noise
    assert (noise != "") == (words != "")


def test_a_raspberry_pi_that_was_throttled_is_noisy(device, candidate):
    pi = replace(device, files={**device.files, "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0"})
    slow = answer(before=state(1.0, throttled="throttled=0x0"), after=state(3.0, throttled="throttled=0x50005"))
    assert "its supply voltage was too low" in target_of(pi, slow, slow).read(candidate).noise


def test_a_gpu_that_was_hot_is_noisy_and_its_limit_is_its_power_mode(device, candidate):
    gpu = {"words": "RTX", "clock_mhz": 900.0, "memory_mhz": None, "temperature_c": 91.0, "power_limit_w": 250.0}
    hot = answer(
        before=state(1.0, gpu={**gpu, "reasons": 0, "held_s": {}}),
        after=state(3.0, gpu={**gpu, "reasons": 0x20, "held_s": {}}),
    )
    target = target_of(device, hot, hot, board=BOARD.model_copy(update={"kind": "gpu"}), runtime="tensorrt")
    reading = target.read(candidate)
    assert "slowed the GPU down" in reading.noise
    assert reading.conditions["power mode"] == "GPU limited to 250 W"
    assert "gpu" in reading.conditions


def test_energy_that_others_were_using_too_is_noisy(device, candidate):
    shared = answer()
    shared["energy"] = {**shared["energy"], "after": state(1.0, own_s=0.5)}
    assert "the sensor counts their energy too" in target_of(device, shared, shared).read(candidate).noise


def test_a_power_mode_that_was_changed_between_two_readings_stops_the_run(device, candidate, monkeypatch):
    words = iter(["15W (mode 0)", "15W (mode 0)", "MAXN_SUPER (mode 2)"])
    monkeypatch.setattr("edgelean.target.ssh.conditions", lambda before, after: {"power mode": next(words)})
    target = target_of(device, answer(), answer(), answer())
    target.read(candidate)
    target.read(candidate)
    with pytest.raises(DeviceError, match=r"was '15W \(mode 0\)' and is now 'MAXN_SUPER \(mode 2\)'.* resume"):
        target.read(candidate)


def test_only_absent_files_are_sent_and_only_they_are_removed(device, candidate):
    absent = {"event": "error", "kind": "absent", "remedy": "send them first"}
    model, feeds = one_file(candidate.onnx("fp32")), packed(candidate.sample())
    name = f"{agent_program.sha(model)}.onnx"
    done = {"event": "result"}
    target = target_of(device, {**absent, "message": name}, done, answer(), done)
    target.read(candidate)
    target.close()
    asked = target.agent.line.asked
    assert [request["command"] for request in asked[:-1]] == ["measure", "store", "measure", "clean"]
    assert (asked[1]["sha256"], asked[1]["size"]) == (agent_program.sha(model), len(model))
    assert asked[3]["files"] == [agent_program.sha(model)]
    assert asked[0]["feeds"] == agent_program.sha(feeds)
    assert asked[-1] == "closed"


def test_the_board_that_has_no_sensor_is_not_asked_for_energy(device, candidate):
    target = target_of(device, answer(energy=None), board=BOARD.model_copy(update={"sensors": Sensors()}))
    assert target.read(candidate).energy is None
    assert target.agent.line.asked[0]["energy"] is None


@pytest.mark.parametrize(
    "garbage", [{"event": "result"}, answer(repeats=[]), answer(before=7), answer(runtime=None, repeats=3)]
)
def test_an_answer_that_cannot_be_read_is_an_error_of_the_device(device, candidate, garbage):
    with pytest.raises(DeviceError, match="the agent's answer cannot be read"):
        target_of(device, garbage).read(candidate)


def test_nothing_that_a_board_says_can_steer_the_terminal(device):
    said = []
    line = Prepared({"event": "error", "kind": "runtime", "message": "a\x1b[2Jb", "remedy": "c\rd"})
    with pytest.raises(AgentError) as refused:
        Agent(line, ("agent",), said.append).ask("facts")
    assert str(refused.value) == "ssh://board: a [2Jb: c d"
    assert refused.value.kind == "runtime"


def test_an_agent_that_says_nothing_is_an_error(device):
    with pytest.raises(DeviceError, match="ended without an answer"):
        Agent(Prepared({"event": "progress", "message": "hello"}), ("agent",), lambda words: None).ask("facts")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a\0b"])
def test_nothing_that_a_board_sends_is_written_elsewhere(device, path):
    with pytest.raises(DeviceError, match="that is not an agent of edgelean"):
        glance_of(device, state(1.0, files={path: "x"}))


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_idle_power_has_the_interval_of_its_windows():
    idle = idle_power([Energy(joules, 2.0, 1, "m") for joules in (5.9, 6.1, 6.0)])
    assert idle.value == pytest.approx(3.0)
    assert idle.high - idle.value == pytest.approx(4.303 * np.std([2.95, 3.05, 3.0], ddof=1) / np.sqrt(3))


def test_a_sensor_that_shows_the_same_with_work_and_without_is_refused():
    stuck = {**answer()["energy"], "windows": [window(3.0), window(3.0)]}
    with pytest.raises(DeviceError, match="read the same 3 W with work and without"):
        energy_of(stuck)


def test_a_clock_that_moves_a_little_has_not_moved():
    assert moved([]) == moved([1020.0, 1020.0, 1000.0]) == ""
    assert "sudo jetson_clocks" in moved([306.0, 612.0])


# -- the board ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "packages", "providers", "runtime"),
    [
        (
            "cpu",
            {"numpy": "1", "onnxruntime": "1.20", "tensorrt": "10.3.0"},
            ("CUDAExecutionProvider",),
            "onnxruntime CPU",
        ),
        ("gpu", {"numpy": "1", "onnxruntime": "1.20", "tensorrt": "10.3.0"}, ("CUDAExecutionProvider",), "tensorrt"),
        (
            "gpu",
            {"numpy": "1", "onnxruntime": "1.20", "tensorrt": "8.6.1"},
            ("CUDAExecutionProvider",),
            "onnxruntime CUDA",
        ),
        ("gpu", {"numpy": "1", "onnxruntime": "1.20", "tensorrt": None}, ("CPUExecutionProvider",), ""),
        ("cpu", {"numpy": "1", "onnxruntime": None, "tensorrt": "11.1"}, (), ""),
    ],
)
def test_a_board_is_measured_in_what_it_deploys(device, kind, packages, providers, runtime):
    found = replace(device, packages=packages, providers=providers)
    board = BOARD.model_copy(update={"kind": kind})
    if runtime:
        assert runtime_for(found, board, "ssh://b") == runtime
        return
    with pytest.raises(DeviceError, match="the board needs numpy and"):
        runtime_for(found, board, "ssh://b")


def test_a_board_file_without_rules_fits_every_device_and_one_with_rules_only_its_own(device):
    pi = replace(device, files={**device.files, "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712"})
    refuse_another(device, BOARD, "ssh://b")
    refuse_another(pi, load_board("raspberry-pi-5"), "ssh://b")
    with pytest.raises(
        InputError, match=r"wanted the board rtx-4090 .*: name the board 'raspberry-pi-5' in the profile"
    ):
        refuse_another(pi, load_board("rtx-4090"), "ssh://b")
    with pytest.raises(InputError, match="`edgelean boards probe ssh://b` describes it"):
        refuse_another(device, BOARD.model_copy(update={"match": Match(device_tree=("acme,anvil",))}), "ssh://b")


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_weights_that_lie_beside_the_model_travel_with_it(tmp_path):
    whole = small_onnx.save_perceptron(tmp_path / "whole.onnx")
    assert one_file(whole) == whole.read_bytes()
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(whole), split, save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert len(split.read_bytes()) < len(one_file(split))
    (Path(tmp_path) / "weights.bin").unlink()
    (tmp_path / "again.onnx").write_bytes(one_file(whole))
    onnx.checker.check_model(str(tmp_path / "again.onnx"))


def test_the_same_inputs_are_the_same_bytes_whatever_they_are_called():
    feeds = {"file": np.ones((2, 3), np.float32), "allow_pickle": np.arange(4), "a/b": np.zeros(1)}
    assert packed(feeds) == packed(feeds)
    with np.load(io.BytesIO(packed(feeds)), allow_pickle=False) as back:
        assert set(back.files) == set(feeds)
        assert all((back[name] == array).all() and back[name].dtype == array.dtype for name, array in feeds.items())
