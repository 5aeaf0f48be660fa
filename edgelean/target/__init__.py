"""Targets: where a candidate is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from edgelean.board import Board, Precision, board_names, load_board
from edgelean.errors import InputError
from edgelean.profile import Profile
from edgelean.sensors import find_sensor
from edgelean.sensors.identify import THIS_MACHINE, board_here, is_board
from edgelean.target.candidate import Candidate as Candidate
from edgelean.target.candidate import Target as Target
from edgelean.target.local import IN_THE_LOOP as IN_THE_LOOP
from edgelean.target.local import THOROUGH as THOROUGH
from edgelean.target.local import LocalTarget, Routine
from edgelean.target.modelled import ModelledTarget
from edgelean.target.probe import probe_this_machine as probe_this_machine
from edgelean.target.runtime import Runtime, RuntimeName, open_runtime


def open_target(
    spec: str | None,
    profile: Profile,
    board: Board,
    *,
    runtime: RuntimeName | Runtime | None = None,
    routine: Routine | None = None,
) -> Target:
    """Return the target that ``--target`` names.

    Parameters
    ----------
    spec
        ``"local"``, ``"modelled"``, ``"ssh://[user@]host"``, or None: local where the board is this machine, else
        modelled.
    profile
        Says precision, batch, the percentile of the latency, and its limit if that is absolute.
    board
        The board of the profile. The numbers that a description of this machine lacks are measured.
    runtime
        What runs the candidate here; None for what the board deploys.
    routine
        How one reading goes; None for what suits the many readings of a run.

    Raises
    ------
    InputError
        There is no such target.
    DeviceError
        The runtime is not here, or the board over ssh does not answer.
    """
    budget, on_loss = profile.budgets.latency, profile.measuring.on_sensor_loss
    percentile = 50.0 if budget is None else budget.percentile
    match spec or ("local" if is_board(board) else "modelled"):
        case "local":
            meant, machine, place = _here(board, runtime)
            sensor = find_sensor(machine, on_loss=on_loss, device=place.device)
            wanted = routine_for(profile, routine or IN_THE_LOOP)
            return LocalTarget(meant, machine, profile.precision, profile.batch, percentile, sensor, place, wanted)
        case "modelled":
            meant = probe_this_machine(board) if board.name == THIS_MACHINE else board
            return ModelledTarget(meant, profile.precision, profile.batch, percentile)
        case other if other.startswith("ssh://"):
            from edgelean.target.ssh import ON_A_BOARD, open_ssh

            wanted = routine_for(profile, routine or ON_A_BOARD)
            asked = (other, board, profile.precision, profile.batch, percentile)
            return open_ssh(*asked, routine=wanted, on_loss=on_loss)
        case other:
            raise InputError(f"--target {other}: no such target: use local, modelled or ssh://[user@]host")


def in_precision(target: Target, precision: Precision) -> Target:
    """Return the same target for candidates in another precision; what it holds, both hold."""
    # Every target is a dataclass, which a protocol cannot say.
    return cast(Target, replace(cast(Any, target), precision=precision))


def thorough(target: Target, profile: Profile) -> Target:
    """Return the target for a figure that is published: on this machine it takes its time, a board always does."""
    return replace(target, routine=routine_for(profile, THOROUGH)) if isinstance(target, LocalTarget) else target


def routine_for(profile: Profile, routine: Routine) -> Routine:
    """Return the routine that goes on until there is a verdict on the latency budget, where that is absolute."""
    budget = profile.budgets.latency
    return replace(routine, patience=replace(routine.patience, limit_ms=None if budget is None else budget.limit))


def _here(board: Board, wanted: RuntimeName | Runtime | None) -> tuple[Board, Board, Runtime]:
    """Return the board that is meant, what its candidates run on here, and in which runtime.

    The two boards are the same where this machine is the board and the runtime runs on its kind of device: then
    figures are measured. Else a GPU of the shelf stands in for another GPU, and the processor for everything.
    """
    if board.name == THIS_MACHINE:
        runtime = _opened("cpu", wanted)
        machine = probe_this_machine(board)
        return machine, machine, runtime
    here = board if is_board(board) else _gpu_of_the_shelf() if board.kind == "gpu" else None
    if here is not None:
        runtime = _opened(here.kind, wanted)
        if runtime.device == here.kind:
            return board, here, runtime
    runtime = _opened("cpu", wanted)
    return board, probe_this_machine(), runtime


def _gpu_of_the_shelf() -> Board | None:
    return board_here(board for board in map(load_board, board_names()) if board.kind == "gpu")


def _opened(kind: str, wanted: RuntimeName | Runtime | None) -> Runtime:
    if wanted is None or isinstance(wanted, str):
        return open_runtime("gpu" if kind == "gpu" else "cpu", wanted)
    return wanted
