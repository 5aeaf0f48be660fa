import re
from pathlib import Path

import pytest
from calibrations import NUMBERS, calibration, exactly

from edgelean.board import Board, board_names, load_board
from edgelean.board.model import Calibration
from edgelean.errors import InputError, MissingError

SHIPPED = {
    "jetson-agx-orin-64gb",
    "jetson-orin-nx-16gb",
    "jetson-orin-nano-8gb-super",
    "jetson-thor-t5000",
    "rtx-3060-12gb",
    "rtx-4070",
    "rtx-4090",
    "rtx-5090",
    "h100-sxm",
    "raspberry-pi-5",
    "this-machine",
}
MINIMAL = """
title = "A board"
kind = "gpu"
[compute]
fp32_tflops = { value = 1.5, source = "data sheet", confidence = "datasheet" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_shelf_has_every_board_that_the_readme_promises():
    assert set(board_names()) >= SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_number_has_a_source_and_a_confidence_and_an_unknown_one_says_why(name):
    for key, fact in load_board(name).facts().items():
        assert len(fact.source) > 5, key
        assert (fact.value is None) == (fact.confidence is None), key


@pytest.mark.parametrize(
    ("name", "units", "ghz", "fp16_per_clock", "int8_per_clock"),
    [
        ("jetson-agx-orin-64gb", 16, 1.3, 2048, 4096),
        ("jetson-orin-nx-16gb", 8, 0.918, 2048, 4096),
        ("jetson-orin-nano-8gb-super", 8, 1.02, 2048, 4096),
        ("rtx-3060-12gb", 28, 1.777, 512, 2048),
        ("rtx-4070", 46, 2.475, 512, 2048),
        ("rtx-4090", 128, 2.52, 512, 2048),
        ("rtx-5090", 170, 2.407, 512, 2048),
    ],
)
def test_a_peak_rate_is_units_times_clock_times_width(name, units, ghz, fp16_per_clock, int8_per_clock):
    compute = load_board(name).compute
    assert compute.fp32_tflops.value == pytest.approx(units * 128 * 2 * ghz / 1e3, rel=0.01)
    assert compute.fp16_tflops.value == pytest.approx(units * fp16_per_clock * ghz / 1e3, rel=0.01)
    assert compute.int8_tops.value == pytest.approx(units * int8_per_clock * ghz / 1e3, rel=0.01)


def test_a_peak_rate_is_never_a_guess():
    for name in board_names():
        compute = load_board(name).compute
        for fact in (compute.fp32_tflops, compute.fp16_tflops, compute.int8_tops):
            assert fact.confidence != "guess"


def test_nothing_is_known_about_this_machine_in_advance():
    assert {fact.value for fact in load_board("this-machine").facts().values()} == {None}


def test_an_idle_power_that_nobody_published_is_left_out():
    assert load_board("rtx-4090").power.idle_w.value is None
    assert load_board("h100-sxm").power.idle_w.value is None


def test_a_graphics_card_is_told_from_its_siblings():
    cards = ["NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce RTX 3060 Laptop GPU"]
    pattern = load_board("rtx-3060-12gb").match.nvml_name
    assert pattern is not None
    assert [card for card in cards if re.search(pattern, card)] == ["NVIDIA GeForce RTX 3060"]


def test_a_board_with_a_total_rail_does_not_add_up_what_is_inside_it():
    assert load_board("jetson-orin-nx-16gb").sensors.total_rail == "VDD_IN"
    assert load_board("jetson-orin-nx-16gb").sensors.sum_rails == ()
    assert load_board("jetson-agx-orin-64gb").sensors.total_rail is None
    assert len(load_board("jetson-agx-orin-64gb").sensors.sum_rails) == 3


def test_a_board_of_ones_own_needs_no_more_than_a_title_and_a_kind(tmp_path):
    board = load_board(write(tmp_path, MINIMAL))
    assert board.name == "mine"
    assert board.compute.fp32_tflops.value == 1.5
    assert board.power.max_w.value is None


def test_a_board_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_board("rtx-4090").title = "other"  # type: ignore[misc]  # the point of the test


def test_a_board_survives_json():
    board = load_board("jetson-thor-t5000")
    assert Board.model_validate_json(board.model_dump_json()) == board


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rtx-4080", "rtx-4090"), ("jetson-orin-nx", "jetson-orin-nx-16gb"), ("??", "known are h100-sxm")],
)
def test_an_unknown_board_is_answered_with_near_names(name, hint):
    with pytest.raises(MissingError, match="no board named") as caught:
        load_board(name)
    assert hint in str(caught.value)


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"gone\.toml: this board file does not exist"):
        load_board(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("title = 'x'\nkind = 'tpu'", "kind: should be 'gpu' or 'cpu', found 'tpu'"),
        ("kind = 'gpu'", "title: is missing"),
        (
            MINIMAL.replace("fp32_tflops", "fp32_tflop"),
            "compute.fp32_tflop: is not a known key; did you mean fp32_tflops",
        ),
        (MINIMAL.replace("1.5", "-1.5"), "compute.fp32_tflops: must be above 0, found -1.5"),
        (MINIMAL.replace("1.5", "nan"), "compute.fp32_tflops.value: should be a finite number"),
        (MINIMAL.replace(', confidence = "datasheet"', ""), "compute.fp32_tflops: a value needs a confidence"),
        (MINIMAL.replace('"datasheet"', '"hearsay"'), "compute.fp32_tflops.confidence: should be 'measured'"),
        (MINIMAL + "[memory]\nshared = 3", "memory.shared: should be a valid boolean"),
        (
            MINIMAL + '[memory]\nbandwidth_efficiency = { value = 60, source = "x", confidence = "guess" }',
            "memory.bandwidth_efficiency: must be a share above 0 and up to 1, found 60",
        ),
        (
            MINIMAL + '[power]\nidle_w = { value = 9, source = "x", confidence = "guess" }\n'
            'max_w = { value = 5, source = "x", confidence = "guess" }',
            "power: idle_w (9 W) must not be above max_w (5 W)",
        ),
        ("name = 'x'\n" + MINIMAL, "name: must not be written here"),
        ("title = 'x'\nkind = ", "is not valid TOML: Invalid value (at line 2"),
        ("title = 'x'\n[compute", "at line 2, the end of the file"),
    ],
)
def test_a_bad_board_file_is_answered_with_file_key_and_what_is_allowed(tmp_path, text, complaint):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_board(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_every_mistake_of_a_file_is_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load_board(write(tmp_path, "kind = 'tpu'\ntypo = 1"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as a text file"):
        load_board(path)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_no_shipped_board_pretends_to_have_been_calibrated(name):
    calibration = load_board(name).calibration
    assert (calibration.fp32, calibration.fp16, calibration.int8) == (None, None, None)


def test_the_numbers_of_a_calibration_go_by_their_keys():
    assert dict(calibration().numbers) == NUMBERS


def test_a_changed_calibration_has_changed_numbers_and_one_that_was_asked_for_them_is_still_the_same():
    asked, never_asked = calibration(), calibration()
    assert dict(asked.numbers)["call_us"] == 2.0
    assert asked == never_asked
    changed = asked.model_copy(update={"call_us": exactly(3.0)})
    assert dict(changed.numbers)["call_us"] == 3.0
    assert dict(asked.numbers)["call_us"] == 2.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"call_us": {"value": 3, "low": 4, "high": 5}}, "the value 3 must lie in its interval, 4 to 5"),
        ({"near_gb_s": {"value": 0, "low": 0, "high": 5}}, "a rate must be above 0"),
        ({"overlap": {"value": 1.5, "low": 1, "high": 2}}, "must be a share up to 1, found 1.5"),
        ({"call_us": {"value": -1, "low": -1, "high": 2}}, "greater than or equal to 0"),
        ({"idle_w": {"value": 1, "low": 1, "high": 1}}, "idle_w, pj_per_flop and pj_per_byte are given together"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(change, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Calibration.model_validate(calibration().model_dump() | change)
