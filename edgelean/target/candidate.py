"""What is measured, and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgelean.board import Precision
from edgelean.board.cost import Cost, Operator
from edgelean.reading import Provenance, Reading

Feeds = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""One batch of inputs by the names of the ONNX graph."""


@dataclass(frozen=True)
class Candidate:
    """One version of the model, in the two forms in which a target can look at it.

    Attributes
    ----------
    onnx
        Writes the ONNX file in a precision and returns its path; called only by a target that runs the model.
    operators
        Its fused operators for one batch.
    sample
        Returns the feeds of one batch.
    """

    onnx: Callable[[Precision], Path]
    operators: tuple[Operator, ...]
    sample: Callable[[], Feeds]


class Target(Protocol):
    """The place where a candidate is measured."""

    @property
    def name(self) -> str:
        """``"local"``, ``"modelled"``, or the address of a board."""
        ...

    @property
    def provenance(self) -> Provenance:
        """What its latencies are: measured, transferred or modelled."""
        ...

    def read(self, candidate: Candidate) -> Reading:
        """Return latency and energy of a candidate that exists."""
        ...

    def close(self) -> None:
        """Let go of what the target holds: connections, files on a board."""
        ...

    def predict(self, operators: Iterable[Operator]) -> Cost:
        """Return what the cost model of the board expects of a candidate that does not exist yet."""
        ...
