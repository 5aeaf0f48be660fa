"""Moments of what layers read and of the gradients there, collected by hooks on a few steps of the training.

All scores rest on this: what a score does not need for its own prices, the refit and the truncation of states do.
Moments are taken of some positions of a batch only, and once where several layers read the same tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.nn import Selective, StateSpace
from edgelean.nn.attention import FreeAttention
from edgelean.shrink.axes import Axis, Slot
from edgelean.shrink.block_prices import watch_block
from edgelean.shrink.plan import Plan
from edgelean.shrink.scores.flow import FORGETTING, Flow
from edgelean.shrink.scores.likelihood import Sight, of_cross_entropy, of_labels
from edgelean.shrink.scores.places import CONVOLUTIONS, TRANSPOSED, energy, layout, per_sample, some_positions
from edgelean.shrink.scores.protocol import Running
from edgelean.shrink.states import parameter_in, state_prices, state_spectrum, system_of

WIDEST_SECOND = 1024
"""Up to so many features their second moments are kept in pairs, for the refit and for prices after it."""

SEQUENCES = 32
"""So many recorded sequences tell what a state space layer really reads."""


@dataclass(frozen=True)
class Moments:
    """What one tensor that a layer reads looks like: moments per feature, and rows whose products are those of pairs.

    Attributes
    ----------
    some, means
        At some positions, ``[positions, features]``, and over each sample, ``[samples, features]``.
    """

    mean: Tensor
    square: Tensor
    some: Tensor
    means: Tensor

    @property
    def wide(self) -> bool:
        """Whether there are too many pairs of features."""
        return self.some.shape[1] > WIDEST_SECOND


@dataclass
class Scores:
    """Collects moments by hooks while it is active. The base of every score, which adds `unit_prices`.

    Attributes
    ----------
    flows
        By the path of the observed module.
    active
        Whether the coming step is observed.
    slopes
        By a dimension of a parameter, the mean square of what it contributes to the loss, ``[features]``.
    units
        By the name of an axis, what a score remembers of each unit, ``[size]``.
    blocks
        By the name of a block, the Fisher information of the loss in all that it adds, ``[1]``.
    """

    flows: dict[str, Flow] = field(default_factory=dict)
    active: bool = False
    slopes: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)
    _sight: Sight = field(default_factory=lambda: of_labels(0))
    _features: dict[Slot, str] = field(default_factory=dict)
    _last: tuple[Any, ...] = ()
    _handles: list[Any] = field(default_factory=list)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def watch(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Put hooks on every module that reads an axis of channels, holds an axis of states, or ends a block."""
        self._handles.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._end))
        for axis in (axis for axis in axes.values() if axis.kind == "blocks"):
            take = partial(self._felt_block, axis.name)
            self._handles.append(watch_block(model, axis, self._observed, take))
        paths = dict.fromkeys(path for axis in axes.values() for path, _ in axis.readers)
        layers = {path: module for path in paths if isinstance(module := model.get_submodule(path), Selective)}
        paths |= dict.fromkeys(parameter_in(path, layer.states_read_by) for path, layer in layers.items())
        for path, module in ((path, model.get_submodule(path)) for path in paths):
            if isinstance(module, StateSpace | Selective):
                self._features[parameter_in(path, module.reads[0]), module.reads[1]] = path
            if isinstance(module, StateSpace):
                hook = self._written(self.flows.setdefault(path, Flow()))
                self._handles.append(module.register_forward_hook(hook))
            elif isinstance(module, Selective):
                recording = self._recorded(self.flows.setdefault(path, Flow()))
                self._handles.append(module.register_forward_pre_hook(recording))
            elif isinstance(module, (nn.Linear, FreeAttention, *CONVOLUTIONS, *TRANSPOSED)):
                reading = self._read(self.flows.setdefault(path, Flow()))
                self._handles.append(module.register_forward_pre_hook(reading))

    def release(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last = ()

    def _observed(self, module: nn.Module) -> int:
        return self._sight.samples if self.active and module.training else 0

    def _felt_block(self, name: str, energy: Tensor) -> None:
        remember(self.blocks, name, self._sight.summed(energy))

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.active and module.training:
            tensors = [x for x in (*arguments, *named.values()) if isinstance(x, Tensor) and x.ndim]
            self._sight, self._last = of_labels(len(tensors[0]) if tensors else self._sight.samples), ()

    def _end(self, module: nn.Module, arguments: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        if self.active and module.training and isinstance(logits, Tensor) and logits.requires_grad:
            _on_gradient(logits, lambda gradient: self._see(logits.detach(), gradient))

    def _see(self, logits: Tensor, gradient: Tensor) -> None:
        self._sight = of_cross_entropy(logits, gradient) or self._sight

    def _read(self, flow: Flow) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = _read_by(module, arguments)
            if not (self.active and module.training and isinstance(x, Tensor) and x.requires_grad and x.ndim > 1):
                return None
            samples = x.transpose(0, 1) if _behind(module, x) else x
            moments = self._moments(module, samples)
            flow.size = torch.tensor(samples.shape[2:] if layout(module)[0] else samples.shape[1:-1], dtype=torch.int64)
            flow.blend("mean", moments.mean)
            flow.blend("square", moments.square)
            if moments.wide:
                flow.blend("between", moments.means.square().mean(0))
            else:
                flow.blend_pairs("between", moments.means, moments.means, 1 / len(moments.means))
                flow.blend_pairs("second", moments.some, moments.some, 1 / len(moments.some))
            flow.count(len(moments.some))
            # A view of its own, so that the gradient is what flows through this reader and no other.
            own = x.view_as(x)
            _on_gradient(own, lambda gradient: self._felt(flow, module, gradient))
            return tuple(own if each is x else each for each in arguments)

        return hook

    def _written(self, flow: Flow) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
            if not (self.active and module.training and arguments and output.requires_grad):
                return None
            flow.inputs = arguments[0].detach()[:SEQUENCES].clone()
            own = output.view_as(output)
            _on_gradient(own, lambda gradient: self._felt(flow, module, gradient))
            return own

        return hook

    def _recorded(self, flow: Flow) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self.active and module.training and arguments:
                flow.inputs = arguments[0].detach()[:SEQUENCES].clone()

        return hook

    def _felt(self, flow: Flow, module: nn.Module, gradient: Tensor) -> None:
        gradient = gradient.transpose(0, 1) if _behind(module, gradient) else gradient
        total = per_sample(module, gradient.detach())
        if not bool(torch.isfinite(total.sum())):
            return  # a gradient that overflowed: the training leaves this step out, too
        flow.blend("fisher", self._sight.summed(energy(module, gradient.detach())))
        if not isinstance(module, StateSpace):
            if total.shape[1] > WIDEST_SECOND:
                flow.blend("summed", self._sight.summed(total.square()))
            else:
                flow.blend_pairs("summed", total, self._sight.weighted(total))

    def _moments(self, module: nn.Module, x: Tensor) -> Moments:
        """Return moments of what a layer reads; layers that read the same tensor share them."""
        key = (x._version, layout(module))
        if self._last and self._last[0]() is x and self._last[1] == key:
            known: Moments = self._last[2]
            return known
        some = some_positions(module, x.detach()).float()
        means = per_sample(module, x.detach()) * (some.shape[1] / x[0].numel())
        found = Moments(some.mean(0), some.square().mean(0), some, means)
        self._last = (weakref.ref(x), key, found)
        return found

    # -- gradients of parameters ---------------------------------------------------------------------------------------

    def observe_gradients(self, model: nn.Module, axes: Mapping[str, Axis]) -> None:
        """Take what the gradients of a step say about readers whose inputs no hook sees."""
        parameters = dict(model.named_parameters())
        for path, slot in dict.fromkeys(reader for axis in axes.values() for reader in axis.readers):
            slope = self.slope(parameters, slot)
            if slope is None or self.flows.get(path, Flow()).fisher is not None:
                continue
            remember(self.slopes, slot_name(slot), slope.square() * self.per_batch)

    @property
    def per_batch(self) -> float:
        """What the squared slope of a batch is multiplied with to be the mean square over samples."""
        return self._sight.factor * self._sight.overall

    def slope(self, parameters: Mapping[str, nn.Parameter], slot: Slot) -> Tensor | None:
        """Return what each element of a dimension contributes to the loss to first order: weight times gradient."""
        name, dim = slot
        gradient = parameters[name].grad if name in parameters else None
        if gradient is None:
            return None
        product = parameters[name].detach() * gradient
        return product.float().movedim(dim, 0).flatten(1).sum(1) if product.ndim > 1 else product.float()

    # -- prices --------------------------------------------------------------------------------------------------------

    def unit_prices(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return the price of each unit of an axis of channels, ``[size]``, if it went alone; None if none is known."""
        raise NotImplementedError

    def removal_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the order in which units go, the cheapest first, and the summed prices of the first 0, 1, 2, ..."""
        if axis.kind != "channels":
            return self.whole_prices(axis, model)
        prices = self.unit_prices(axis, model)
        if prices is None:
            return None
        order = torch.argsort(prices, stable=True)
        running = torch.cat([torch.zeros(1, dtype=torch.float64), prices[order].cumsum(0)])
        return tuple(order.tolist()), tuple(running.tolist())

    def whole_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the summed prices of states, or of a block, neither of which any order is asked for."""
        return self.state_prices(axis, model) if axis.kind == "states" else self.block_prices(axis)

    def block_prices(self, axis: Axis) -> Running | None:
        """Return what it costs, in nats, that a block stays and that it goes."""
        known = self.blocks.get(axis.name)
        return None if known is None else ((), (0.0, 0.5 * float(known)))

    def state_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the summed prices, in nats, of the balanced coordinates of a state space layer that go."""
        flow = self.flows.get(axis.module(), Flow())
        if flow.fisher is None or flow.inputs is None:
            return None
        system = system_of(model, axis.module())
        return (), tuple(state_prices(system, flow.fisher, flow.inputs).tolist())

    def spectrum(self, axis: Axis, model: nn.Module) -> tuple[float, ...]:
        """Return what units are worth, the most valuable first: prices, Hankel singular values for states."""
        if axis.kind == "states":
            system = system_of(model, axis.module())
            return tuple(state_spectrum(system, self.flows[axis.module()].inputs).tolist())
        prices = self.unit_prices(axis, model)
        return () if prices is None else tuple(prices.sort(descending=True).values.tolist())

    # -- cuts and rollbacks --------------------------------------------------------------------------------------------

    def forget(self, plan: Plan, axes: Mapping[str, Axis]) -> None:
        """Drop what is known of removed units; what is known of the others stays."""
        gone = {(removal.tensor, removal.dim): set(removal.indices) for removal in plan.removals}
        read = {path: slot for axis in axes.values() for path, slot in axis.readers if slot in gone}
        # The features of a state space layer come out of it as well as they go in.
        read |= {path: slot for slot, path in self._features.items() if slot in gone}
        for path, slot in read.items():
            flow = self.flows.get(path, Flow())
            size = flow.features()
            if size is not None:
                flow.keep(_others(size, gone[slot]))
        for (tensor, dim), indices in gone.items():
            known = self.slopes.get(slot_name((tensor, dim)))
            if known is not None:
                self.slopes[slot_name((tensor, dim))] = known[_others(len(known), indices)]
        for cut in plan.cuts:
            if cut.axis in self.units:
                self.units[cut.axis] = self.units[cut.axis][_others(cut.before, set(cut.removed))]

    def turned(self, axes: Iterable[Axis]) -> None:
        """Drop what has been observed of the readers of some axes: what they read has another basis now."""
        for path, slot in (reader for axis in axes for reader in axis.readers):
            self.flows.get(path, Flow()).put_back({})
            self.slopes.pop(slot_name(slot), None)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that has been observed, by name."""
        flows = {f"flow/{path}/{name}": x for path, flow in self.flows.items() for name, x in flow.tensors().items()}
        slopes = {f"slope/{name}": x for name, x in self.slopes.items()}
        blocks = {f"block/{name}": x for name, x in self.blocks.items()}
        return {**flows, **slopes, **blocks, **{f"unit/{name}": x for name, x in self.units.items()}}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned earlier."""
        for path, flow in self.flows.items():
            prefix = f"flow/{path}/"
            flow.put_back({name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)})
        self.slopes, self.units, self.blocks = (
            {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            for prefix in ("slope/", "unit/", "block/")
        )


def slot_name(slot: Slot) -> str:
    """Return a dimension of a parameter in words."""
    return f"{slot[0]}[{slot[1]}]"


def remember(known: dict[str, Tensor], name: str, fresh: Tensor) -> None:
    """Blend a new observation into an older one, which counts for nothing if its size was another."""
    old = known.get(name)
    old = fresh if old is None or len(old) != len(fresh) else old
    known[name] = torch.lerp(fresh, old, FORGETTING) if bool(torch.isfinite(fresh).all()) else old.nan_to_num(0, 0, 0)


def _others(size: int, gone: set[int]) -> list[int]:
    return [index for index in range(size) if index not in gone]


def _on_gradient(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    tensor.register_hook(take)  # type: ignore[no-untyped-call]  # torch has not typed it


def _read_by(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Return what a layer reads; None where that is several tensors, or one with several weights."""
    if isinstance(module, FreeAttention):
        alike = len(arguments) > 2 and arguments[0] is arguments[1] and arguments[0] is arguments[2]
        return arguments[0] if alike and module.in_proj_weight is not None else None
    return arguments[0] if arguments else None


def _behind(module: nn.Module, x: Tensor) -> bool:
    """Tell whether the samples are the second dimension of what a layer reads."""
    return isinstance(module, FreeAttention) and not module.batch_first and x.ndim > 2
