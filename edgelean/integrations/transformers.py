"""The closed loop as a callback of Hugging Face Transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.errors import InputError, MissingError
from edgelean.integrations.options import Options, Pair
from edgelean.integrations.steering import HeldBack, Steered, Steering
from edgelean.shrink.wrappers import wrappers_of
from edgelean.training.checkpoint import Checkpoint, load_newest, save

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise MissingError("Transformers is not installed: pip install 'edgelean[transformers]'") from None

FOLDER = "edgelean"
"""What the loop remembers lies here in a checkpoint of the trainer."""


class EdgeleanCallback(Steered, TrainerCallback):  # type: ignore[misc]  # mypy skips Transformers
    """Makes the model that a Hugging Face ``Trainer`` trains smaller until it is within the budgets of a profile.

    ``Trainer(..., callbacks=[EdgeleanCallback(profile="jetson-orin", out="runs/x")])``

    Cuts follow steps of the optimizer, after gradients were accumulated and clipped. What the loop remembers is in the
    checkpoints of the trainer: ``train(resume_from_checkpoint=True)`` goes on with it. At the end of the training the
    model is exported and verified. A best model from before the last cut is not put in the place of the lean one.

    Parameters
    ----------
    profile
        A name on the shelf, a TOML file, or a `Profile`.
    options
        Those of `edgelean.integrations.options.Options`.
    """

    def __init__(self, profile: Any, **options: Any) -> None:
        self._steering = Steering.of(Options(profile=profile, **options), self._take_apart)
        self._held: HeldBack | None = None
        self._model: nn.Module | None = None
        self._validation: Iterable[Any] | None = None
        self._waits = False

    def _take_apart(self, batch: Any) -> Pair:
        if self._model is None or not isinstance(batch, Mapping):
            raise InputError(f"a batch is a {type(batch).__name__} and not a dict: give batch=FUNCTION")
        return inputs_and_labels(self._model, batch)

    # -- beginning -----------------------------------------------------------------------------------------------------

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> None:
        """Hold back what a checkpoint would load into the full-size model."""
        self._held = HeldBack(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_dataloader: Iterable[Any],
        **_: Any,
    ) -> None:
        """Attach the loop, and let it go on where the checkpoint was that the trainer goes on with."""
        held, self._held, self._model = None if self._held is None else self._held.release(), None, model
        validates = args.eval_strategy != "no"
        _mix_in_training_only(model)
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        called = [model, *wrappers_of(model)][-1]
        self._steering.begin(
            called, model, [inner], state.max_steps, train_dataloader, self._batches if validates else None
        )
        if state.global_step or held is not None:
            self._go_on(args, state, held)
        self._held = HeldBack(model)

    def _go_on(self, args: TrainingArguments, state: TrainerState, held: dict[str, Tensor] | None) -> None:
        assert self.lean is not None  # begin made it
        given = [Path(args.resume_from_checkpoint)] if isinstance(args.resume_from_checkpoint, str) else []
        folders = [*given, Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"]
        folder = next((each / FOLDER for each in folders if (each / FOLDER).is_dir()), None)
        if folder is None:
            raise MissingError(
                f"{folders[-1]} has no folder {FOLDER!r}: the loop only goes on with checkpoints in output_dir that "
                "were saved while it was attached"
            )
        found = load_newest(folder)
        self.lean.load_state_dict({**found.values, "tensors": found.tensors})
        if held is not None:
            self._network().load_state_dict(held, strict=False)

    def _batches(self) -> Iterable[Any] | None:
        """Return the validation data; the trainer shows it in its first evaluation, which is asked for if need be."""
        self._waits = self._validation is None
        return self._validation

    # -- steps ---------------------------------------------------------------------------------------------------------

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        **_: Any,
    ) -> None:
        """Tell the loop of a step of the optimizer; gradients are there still."""
        if self.lean is not None and not getattr(optimizer, "step_was_skipped", False):
            self.lean.step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for an evaluation where a cut waits for one."""
        logged = self._steering.logged
        if args.eval_strategy != "no" and (self._waits or (logged is not None and logged.wanted)):
            control.should_evaluate = True
            self._waits = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take the loss."""
        if logs and "loss" in logs:
            self._steering.loss(float(logs["loss"]))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: Mapping[str, Any],
        eval_dataloader: Iterable[Any],
        **_: Any,
    ) -> None:
        """Take the metric that was logged, and record it for the report."""
        self._validation = eval_dataloader
        if self.lean is None or self._model is None or self.delivery is not None:
            return
        if self._steering.logged is not None:
            self._steering.epoch(self._steering.logged.take(metrics))
        elif self._steering.options.out is not None:
            own = partial(self._steering.measured, self._network(), self._batches)
            self._steering.epoch((self._steering.options.validate or own)())

    def _network(self) -> nn.Module:
        assert self._model is not None  # asked for after the training began
        return self._model

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Add what the loop remembers to the checkpoint that was just written."""
        if self.lean is None or not state.is_world_process_zero:
            return
        whole = self.lean.state_dict()
        tensors = whole.pop("tensors")
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / FOLDER
        save(folder, "state", Checkpoint(tensors, whole))

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Export, verify, bundle and report."""
        held, self._held = None if self._held is None else self._held.release(), None
        if self.lean is not None and held is not None:
            text = "The best model of the trainer is from before the last cut: the model of the last step was kept."
            self.lean.note(text)
        if self._model is not None:
            self._steering.finish(self._model, self._validation)


def _mix_in_training_only(model: nn.Module) -> None:
    """Let a model compute in mixed precision while it trains, and in its own when it is looked at or exported.

    accelerate replaces ``forward`` by one that does it always; through that no structure can be seen.
    """
    plain = vars(model).get("_original_forward")
    if plain is None:
        return

    @wraps(plain.__func__)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        # By its attributes, so that a copy of the model calls its own.
        return (self._mixed_forward if self.training else self._original_forward)(*arguments, **named)

    vars(model).update(_mixed_forward=model.forward, forward=MethodType(forward, model))


def inputs_and_labels(model: nn.Module, batch: Mapping[str, Any]) -> Pair:
    """Return what a model reads of a batch, in the order in which it takes it, and the labels.

    Raises
    ------
    InputError
        If there are no labels, or what the model takes first is not in the batch.
    """
    names = [name for name in inspect.signature(model.forward).parameters if name != "labels"]
    given = {name: batch[name] for name in names if isinstance(batch.get(name), Tensor)}
    found = ", ".join(batch)
    if not isinstance(batch.get("labels"), Tensor):
        raise InputError(f"a batch has no labels, it has {found}: give batch=FUNCTION")
    if not given or list(given) != names[: len(given)]:
        raise InputError(
            f"{type(model).__name__} takes {', '.join(names[:4])}... in this order, a batch has {found}: give "
            "batch=FUNCTION, or order the inputs that are there first"
        )
    return tuple(given.values()), batch["labels"]
