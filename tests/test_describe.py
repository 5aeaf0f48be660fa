"""Boards that describe themselves: the agent's words about fake trees of real boards, and what is made of them."""

import json

import agent_program
import board_trees
import pytest
from board_trees import write

from edgelean.board import board_names, load_board
from edgelean.sensors.hwmon import find_rails
from edgelean.sensors.window import Energy
from edgelean.target.describe import describe, device_from, is_same, laid_out, recognised

IDLE = Energy(7.3, 2.0, 400, "hwmon power rail VDD_IN")
NVPMODEL = """
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
GPU MAX_FREQ 612000000
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
GPU MAX_FREQ -1
"""
GPU = {"name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-1", "driver": "590", "memory_bytes": 24 << 30}
GPU |= {"compute_capability": "8.9", "power_limit_w": 450.0}


@pytest.fixture(scope="module")
def parts():
    with agent_program.modules() as found:
        yield found


@pytest.fixture
def told(parts, tmp_path, monkeypatch):
    """Return what a device says of itself whose files lie under a root."""

    def ask(root, gpus=(), **changed):
        monkeypatch.setattr(parts.facts, "gpus", lambda: list(gpus))
        monkeypatch.setattr(parts.power, "examine", lambda root: [])  # it waits for every sensor to settle
        write(root, "proc/meminfo", "MemTotal:        7802264 kB")
        answer = json.loads(json.dumps(parts.facts.examine(tmp_path, root)))
        return device_from({**answer, **changed})

    return ask


def jetson(root, *compatible):
    write(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    write(root, "proc/device-tree/compatible", "\0".join([*compatible, "nvidia,tegra234", ""]))
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64")
    write(root, "etc/nvpmodel.conf", NVPMODEL)
    write(root, "var/lib/nvpmodel/status", "pmode:0000")
    board_trees.orin_nano(root)


def usable(device, *names):
    """Return the findings with these sensors working."""
    from edgelean.target.describe import Finding

    found = tuple(Finding(name, True, "works", "") for name in names)
    return type(device)(**{**vars(device), "sensors": found})


def test_the_files_of_a_board_arrive_as_they_are(told, tmp_path):
    root = tmp_path / "board"
    jetson(root, "nvidia,p3768-0000+p3767-0005-super")
    device = told(root)
    with laid_out(device.files) as copy:
        here, there = ({rail.name: rail.read_w() for rail in find_rails(place)} for place in (root, copy))
    assert here == there
    assert here["VDD_IN"] == 6.0


def test_a_board_of_the_shelf_is_known_again_and_keeps_what_the_shelf_knows(told, tmp_path):
    root = tmp_path / "board"
    jetson(root, "nvidia,p3768-0000+p3767-0005-super")
    device = usable(told(root), "hwmon")
    assert recognised(device).name == "jetson-orin-nano-8gb-super"
    board, shelf = describe(device, "mine", IDLE), load_board("jetson-orin-nano-8gb-super")
    assert (board.name, board.title, board.kind) == ("mine", shelf.title, "gpu")
    assert (board.compute, board.launch, board.alignment, board.match) == (
        shelf.compute,
        shelf.launch,
        shelf.alignment,
        shelf.match,
    )
    assert board.sensors == shelf.sensors
    assert board.memory.capacity_gb.value == pytest.approx(7.9895, abs=1e-3)
    assert (board.power.idle_w.value, board.power.idle_w.confidence) == (3.65, "measured")
    assert "2.0 s without work" in board.power.idle_w.source
    assert [(mode.id, mode.name, mode.gpu_mhz) for mode in board.power.modes] == [
        (0, "15W", 612.0),
        (2, "MAXN_SUPER", None),
    ]
    assert board.software.jetpack == "6.2"


@pytest.mark.parametrize(
    ("tree", "rails"),
    [
        (board_trees.orin_nano, ("VDD_IN", ())),
        (board_trees.agx_orin, (None, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))),
        (board_trees.thor, ("VIN", ())),
        (board_trees.agx_xavier_jetpack_4, (None, ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unknown_jetson_gets_the_rails_that_are_the_whole_board(told, tmp_path, tree, rails):
    root = tmp_path / "board"
    tree(root)
    write(root, "proc/device-tree/compatible", "acme,anvil\0nvidia,tegra999\0")
    board = describe(usable(told(root), "hwmon"), "mine", None)
    assert (board.sensors.total_rail, board.sensors.sum_rails) == rails
    assert (board.kind, board.match.device_tree) == ("gpu", ("acme,anvil",))
    assert all(fact.value is None for key, fact in board.facts().items() if key.startswith("compute"))


def test_a_graphics_card_is_known_by_its_name_and_says_its_memory_and_its_limit(told, tmp_path):
    device = usable(told(tmp_path / "pc", gpus=[GPU]), "nvml counter")
    assert recognised(device).name == "rtx-4090"
    board = describe(device, "mine", None)
    assert board.memory.capacity_gb.value == pytest.approx(24 * 2**30 / 1e9)
    assert board.power.max_w.value == 450
    assert board.sensors.backend == "nvml"
    other = usable(told(tmp_path / "pc", gpus=[{**GPU, "name": "NVIDIA Foo (bar)"}]), "nvml counter")
    described = describe(other, "mine", None)
    assert described.match.nvml_name == r"^NVIDIA\ Foo\ \(bar\)$"
    assert is_same(other, described)
    assert described.compute.fp16_tflops.value is None


def test_a_processor_without_a_sensor_is_described_by_its_memory_alone(told, tmp_path):
    write(tmp_path / "pc", "proc/cpuinfo", "processor : 0\nmodel name : Loom 9000")
    board = describe(usable(told(tmp_path / "pc")), "mine", None)
    assert (board.title, board.kind, board.sensors.backend) == ("Loom 9000", "cpu", "none")
    assert [key for key, fact in board.facts().items() if fact.value is not None] == ["memory.capacity_gb"]
    assert board.match.processor == "Loom 9000"
    assert is_same(told(tmp_path / "pc"), board)
    write(tmp_path / "pc", "proc/cpuinfo", "processor : 0\nmodel name : Loom 8000")
    assert not is_same(told(tmp_path / "pc"), board)


def test_an_idle_power_above_the_known_maximum_leaves_the_maximum_open(told, tmp_path):
    device = usable(told(tmp_path / "pc", gpus=[{**GPU, "power_limit_w": None}]), "nvml counter")
    board = describe(device, "mine", Energy(1000.0, 2.0, 1, "NVML"))
    assert (board.power.idle_w.value, board.power.max_w.value) == (500.0, None)
    assert "450 W" in board.power.max_w.source


def test_no_device_is_two_boards_of_the_shelf(told, tmp_path):
    jetson(tmp_path / "board", "nvidia,p3768-0000+p3767-0005-super")
    device = told(tmp_path / "board")
    assert [name for name in board_names() if name != "this-machine" and is_same(device, load_board(name))] == [
        "jetson-orin-nano-8gb-super"
    ]
