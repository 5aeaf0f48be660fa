"""One measurement of one model, and where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

COMPARED = ("processor", "gpu", "runtime", "threads", "precision", "power mode")
"""Conditions that make two readings incomparable where they differ."""


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
        Energy of one inference (one sample of the batch), in mJ, gross: whatever the sensor saw while the model ran
        back to back. None where nothing can tell it.
    memory
        Weights and live activations of one batch, in bytes; None where the graph is not known.
    size
        The exported file in the precision of the profile, in bytes; None where there is none.
    energy_net
        The energy less the idle power times the time; None where the idle power was not measured.
    batch, percentile
        What the latency is about: samples per call, and the percentile (50 for the median).
    samples_ms
        The single latencies behind a measured percentile, in ms.
    conditions
        Clocks, temperature, power mode, load: under what the figures hold. Those in :data:`COMPARED` have to be equal
        for two readings to be compared.
    noise
        Why the machine was too noisy for the figures to be trusted, and what to do; empty where it was quiet.
    """

    latency: Figure
    energy: Figure | None
    batch: int
    percentile: float
    energy_net: Figure | None = None
    samples_ms: tuple[float, ...] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    noise: str = ""
    memory: Figure | None = None
    size: Figure | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the reading as plain JSON types; the single samples are left out."""
        plain = asdict(self)
        del plain["samples_ms"]
        return plain | {"samples": len(self.samples_ms)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Reading:
        """Return the reading that `to_json` told of, without its single samples."""
        figures = {name: _figure(value) for name, value in plain.items() if _is_figure(value)}
        return cls(**{name: value for name, value in plain.items() if name != "samples"} | figures)


def _is_figure(plain: Any) -> bool:
    return isinstance(plain, Mapping) and "provenance" in plain


def _figure(plain: Mapping[str, Any]) -> Figure:
    return Figure(**{**plain, "provenance": Provenance(plain["provenance"])})


def incomparable(first: Reading, second: Reading) -> str:
    """Return why two readings cannot be compared, such as two power modes; empty where they can.

    A condition that only one of them has says nothing.
    """
    for key in COMPARED:
        before, now = first.conditions.get(key), second.conditions.get(key)
        if before is not None and now is not None and before != now:
            return f"the {key} was {before} and is now {now}"
    return ""
