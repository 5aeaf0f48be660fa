"""The closed loop for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.delivery import Delivery, Sample, deliver, evidence
from edgelean.errors import InputError
from edgelean.exporter.graphs import Samples
from edgelean.exporter.search import HeldOut
from edgelean.job import About
from edgelean.label import Label, plan_hash
from edgelean.loop import ClosedLoop
from edgelean.notebook import Notebook, check_folder
from edgelean.profile import Profile, load_profile
from edgelean.recipe import Metric
from edgelean.report.model import Report
from edgelean.resume import pack_attached, unpack_attached
from edgelean.shrink.followers import Follower, counterpart
from edgelean.shrink.inputs import checked_inputs
from edgelean.shrink.protect import check_paths
from edgelean.shrink.wrappers import Ranks, eagerly, refuse_other_wrappers, refuse_sharded, unwrapped
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.run import OnEvent


class Attached:
    """What `attach` returns: tell it after every step of the optimizer, and let it finish.

    Attributes
    ----------
    report
        Of the run, once it is finished; None where `attach` was given no folder for one.
    """

    def __init__(self, loop: ClosedLoop, notebook: Notebook, stopwatch: Stopwatch) -> None:
        self._loop, self._notebook, self._stopwatch = loop, notebook, stopwatch
        self._steps, self._begun, self._finished = 0, False, False
        self._moved = False
        self._watching = loop.optimizer.register_step_post_hook(self._take_note)
        self.report: Report | None = None
        loop.record = notebook.record
        loop.record_beginning()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything that happened so far: readings, demands, cuts, rollbacks."""
        return self._notebook.events

    @property
    def steps(self) -> int:
        """How many steps of the optimizer have been counted."""
        return self._steps

    def step(self) -> None:
        """Do what is due: call it right after ``optimizer.step()``.

        A cut changes the model in place. Every parameter stays the same object, and the state of the optimizer and
        of the followers is cut along, so nothing else has to be told. A CUDA graph that the caller captured is the
        exception: it has to be captured again after a "cut" or "rollback" event. A step that a gradient scaler left
        out, because gradients overflowed, is not counted.

        Raises
        ------
        InputError
            If the optimizer has done nothing since the last call, the loop is finished, or the model was wrapped after
            it was attached.
        """
        if self._finished:
            raise InputError("step was called after finish: attach again for another training")
        if not self._begun:
            refuse_other_wrappers(self._loop.bench.model, self._loop.model)
            self._loop.ranks.first(lambda: self._notebook.begin(self._loop))
            self._begun = True
        if not self._moved:
            self._refuse_a_second_call()
            return
        self._moved = False
        self._steps += 1
        self._loop.after_step(self._steps)

    def _take_note(self, *_: Any) -> None:
        self._moved = True

    def _refuse_a_second_call(self) -> None:
        optimizer = self._loop.optimizer
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise InputError(
                f"step was called twice after step {self._steps} of the optimizer: call it once, right after each "
                "optimizer.step(), which with gradient accumulation is not after each batch"
            )

    def record_epoch(self, loss: float, metric: float | None = None) -> None:
        """Record what an epoch, or a validation, came to: the report draws it."""
        epoch = 1 + sum(event["event"] == "epoch" for event in self.events)
        self._notebook.record("epoch", self._steps, epoch=epoch, loss=loss, metric=metric, metric_name="metric")

    def note(self, text: str) -> None:
        """Record what a person should know of the training; the report has it among its caveats."""
        bench = self._loop.bench
        bench.notes = (*bench.notes, text)
        self._notebook.record("note", self._steps, text=text)

    # -- resume --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the loop remembers, and the structure of the model: save it beside model and optimizer.

        Tensors, numbers and text only, so that ``torch.load`` reads it with ``weights_only=True``.
        """
        return {"steps": self._steps, **pack_attached(self._loop)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; call it right after `attach`.

        The full-size model gets the structure that it had then. Load its parameters, and the state of the optimizer,
        after this. The run in the folder goes on, too. With followers the last cut before the state was taken can no
        longer be taken back.

        Raises
        ------
        InputError
            If steps have been done already, or the state is of another model.
        """
        if self._steps:
            raise InputError(f"the state is loaded right after attach, not after {self._steps} steps")
        unpack_attached(state, self._loop)
        self._steps, self._begun = int(state["steps"]), True
        self._loop.ranks.first(lambda: self._notebook.go_on(self._steps, self._loop))

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(
        self, inputs: Sample, targets: Tensor, metric: Metric, out: str | Path | None = None, name: str = "model"
    ) -> Delivery:
        """Export, verify and bundle the trained model; the hooks are taken off it.

        Parameters
        ----------
        inputs, targets
            The test split: one tensor, or one for each input of the model, and what is to come out.
        metric
            ``metric(outputs, targets)``, higher is better.
        out
            Folder of the bundle; one that was there before is replaced. Left out: ``bundle`` in the folder of the run,
            or here.

        Returns
        -------
        Delivery
            The verdict per budget, and what the verifier found per exported file.

        Raises
        ------
        InputError
            If there was no step, or it is finished already.
        """
        size = self._loop.bench.profile.batch
        parts = zip(*(torch.split(x, size) for x in (inputs if isinstance(inputs, tuple) else (inputs,))), strict=True)
        return self.finish_on(zip(parts, torch.split(targets, size), strict=True), metric, out, name)

    def finish_on(
        self,
        batches: Iterable[tuple[Sample, Tensor]],
        metric: Metric,
        out: str | Path | None = None,
        name: str = "model",
    ) -> Delivery:
        """Do what `finish` does, on batches of ``(input, target)`` that are gone through once, as a loader yields them.

        Of several processes only the first one does it; the others wait for what it found.
        """
        if self._finished or not self._steps:
            why = "it is finished already" if self._finished else "no step was counted: call step after each step"
            raise InputError(f"there is nothing to finish: {why}")
        self._finished = True
        self._watching.remove()
        self._loop.close()
        bench, planned = self._loop.bench, self._loop.around.steps
        if self._steps < planned:
            self.note(f"The training ended after {self._steps} of {planned} steps.")
        self._notebook.close()
        origin = {"profile": bench.profile.name, "board": bench.profile.board, "plan": plan_hash(self.events)}
        label = Label(f"{name} for {bench.profile.name}", (), origin=origin)
        place = Path(out) if out is not None else self._notebook.bundle() or Path("bundle")

        def delivered() -> tuple[Delivery, Report | None]:
            found = evidence(bench.model, batches, metric, getattr(metric, "__name__", "metric"))
            delivery = deliver(self._loop, found, self._samples(), label, place, self._stopwatch)
            return delivery, self._notebook.conclude(self._loop, found, delivery)

        with closing(bench.target), eagerly(self._loop.model):
            delivery, self.report = self._loop.ranks.first(delivered)
        return delivery

    def _samples(self) -> Samples:
        """Return the last inputs of the training, by which lower precisions are made and judged alike."""
        seen = self._loop.recent.inputs() or self._loop.bench.batch
        batches = [tuple(x.cpu().numpy() for x in seen)]
        return Samples(batches, HeldOut(batches))


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    example_inputs: Tensor | tuple[Tensor, ...],
    profile: str | Path | Profile,
    *,
    steps: int,
    latency: str | None = None,
    energy: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    accuracy_loss: str | None = None,
    validate: Callable[[], float | None] | None = None,
    followers: Sequence[Follower] = (),
    target: str | None = None,
    on_event: OnEvent | None = None,
    protect: str | Sequence[str] = (),
    out: str | Path | None = None,
    name: str = "model",
) -> Attached:
    """Attach the controller to a training loop of one's own.

    Parameters
    ----------
    model, optimizer
        Trained by the caller, and cut in place while they are. The model may be compiled, or wrapped in
        ``DistributedDataParallel``: then every process attaches, steps and finishes alike, and what the first one
        reads, validates and plans holds for all.
    example_inputs
        Inputs of one small batch; their first dimension is the batch.
    profile
        A name on the shelf, a TOML file, or a `Profile`.
    steps
        How many optimizer steps the training will have.
    latency, energy, memory, size, accuracy_loss
        Other budgets than the profile's, as for `edgelean.fit`.
    validate
        Gives the metric on validation data, higher is better. With it a cut that the model does not recover from is
        taken back; without it nothing is. While it gives None, the metric of the model as it is now is not known
        yet, and the next cut waits.
    followers
        What is cut along: further optimizers of the model's parameters, and copies with parameters of the same
        names, such as ``torch.optim.swa_utils.AveragedModel`` or a teacher. A rollback takes them back, too.
    target
        ``"local"``, ``"modelled"`` or ``"ssh://[user@]host"``; left out: local where the board is this machine, else
        modelled.
    on_event
        Called with every event as it happens.
    protect
        Paths of modules that keep their size, such as ``"head"`` or ``"layers.*.attn"``, with all that is below them.
    out
        Folder of a run, new or empty: events, energy, bundle and report go there, as with `edgelean.fit`. Left out:
        `finish` writes a bundle, and nothing else is written.
    name
        What is trained, at the head of the report.

    Raises
    ------
    InputError
        If a budget cannot be reached (the message has the reachable minimum), the model does not run on the example
        inputs, neither it nor any module in it can be traced, it is wrapped in something with which parameters cannot
        be cut, a follower does not follow it, a protected path is not in it, or the folder holds something else.
    """
    if steps < 1:
        raise InputError(f"attach needs the number of optimizer steps of the training, found steps={steps}")
    wanted = profile if isinstance(profile, Profile) else load_profile(profile)
    wanted = wanted.with_budgets(latency, energy, memory, size, accuracy_loss)
    if wanted.budgets.accuracy_loss is not None and validate is None:
        raise InputError("an accuracy_loss budget needs something to tell it by: give validate, or drop the budget")
    board = load_board(wanted.board)
    stopwatch = Stopwatch()
    network = unwrapped(model)
    example = checked_inputs(network, example_inputs)
    paths = (protect,) if isinstance(protect, str) else tuple(protect)
    check_paths(network, paths)
    for follower in (optimizer, *followers):
        if isinstance(follower, nn.Module):
            counterpart(follower, network)
        else:
            refuse_sharded(follower)
    folder, ranks = None if out is None else Path(out), Ranks.of(model)
    ranks.first(lambda: check_folder(folder))
    bench = Bench(network, example, wanted, open_target(target, wanted, board), stopwatch, paths)
    loop = ClosedLoop(bench, optimizer, Surroundings(board, steps, validate, stopwatch, model, tuple(followers)))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = About(name, wanted, board, torch.initial_seed(), 0, steps, "metric", started)
    return Attached(loop, Notebook(folder if ranks.leads else None, about, stopwatch, on_event), stopwatch)
