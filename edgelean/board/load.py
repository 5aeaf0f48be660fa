"""Finding boards on the shelf."""

from __future__ import annotations

from pathlib import Path

from edgelean.board.document import document_names, find_document, read_document
from edgelean.board.model import Board
from edgelean.shelf import shelf


def board_names() -> tuple[str, ...]:
    """Return the names of the boards that ship with edgelean, sorted."""
    return document_names(_folder())


def load_board(name_or_path: str | Path) -> Board:
    """Return a board by its name, or by the path of a TOML file of one's own.

    Raises
    ------
    MissingError
        There is no such board; the message has the nearest names.
    InputError
        The file is malformed: ``FILE: key: what is allowed``.
    """
    path = find_document("board", _folder(), name_or_path)
    return read_document(Board, path, {"name": path.stem})


def _folder() -> Path:
    return shelf("devices") / "boards"
