"""Checkpoints: tensors as safetensors, everything else as JSON, renamed into place when complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgelean.errors import InputError

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
    """Write a checkpoint under ``folder/name``, and drop all but the newest few.

    Raises
    ------
    InputError
        If the disk is full or the folder cannot be written; the last good checkpoint stays.
    """
    final, part = folder / name, folder / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.tensors.items()},
            part / "tensors.safetensors",
        )
        digest = _digest(part / "tensors.safetensors")
        (part / "values.json").write_text(json.dumps({"sha256": digest, **checkpoint.values}))
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the checkpoint {final} cannot be written: {error}; the one before it is untouched") from None
    for old in sorted(p for p in folder.iterdir() if p.suffix != ".part")[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path) -> Checkpoint:
    """Return the newest checkpoint that is whole.

    Raises
    ------
    InputError
        If there is none.
    """
    for path in sorted((p for p in folder.glob("*") if p.suffix != ".part"), reverse=True):
        try:
            values = json.loads((path / "values.json").read_text())
            if values.pop("sha256") == _digest(path / "tensors.safetensors"):
                return Checkpoint(load_file(path / "tensors.safetensors"), values)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # damaged: the one before it is taken
    raise InputError(f"{folder} holds no whole checkpoint: start the run anew")


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
