"""Targets: where a candidate is measured."""

from __future__ import annotations

from edgelean.board import Board
from edgelean.errors import InputError
from edgelean.profile import Profile
from edgelean.sensors import find_sensor
from edgelean.target.candidate import Candidate as Candidate
from edgelean.target.candidate import Target as Target
from edgelean.target.local import LocalTarget
from edgelean.target.modelled import ModelledTarget
from edgelean.target.probe import probe_this_machine as probe_this_machine

THIS_MACHINE = "this-machine"


def open_target(spec: str | None, profile: Profile, board: Board) -> Target:
    """Return the target that ``--target`` names.

    Parameters
    ----------
    spec
        ``"local"``, ``"modelled"``, or None: local where the board is this machine, else modelled.
    profile
        Says precision, batch and the percentile of the latency.
    board
        The board of the profile. The numbers that a description of this machine lacks are measured.

    Raises
    ------
    InputError
        There is no such target.
    """
    is_here = board.name == THIS_MACHINE
    budget = profile.budgets.latency
    percentile = 50.0 if budget is None else budget.percentile
    match spec or ("local" if is_here else "modelled"):
        case "local":
            machine = probe_this_machine(board if is_here else None)
            meant = machine if is_here else board
            return LocalTarget(meant, machine, profile.precision, profile.batch, percentile, find_sensor(machine))
        case "modelled":
            meant = probe_this_machine(board) if is_here else board
            return ModelledTarget(meant, profile.precision, profile.batch, percentile)
        case other if other.startswith("ssh://"):
            raise InputError(f"--target {other}: boards over ssh are not in this version: use local or modelled")
        case other:
            raise InputError(f"--target {other}: no such target: use local or modelled")
