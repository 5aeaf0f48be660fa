"""Checkpoints: tensors as safetensors, everything else as JSON, both hashed, renamed into place when complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgelean.errors import InputError
from edgelean.training import durable
from edgelean.training.durable import PART, told

TENSORS, VALUES = "tensors.safetensors", "values.json"

KEEP = 2
"""So many checkpoints stay; an earlier one is there should the last be damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on: named tensors, and plain values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save(folder: Path, name: str, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under ``folder/name``; whoever reads finds it whole or not at all.

    Every file is under a hash, so that what is damaged or changed later is found out. The hashes are no signature: who
    means to deceive can write new ones.

    Raises
    ------
    InputError
        If the disk is full or the folder cannot be written; earlier checkpoints stay.
    """
    final, part = folder / name, folder / f"{name}{PART}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with told(final):
            part.mkdir(parents=True)
            try:
                save_file(_separate(checkpoint.tensors), part / TENSORS)
            except SafetensorError as error:
                raise _as_os_error(error) from None
            values = json.dumps(checkpoint.values)
            sums = {TENSORS: _digest(part / TENSORS), "values": hashlib.sha256(values.encode()).hexdigest()}
            (part / VALUES).write_text(f'{{"sha256": {json.dumps(sums)}, "values": {values}}}\n')
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
    except InputError:
        shutil.rmtree(part, ignore_errors=True)  # it would only take the space that is missing
        raise
    return final


def flush(path: Path) -> None:
    """Bring a checkpoint from the memory of the system to the disk, so that it is still there after a power cut.

    Raises
    ------
    InputError
        If the disk does not take it.
    """
    with told(path):
        for each in (*path.iterdir(), path, path.parent):
            durable.flush(each)


def drop_old(folder: Path, keep: Collection[Path] = ()) -> None:
    """Remove all but the newest few checkpoints, and those that are named."""
    for old in _complete(folder)[:-KEEP]:
        if old not in keep:
            shutil.rmtree(old, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a checkpoint; one that is damaged would take the place of a whole one among the newest."""
    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole.

    Attributes
    ----------
    damaged
        Newer ones, which are not.
    """

    checkpoint: Checkpoint
    path: Path
    damaged: tuple[Path, ...]


def find_newest(folder: Path) -> Found | None:
    """Return the newest checkpoint that is whole; None where none was ever completed.

    Raises
    ------
    InputError
        If there are some, and all are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(_complete(folder)):
        try:
            return Found(_load(path), path, tuple(damaged))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise InputError(
            f"{folder} holds no whole checkpoint: {names} are not as they were written; start the run anew"
        )
    return None


def load_newest(folder: Path) -> Checkpoint:
    """Return the newest checkpoint, and no older one in its stead.

    Raises
    ------
    InputError
        If there is none, or it is damaged.
    """
    found = find_newest(folder)
    if found is None or found.damaged:
        what = "holds no checkpoint" if found is None else f"has a damaged checkpoint, {found.damaged[0].name}"
        raise InputError(f"{folder} {what}: resume the run first, which writes it")
    return found.checkpoint


def _complete(folder: Path) -> list[Path]:
    """Return the checkpoints that were renamed into place, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.suffix != PART)


def _load(path: Path) -> Checkpoint:
    """Return a checkpoint.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, SafetensorError
        If it is damaged.
    """
    written = json.loads((path / VALUES).read_text())
    sums, values = written["sha256"], written["values"]
    found = {TENSORS: _digest(path / TENSORS), "values": hashlib.sha256(json.dumps(values).encode()).hexdigest()}
    if found != sums:
        raise ValueError(f"{path} is not as it was written")
    return Checkpoint(load_file(path / TENSORS), values)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory, which the format cannot tell."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        mine = tensor.detach().cpu().contiguous()
        place = mine.untyped_storage().data_ptr()
        separate[name] = mine.clone() if place in taken else mine
        taken.add(place)
    return separate


def _as_os_error(error: SafetensorError) -> OSError:
    """Return the failure of the disk that is behind an error of the format's library."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(str(error)) if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


State = Mapping[int, Mapping[str, Any]]
"""The ``"state"`` of an optimizer's ``state_dict()``: entries by the number of their parameter."""


def split_state(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer as named tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entry in state.items():
        for key, value in entry.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{index}.{key}"] = value
    return tensors, plain


def joined_state(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the state that `split_state` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **plain}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return state
