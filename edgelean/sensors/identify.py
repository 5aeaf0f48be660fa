"""Whether this machine is a board of the shelf."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgelean.board import Board
from edgelean.sensors.kernel_files import ROOT, compatible_of, processor_name
from edgelean.sensors.nvml import find_gpu
from edgelean.sensors.window import SensorError

THIS_MACHINE = "this-machine"


def is_board(board: Board, root: Path = ROOT) -> bool:
    """Return whether this machine is the board: by its device tree, or by the name of its GPU or processor.

    The description of this machine, whatever it is, always fits.
    """
    if board.name == THIS_MACHINE:
        return True
    if any(_names(entry, wanted) for entry in compatible_of(root) for wanted in board.match.device_tree):
        return True
    if board.match.processor is not None and board.match.processor == processor_name(root / "proc/cpuinfo"):
        return True
    return board.match.nvml_name is not None and _has_gpu(board.match.nvml_name)


def board_here(boards: Iterable[Board], root: Path = ROOT) -> Board | None:
    """Return the first of these boards that this machine is; None where it is none that has a name of its own."""
    return next((board for board in boards if board.name != THIS_MACHINE and is_board(board, root)), None)


def _names(entry: str, wanted: str) -> bool:
    """Return whether an entry of a device tree names a board.

    NVIDIA writes carrier and module in one, with a suffix for the newer power modes:
    ``nvidia,p3768-0000+p3767-0005-super``.
    """
    return entry == wanted or re.search(rf"(^|[,+]){re.escape(wanted)}($|[+]|-super$)", entry) is not None


def _has_gpu(pattern: str) -> bool:
    """Return whether the GPU that would be used here fits; of several that do, any is the board."""
    try:
        find_gpu(name_pattern=pattern)
    except SensorError as why:
        return why.detail.startswith("several GPUs fit")
    return True
