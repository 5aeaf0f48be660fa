"""A model in PyTorch that computes as it will in a lower precision, for validation and for training.

In INT8 what is rounded is what an INT8 file of it has in 8 bits: weights of convolutions and linear layers, for each
channel, and what they read, for a whole tensor, both symmetric around zero. Gradients pass what was rounded as if it
had not been (Bengio et al., Estimating or propagating gradients through stochastic neurons, 2013; Jacob et al.,
Quantization and training of neural networks for efficient integer-arithmetic-only inference, 2018). The range of an
activation is that of its batch, so that nothing has to be kept between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgelean.board import Precision

LARGEST = 127
"""Of the whole numbers that stand for a value; -128 is left out, so that zero is in the middle."""

_CHANNELS: Mapping[Callable[..., Any], int] = {
    torch.conv1d: 0,
    torch.conv2d: 0,
    torch.conv3d: 0,
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 1,
    torch.conv_transpose3d: 1,
    nn.functional.linear: 0,
}
"""Which dimension of the weight, the second argument, are the output channels."""

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)


class Rounded(TorchFunctionMode):
    """While active, products of an activation and a weight are those of rounded numbers.

    Of layers that PyTorch computes in one function of its own, such as ``nn.LSTM`` and ``nn.MultiheadAttention``,
    nothing is rounded. Products of two activations are not, either; in an INT8 file they stay in floating point.

    Parameters
    ----------
    operand
        Rounds a tensor, given the dimension of the output channels where it is a weight.
    result
        Rounds what a product gives.
    """

    def __init__(
        self, operand: Callable[[Tensor, int | None], Tensor], result: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self._operand, self._result = operand, result

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Round the first two arguments of a product, and its result."""
        named = dict(kwargs or {})
        channels = _CHANNELS.get(func)
        if channels is None and func in _PRODUCTS and isinstance(args[1], nn.Parameter) and args[1].ndim == 2:
            channels = 1
        if channels is None or len(args) < 2:
            return func(*args, **named)
        found = func(self._operand(args[0], None), self._operand(args[1], channels), *args[2:], **named)
        return found if self._result is None else self._result(found)


def halved(x: Tensor) -> Tensor:
    """Return a tensor rounded to FP16, in its own type: what is too large is infinite. Its gradient is left alone."""
    if not x.is_floating_point():
        return x
    with torch.no_grad():
        half = x.half().to(x.dtype)
        off = half - x
    return x + off


def rounded(x: Tensor, channels: int | None = None) -> Tensor:
    """Return a tensor in 255 levels, symmetric around zero; its gradient is that of the tensor.

    Parameters
    ----------
    channels
        The dimension with a range of its own for each index; None for one range.
    """
    if not x.is_floating_point():
        return x
    with torch.no_grad():
        dims = [dim for dim in range(x.ndim) if dim != channels]
        largest = x.abs().amax() if channels is None else x.abs().amax(dims, keepdim=True)
        scale = (largest / LARGEST).clamp(min=torch.finfo(x.dtype).tiny)
        off = (x / scale).round() * scale - x
    return x + off


def computing_in(precision: Precision) -> AbstractContextManager[Any]:
    """Return a context in which models compute about as a file of theirs in a precision does."""
    if precision == "int8":
        return Rounded(rounded)
    if precision == "fp16":
        return Rounded(lambda x, _: halved(x), halved)
    return nullcontext()
