"""Writing a board as a file that can be read again."""

from __future__ import annotations

from pathlib import Path

from edgelean.board.model import Board
from edgelean.errors import InputError


def write_board(board: Board, path: Path, comment: str) -> None:
    """Write a board to a new TOML file; read again, it is the same board, but for the name, which is the file's.

    Parameters
    ----------
    board
        What to write.
    path
        The file, which must not exist; its name ends in ``.toml``.
    comment
        How the numbers were found, in lines of plain text. It becomes the head of the file.

    Raises
    ------
    InputError
        The file exists, its name has another ending, or its folder does not exist.
    """
    import tomli_w

    refuse_to_overwrite(path)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    body = tomli_w.dumps(board.model_dump(mode="json", exclude={"name"}, exclude_none=True))
    with path.open("x", encoding="utf-8") as file:
        file.write(f"{head}\n{body}")


def refuse_to_overwrite(path: Path) -> None:
    """Check that a board can be written to a file, before anything is measured for it.

    Raises
    ------
    InputError
        As in :func:`write_board`.
    """
    if path.suffix != ".toml":
        raise InputError(f"{path}: a board file ends in .toml, and its name before that is the name of the board")
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists already, and is not overwritten: name another file, or move this one away")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist: create it, or name another file")
