"""What is known of the truncation of one layer, as surgery hands it on and the report tells it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Truncation:
    """One truncated state space layer.

    Attributes
    ----------
    layer
        Its path in the model.
    before, after
        Complex states, of each system where the layer is a bank of them.
    gain
        Largest gain of the full system at any frequency.
    certificate
        Twice the sum of the Hankel singular values that went, for white inputs: what no frequency exceeds if the
        truncation is balanced for them. Of a bank, the largest.
    worst
        Largest gain of the difference between the full and the truncated system at any frequency, measured.
    energy
        Energy of the difference of the outputs on what the layer read, as a share of that of the outputs.
    """

    layer: str
    before: int
    after: int
    gain: float
    certificate: float
    worst: float
    energy: float

    def to_json(self) -> dict[str, Any]:
        """Return the truncation as plain JSON types."""
        return asdict(self)
