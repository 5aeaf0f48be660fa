"""The shelves: folders of data and stand-alone scripts that ship beside the code."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from edgelean.errors import MissingError

Shelf = Literal["profiles", "devices", "export"]


def shelf(name: Shelf) -> Path:
    """Return the folder ``name`` of this installation, be it a wheel or a checkout."""
    package = Path(str(files("edgelean")))
    for folder in (package / "_shelf" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise MissingError(f"the folder {name}/ of edgelean is missing: reinstall edgelean, or run it from a checkout")
