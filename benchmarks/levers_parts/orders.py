"""Other ways to order the units of an axis than the energy that flows through them.

None of them is a loss in nats, so the prices of an axis are scaled to 1 on average: what a unit saves then decides
between the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis
from edgelean.shrink.scores import FORGETTING, Flow

Prices = tuple[tuple[int, ...], tuple[float, ...]]
"""In which order units go, and the summed price of the first 0, 1, 2, ... of them."""


@dataclass
class Gradients:
    """Collects the squared first-order change of the loss when a unit goes (Molchanov et al. 2019)."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def observe(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Take the gradients of one step."""
        parameters = dict(model.named_parameters())
        for axis in axes.values():
            slopes = torch.zeros(axis.size)
            for (name, dim), elements in axis.slots.items():
                gradient = parameters[name].grad if name in parameters else None
                if gradient is not None:
                    change = (parameters[name].detach() * gradient).movedim(dim, 0)
                    slopes += change.reshape(len(change), -1).sum(1)[torch.from_numpy(elements)].sum(1)
            known, fresh = self.seen.get(axis.name), slopes.square()
            self.seen[axis.name] = fresh if known is None else torch.lerp(fresh, known, FORGETTING)


@dataclass(frozen=True)
class Evidence:
    """What is known about a model in training.

    Attributes
    ----------
    flows
        What the energy score has observed.
    random
        For the random order.
    """

    model: nn.Module
    flows: Mapping[str, Flow]
    gradients: Gradients
    random: torch.Generator


def prices(score: str, axis: Axis, evidence: Evidence) -> Prices:
    """Return in which order the units of an axis go, and what that costs."""
    worth = _SCORES[score](axis, evidence).double()
    order = torch.argsort(worth, stable=True)
    running = (worth[order] / worth.mean().clamp_min(1e-30)).cumsum(0)
    return tuple(order.tolist()), (0.0, *running.tolist())


def _random(axis: Axis, evidence: Evidence) -> Tensor:
    return torch.rand(axis.size, generator=evidence.random)


def _magnitude(axis: Axis, evidence: Evidence) -> Tensor:
    parameters = dict(evidence.model.named_parameters())
    total = torch.zeros(axis.size)
    for (name, dim), elements in axis.slots.items():
        if name in parameters and parameters[name].ndim > 1:
            total += _squares(parameters[name], dim)[torch.from_numpy(elements)].sum(1)
    return total


def _taylor(axis: Axis, evidence: Evidence) -> Tensor:
    return evidence.gradients.seen[axis.name]


def _activation(axis: Axis, evidence: Evidence) -> Tensor:
    parameters = dict(evidence.model.named_parameters())
    total = torch.zeros(axis.size)
    for path, slot in axis.readers:
        square = evidence.flows[path].square
        if square is not None:
            total += (square * _squares(parameters[slot[0]], slot[1]))[torch.from_numpy(axis.slots[slot])].sum(1)
    return total


def _batch_norm(axis: Axis, evidence: Evidence) -> Tensor:
    parameters = dict(evidence.model.named_parameters())
    total = torch.zeros(axis.size)
    for (name, dim), elements in axis.slots.items():
        owner = evidence.model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.BatchNorm2d) and name.endswith(".weight"):
            total += _squares(parameters[name], dim)[torch.from_numpy(elements)].sum(1)
    return total


def _squares(weight: Tensor, dim: int) -> Tensor:
    square = weight.detach().square().movedim(dim, 0)
    return square.reshape(len(square), -1).sum(1)


_SCORES: dict[str, Callable[[Axis, Evidence], Tensor]] = {
    "random": _random,
    "magnitude": _magnitude,
    "taylor": _taylor,
    "activation": _activation,
    "batch_norm": _batch_norm,
}
