"""Simulated plants of all kinds, drawn by a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate

from edgelean.testing.plants import Chain, Spell, Staircase, Weather

SPACING = 56
"""Steps between two events of a simulated run with the default settings."""


@dataclass(frozen=True)
class Kind:
    """What may happen in a group of plants.

    Attributes
    ----------
    noise
        Largest standard deviation of a reading, as a share.
    lie
        Largest factor by which the cost of a layer is wrong, either way.
    drift
        Largest rise of the output while the board warms up.
    spells
        Chance of one or two spells of throttling, 5 to 50 % slower, each of 1 to 10 % of the training.
    lag
        Chance that readings lag, by a quarter of the space between two events up to one and a half.
    modest
        Chance that the intervals of the readings are right; otherwise they are half to 1.3 times as wide as they are.
    """

    noise: float = 0.1
    lie: float = 3.0
    drift: float = 0.05
    spells: float = 0.4
    lag: float = 0.2
    modest: float = 0.5


EVERYTHING = Kind()
CALM = Kind(spells=0.0, lag=0.0, drift=0.0, modest=1.0)


def staircase(seed: int, kind: Kind) -> tuple[Staircase, Weather]:
    """Return a plant of one axis, whose levels come from several layers, and its weather."""
    rng = random.Random(seed)
    share = rng.choice([0.3, 0.5, 0.7]) if rng.random() < 0.5 else rng.uniform(0.2, 0.9)
    levels = round(math.exp(rng.uniform(math.log(16), math.log(300))))
    layers = rng.randint(4, 12)
    weights = [rng.lognormvariate(0, 0.5) for _ in range(layers)]
    most = rng.uniform(1, kind.lie)
    wrong = [most ** rng.uniform(-1, 1) for _ in range(layers)]
    turns = _turns(levels, layers, rng)
    saved = [weights[layer] * rng.uniform(0.7, 1.3) for layer in turns]
    truly = [each * wrong[layer] for each, layer in zip(saved, turns, strict=True)]
    offset, gain = rng.uniform(0, 0.3), math.exp(rng.uniform(-1.1, 1.1))
    outputs = [offset + (1 - offset) * left for left in _falling(truly)]
    if rng.random() < 0.3:
        outputs = _capped(outputs, rng)
    scaled = tuple(gain * output for output in outputs)
    return Staircase(tuple(_falling(saved)), scaled, share * scaled[0]), weather(rng, kind)


def chain(seed: int, kind: Kind) -> tuple[Chain, Weather]:
    """Return a plant of eight axes, which the real allocator cuts, and its weather."""
    rng = random.Random(seed)
    plant = Chain(
        seed,
        share=rng.choice([0.3, 0.5, 0.7]),
        lie=rng.uniform(1, kind.lie),
        offset=rng.uniform(0, 0.2),
        gain=math.exp(rng.uniform(-1.1, 1.1)),
        quantities=("latency", "energy") if seed % 2 else ("latency",),
    )
    return plant, weather(rng, kind)


def weather(rng: random.Random, kind: Kind) -> Weather:
    """Return what disturbs the readings of one plant."""
    spells: tuple[Spell, ...] = ()
    if rng.random() < kind.spells:
        begins = [rng.uniform(0.02, 0.85) for _ in range(rng.randint(1, 2))]
        spells = tuple(Spell(each, each + rng.uniform(0.01, 0.1), rng.uniform(1.05, 1.5)) for each in begins)
    drift = rng.uniform(0, kind.drift) if rng.random() < 0.5 else 0.0
    noise = rng.uniform(0, kind.noise) if rng.random() < 0.9 else 0.0
    return Weather(
        # What is measured is never exact.
        noise=max(noise, 0.002) if spells or drift else noise,
        honesty=1.0 if rng.random() < kind.modest else rng.uniform(0.5, 1.3),
        drift=drift,
        warming=rng.uniform(0.05, 0.3),
        spells=spells,
        lag=round(SPACING * rng.uniform(0.25, 1.5)) if rng.random() < kind.lag else 0,
    )


def _turns(levels: int, layers: int, rng: random.Random) -> list[int]:
    """Return which layer each level cuts: the same one for a while, then another."""
    stay = rng.uniform(0, 0.8)
    turns = [rng.randrange(layers)]
    while len(turns) < levels:
        turns.append(turns[-1] if rng.random() < stay else rng.randrange(layers))
    return turns


def _falling(saved: list[float]) -> list[float]:
    """Return what is left after each level, from 1 down to 3 %."""
    total = sum(saved)
    return [1 - 0.97 * gone / total for gone in accumulate(saved, initial=0.0)]


def _capped(outputs: list[float], rng: random.Random) -> list[float]:
    """Return the outputs of a board whose power is capped: what is large is slower than in proportion."""
    knee, slower = rng.uniform(0.4, 0.9), rng.uniform(0, 1)
    return [output * (1 + slower * max(0.0, output / knee - 1)) for output in outputs]
