"""Memory and size of a model as figures of a reading. Both are counted, so neither has an interval."""

from __future__ import annotations

from pathlib import Path

from edgelean.board import Precision
from edgelean.board.memory import Held
from edgelean.reading import Figure, Provenance


def memory_figure(held: Held, precision: Precision) -> Figure:
    """Return the memory that weights and live activations of one batch take, in bytes."""
    method = (
        f"counted on the graph in {precision.upper()}: all weights, and the most activations that are alive at once; "
        "what the runtime keeps for itself is not in it"
    )
    value = held.bytes(precision)
    return Figure(value, value, value, "bytes", Provenance.MODELLED, method)


def measured_size(file: Path, precision: Precision) -> Figure:
    """Return the size of an exported file, in bytes."""
    value = float(file.stat().st_size)
    return Figure(value, value, value, "bytes", Provenance.MEASURED, f"bytes of the exported {precision.upper()} file")


def predicted_size(value: float, precision: Precision) -> Figure:
    """Return the size that an exported file is going to have, in bytes."""
    method = f"counted: the weights in {precision.upper()}, and the graph as it was exported at full size"
    return Figure(value, value, value, "bytes", Provenance.MODELLED, method)
