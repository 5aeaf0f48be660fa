"""What goes around a sequence layer: a residual block, two directions, and whole models with a head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.errors import InputError
from edgelean.nn.bypass import Bypass

Merge = Literal["add", "concat"]
Pooling = Literal["mean", "last", "none"]


class SequenceBlock(nn.Module):
    """A residual block: normalise, layer, GELU, dropout, gated linear unit, dropout, add to the input.

    Parameters
    ----------
    layer
        A layer of this package, or whatever maps ``[batch, time, width]`` to ``[batch, time, features]``; with a
        ``step`` the block has one, too. Its ``width`` is that of the block.
    dropout
        Share of the features that training drops, after the GELU and after the gate.
    """

    def __init__(self, layer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        width = _width(layer)
        features = getattr(layer, "features", width)
        self.norm = nn.LayerNorm(width)
        self.layer = layer
        self.value = nn.Linear(features, width)
        self.gate = nn.Linear(features, width)
        self.dropout = nn.Dropout(dropout)

    @property
    def width(self) -> int:
        """Features per time step, in and out."""
        return self.value.weight.shape[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape."""
        return inputs + self._mix(self.layer(self.norm(inputs)))

    def step(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Advance by one time step ``[batch, width]``; the state is that of the layer, None at the start.

        Raises
        ------
        InputError
            If the layer has no step form.
        """
        outputs, state = _step_of(self.layer)(self.norm(inputs), state)
        return inputs + self._mix(outputs), state

    def _mix(self, outputs: Tensor) -> Tensor:
        activated = self.dropout(functional.gelu(outputs))
        mixed: Tensor = self.dropout(self.value(activated) * torch.sigmoid(self.gate(activated)))
        return mixed


class Bidirectional(nn.Module):
    """Two layers, one of which reads the sequence from its end.

    It needs the whole sequence before it can say anything, so it has no step form.

    Parameters
    ----------
    ahead, back
        The layers, of the same width.
    merge
        ``"add"`` the outputs, or ``"concat"`` them: ``[batch, time, 2 * width]``.
    """

    def __init__(self, ahead: nn.Module, back: nn.Module, merge: Merge = "add") -> None:
        super().__init__()
        if _width(ahead) != _width(back):
            raise InputError(f"two directions need layers of one width, found {_width(ahead)} and {_width(back)}")
        if merge not in get_args(Merge):
            raise InputError(f"two directions are merged by {' or '.join(get_args(Merge))}, not {merge!r}")
        self.ahead, self.back, self.merge = ahead, back, merge

    @property
    def width(self) -> int:
        """Features per time step that are read."""
        return _width(self.ahead)

    @property
    def features(self) -> int:
        """Features per time step that come out."""
        return self.width * (2 if self.merge == "concat" else 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to ``[batch, time, features]``."""
        ahead, back = self.ahead(inputs), self.back(inputs.flip(1)).flip(1)
        return torch.cat([ahead, back], -1) if self.merge == "concat" else ahead + back


class SequenceClassifier(nn.Module):
    """An encoder, blocks, pooling over time, and a head: one answer for each sequence.

    Parameters
    ----------
    encoder
        Maps the features of each time step to the width of the blocks, such as ``nn.Linear``; or an ``nn.Embedding``.
    blocks
        Such as `SequenceBlock`, in order.
    head
        From the pooled features to the logits, such as a norm and ``nn.Linear``.
    pooling
        ``"mean"`` over time, or the ``"last"`` time step. A stream gives after every step the answer for the sequence
        so far.
    """

    poolings: tuple[Pooling, ...] = ("mean", "last")

    def __init__(
        self, encoder: nn.Module, blocks: Iterable[nn.Module], head: nn.Module, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        if pooling not in self.poolings:
            raise InputError(f"a {type(self).__name__} pools by {' or '.join(self.poolings)}, not {pooling!r}")
        self.encoder, self.blocks, self.head, self.pooling = encoder, nn.ModuleList(blocks), head, pooling

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[batch, time, ...]`` to ``[batch, answers]``; without pooling to ``[batch, time, answers]``."""
        x = self.encoder(inputs)
        for block in self.blocks:
            x = block(x)
        if self.pooling != "none":
            x = x.mean(1) if self.pooling == "mean" else x[:, -1]
        answer: Tensor = self.head(x)
        return answer

    def step(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Advance by one time step ``[batch, ...]``, and answer for the sequence so far.

        Parameters
        ----------
        state
            What the previous step returned; None at the start of a sequence. The states of the blocks; with the mean
            also the sum over time ``[batch, width]`` and the number of steps ``[batch, 1]``.

        Raises
        ------
        InputError
            If a block has no step form.
        """
        x, states = self.encoder(inputs), []
        before = [None] * len(self.blocks) if state is None else state[0]
        for block, old in zip(self.blocks, before, strict=True):
            x, new = _step_of(block)(x, old)
            states.append(new)
        pooled: tuple[Tensor, ...] = ()
        if self.pooling == "mean":
            pooled = (x, torch.ones_like(x[:, :1]))
            pooled = pooled if state is None else (state[1][0] + x, state[1][1] + 1)
            x = pooled[0] / pooled[1]
        return self.head(x), (tuple(states), pooled)


class SequenceRegressor(SequenceClassifier):
    """The same with numbers as answers: for each time step (``pooling="none"``), or for the sequence."""

    poolings = ("none", "mean", "last")

    def __init__(
        self, encoder: nn.Module, blocks: Iterable[nn.Module], head: nn.Module, pooling: Pooling = "none"
    ) -> None:
        super().__init__(encoder, blocks, head, pooling)


class StepForm(nn.Module):
    """The step of a model as a forward of tensors: what is exported for streams.

    ``forward(inputs, state)`` returns the outputs and the new state, with the batch as dimension 0. All that the model
    remembers is side by side in one tensor ``[batch, size]``; zeros are the start of a sequence.

    Parameters
    ----------
    model
        Anything with a ``step``.
    inputs
        An example of one time step, ``[batch, ...]``.

    Raises
    ------
    InputError
        If the model, or something in it, has no step form, or its state is not made of tensors with the batch in front.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            _, state = _step_of(model)(inputs, None)
        parts = list(_flat(state))
        if not parts or any(part.shape[:1] != inputs.shape[:1] for part in parts):
            found = ", ".join(str(list(part.shape)) for part in parts) or "nothing"
            raise InputError(
                f"{type(model).__name__} has no step form: what it remembers has to be tensors [{len(inputs)}, ...] "
                f"for a batch of {len(inputs)}, found {found}"
            )
        self._like = _shapes(state)
        self._parts = [part.shape[1:] for part in parts]

    @property
    def size(self) -> int:
        """Numbers that the model remembers of a sample."""
        return sum(part.numel() for part in self._parts)

    def start(self, inputs: Tensor) -> Tensor:
        """Return the state at the start of a sequence, for the batch of an example of one time step."""
        floating = next(self.model.parameters(), inputs)
        return floating.detach().new_zeros(len(inputs), self.size)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one time step; returns the outputs and the new state."""
        sizes = [part.numel() for part in self._parts]
        split = torch.split(state, sizes, 1)
        parts = (part.reshape(-1, *shape) for part, shape in zip(split, self._parts, strict=True))
        outputs, after = _step_of(self.model)(inputs, _nested(self._like, parts))
        return outputs, torch.cat([part.flatten(1) for part in _flat(after)], 1)


def _flat(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if not isinstance(state, (tuple, list)):
        raise InputError(f"a state is made of tensors, and tuples of them; found {type(state).__name__}")
    return [part for inner in state for part in _flat(inner)]


def _shapes(state: Any) -> Any:
    """Return the shapes of one sample in the arrangement of the state, without keeping its tensors."""
    return state.shape[1:] if isinstance(state, Tensor) else tuple(_shapes(inner) for inner in state)


def _nested(like: Any, tensors: Iterator[Tensor]) -> Any:
    """Arrange tensors as ``like`` is: tuples of tuples of shapes."""
    return next(tensors) if isinstance(like, torch.Size) else tuple(_nested(inner, tensors) for inner in like)


def _width(layer: nn.Module) -> int:
    width = getattr(layer, "width", None)
    if not isinstance(width, int):
        raise InputError(f"{type(layer).__name__} has no width: a sequence layer says how many features it reads")
    return width


def _step_of(module: nn.Module) -> Any:
    if isinstance(module, Bidirectional):
        raise InputError("a bidirectional layer reads the sequence from its end as well: it has no step form")
    if isinstance(module, Bypass):  # what a cut leaves of a block remembers nothing
        return lambda inputs, state: (module(inputs), ())
    step = getattr(module, "step", None)
    if not callable(step):
        raise InputError(f"{type(module).__name__} has no step form")
    return step
