"""What a training needs to go on after it was interrupted, as one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgelean.control import ControllerState
from edgelean.loop import ClosedLoop, Pending
from edgelean.shrink.attributes import numbers_of
from edgelean.shrink.cut import restore, tensors_of
from edgelean.training.checkpoint import Checkpoint, joined_state, split_state
from edgelean.training.trainer import Session

Moments = Mapping[str, Mapping[str, Tensor]]


def pack(session: Session, step: int, epoch: int) -> Checkpoint:
    """Return what decides how a training goes on.

    Random states are not among it: every epoch starts them from the seed and its own number.
    """
    state = session.optimizer.state_dict()
    tensors, plain = split_state(state["state"])
    return Checkpoint(
        {**_under("model", tensors_of(session.model)), **_under("optimizer", tensors)},
        {
            "step": step,
            "epoch": epoch,
            "numbers": numbers_of(session.model),
            "optimizer": {"state": plain, "param_groups": state["param_groups"]},
            "schedule": session.schedule.state_dict(),
        },
    )


def unpack(checkpoint: Checkpoint, session: Session) -> int:
    """Put a session, just prepared from the same recipe, where the checkpoint was; return the epochs that are done."""
    restore(session.model, checkpoint.part("model/"), checkpoint.values["numbers"])
    saved = checkpoint.values["optimizer"]
    state = joined_state(checkpoint.part("optimizer/"), saved["state"])
    groups = session.optimizer.state_dict()["param_groups"]
    merged = [{**group, **kept} for group, kept in zip(groups, saved["param_groups"], strict=True)]
    session.optimizer.load_state_dict({"state": state, "param_groups": merged})
    session.schedule.load_state_dict(dict(checkpoint.values["schedule"]))
    return int(checkpoint.values["epoch"])


def pack_loop(loop: ClosedLoop) -> Checkpoint:
    """Return what the closed loop remembers."""
    progress, pending = loop.progress, loop.progress.pending
    tensors = _under("flow", _flat({path: flow.tensors() for path, flow in loop.scores.flows.items()}))
    tensors |= _under("slope", loop.scores.slopes)
    tensors |= {f"recent/{i}/{j}": x for i, batch in enumerate(loop.recent.batches) for j, x in enumerate(batch)}
    values: dict[str, Any] = {
        "control": progress.controller.to_json(),
        "order": progress.order,
        "agreement": progress.agreement,
        "confirmed": progress.confirmed,
        "done": progress.done,
        "doubts": progress.doubts,
        "best": progress.guard.best,
        "spectra": progress.spectra,
        "banned": progress.banned,
        "active": loop.scores.active,
        "pending": None,
    }
    if pending is not None:
        state, plain = split_state(pending.optimizer)
        tensors |= _under("pending/model", pending.tensors) | _under("pending/optimizer", state)
        tensors |= _under("pending/flow", _flat(pending.moments))
        values["pending"] = {"optimizer": plain, "numbers": dict(pending.numbers)}
    return Checkpoint(tensors, values)


def unpack_loop(checkpoint: Checkpoint, loop: ClosedLoop) -> None:
    """Put a loop, made before the session was unpacked, where the checkpoint was."""
    values, progress = checkpoint.values, loop.progress
    progress.controller = ControllerState.from_json(values["control"])
    progress.order, progress.agreement = tuple(values["order"]), values["agreement"]
    progress.confirmed, progress.doubts = values["confirmed"], values["doubts"]
    progress.guard = replace(progress.guard, best=values["best"])
    progress.spectra = {axis: tuple(scores) for axis, scores in values["spectra"].items()}
    progress.banned = dict(values["banned"])
    loop.scores.active = loop.recent.active = values["active"]
    progress.done = values["done"]
    loop.recent.batches = _batches(checkpoint.part("recent/"), loop.bench.batch[0].device)
    loop.scores.put_back(_nested(checkpoint.part("flow/")))
    loop.scores.slopes = checkpoint.part("slope/")
    loop.look_again()
    if values["pending"] is not None:
        progress.pending = Pending(
            checkpoint.part("pending/model/"),
            joined_state(checkpoint.part("pending/optimizer/"), values["pending"]["optimizer"]),
            _nested(checkpoint.part("pending/flow/")),
            values["pending"]["numbers"],
        )


def _batches(tensors: Mapping[str, Tensor], device: torch.device) -> list[tuple[Tensor, ...]]:
    batches: dict[int, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        batch, place = map(int, key.split("/"))
        batches.setdefault(batch, {})[place] = tensor.to(device)
    return [tuple(batches[i][j] for j in sorted(batches[i])) for i in sorted(batches)]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _flat(moments: Moments) -> dict[str, Tensor]:
    return {f"{path}/{name}": tensor for path, flow in moments.items() for name, tensor in flow.items()}


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, name = key.rpartition("/")
        moments.setdefault(path, {})[name] = tensor
    return moments
