"""A model and its probe batch, looked at before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgelean.errors import InputError
from edgelean.shrink.reference import leaves
from edgelean.shrink.untraceable import as_it_infers, as_python_writes_it, first_line, silence, users_frame

_CONVOLUTIONS = ((nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3))
_SPACE = ("", ", length", ", height, width", ", depth, height, width")


def refuse_unready(model: nn.Module) -> None:
    """Refuse a model that has no parameters, or does not have their shapes yet.

    Raises
    ------
    InputError
        Says what is missing, and what to do.
    """
    name = type(model).__name__
    lazy = [key for key, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        some = ", ".join(lazy[:3]) + (f" and {len(lazy) - 3} more" if len(lazy) > 3 else "")
        raise InputError(
            f"{name} has lazy modules whose parameters have no shape yet ({some}): call the model once on a batch "
            "before you give it away, in a recipe at the end of model()"
        )
    if next(model.parameters(), None) is None:
        raise InputError(f"{name} has no parameters, so there is nothing to train or to cut: is it the right model?")


def checked_inputs(model: nn.Module, example: Any) -> tuple[Tensor, ...]:
    """Return a model's example inputs as a tuple, after it has run on them.

    Parameters
    ----------
    example
        A tensor or several of them: one batch.

    Raises
    ------
    InputError
        If they are no tensors, or on another device than the model, if the model does not take them (names the layer,
        what it wants and what it was given), or if its outputs are not finite.
    """
    refuse_unready(model)
    inputs = example if isinstance(example, (tuple, list)) else (example,)
    kinds = ", ".join(type(x).__name__ for x in inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        found = kinds or "nothing"
        raise InputError(f"the example inputs have to be tensors, one batch of each input of the model; found {found}")
    if any(x.ndim == 0 or len(x) == 0 for x in inputs):
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise InputError(f"the first dimension of each example input is the batch, of at least one; found {shapes}")
    device = next(model.parameters()).device
    elsewhere = next((x.device for x in inputs if x.device != device), device)
    if elsewhere != device:
        raise InputError(
            f"the model is on {device}, its example inputs on {elsewhere}: move them with .to({str(device)!r})"
        )
    _refuse_infinite(model, _run(model, tuple(inputs)))
    return tuple(inputs)


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    inside: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    try:
        with torch.no_grad(), silence(), as_it_infers(model), _following(model, inside):
            outputs = leaves(model(*inputs))
    except Exception as error:  # whatever the user's code raises
        given = ", ".join(_kind(x) for x in inputs)
        frame = users_frame(error)
        place = f"\n{as_python_writes_it(frame)}" if frame is not None else ""
        raise InputError(
            f"{type(model).__name__} cannot run on a batch {given}: {_told(model, inside)} ({first_line(error)}). Give "
            f"inputs as the model is trained on, batch first{place}"
        ) from error
    if not outputs:
        raise InputError(f"{type(model).__name__} returns no tensor: what it computes cannot be compared after a cut")
    return outputs


def _told(model: nn.Module, inside: list[tuple[str, nn.Module, tuple[Any, ...]]]) -> str:
    """Return which layer failed on what."""
    if not inside:
        return f"{type(model).__name__} does not take such arguments"
    path, module, arguments = inside[-1]
    kind, wanted = type(module).__name__, _wanted(module)
    where, took = f"{path} ({kind})" if path else f"the {kind} itself", ", ".join(_kind(x) for x in arguments)
    return f"{where} wants {wanted} and got {took}" if wanted else f"{where} failed on {took}"


@contextmanager
def _following(model: nn.Module, inside: list[tuple[str, nn.Module, tuple[Any, ...]]]) -> Iterator[None]:
    """Keep a list of the modules that are being called, the innermost last; an error leaves it as it is."""
    handles = []
    for path, module in model.named_modules():

        def enter(module: nn.Module, arguments: tuple[Any, ...], path: str = path) -> None:
            inside.append((path, module, arguments))

        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(lambda *_: inside.pop() and None),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wanted(module: nn.Module) -> str:
    """Return what a layer of torch reads, empty where that is not known."""
    weight = getattr(module, "weight", None)
    precision = f" of {_short(weight.dtype)}" if isinstance(weight, Tensor) else ""
    for kind, dims in _CONVOLUTIONS:
        if isinstance(module, kind):
            return f"[batch, {module.in_channels}{_SPACE[dims]}]{precision}"
    if isinstance(module, nn.Linear):
        return f"[..., {module.in_features}]{precision}"
    if isinstance(module, nn.Embedding):
        return f"whole numbers (int64) from 0 to {module.num_embeddings - 1}"
    if isinstance(module, nn.RNNBase):
        order = "batch, time" if module.batch_first else "time, batch"
        return f"[{order}, {module.input_size}]"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"{module.num_features} channels{precision}"
    if isinstance(module, nn.LayerNorm):
        return f"[..., {', '.join(str(size) for size in module.normalized_shape)}]{precision}"
    return ""


def _kind(value: object) -> str:
    """Return shape and type of an input: ``"[8, 1, 28, 28] of float32"``."""
    return f"{list(value.shape)} of {_short(value.dtype)}" if isinstance(value, Tensor) else type(value).__name__


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse_infinite(model: nn.Module, outputs: list[Tensor]) -> None:
    bad = sum(int((~torch.isfinite(x)).sum()) for x in outputs)
    if bad:
        whole = sum(x.numel() for x in outputs)
        holes = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
        cause = f"{holes[0]} holds such numbers itself" if holes else "look for a division by zero or a log of zero"
        raise InputError(
            f"{bad} of {whole} outputs of {type(model).__name__} on the probe batch are NaN or infinite, so no cut of "
            f"it can be checked: {cause}"
        )
