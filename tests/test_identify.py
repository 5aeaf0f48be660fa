"""Which board of the shelf a machine is, by its device tree or by the name of its GPU."""

from pathlib import Path

import pytest
from fake_driver import install

from edgelean.board import board_names, load_board
from edgelean.sensors.identify import board_here, is_board

SHELF = [load_board(name) for name in board_names()]


def with_device_tree(root: Path, *compatible: str) -> Path:
    file = root / "proc/device-tree/compatible"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"".join(name.encode() + b"\0" for name in compatible))
    return root


@pytest.fixture
def no_gpu(monkeypatch):
    driver = install(monkeypatch)
    driver.set(count=0)
    return driver


@pytest.mark.parametrize(
    ("compatible", "name"),
    [
        (("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"), "jetson-orin-nano-8gb-super"),
        (("nvidia,p3768-0000+p3767-0003", "nvidia,p3767-0003", "nvidia,tegra234"), "jetson-orin-nano-8gb-super"),
        (("nvidia,p3509-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"), "jetson-orin-nx-16gb"),
        (("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"), "jetson-agx-orin-64gb"),
        (("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"), "jetson-thor-t5000"),
        (("raspberrypi,5-model-b", "brcm,bcm2712"), "raspberry-pi-5"),
        (("raspberrypi,4-model-b", "brcm,bcm2711"), None),
        (("nvidia,p3768-0000+p3767-0001", "nvidia,p3767-0001", "nvidia,tegra234"), None),
    ],
)
def test_board_is_recognised_by_its_device_tree(tmp_path, no_gpu, compatible, name):
    found = board_here(SHELF, with_device_tree(tmp_path, *compatible))
    assert (found.name if found else None) == name


def test_name_that_only_begins_like_a_board_is_another_board(tmp_path, no_gpu):
    board = load_board("jetson-orin-nx-16gb")
    assert not is_board(board, with_device_tree(tmp_path, "nvidia,p3767-00001", "vendor,xp3767-0000"))


def test_carrier_made_by_others_still_has_the_module_in_its_device_tree(tmp_path, no_gpu):
    root = with_device_tree(tmp_path, "vendor,carrier+p3767-0000", "nvidia,tegra234")
    assert board_here(SHELF, root).name == "jetson-orin-nx-16gb"


def test_pc_without_a_gpu_is_no_board_but_this_machine(tmp_path, no_gpu):
    assert board_here(SHELF, tmp_path) is None
    assert [board.name for board in SHELF if is_board(board, tmp_path)] == ["this-machine"]


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", None),
        ("Orin (nvgpu)", None),
    ],
)
def test_board_is_recognised_by_the_whole_name_of_its_gpu(tmp_path, no_gpu, name, board):
    no_gpu.name(name)
    found = board_here(SHELF, tmp_path)
    assert (found.name if found else None) == board


def test_several_gpus_of_one_kind_are_the_board(tmp_path, no_gpu):
    no_gpu.name("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert board_here(SHELF, tmp_path).name == "h100-sxm"


def test_of_two_gpus_the_one_that_is_used_counts(tmp_path, no_gpu, monkeypatch):
    no_gpu.name("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert board_here(SHELF, tmp_path).name == "rtx-3060-12gb"
    assert not is_board(load_board("rtx-4090"), tmp_path)


def test_slice_of_a_gpu_is_not_the_board(tmp_path, no_gpu):
    no_gpu.name("NVIDIA H100 80GB HBM3")
    no_gpu.set(mig=1)
    assert board_here(SHELF, tmp_path) is None


def test_machine_whose_driver_does_not_start_is_no_board_with_a_gpu(tmp_path, no_gpu):
    no_gpu.fail("nvmlInitWithFlags", code=9)
    assert board_here(SHELF, tmp_path) is None
