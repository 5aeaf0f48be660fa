"""A board that is written is the board that is read again."""

from pathlib import Path

import pytest
from calibrations import calibrated_board

from edgelean.board import board_names, load_board
from edgelean.board.write import refuse_to_overwrite, write_board
from edgelean.errors import InputError


@pytest.mark.parametrize("name", board_names())
def test_a_shipped_board_survives_writing_and_reading_but_for_its_name(name, tmp_path):
    board = load_board(name)
    path = tmp_path / "copy.toml"
    write_board(board, path, "A copy.")
    assert load_board(path) == board.model_copy(update={"name": "copy"})


def test_a_calibration_survives_with_every_interval(tmp_path):
    board = calibrated_board()
    write_board(board, tmp_path / "mine.toml", "")
    again = load_board(tmp_path / "mine.toml")
    assert again.calibration == board.calibration
    assert again.calibration.fp32.numbers == board.calibration.fp32.numbers


def test_the_head_of_the_file_says_how_it_was_made(tmp_path):
    path = tmp_path / "mine.toml"
    write_board(load_board("this-machine"), path, "Written by a test,\n\non a Tuesday. Größe: 3 µs")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Written by a test,\n#\n# on a Tuesday. Größe: 3 µs\n\n")


def test_a_file_that_is_there_is_left_as_it_is(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"mine\.toml: exists already, and is not overwritten"):
        write_board(load_board("this-machine"), path, "")
    assert path.read_text() == "precious"


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    link = tmp_path / "mine.toml"
    link.symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(InputError, match="exists already"):
        write_board(load_board("this-machine"), link, "")
    assert not (tmp_path / "elsewhere.toml").exists()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("mine.yaml", r"ends in \.toml"), ("mine", r"ends in \.toml"), ("no/mine.toml", "does not exist: create it")],
)
def test_a_file_that_no_board_can_be_read_from_is_refused(path, complaint, tmp_path):
    with pytest.raises(InputError, match=complaint):
        refuse_to_overwrite(tmp_path / Path(path))
