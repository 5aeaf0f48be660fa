"""The closed loop for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.delivery import Delivery, Label, deliver, evidence
from edgelean.errors import InputError
from edgelean.loop import ClosedLoop
from edgelean.profile import Profile, load_profile
from edgelean.shrink.followers import Follower, counterpart
from edgelean.shrink.inputs import checked_inputs
from edgelean.shrink.protect import check_paths
from edgelean.shrink.wrappers import eagerly, refuse_sharded, unwrapped
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.run import OnEvent


class Attached:
    """What `attach` returns: tell it after every step of the optimizer, and let it finish.

    Attributes
    ----------
    events
        Everything that happened so far: readings, demands, cuts, rollbacks.
    """

    def __init__(self, loop: ClosedLoop, stopwatch: Stopwatch, on_event: OnEvent | None) -> None:
        self._loop, self._stopwatch, self._on_event = loop, stopwatch, on_event
        self._steps = 0
        self.events: list[dict[str, Any]] = []
        loop.record = self._record
        loop.record_beginning()

    def step(self) -> None:
        """Do what is due: call it right after ``optimizer.step()``.

        A cut changes the model in place. Every parameter stays the same object, and the state of the optimizer and
        of the followers is cut along, so nothing else has to be told. A CUDA graph that the caller captured is the
        exception: it has to be captured again after a "cut" or "rollback" event.
        """
        self._steps += 1
        self._loop.after_step(self._steps)

    def finish(
        self,
        inputs: Tensor,
        targets: Tensor,
        metric: Callable[[Tensor, Tensor], float],
        out: str | Path = "bundle",
        name: str = "model",
    ) -> Delivery:
        """Export, verify and bundle the trained model; the hooks are taken off it.

        Parameters
        ----------
        inputs, targets
            The test split.
        metric
            ``metric(outputs, targets)``, higher is better.
        out
            Folder of the bundle; one that was there before is replaced.

        Returns
        -------
        Delivery
            The verdict per budget, and what the verifier found per exported file.
        """
        self._loop.close()
        bench = self._loop.bench
        size = bench.profile.batch
        label = Label(f"{name} for {bench.profile.name}", ())

        def delivered() -> Delivery:
            pairs = zip(torch.split(inputs, size), torch.split(targets, size), strict=True)
            found = evidence(bench.model, pairs, metric, getattr(metric, "__name__", "metric"))
            return deliver(self._loop, found, label, Path(out), self._stopwatch)

        with closing(bench.target), eagerly(self._loop.model):
            return self._loop.ranks.first(delivered)

    def _record(self, event: str, step: int, **fields: Any) -> None:
        told = {"event": event, "step": step, **fields}
        self.events.append(told)
        if self._on_event is not None:
            self._on_event(told)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    example_inputs: Tensor | tuple[Tensor, ...],
    profile: str | Path | Profile,
    *,
    steps: int,
    latency: str | None = None,
    energy: str | None = None,
    validate: Callable[[], float] | None = None,
    followers: Sequence[Follower] = (),
    target: str | None = None,
    on_event: OnEvent | None = None,
    protect: str | Sequence[str] = (),
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
    latency, energy
        Other budgets than the profile's, as for `edgelean.fit`.
    validate
        Gives the metric on validation data, higher is better. With it a cut that the model does not recover from is
        taken back; without it nothing is.
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

    Raises
    ------
    InputError
        If a budget cannot be reached (the message has the reachable minimum), the model does not run on the example
        inputs, neither it nor any module in it can be traced, it is wrapped in something with which parameters cannot
        be cut, a follower does not follow it, or a protected path is not in it.
    """
    if steps < 1:
        raise InputError(f"attach needs the number of optimizer steps of the training, found steps={steps}")
    wanted = profile if isinstance(profile, Profile) else load_profile(profile)
    wanted = wanted.with_budgets(latency, energy)
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
    bench = Bench(network, example, wanted, open_target(target, wanted, board), stopwatch, paths)
    loop = ClosedLoop(bench, optimizer, Surroundings(board, steps, validate, stopwatch, model, tuple(followers)))
    return Attached(loop, stopwatch, on_event)
