"""Scores: what the removal of each unit is predicted to cost, in nats of the training loss.

The price of a unit is half the energy that flows through it, seen by the loss: the centred variance of its activation
(controllability) times the Fisher information of the loss at that activation (observability), summed over everything
that reads it. Both are collected during training, on a few steps only.

Some readers are never called as a module (the projections inside nn.MultiheadAttention, the hidden weights of an LSTM).
What they read is not seen, but what its removal does to first order is: the weights that read a unit times their
gradients, summed. Its mean square over batches of n samples is one n-th of that over samples.

References
----------
Theis, Korshunova, Tejani, Huszar: Faster gaze prediction with dense networks and Fisher pruning, 2018.
Lall, Marsden, Glavaski: Empirical model reduction of controlled nonlinear systems, IFAC 1999.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.nn import LRU
from edgelean.shrink.axes import Axis
from edgelean.shrink.balance import hankel_singular_values, measured_gramians, measured_prices
from edgelean.shrink.block_prices import price_of, watch_block
from edgelean.shrink.cut import state_layer
from edgelean.shrink.plan import Plan

FORGETTING = 0.7

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip

OBSERVED = ("mean", "square", "second", "fisher", "inputs")

WIDEST_SECOND = 1024
"""Up to so many features their second moments are kept in pairs, for the refit."""

MOST_COLUMNS = 8192
"""So many positions of a batch are enough for second moments."""

SEQUENCES = 32
"""So many recorded sequences tell what a state space layer really reads."""


@dataclass
class Flow:
    """What has been observed of one module.

    Attributes
    ----------
    mean, square
        Running moments of what it reads, ``[features]``.
    second
        Running second moments of pairs of features, ``[features, features]``; None where there are too many.
    fisher
        Running Fisher information of the loss at what it reads or, for a state space layer, writes, ``[features]``.
    inputs
        The last sequences that a state space layer read, ``[batch, time, width]``.
    space
        Height and width (or the like) of what a convolution reads.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    second: Tensor | None = None
    fisher: Tensor | None = None
    inputs: Tensor | None = None
    space: tuple[int, ...] = ()

    def variance(self) -> Tensor | None:
        """Return the centred variance of each feature."""
        if self.mean is None or self.square is None:
            return None
        return (self.square - self.mean.square()).clamp_min(0)

    def blend(self, name: str, fresh: Tensor) -> None:
        """Take a new observation into one of the moments."""
        old = getattr(self, name)
        setattr(self, name, fresh if old is None else torch.lerp(fresh, old, FORGETTING))

    def tensors(self) -> dict[str, Tensor]:
        """Return what has been observed, by name."""
        return {key: value for key in OBSERVED if (value := getattr(self, key)) is not None}


@dataclass
class Scores:
    """Collects moments by hooks while it is active, and turns them into prices.

    Attributes
    ----------
    flows
        By the path of the observed module.
    active
        Whether the coming step is observed.
    slopes
        By a dimension of a parameter, the mean square of what it contributes to the loss, ``[features]``.
    """

    flows: dict[str, Flow] = field(default_factory=dict)
    active: bool = False
    slopes: dict[str, Tensor] = field(default_factory=dict)
    _samples: int = 0
    _handles: list[Any] = field(default_factory=list)

    def watch(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Put hooks on every module that reads an axis of channels or holds an axis of states."""
        self._handles.append(model.register_forward_pre_hook(self._count))
        for axis in (axis for axis in axes.values() if axis.kind == "blocks"):
            take = partial(self.flows.setdefault(axis.name, Flow()).blend, "fisher")
            self._handles.append(watch_block(model, axis, self._observed, take))
        for path in dict.fromkeys(path for axis in axes.values() for path, _ in axis.readers):
            module = model.get_submodule(path)
            flow = self.flows.setdefault(path, Flow())
            if isinstance(module, LRU):
                self._handles.append(module.register_forward_hook(self._written(flow)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._read(flow)))

    def release(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _count(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not (self.active and module.training):
            return
        tensors = [x for x in arguments if isinstance(x, Tensor) and x.ndim]
        self._samples = len(tensors[0]) if tensors else self._samples

    def _observed(self, module: nn.Module) -> int:
        return self._samples if self.active and module.training else 0

    def observe_gradients(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Take what the gradients of a step say about readers whose inputs no hook sees."""
        parameters = dict(model.named_parameters())
        for path, (name, dim) in dict.fromkeys(reader for axis in axes.values() for reader in axis.readers):
            gradient = parameters[name].grad if name in parameters else None
            if gradient is None or self.flows.get(path, Flow()).fisher is not None:
                continue
            slope = (parameters[name].detach() * gradient).float().movedim(dim, 0).flatten(1).sum(1)
            key = f"{name}[{dim}]"
            fresh = slope.square() * self._samples
            known = self.slopes.get(key)
            self.slopes[key] = (
                fresh if known is None or len(known) != len(fresh) else torch.lerp(fresh, known, FORGETTING)
            )

    def _read(self, flow: Flow) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = arguments[0] if arguments else None
            if not (self.active and module.training and isinstance(x, Tensor) and x.requires_grad):
                return None
            features = _by_feature(module, x.detach().float())
            flow.space = tuple(x.shape[2:])
            flow.blend("mean", features.mean(1))
            flow.blend("square", features.square().mean(1))
            if len(features) <= WIDEST_SECOND:
                some = features[:, :: -(-features.shape[1] // MOST_COLUMNS)]
                flow.blend("second", some @ some.T / some.shape[1])
            # A view of its own, so that the gradient is what flows through this reader and no other.
            own = x.view_as(x)
            _on_gradient(own, lambda g: flow.blend("fisher", _fisher(module, g)))
            return (own, *arguments[1:])

        return hook

    def _written(self, flow: Flow) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
            if not (self.active and module.training and arguments and output.requires_grad):
                return None
            flow.inputs = arguments[0].detach()[:SEQUENCES].clone()
            own = output.view_as(output)
            _on_gradient(own, lambda g: flow.blend("fisher", _fisher(module, g)))
            return own

        return hook

    def unit_prices(self, axis: Axis) -> Tensor | None:
        """Return the price of each unit of an axis, ``[size]`` in nats; None before any observation, and for states."""
        if axis.kind == "blocks":
            return price_of(self.flows.get(axis.name, Flow()).fisher)
        total = torch.zeros(axis.size, dtype=torch.float64)
        seen = False
        for path, slot in axis.readers:
            price = self._element_prices(path, slot)
            if price is not None:
                seen = True
                total += price.double().cpu()[torch.from_numpy(axis.slots[slot])].sum(1)
        return total if seen else None

    def _element_prices(self, path: str, slot: tuple[str, int]) -> Tensor | None:
        """Return the price of each element that a reader reads, in nats."""
        flow = self.flows.get(path, Flow())
        variance = flow.variance()
        if variance is not None and flow.fisher is not None:
            return 0.5 * variance * flow.fisher
        slope = self.slopes.get(f"{slot[0]}[{slot[1]}]")
        return None if slope is None else 0.5 * slope

    def removal_prices(self, axis: Axis, model: nn.Module) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
        """Return the order in which units go, and the summed price of removing the first 0, 1, 2, ... of them."""
        if axis.kind == "states":
            flow = self.flows.get(axis.module(), Flow())
            if flow.fisher is None or flow.inputs is None:
                return None
            system = state_layer(model, axis.module()).system()
            return (), tuple(measured_prices(system, flow.fisher, flow.inputs).tolist())
        prices = self.unit_prices(axis)
        if prices is None:
            return None
        order = torch.argsort(prices, stable=True)
        running = torch.cat([torch.zeros(1, dtype=torch.float64), prices[order].cumsum(0)])
        return tuple(order.tolist()), tuple(running.tolist())

    def spectrum(self, axis: Axis, model: nn.Module) -> tuple[float, ...]:
        """Return what the units of an axis are worth, the most valuable first.

        Prices in nats for channels, Hankel singular values for states.
        """
        if axis.kind == "states":
            inputs = self.flows[axis.module()].inputs
            system = state_layer(model, axis.module()).system()
            given = None if inputs is None else measured_gramians(system, inputs)
            return tuple(hankel_singular_values(system, given).tolist())
        prices = self.unit_prices(axis)
        return () if prices is None else tuple(prices.sort(descending=True).values.tolist())

    def forget(self, plan: Plan, axes: Mapping[str, Axis]) -> None:
        """Drop the moments of removed units; those of the others stay valid."""
        gone = {(removal.tensor, removal.dim): set(removal.indices) for removal in plan.removals}
        for path, slot in dict.fromkeys(reader for axis in axes.values() for reader in axis.readers):
            if slot not in gone:
                continue
            flow, key = self.flows.get(path, Flow()), f"{slot[0]}[{slot[1]}]"
            for name, moment in flow.tensors().items():
                left = _others(len(moment), gone[slot])
                setattr(flow, name, moment[left][:, left] if name == "second" else moment[left])
            if key in self.slopes:
                self.slopes[key] = self.slopes[key][_others(len(self.slopes[key]), gone[slot])]

    def put_back(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to moments that were taken earlier, by the path of the module."""
        for path, tensors in moments.items():
            flow = self.flows[path]
            for name in OBSERVED:
                setattr(flow, name, tensors.get(name))


def _others(size: int, gone: set[int]) -> list[int]:
    return [index for index in range(size) if index not in gone]


def _on_gradient(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    tensor.register_hook(take)  # type: ignore[no-untyped-call]  # torch has not typed it


def _by_feature(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``[features, everything else]``; the groups of a grouped convolution share their features."""
    place = 1 if isinstance(module, _CONVOLUTIONS) else -1
    features = x.movedim(place, 0).flatten(1)
    groups = int(getattr(module, "groups", 1))
    return features if groups == 1 else torch.unflatten(features, 0, (groups, -1)).transpose(0, 1).flatten(1)


def _fisher(module: nn.Module, gradient: Tensor) -> Tensor:
    """Return per feature the mean over samples of the summed squared gradient of that sample's loss.

    The loss is a mean over the batch, so one sample's gradient is the batch size times the one seen here.
    """
    return _by_feature(module, gradient.detach().float()).square().sum(1) * len(gradient)
