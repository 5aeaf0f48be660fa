"""Forms of a recurrence whose poles depend on the input.

``x_t = exp(dt_t A) x_{t-1} + dt_t u_t B_t`` and ``y_t = C_t x_t``. Eager on a CPU: step by step, a span of time that
fits the cache at once, with the states of each span computed once more for the backward pass (`_Selection`). Where a
graph is traced, and on a GPU: step by step within all chunks at once, then from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edgelean.nn.scan import chunk_length, span_length, traced


def select(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the outputs ``[batch, time, D]``, from zero states.

    Parameters
    ----------
    u, dt
        Inputs and steps, ``[batch, time, D]``.
    A
        Eigenvalues in continuous time, negative, ``[D, N]``.
    B, C
        Input and output weights, ``[batch, time, N]``; the same for all of D.
    """
    if u.device.type != "cpu" or u.dtype not in (torch.float32, torch.float64) or traced():
        return chunked_selection(u, dt, A, B, C)
    outputs: Tensor = _Selection.apply(u, dt, A, B, C)  # type: ignore[no-untyped-call]  # torch's
    return outputs


def advance_selection(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs ``[batch, D]`` of one time step and the new state ``[batch, D, N]``."""
    x = (dt * u)[..., None] * B[:, None]
    if state is not None:
        x = x + torch.exp(dt[..., None] * A) * state
    return (x * C[:, None]).sum(-1), x


def chunked_selection(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Evaluate the recurrence by chunks of time; for arguments and result see `select`."""
    time, chunk = u.shape[1], chunk_length(u.shape[1])
    padding = -time % chunk
    if padding:
        u, dt, B, C = (functional.pad(x, (0, 0, 0, padding)) for x in (u, dt, B, C))
    u, dt, B, C = (torch.unflatten(x, 1, (-1, chunk)) for x in (u, dt, B, C))
    decay = torch.exp(dt[..., None] * A)
    added = (dt * u)[..., None] * B[..., None, :]
    x = torch.zeros_like(added[:, :, 0])
    within = []
    for a, b in zip(decay.unbind(2), added.unbind(2), strict=True):
        x = a * x + b
        within.append(x)
    states = torch.stack(within, 2)
    if u.shape[1] > 1:
        # What is left of the state before a chunk is known from the sum of the steps since then.
        left = torch.exp(torch.cumsum(dt, 2)[..., None] * A)
        before = [torch.zeros_like(x[:, 0])]
        for a, b in zip(left[:, :-1, -1].unbind(1), states[:, :-1, -1].unbind(1), strict=True):
            before.append(a * before[-1] + b)
        states = states + left * torch.stack(before, 1)[:, :, None]
    outputs = (states * C[..., None, :]).sum(-1)
    return outputs.flatten(1, 2)[:, :time]


class _Selection(torch.autograd.Function):
    """The recurrence with its adjoint; of the states only those between spans are kept for the backward pass."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]  # torch has not typed it
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """See `select`."""
        batch, time, _ = u.shape
        steps = span_length(time, u.element_size() * batch * A.numel())
        starts, outputs = [u.new_zeros(batch, *A.shape)], torch.empty_like(u)
        for first in range(0, time, steps):
            u_some, dt_some, B_some, C_some = (_ordered(x, first, steps) for x in (u, dt, B, C))
            _, states = _states(u_some, dt_some, A, B_some, starts[-1])
            starts.append(states[-1].clone())
            outputs[:, first : first + steps] = (states @ C_some[..., None])[..., 0].transpose(0, 1)
        ctx.save_for_backward(u, dt, A, B, C, *starts)
        ctx.steps = steps
        return outputs

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]  # torch has not typed it
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Run the adjoint backwards in time."""
        u, dt, A, B, C, *starts = ctx.saved_tensors
        on_u, on_dt, on_A, on_B, on_C = (torch.zeros_like(x) for x in (u, dt, A, B, C))
        after = torch.zeros_like(starts[0])
        for number in reversed(range(len(starts) - 1)):
            first = number * ctx.steps
            some = slice(first, first + ctx.steps)
            u_some, dt_some, B_some, C_some, slope = (_ordered(x, first, ctx.steps) for x in (u, dt, B, C, gradient))
            decay, states = _states(u_some, dt_some, A, B_some, starts[number])
            costates = slope[..., None] * C_some[:, :, None]
            costates[-1] += after
            for later, step, a in _backwards(costates, decay):
                step.addcmul_(a, later)
            after = decay[0] * costates[0]
            on_C[:, some] = (slope[:, :, None] @ states)[:, :, 0].transpose(0, 1)
            on_B[:, some] = ((dt_some * u_some)[:, :, None] @ costates)[:, :, 0].transpose(0, 1)
            driven = (costates @ B_some[..., None])[..., 0]
            # The gradient on dt A: how each decay moves the state that comes in.
            decay *= costates
            decay[1:] *= states[:-1]
            decay[0] *= starts[number]
            on_u[:, some] = (driven * dt_some).transpose(0, 1)
            on_dt[:, some] = (driven * u_some + (decay * A).sum(-1)).transpose(0, 1)
            on_A += (decay * dt_some[..., None]).sum((0, 1))
        return on_u, on_dt, on_A, on_B, on_C


def _ordered(values: Tensor, first: int, steps: int) -> Tensor:
    """Return a span of ``[batch, time, features]`` with the time in front."""
    return values[:, first : first + steps].transpose(0, 1).contiguous()


def _states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return decays and states of a span, ``[steps, batch, D, N]``, for arguments with the time in front."""
    decay, states = (dt[..., None] * A).exp_(), (dt * u)[..., None] * B[:, :, None]
    for a, state in zip(decay.unbind(0), states.unbind(0), strict=True):
        before = state.addcmul_(a, before)
    return decay, states


def _backwards(costates: Tensor, decay: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield from the end on: the costate of the later step, that of a step, and the decay between them."""
    rows, decays = costates.unbind(0), decay.unbind(0)
    return zip(rows[:0:-1], rows[-2::-1], decays[:0:-1], strict=True)
