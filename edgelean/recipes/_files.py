"""Data sets that are files in the folder that EDGELEAN_DATA names."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.errors import InputError, MissingError

FOLDER = "EDGELEAN_DATA"
"""The environment variable that names the folder."""

Arrays = dict[str, NDArray[Any]]


def arrays(file: str, *names: str) -> Arrays:
    """Return arrays of an ``.npz`` file.

    Raises
    ------
    MissingError
        If EDGELEAN_DATA is not set, or there is no such file in the folder that it names.
    InputError
        If the file is no archive of arrays, or one of these is not in it.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        raise MissingError(f"this recipe reads {file}: set {FOLDER} to the folder that holds it")
    path = Path(folder) / file
    if not path.is_file():
        raise MissingError(f"{file} is not in {folder}: set {FOLDER} to the folder that holds it")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as packed:
            held = packed.files
            found = {name: packed[name] for name in names if name in held}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not an archive of NumPy arrays: {error}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path} has no array {missing[0]!r}: it has {', '.join(held)}")
    return found
