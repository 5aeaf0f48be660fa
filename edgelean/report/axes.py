"""What a report tells of axes: their widths, and their scores before the first cut and over the training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerWidth:
    """The width of one layer, in units, before the first cut and after the last."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Spectrum:
    """The scores of one axis just before its first cut, largest first, and how many of its units stayed.

    Attributes
    ----------
    kind
        ``"channels"`` (empirical scores) or ``"states"`` (Hankel singular values).
    unit
        What a score is, as it stands below the plot.
    """

    axis: str
    kind: str
    scores: tuple[float, ...]
    kept: int
    unit: str


@dataclass(frozen=True)
class Look:
    """The spectrum of one state space layer at one moment of the training.

    Attributes
    ----------
    states
        Complex states that it had; the order of its real map is twice that.
    sigma
        Hankel singular values for what the layer read, at those ``ranks`` of its `Evolution` that it had.
    """

    step: int
    states: int
    sigma: tuple[float, ...]


@dataclass(frozen=True)
class Evolution:
    """The Hankel singular values of one state space layer over the training.

    Attributes
    ----------
    states
        Complex states before the first cut.
    ranks
        Which of the values were kept, from 1, the largest, to twice the states.
    """

    layer: str
    states: int
    ranks: tuple[int, ...]
    looks: tuple[Look, ...]
