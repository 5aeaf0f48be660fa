"""A TensorRT engine of a bundle, run by the runner that ships with it and called like a session of onnxruntime."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.errors import DeviceError
from edgelean.shelf import shelf

Array = NDArray[Any]


@dataclass(frozen=True)
class EngineSession:
    """An engine that is ready.

    Attributes
    ----------
    session
        The runner's.
    largest
        Samples that it takes at once; more are run one batch after the other.
    """

    session: Any
    largest: int

    @property
    def words(self) -> str:
        """The package and its version."""
        return str(self.session.words)

    def get_inputs(self) -> Sequence[Any]:
        """Return the inputs, each with its name."""
        inputs: Sequence[Any] = self.session.get_inputs()
        return inputs

    def get_modelmeta(self) -> Any:
        """Return what an ONNX file would tell of itself; an engine tells nothing."""
        return SimpleNamespace(custom_metadata_map={})

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs for a batch of any size."""
        count = len(next(iter(feeds.values())))
        parts = []
        for start in range(0, count, self.largest):
            part = {name: array[start : start + self.largest] for name, array in feeds.items()}
            parts.append(self.session.run(names, part))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def open_engine(bundle: Path, name: str, largest: int) -> EngineSession:
    """Return an engine of a bundle, whose hash the runner compares again.

    The runner is the one that is installed here, not the copy in the bundle.

    Raises
    ------
    DeviceError
        It cannot be run here: no GPU, another kind of it, no package, or another version.
    """
    before, writes = list(sys.path), sys.dont_write_bytecode
    try:
        parts = runpy.run_path(str(shelf("export") / "runners" / "run_tensorrt.py"))
        return EngineSession(parts["Session"](name, parts["running"].Bundle(bundle)), largest)
    except Exception as error:  # the runner's own kind, and whatever a binding of C++ raises
        raise DeviceError(str(error)) from error
    finally:
        sys.path[:], sys.dont_write_bytecode = before, writes
