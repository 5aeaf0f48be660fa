"""Controllers and readings that tests of the control share."""

from edgelean.control import Observed, init, step
from edgelean.control.track import PROOFS
from edgelean.profile import ControlSettings

STEPS = 1000
SETTINGS = ControlSettings()


def modelled(value):
    return Observed(value, value, value, value)


def noisy(value, half, cost=None):
    return Observed(value, value - half, value + half, value if cost is None else cost)


def at(latency, limit=1.0, settings=SETTINGS, **others):
    """Return a state for one latency budget, and for what other quantities are given as (start, limit)."""
    start = {"latency": latency} | {name: first for name, (first, _) in others.items()}
    return init(settings, {"latency": limit} | {name: last for name, (_, last) in others.items()}, start, STEPS)


def demanded(state, when, **observations):
    return step(observations, when, state)


def landed(value=0.95):
    state = at(noisy(4.0, 0.02))
    for _ in range(PROOFS):
        _, state = demanded(state, max(300, state.due_at), latency=noisy(value, 0.02, cost=1.0))
    return state
