"""What a training needs to go on after it was interrupted, as one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgelean.control import ControllerState
from edgelean.loop import ClosedLoop
from edgelean.progress import Pending
from edgelean.shrink.attributes import numbers_of
from edgelean.shrink.bypass import Detour, Modules, detours_among, detours_of, modules_of, take_out
from edgelean.shrink.cut import Contents, Held, restore, tensors_of
from edgelean.shrink.followers import Groups, groups_of, leave
from edgelean.training.checkpoint import Checkpoint, joined_state, split_state
from edgelean.training.trainer import Session


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
            "detours": _plain(detours_of(session.model)),
            "optimizer": {"state": plain, "param_groups": state["param_groups"]},
            "schedule": session.schedule.state_dict(),
        },
    )


@dataclass(frozen=True)
class Unpacked:
    """What the trainer and the loop need to know of a checkpoint, beside what went into the session.

    Attributes
    ----------
    epochs
        Epochs that are done.
    modules, groups
        Of the model and its optimizer before a cut that is still pending; those of now if there is none.
    """

    epochs: int
    modules: Modules
    groups: Groups


def unpack(checkpoint: Checkpoint, session: Session) -> Unpacked:
    """Put a session, just prepared from the same recipe, where the checkpoint was."""
    pending = checkpoint.values.get("loop", {}).get("pending") or checkpoint.values
    leave(session.optimizer, take_out(session.model, map(_detour, pending["detours"])))
    modules, groups = modules_of(session.model), groups_of(session.optimizer)
    leave(session.optimizer, take_out(session.model, map(_detour, checkpoint.values["detours"])))
    restore(session.model, checkpoint.part("model/"), checkpoint.values["numbers"])
    saved = checkpoint.values["optimizer"]
    state = joined_state(checkpoint.part("optimizer/"), saved["state"])
    fresh = session.optimizer.state_dict()["param_groups"]
    merged = [{**group, **kept} for group, kept in zip(fresh, saved["param_groups"], strict=True)]
    session.optimizer.load_state_dict({"state": state, "param_groups": merged})
    session.schedule.load_state_dict(dict(checkpoint.values["schedule"]))
    return Unpacked(int(checkpoint.values["epoch"]), modules, groups)


def pack_loop(loop: ClosedLoop) -> Checkpoint:
    """Return what the closed loop remembers."""
    progress, pending = loop.progress, loop.progress.pending
    tensors = _under("scores", loop.scores.tensors())
    tensors |= {f"recent/{i}/{j}": x for i, batch in enumerate(loop.recent.batches) for j, x in enumerate(batch)}
    values: dict[str, Any] = {
        "control": progress.controller.to_json(),
        "order": dict(progress.order),
        "agreement": progress.agreement,
        "confirmed": progress.confirmed,
        "done": progress.done,
        "doubts": progress.doubts,
        "best": progress.guard.best,
        "spectra": progress.spectra,
        "banned": progress.banned,
        "precision": progress.precision,
        "active": loop.scores.active,
        "pending": None,
    }
    if pending is not None:
        state, plain = split_state(pending.optimizer.state)
        tensors |= _under("pending/model", pending.network.tensors) | _under("pending/optimizer", state)
        tensors |= _under("pending/scores", pending.scores)
        values["pending"] = {
            "optimizer": plain,
            "numbers": dict(pending.network.numbers),
            "detours": _plain(detours_among(pending.network.modules)),
            "blocks": list(pending.blocks),
        }
    return Checkpoint(tensors, values)


def unpack_loop(checkpoint: Checkpoint, loop: ClosedLoop, session: Unpacked) -> None:
    """Put a loop, made before the session was unpacked, where the checkpoint was."""
    values, progress = checkpoint.values, loop.progress
    progress.controller = ControllerState.from_json(values["control"])
    progress.order = {axis: tuple(prices) for axis, prices in values["order"].items()}
    progress.agreement = values["agreement"]
    progress.confirmed, progress.doubts = values["confirmed"], values["doubts"]
    progress.guard = replace(progress.guard, best=values["best"])
    progress.spectra = {axis: tuple(scores) for axis, scores in values["spectra"].items()}
    progress.banned = dict(values["banned"])
    if values["precision"] is not None:
        loop.compute_in(values["precision"])
    loop.scores.active = loop.recent.active = values["active"]
    progress.done = values["done"]
    loop.recent.batches = _batches(checkpoint.part("recent/"), loop.bench.batch[0].device)
    loop.scores.put_back(checkpoint.part("scores/"))
    loop.look_again()
    if values["pending"] is not None:
        tensors, kept = checkpoint.part("pending/model/"), values["pending"]
        state = joined_state(checkpoint.part("pending/optimizer/"), kept["optimizer"])
        progress.pending = Pending(
            Contents(tensors, kept["numbers"], session.modules),
            Held(session.groups, state),
            checkpoint.part("pending/scores/"),
            blocks=tuple(kept["blocks"]),
        )


def _plain(detours: Iterable[Detour]) -> list[dict[str, Any]]:
    return [detour.to_json() for detour in detours]


def _detour(plain: Mapping[str, Any]) -> Detour:
    return Detour(**plain)


def _batches(tensors: Mapping[str, Tensor], device: torch.device) -> list[tuple[Tensor, ...]]:
    batches: dict[int, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        batch, place = map(int, key.split("/"))
        batches.setdefault(batch, {})[place] = tensor.to(device)
    return [tuple(batches[i][j] for j in sorted(batches[i])) for i in sorted(batches)]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
