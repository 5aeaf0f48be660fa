"""What a training needs to go on after it was interrupted, as one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgelean.control import ControllerState
from edgelean.errors import InputError
from edgelean.loop import ClosedLoop
from edgelean.progress import Pending
from edgelean.reading import Reading
from edgelean.shrink.attributes import numbers_of
from edgelean.shrink.bypass import Detour, Modules, detours_among, detours_of, modules_of, take_out
from edgelean.shrink.cut import Contents, Held, restore, tensors_of
from edgelean.shrink.followers import Groups, counterpart, groups_of, leave
from edgelean.shrink.wrappers import unwrapped
from edgelean.training import randomness
from edgelean.training.checkpoint import Checkpoint, joined_state, split_state
from edgelean.training.trainer import BEGINNING, Place, Session


def pack(session: Session, place: Place) -> Checkpoint:
    """Return what decides how a training goes on from a place."""
    state = session.optimizer.state_dict()
    tensors, plain = split_state(state["state"])
    random, drawn = randomness.states()
    return Checkpoint(
        {**_under("model", tensors_of(session.model)), **_under("optimizer", tensors), **_under("random", random)},
        {
            "step": place.step,
            "epoch": place.epoch,
            "batch": place.batch,
            "loss": place.loss,
            "steps": session.steps,
            "random": drawn,
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
    place
        Where the training was.
    modules, groups
        Of the model and its optimizer before a cut that is still pending; those of now if there is none.
    """

    place: Place
    modules: Modules
    groups: Groups


def unpack(checkpoint: Checkpoint, session: Session) -> Unpacked:
    """Put a session, just prepared from the same recipe, where the checkpoint was.

    Raises
    ------
    InputError
        If the recipe or its data is another one by now, and the checkpoint does not fit.
    """
    values = checkpoint.values
    if values["steps"] != session.steps:
        raise InputError(
            f"the training had {values['steps']} steps, with the data as it is now it would have {session.steps}: "
            "put the data back, or start the run anew"
        )
    pending = checkpoint.values.get("loop", {}).get("pending") or checkpoint.values
    leave(session.optimizer, take_out(session.model, map(_detour, pending["detours"])))
    modules, groups = modules_of(session.model), groups_of(session.optimizer)
    leave(session.optimizer, take_out(session.model, map(_detour, checkpoint.values["detours"])))
    restore(session.model, checkpoint.part("model/"), checkpoint.values["numbers"])
    _put_back_optimizer(checkpoint, session.optimizer)
    session.schedule.load_state_dict(dict(values["schedule"]))
    place = Place(*(values[name] for name in ("step", "epoch", "batch", "loss")))
    if place.batch:
        place = replace(place, random=(checkpoint.part("random/"), values["random"]))
    return Unpacked(place, modules, groups)


def _put_back_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    saved = checkpoint.values["optimizer"]
    state = joined_state(checkpoint.part("optimizer/"), saved["state"])
    fresh = optimizer.state_dict()["param_groups"]
    try:
        merged = [{**group, **kept} for group, kept in zip(fresh, saved["param_groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": merged})
    except ValueError as error:
        raise InputError(
            f"the optimizer is not the one of the checkpoint ({error}): put the recipe back, or start the run anew"
        ) from None


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
        "since": progress.guard.since,
        "first": progress.guard.first,
        "spectra": progress.spectra,
        "banned": progress.banned,
        "precision": progress.precision,
        "active": loop.scores.active,
        "full_size": loop.full_size.to_json(),
        "reading": progress.reading.to_json(),
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


def full_size_of(checkpoint: Checkpoint) -> Reading:
    """Return the reading of the model before its first cut."""
    return Reading.from_json(checkpoint.values["loop"]["full_size"])


def unpack_loop(checkpoint: Checkpoint, loop: ClosedLoop, session: Unpacked) -> None:
    """Put a loop, made before the session was unpacked, where the checkpoint was."""
    values, progress = checkpoint.values, loop.progress
    progress.controller = ControllerState.from_json(values["control"])
    progress.order = {axis: tuple(prices) for axis, prices in values["order"].items()}
    progress.agreement = values["agreement"]
    progress.confirmed, progress.doubts = values["confirmed"], values["doubts"]
    progress.guard = replace(progress.guard, **{name: values[name] for name in ("best", "since", "first")})
    progress.spectra = {axis: tuple(scores) for axis, scores in values["spectra"].items()}
    progress.banned = dict(values["banned"])
    if values["precision"] is not None:
        loop.compute_in(values["precision"])
    loop.scores.active = loop.recent.active = values["active"]
    progress.done = values["done"]
    loop.recent.batches = _batches(checkpoint.part("recent/"), loop.bench.batch[0].device)
    loop.scores.put_back(checkpoint.part("scores/"))
    loop.bench.look()
    progress.reading = Reading.from_json(values["reading"])
    if values["pending"] is not None:
        tensors, kept = checkpoint.part("pending/model/"), values["pending"]
        state = joined_state(checkpoint.part("pending/optimizer/"), kept["optimizer"])
        progress.pending = Pending(
            Contents(tensors, kept["numbers"], session.modules),
            Held(session.groups, state),
            checkpoint.part("pending/scores/"),
            blocks=tuple(kept["blocks"]),
        )


def pack_attached(loop: ClosedLoop) -> dict[str, Any]:
    """Return what a loop remembers whose model and optimizer somebody else saves, and what the model looks like."""
    network, packed = loop.bench.model, pack_loop(loop)
    return {
        "tensors": {name: tensor.detach().cpu().clone() for name, tensor in packed.tensors.items()},
        # In plain types, so that whoever saves it can load it without unpickling classes.
        "values": json.loads(json.dumps(packed.values)),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors_of(network).items()},
        "numbers": dict(numbers_of(network)),
        "detours": _plain(detours_of(network)),
    }


def unpack_attached(state: Mapping[str, Any], loop: ClosedLoop) -> None:
    """Put a loop that is attached to the full-size model where `pack_attached` was; parameters are to be loaded yet.

    Followers get the same structure. What they were before a cut that is still pending is not known, so with them it
    can no longer be taken back.

    Raises
    ------
    InputError
        If the state is of another model.
    """
    network, followers = loop.bench.model, loop.around.followers
    copies = [counterpart(each, network) for each in followers if isinstance(each, nn.Module)]
    optimizers = [loop.optimizer, *(each for each in followers if isinstance(each, torch.optim.Optimizer))]
    pending = state["values"]["pending"] or state
    before: list[tuple[Modules, Groups]] = []
    for detours in (pending["detours"], state["detours"]):
        gone = [part for each in (network, *copies) for part in take_out(each, map(_detour, detours))]
        for optimizer in optimizers:
            leave(optimizer, gone)
        before.append((modules_of(network), groups_of(loop.optimizer)))
    for each in (loop.model, *copies):
        restore(each, _shaped(tensors_of(unwrapped(each)), state["shapes"]), state["numbers"])
    unpack_loop(Checkpoint(state["tensors"], state["values"]), loop, Unpacked(BEGINNING, *before[0]))
    if followers:
        loop.progress.pending = None


def _shaped(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return tensors of other shapes, with what fits of the contents; the right ones are loaded later."""
    if other := sorted(set(tensors) ^ set(shapes)):
        raise InputError(f"the state is that of another model: {', '.join(other[:5])} do not match")
    parts = {name: tuple(slice(size) for size in shapes[name]) for name in tensors}
    return {name: tensor.detach()[parts[name]].clone() for name, tensor in tensors.items()}


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
