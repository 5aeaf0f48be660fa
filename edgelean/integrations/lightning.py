"""The closed loop as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from torch import nn

from edgelean.errors import InputError, MissingError
from edgelean.integrations.options import Options
from edgelean.integrations.steering import HeldBack, Steered, Steering, take_apart

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise MissingError("Lightning is not installed: pip install 'edgelean[lightning]'") from None


class EdgeleanCallback(Steered, Callback):  # type: ignore[misc]  # mypy skips Lightning
    """Makes the model that a Lightning ``Trainer`` trains smaller until it is within the budgets of a profile.

    ``Trainer(callbacks=[EdgeleanCallback(profile="jetson-orin", out="runs/x")])``

    Cuts follow steps of the optimizer, after gradients were accumulated and clipped. What the loop remembers is in the
    checkpoints of the trainer: ``fit(..., ckpt_path=...)`` goes on with it. At the end of the training the model is
    exported and verified; where it ends early, on what it is then.

    Parameters
    ----------
    profile
        A name on the shelf, a TOML file, or a `Profile`.
    options
        Those of `edgelean.integrations.options.Options`.
    """

    def __init__(self, profile: Any, **options: Any) -> None:
        self._steering = Steering.of(Options(profile=profile, **options), take_apart)
        self._held: HeldBack | None = None
        self._saved: dict[str, Any] | None = None
        self._done = 0
        self._called: list[bool] = []
        self._handles: list[Any] = []

    # -- beginning -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hold back what a checkpoint would load into the full-size model."""
        if stage == "fit":
            self._held = HeldBack(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return what the loop remembers, for the checkpoint."""
        return {} if self.lean is None else {"lean": self.lean.state_dict(), "done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint holds, until there is a loop that goes on with it."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the loop; optimizers are there, and what a checkpoint knows of them is loaded after this."""
        held, self._held = None if self._held is None else self._held.release(), None
        if held is not None and self._saved is None:
            raise InputError(
                f"{trainer.ckpt_path} holds a model of other shapes, and nothing of edgelean: do not give it"
            )
        network, model = self._networks(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        trainer.fit_loop.setup_data()  # nothing where it is there already
        validation = partial(_validation, trainer) if trainer.enable_validation else None
        self._steering.begin(model, network, trainer.optimizers, steps, trainer.train_dataloader, validation)
        # Not in an evaluation: that may go another way.
        self._handles = [network.register_forward_hook(lambda module, *_: self._called.append(module.training))]
        if self.lean is not None and self._saved is not None:
            self.lean.load_state_dict(self._saved["lean"])
            self._done = self._saved["done"]
        if held is not None:
            pl_module.load_state_dict(held)

    def _networks(self, trainer: Trainer, pl_module: LightningModule) -> tuple[nn.Module, nn.Module]:
        """Return the network that is cut, and the same as the trainer calls it."""
        path = self._steering.options.network
        try:
            network = pl_module.get_submodule(path)
        except AttributeError:
            raise InputError(f"network={path!r} is not in {type(pl_module).__name__}") from None
        called = trainer.strategy.model
        if called is None or called is pl_module:
            return network, network
        if path:
            raise InputError(
                f"several processes train the whole {type(pl_module).__name__}: leave out network={path!r}"
            )
        return network, called

    # -- steps ---------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the loop of a step of the optimizer, if the batch ended with one."""
        self._refuse_uncalled(pl_module)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._steering.loss(float(loss))
        if self.lean is not None and trainer.global_step > self._done:
            self._done = trainer.global_step
            self.lean.step()

    def _refuse_uncalled(self, pl_module: LightningModule) -> None:
        if self._handles and not any(self._called):
            path = self._steering.options.network
            what = f"the module {path!r}" if path else f"{type(pl_module).__name__}.forward"
            parts = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise InputError(f"training_step never calls {what}: name the module that it calls, network=one of {parts}")
        while self._handles:
            self._handles.pop().remove()
            self._called.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metric that was logged."""
        if self._steering.logged is not None and not trainer.sanity_checking:
            self._steering.epoch(self._steering.logged.take(trainer.callback_metrics))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch for the report."""
        options = self._steering.options
        if self._steering.logged is not None or options.out is None:
            return
        network = pl_module.get_submodule(options.network)
        own = partial(self._steering.measured, network, partial(_validation, trainer))
        self._steering.epoch((options.validate or own)())

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, verify, bundle and report."""
        self._steering.finish(pl_module.get_submodule(self._steering.options.network), _validation(trainer))


def _validation(trainer: Trainer) -> Iterable[Any] | None:
    """Return the batches of the first validation loader, as many as the trainer takes; None before there is one."""
    loaders = trainer.val_dataloaders
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    loader = next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders
    most = trainer.num_val_batches
    count = most[0] if isinstance(most, list) and most else most
    return None if loader is None else islice(loader, count if isinstance(count, int) and count else None)
