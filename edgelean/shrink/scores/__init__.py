"""Scores: what the removal of each unit is predicted to cost; one interface, and several ways to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from edgelean.errors import InputError
from edgelean.shrink.scores.activation import Activation
from edgelean.shrink.scores.batch_norm import BatchNorm
from edgelean.shrink.scores.collect import Scores
from edgelean.shrink.scores.energy import Energy
from edgelean.shrink.scores.flow import FORGETTING, Flow
from edgelean.shrink.scores.magnitude import Magnitude
from edgelean.shrink.scores.protocol import Running, Score
from edgelean.shrink.scores.random import Random
from edgelean.shrink.scores.taylor import Taylor

SCORES: Mapping[str, Callable[[int], Score]] = {
    "energy": lambda seed: Energy(),
    "magnitude": lambda seed: Magnitude(),
    "taylor": lambda seed: Taylor(),
    "activation": lambda seed: Activation(),
    "batch_norm": lambda seed: BatchNorm(),
    "random": lambda seed: Random(seed=seed),
}
"""What `open_score` knows, by name."""


def open_score(name: str, seed: int) -> Score:
    """Return a score that has seen nothing yet.

    Parameters
    ----------
    name
        One of `SCORES`.
    seed
        Of the score that draws numbers.

    Raises
    ------
    InputError
        If there is no such score; the message has those that there are.
    """
    if name not in SCORES:
        near = get_close_matches(name, SCORES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no score {name!r}: {hint}There are {', '.join(SCORES)}")
    return SCORES[name](seed)


__all__ = ["FORGETTING", "SCORES", "Flow", "Running", "Score", "Scores", "open_score"]
