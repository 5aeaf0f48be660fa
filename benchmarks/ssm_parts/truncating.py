"""In-training truncation by the paper's rule: a few early attempts, each by a tolerance on Hankel singular values.

References
----------
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from edgelean.nn import LRU
from edgelean.shrink.balance import hankel_singular_values, measured_gramians
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import Plan
from edgelean.shrink.ranks import states_for

SEQUENCES = 32
"""So many sequences tell what a layer reads."""


@dataclass(frozen=True)
class Attempts:
    """When states are truncated, and by how much.

    Attributes
    ----------
    tolerance
        Share of the sum of the Hankel singular values that each attempt may take away.
    window
        Share of the steps at whose end the last attempt is.
    count
        Attempts, equally far apart.
    least
        Fewer states are never kept.
    """

    tolerance: float
    window: float = 0.1
    count: int = 4
    least: int = 1

    def due(self, step: int, steps: int) -> bool:
        """Tell whether there is an attempt after so many of all steps."""
        return step in {max(1, round(self.window * steps * (i + 1) / self.count)) for i in range(self.count)}

    def last(self, steps: int) -> int:
        """Return the step of the last attempt."""
        return max(1, round(self.window * steps))


def layers_of(model: nn.Module) -> dict[str, LRU]:
    """Return the linear recurrent units of a model by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LRU)}


def read_by(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return what each linear recurrent unit reads for some inputs, ``[batch, time, width]``."""
    found: dict[str, Tensor] = {}

    def take(path: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found[path] = arguments[0].detach()

    handles = [layer.register_forward_pre_hook(partial(take, path)) for path, layer in layers_of(model).items()]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(inputs[:SEQUENCES])
    model.train(training)
    for handle in handles:
        handle.remove()
    return found


def wanted_states(layer: LRU, read: Tensor, attempts: Attempts) -> int:
    """Return the states that one attempt leaves a layer."""
    system = layer.system()
    sigma = hankel_singular_values(system, measured_gramians(system, read))
    return min(layer.states, max(attempts.least, states_for(sigma, attempts.tolerance)))


def truncate_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, attempts: Attempts
) -> Mapping[str, int]:
    """Make one attempt on every linear recurrent unit of a model; returns the states of those that became smaller."""
    read, layers = read_by(model, inputs), layers_of(model)
    states = {path: wanted_states(layer, read[path], attempts) for path, layer in layers.items()}
    smaller = {path: kept for path, kept in states.items() if kept < layers[path].states}
    apply(model, Plan((), (), smaller, 0.0), optimizer, read=read)
    return smaller
