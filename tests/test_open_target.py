"""Opening a target: by its name, by what this machine is, and by the runtimes that are here."""

from dataclasses import replace

import pytest

from edgelean.board import load_board
from edgelean.errors import InputError
from edgelean.profile import MeasuringSettings, load_profile
from edgelean.reading import Provenance
from edgelean.target import THOROUGH, open_target, probe_this_machine
from edgelean.target.runtime import OnnxRuntimeCpu, OnnxRuntimeCuda


@pytest.fixture(scope="module")
def machine():
    return probe_this_machine()


def test_targets_are_opened_by_name_and_by_the_board(machine):
    here, there = load_profile("this-machine"), load_profile("jetson-orin")
    orin = load_board(there.board)
    assert open_target(None, here, machine).provenance is Provenance.MEASURED
    assert open_target(None, there, orin).provenance is Provenance.MODELLED
    assert open_target("local", there, orin).provenance is Provenance.TRANSFERRED
    assert open_target("modelled", here, machine).provenance is Provenance.MODELLED


def test_target_knows_the_limit_of_an_absolute_budget(machine):
    profile = load_profile("this-machine")
    assert open_target(None, profile, machine).routine.patience.limit_ms is None
    with_limit = open_target(None, profile.with_budgets("3ms"), machine, routine=THOROUGH)
    assert with_limit.routine.patience == replace(THOROUGH.patience, limit_ms=3.0)


def recognise(monkeypatch, *boards):
    """Let this machine be these boards."""
    monkeypatch.setattr("edgelean.target.is_board", lambda board: board.name in boards)
    monkeypatch.setattr(
        "edgelean.target.board_here", lambda every: next((board for board in every if board.name in boards), None)
    )
    monkeypatch.setattr("edgelean.target.find_sensor", lambda *_, **__: None)


def test_board_that_this_machine_is_counts_as_measured(monkeypatch):
    profile = load_profile("raspberry-pi-5")
    board = load_board(profile.board)
    recognise(monkeypatch, board.name)
    target = open_target(None, profile, board)
    assert target.provenance is Provenance.MEASURED
    assert target.machine == board


def test_gpu_board_is_measured_only_by_a_runtime_on_its_gpu(monkeypatch):
    profile = load_profile("rtx-4090")
    board = load_board(profile.board)
    recognise(monkeypatch, board.name)
    monkeypatch.setattr("edgelean.target.open_runtime", lambda kind, wanted: OnnxRuntimeCpu())
    assert open_target("local", profile, board).provenance is Provenance.TRANSFERRED
    on_gpu = OnnxRuntimeCuda("RTX 4090")
    monkeypatch.setattr(
        "edgelean.target.open_runtime", lambda kind, wanted: on_gpu if kind == "gpu" else OnnxRuntimeCpu()
    )
    target = open_target(None, profile, board)
    assert target.provenance is Provenance.MEASURED
    assert target.runtime is on_gpu
    assert target.precision_here == "fp16"


def test_known_gpu_stands_in_for_another_gpu(monkeypatch):
    profile = load_profile("jetson-orin")
    recognise(monkeypatch, "rtx-4090")
    monkeypatch.setattr("edgelean.target.open_runtime", lambda kind, wanted: OnnxRuntimeCuda("RTX 4090"))
    target = open_target("local", profile, load_board(profile.board))
    assert target.provenance is Provenance.TRANSFERRED
    assert target.machine == load_board("rtx-4090")


def test_unknown_target_is_refused_with_those_that_exist(machine):
    with pytest.raises(InputError, match=r"cloud.*local, modelled or ssh"):
        open_target("cloud", load_profile("this-machine"), machine)


def test_local_target_is_no_place_for_tensorrt_without_a_gpu(machine):
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        open_target("local", load_profile("this-machine"), machine, runtime="tensorrt")


def test_board_over_ssh_is_told_what_the_profile_wants(monkeypatch):
    asked = []
    monkeypatch.setattr("edgelean.target.ssh.open_ssh", lambda *words, **more: asked.append((words, more)))
    profile = load_profile("jetson-orin").with_budgets("3ms")
    profile = profile.model_copy(update={"measuring": MeasuringSettings(on_sensor_loss="stop")})
    board = load_board(profile.board)
    open_target("ssh://orin", profile, board, routine=THOROUGH)
    ((words, more),) = asked
    assert words == ("ssh://orin", board, "fp16", 64, 50.0)
    assert more["on_loss"] == "stop"
    assert more["routine"] == replace(THOROUGH, patience=replace(THOROUGH.patience, limit_ms=3.0))
