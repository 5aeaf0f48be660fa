"""One measurement of one model, and where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Provenance(StrEnum):
    """How a figure came about; every figure that a person sees carries one."""

    MEASURED = "measured"
    TRANSFERRED = "transferred"
    MODELLED = "modelled"


@dataclass(frozen=True)
class Figure:
    """One quantity with its interval and its origin.

    Attributes
    ----------
    value, low, high
        The figure and the ends of its 95 % confidence interval, in ``unit``. A modelled figure has no interval:
        all three are equal.
    unit
        ``"ms"``, ``"mJ"``, ``"bytes"``.
    provenance
        Measured, transferred or modelled.
    method
        How it was obtained, in words that can stand in a report.
    """

    value: float
    low: float
    high: float
    unit: str
    provenance: Provenance
    method: str


@dataclass(frozen=True)
class Reading:
    """One measurement of one model.

    Attributes
    ----------
    latency
        The asked percentile of the time of one batch, in ms.
    energy
        Energy of one inference (one sample of the batch), in mJ; None where nothing can tell it.
    batch, percentile
        What the latency is about: samples per call, and the percentile (50 for the median).
    samples_ms
        The single latencies behind a measured percentile, in ms.
    conditions
        Clocks, temperature, power mode, load: whatever has to be equal for two readings to be compared.
    """

    latency: Figure
    energy: Figure | None
    batch: int
    percentile: float
    samples_ms: tuple[float, ...] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the reading as plain JSON types; the single samples are left out."""
        plain = asdict(self)
        del plain["samples_ms"]
        return plain | {"samples": len(self.samples_ms)}
