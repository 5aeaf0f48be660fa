"""Fourier transforms, complex numbers, and sampling in space."""

from __future__ import annotations

from edgelean.shrink.labels import Dimension, Value, plain
from edgelean.shrink.rules.call import Call, Flow, rule


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
def _transform(call: Call) -> Flow:
    return _transformed(call, [call.argument(2, -1, "dim")])


@rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")
def _transform_of_several(call: Call) -> Flow:
    two = call.operator.endswith("2")
    return _transformed(call, call.argument(2, [-2, -1] if two else None, "dim") or range(len(call.shapes[0])))


@rule("fft_fftshift", "fft_ifftshift")
def _shifted(call: Call) -> Flow:
    return _transformed(call, call.argument(1, None, "dim") or range(len(call.shapes[0])))


def _transformed(call: Call, dims: object) -> Flow:
    """Every element of the result depends on the places of all along the dimensions of the transform."""
    x = call.arguments[0]
    given = [dims] if isinstance(dims, int) else list(dims)  # type: ignore[call-overload]  # a list or a range
    places = {int(dim) % len(x.shape) for dim in given}
    for place in places:
        call.labels.freeze(x.labels[place], f"{call.operator} runs over it")
    lines: list[Dimension] = [None if i in places else line for i, line in enumerate(x.labels)]
    return call.result(lines, "reduce")


@rule("view_as_complex", "view_as_real")
def _pairs(call: Call) -> Flow:
    """Make two real numbers, side by side in a dimension of its own, a complex one, or the other way round."""
    x = call.arguments[0]
    if call.operator == "view_as_real":
        return call.result((*x.labels, None), "move")
    call.labels.freeze(x.labels[-1], "real and imaginary parts")
    return call.result(x.labels[:-1], "move")


@rule("grid_sampler")
def _sampled(call: Call) -> Flow:
    """Every channel is read at the same places."""
    x, grid = call.arguments[:2]
    call.labels.freeze_all(grid, "it says where to read")
    for line in x.labels[2:]:
        call.labels.freeze(line, f"{call.operator} reads it as space")
    return call.result((*x.labels[:2], *(None for _ in x.shape[2:])), "move")


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(call: Call) -> Flow:
    """Values and their places have the same channels."""
    x, indices = call.arguments[:2]
    space = 2 if call.operator.endswith("2d") else 3
    lines: list[Dimension] = list(x.labels)
    for place in range(len(x.shape)):
        if place < len(x.shape) - space:
            lines[place] = call.labels.unify(x.labels[place], indices.labels[place], "the places have no units")
        else:
            for line in (x.labels[place], indices.labels[place]):
                call.labels.freeze(line, f"{call.operator} reads it as space")
            lines[place] = None
    return call.result(lines, "move")


@rule("embedding_bag")
def _bag(call: Call) -> Flow:
    weight = call.arguments[0]
    call.labels.freeze(weight.labels[0], "an embedding is looked up by its number")
    for value in call.tensors()[1:]:
        call.labels.freeze_all(value, "it is an index, or a weight of one")
    out = Value(call.shapes[0], (None, weight.labels[1]))
    return Flow((out, *(plain(shape) for shape in call.shapes[1:])), "move")
