"""Forms of a bank of diagonal systems with one input and one output each, over a whole sequence.

``x_t = lam * x_{t-1} + u_t`` and ``y_t = Re(sum_n weight_n x_t,n)`` for each feature: a causal convolution with its
impulse response. Eager it goes through the Fourier transform, which was as fast as a product with a Toeplitz matrix for
64 steps and faster from there on; where a graph is traced, through chunks in real arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgelean.nn.scan import Pair, Poles, carried, chunk_length, product, traced


def respond_each(inputs: Tensor, poles: Poles, weight: Pair) -> Tensor:
    """Return the outputs ``[batch, time, features]`` for inputs of the same shape, from zero states.

    Parameters
    ----------
    poles, weight
        Of each feature, ``[features, N]``.
    """
    if traced() or inputs.dtype not in (torch.float32, torch.float64):
        return chunked_each(inputs, poles, weight)
    length = 2 * inputs.shape[1]
    spectrum = torch.fft.rfft(impulse(poles, weight, inputs.shape[1]), n=length)
    spectrum = spectrum * torch.fft.rfft(inputs.transpose(1, 2), n=length)
    outputs: Tensor = torch.fft.irfft(spectrum, n=length)
    return outputs[..., : inputs.shape[1]].transpose(1, 2)


def advance_each(inputs: Tensor, poles: Poles, weight: Pair, state: Pair | None) -> tuple[Tensor, Pair]:
    """Return the outputs ``[batch, features]`` of one time step and the new state, two of ``[batch, features, N]``."""
    x_re = inputs[..., None].expand(*inputs.shape, weight[0].shape[1])
    x_im = torch.zeros_like(x_re)
    if state is not None:
        kept_re, kept_im = product(poles.once(), state)
        x_re, x_im = x_re + kept_re, kept_im
    return (weight[0] * x_re - weight[1] * x_im).sum(-1), (x_re, x_im)


def impulse(poles: Poles, weight: Pair, time: int) -> Tensor:
    """Return the impulse responses ``[features, time]``.

    The powers of the poles are products of few within a chunk and few between chunks, so that no tensor has both
    ``time`` and ``N`` in it.
    """
    chunk = chunk_length(time)
    chunks = -(-time // chunk)
    steps = torch.arange(max(chunk, chunks), dtype=weight[0].dtype, device=weight[0].device)
    within_re, within_im = poles.powers(steps[:chunk])
    between_re, between_im = product(poles.powers(chunk * steps[:chunks]), weight)
    response = _by_feature(between_re) @ _by_feature(within_re).mT - _by_feature(between_im) @ _by_feature(within_im).mT
    return response.flatten(1)[:, :time]


def chunked_each(inputs: Tensor, poles: Poles, weight: Pair) -> Tensor:
    """Evaluate the bank by chunks of time; for arguments and result see `respond_each`."""
    time, chunk = inputs.shape[1], chunk_length(inputs.shape[1])
    padding = -time % chunk
    if padding:
        inputs = functional.pad(inputs, (0, 0, 0, padding))
    batch, length, width = inputs.shape
    power = poles.powers(torch.arange(chunk + 1, dtype=inputs.dtype, device=inputs.device))
    # lam^q weight, shape [chunk + 1, features, N].
    read_re, read_im = product(power, weight)
    blocks = inputs.reshape(batch, length // chunk, chunk, width).permute(3, 0, 1, 2).flatten(1, 2)
    outputs = blocks @ _toeplitz(read_re[:chunk].sum(-1).t())
    if length > chunk:
        added = tuple(
            torch.unflatten(blocks @ _by_feature(part[:chunk].flip(0)), 1, (batch, -1)).permute(1, 2, 0, 3)
            for part in power
        )
        before = carried((added[0], added[1]), poles, chunk)
        x_re, x_im = (x.permute(2, 0, 1, 3).flatten(1, 2) for x in before)
        outputs = outputs + x_re @ _by_feature(read_re[1:]).mT - x_im @ _by_feature(read_im[1:]).mT
    outputs = torch.unflatten(outputs, 1, (batch, length // chunk)).permute(1, 2, 3, 0)
    return outputs.reshape(batch, length, width)[:, :time]


def _by_feature(tensor: Tensor) -> Tensor:
    """Return ``[steps, features, N]`` as ``[features, steps, N]``."""
    return tensor.transpose(0, 1)


def _toeplitz(response: Tensor) -> Tensor:
    """Return the matrices ``[features, time, time]`` (in, out) that convolve with responses ``[features, time]``."""
    time = response.shape[1]
    rows = [functional.pad(response, (delay, -delay)) for delay in range(time)]
    return torch.stack(rows, 1)
