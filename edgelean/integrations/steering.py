"""What the callbacks have in common: validating, going on with a checkpoint, finishing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.attachment import Attached, attach
from edgelean.delivery import Delivery
from edgelean.errors import InputError
from edgelean.integrations.options import Options, Pair, ReadBatch
from edgelean.report.model import Report
from edgelean.shrink.reference import leaves

Loader = Callable[[], Iterable[Any] | None]
"""Gives batches, or None as long as there are none."""


@dataclass
class Logged:
    """A metric that a trainer logs. What it said of the model before a cut says nothing of the one after it.

    Attributes
    ----------
    name, sign
        What it is called, and -1 where lower is better.
    wanted
        Whether somebody waits for it.
    """

    name: str
    sign: float
    wanted: bool = False
    _value: float | None = None

    def take(self, metrics: Mapping[str, Any]) -> float | None:
        """Take what was logged in a validation, and return it as it was.

        Raises
        ------
        InputError
            If that was not logged; says what was.
        """
        if self.name not in metrics:
            known = ", ".join(sorted(metrics)) or "nothing"
            raise InputError(f"monitor={self.name!r} was not logged in the validation; that logged {known}")
        value = float(metrics[self.name])
        self._value = self.sign * value
        return value

    def __call__(self) -> float | None:
        """Return it once, higher is better; None until it has been logged again."""
        found, self._value = self._value, None
        self.wanted = found is None
        return found


@dataclass
class Steering:
    """An attached loop inside a trainer.

    Attributes
    ----------
    read
        Takes a batch of the trainer apart.
    lean
        The loop, while the trainer trains.
    delivery
        What came of it, once the trainer has ended.
    """

    options: Options
    read: ReadBatch
    logged: Logged | None = None
    lean: Attached | None = None
    delivery: Delivery | None = None
    _losses: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, options: Options, read: ReadBatch) -> Steering:
        """Return the steering that was asked for; nothing is attached yet."""
        options.metric_function()
        if options.validate is not None and options.monitor is not None:
            raise InputError(f"give either validate or monitor={options.monitor!r}: cuts are judged by one metric")
        sign = 1.0 if options.mode == "max" else -1.0
        logged = None if options.monitor is None else Logged(options.monitor, sign)
        return cls(options, options.batch or read, logged)

    def begin(
        self,
        model: nn.Module,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        steps: float,
        training: Iterable[Any],
        validation: Loader | None,
    ) -> None:
        """Attach the loop to the network that a trainer is about to train.

        Parameters
        ----------
        model
            The network as the trainer calls it: itself, or wrapped.
        optimizers
            Those after the first follow.
        steps
            Of the optimizer, in the whole training.
        validation
            None where the trainer does not validate.
        """
        asked = self.options
        if not math.isfinite(steps) or steps < 1:
            raise InputError(f"the trainer does not know how long it trains ({steps} steps): give it a number of steps")
        if validation is None and asked.test is None:
            raise InputError(
                "there is no data to verify the exported model on: give the trainer validation data or test="
            )
        example = asked.example_inputs if asked.example_inputs is not None else self._example(network, training)
        validate: Callable[[], float | None] | None = asked.validate or self.logged
        if validate is None and validation is not None:
            validate = partial(self.measured, network, validation)
        self.lean = attach(
            model, optimizers[0], example, asked.profile, steps=int(steps), latency=asked.latency, energy=asked.energy,
            validate=validate, followers=(*optimizers[1:], *asked.followers), target=asked.target,
            on_event=asked.on_event, protect=asked.protect, out=asked.out, name=asked.name,
        )  # fmt: skip

    def measured(self, network: nn.Module, validation: Loader) -> float | None:
        """Return the metric of a network on the validation data, None as long as that is not there; its mode stays."""
        batches, training = validation(), network.training
        if batches is None:
            return None
        network.eval()
        try:
            with torch.no_grad():
                pairs = [(leaves(network(*x))[0].cpu(), y.cpu()) for x, y in self._pairs(network, batches)]
        finally:
            network.train(training)
        return float(self.options.metric_function()(*(torch.cat(parts) for parts in zip(*pairs, strict=True))))

    def _example(self, network: nn.Module, training: Iterable[Any]) -> tuple[Tensor, ...]:
        with torch.random.fork_rng():  # what the training draws stays what it would have been
            return next(self._pairs(network, training))[0]

    def _pairs(self, network: nn.Module, batches: Iterable[Any]) -> Iterator[Pair]:
        device = next(network.parameters()).device
        for batch in batches:
            inputs, targets = self.read(batch)
            yield tuple(x.to(device) for x in inputs), targets.to(device)

    def loss(self, value: float) -> None:
        """Take the loss of one batch."""
        self._losses.append(value)

    def epoch(self, metric: float | None) -> None:
        """Record what the batches since the last call came to."""
        losses, self._losses = self._losses, []
        if self.lean is not None and losses:
            self.lean.record_epoch(sum(losses) / len(losses), metric)

    def finish(self, network: nn.Module, validation: Iterable[Any] | None) -> None:
        """Export, verify and bundle the network; nothing happens where there was no step."""
        if self.lean is None or not self.lean.steps or self.delivery is not None:
            return
        test, metric = self.options.test, self.options.metric_function()
        if isinstance(test, tuple):
            inputs, targets = test
            device = next(network.parameters()).device
            parts = tuple(x.to(device) for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
            self.delivery = self.lean.finish(parts, targets, metric, name=self.options.name)
            return
        found = test if test is not None else validation
        if found is None:
            raise InputError("there is no data to verify the exported model on: give test=")
        self.delivery = self.lean.finish_on(self._pairs(network, found), metric, name=self.options.name)


class HeldBack:
    """What a trainer loads into a model of other shapes than a checkpoint has, until the model has those.

    Trainers load the parameters of a checkpoint first of all. The model that they load them into is a full-size one
    still, and the loop has to see that before it can go on.

    Attributes
    ----------
    state
        What was to be loaded; None where nothing was, or it fitted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        hook = self._hold
        self._handle = model.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]  # of torch
        self.state: dict[str, Tensor] | None = None

    def _hold(self, module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        own = module.state_dict()
        shapes, wanted = ({name: getattr(x, "shape", None) for name, x in each.items()} for each in (state, own))
        if shapes != wanted:
            self.state = dict(state)
            state.clear()
            state.update(own)

    def release(self) -> dict[str, Tensor] | None:
        """Hold nothing back any more; return what was."""
        self._handle.remove()
        return self.state


def take_apart(batch: Any) -> Pair:
    """Return the inputs and the targets of a batch ``(input, target)``.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return (batch[0],), batch[1]
    kinds = ", ".join(type(part).__name__ for part in batch) if isinstance(batch, (tuple, list)) else ""
    raise InputError(
        f"a batch is a {type(batch).__name__}{f' of {kinds}' if kinds else ''} and not (input, target): give "
        "batch=FUNCTION, which returns the tuple of the model's inputs, and the targets"
    )


class Steered:
    """What the callbacks let a user see."""

    _steering: Steering

    @property
    def lean(self) -> Attached | None:
        """The attached loop, with its events."""
        return self._steering.lean

    @property
    def delivery(self) -> Delivery | None:
        """Verdicts and checks, once the training has ended."""
        return self._steering.delivery

    @property
    def report(self) -> Report | None:
        """The report, once the training has ended; None where no folder was given."""
        return None if self.lean is None else self.lean.report
