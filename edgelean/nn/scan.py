"""Forms of a diagonal recurrence over a whole sequence, ``x_t = lam * x_{t-1} + B u_t`` and ``y_t = Re(C x_t)``.

Eager on a CPU: step by step in complex numbers, one fused operator per step, a span of time that fits the cache at
once, and with few states pairs of steps joined first (`_Recurrence`). Where a graph is traced, and on a GPU: chunks
(Dao & Gu, "Transformers are SSMs", 2024), within a chunk by a matrix product with the impulse response, between chunks
through the states, in real arithmetic.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Pair = tuple[Tensor, Tensor]
"""Real and imaginary part."""

SPAN_BYTES = 1 << 19
"""The states of a span of time; two such buffers fit the second-level cache of the CPUs at hand."""

WORTH_A_STEP = 4096
"""For fewer complex numbers in the states of a step its operator costs more than its arithmetic."""

SHORT = 16
"""Fewer steps are not worth the operators that join their pairs."""

LONGEST_CHUNK = 8
"""In onnxruntime chunks of 8 steps were fastest for 64 to 784 steps and 16 to 256 states of 64 features."""

FEW_CHUNKS = 8
"""Up to here a weighted sum over all earlier chunks beats doubling: more arithmetic, and fewer operators."""


class Poles(NamedTuple):
    """Poles ``exp(decay + i phase)``, both of shape ``[..., N]``."""

    decay: Tensor
    phase: Tensor

    def powers(self, exponents: Tensor) -> Pair:
        """Return ``lam ** exponents``; the dimensions of the poles are the last ones."""
        steps = exponents[(..., *(None for _ in self.decay.shape))]
        modulus, phase = torch.exp(steps * self.decay), steps * self.phase
        return modulus * torch.cos(phase), modulus * torch.sin(phase)

    def once(self) -> Pair:
        """Return the poles themselves."""
        modulus = torch.exp(self.decay)
        return modulus * torch.cos(self.phase), modulus * torch.sin(self.phase)


class Map(NamedTuple):
    """A diagonal system in real arithmetic: B ``[N, H]`` and C ``[P, N]`` as real and imaginary part."""

    poles: Poles
    B: Pair
    C: Pair


def product(a: Pair, b: Pair) -> Pair:
    """Return the product of complex numbers."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def traced() -> bool:
    """Return whether the operators that run now are being recorded instead of executed."""
    return bool(torch.compiler.is_compiling()) or bool(torch.compiler.is_exporting())


def chunk_length(time: int) -> int:
    """Return the power of two next to ``sqrt(time)``: chunks are then about as many as they are long."""
    return 1 << round(math.log2(max(time, 1)) / 2)


def span_length(time: int, step_bytes: int) -> int:
    """Return how many steps to evaluate at once: what fits the cache, and no fewer than there are spans.

    The states between spans are kept for the backward pass, so shorter spans would keep more than they compute anew.
    """
    fitting = max(1, SPAN_BYTES // max(1, step_bytes))
    spans = max(1, -(-time // max(fitting, math.isqrt(max(time, 1)))))
    return max(1, -(-time // spans))


def respond(inputs: Tensor, system: Map) -> Tensor:
    """Return the outputs ``[batch, time, P]`` of a system for inputs ``[batch, time, H]``, from zero states."""
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64) or traced():
        return chunked(inputs, system)
    flat = (inputs, *system.poles, *system.B, *system.C)
    outputs: Tensor = _Recurrence.apply(*flat)  # type: ignore[no-untyped-call]  # torch has not typed it
    return outputs


def advance(inputs: Tensor, system: Map, state: Pair | None) -> tuple[Tensor, Pair]:
    """Return the outputs ``[batch, P]`` of one time step ``[batch, H]``, and the new state, two of ``[batch, N]``."""
    x_re, x_im = functional.linear(inputs, system.B[0]), functional.linear(inputs, system.B[1])
    if state is not None:
        kept_re, kept_im = product(system.poles.once(), state)
        x_re, x_im = x_re + kept_re, x_im + kept_im
    return functional.linear(x_re, system.C[0]) - functional.linear(x_im, system.C[1]), (x_re, x_im)


def chunked(inputs: Tensor, system: Map, chunk: int = 0) -> Tensor:
    """Evaluate a system by chunks of time; for arguments and result see `respond`.

    Tensors with a state dimension: the powers ``lam^q`` ``[chunk + 1, N]``; the maps from the inputs of a chunk to the
    states at its end, ``[chunk * H, N]``, and from the states before a chunk to its outputs, ``[chunk * P, N]``.

    Parameters
    ----------
    chunk
        Steps in a chunk; 0 for `chunk_length`, at most `LONGEST_CHUNK`.
    """
    time = inputs.shape[1]
    chunk = chunk or min(LONGEST_CHUNK, chunk_length(time))
    padding = -time % chunk
    if padding:
        inputs = functional.pad(inputs, (0, 0, 0, padding))
    batch, length, width = inputs.shape
    (B_re, B_im), (C_re, C_im) = system.B, system.C
    power_re, power_im = system.poles.powers(torch.arange(chunk + 1, dtype=inputs.dtype, device=inputs.device))
    # lam^q C, shape [chunk + 1, P, N].
    read_re, read_im = product((power_re[:, None], power_im[:, None]), (C_re, C_im))
    impulse = read_re[:chunk] @ B_re - read_im[:chunk] @ B_im

    blocks = inputs.reshape(batch, length // chunk, chunk * width)
    outputs = blocks @ _block_toeplitz(impulse)
    if length > chunk:
        # lam^(chunk - 1 - q) B, transposed: shape [chunk, H, N].
        last = power_re[:chunk].flip(0)[:, None], power_im[:chunk].flip(0)[:, None]
        write_re, write_im = (part.flatten(0, 1) for part in product(last, (B_re.t(), B_im.t())))
        x_re, x_im = carried((blocks @ write_re, blocks @ write_im), system.poles, chunk)
        from_re = functional.linear(x_re, read_re[1:].flatten(0, 1))
        from_im = functional.linear(x_im, read_im[1:].flatten(0, 1))
        outputs = outputs + from_re - from_im
    return outputs.reshape(batch, length, -1)[:, :time]


def carried(added: Pair, poles: Poles, chunk: int) -> Pair:
    """Turn what each chunk adds to the states into the states before each chunk, both ``[batch, chunks, ..., N]``."""
    chunks = added[0].shape[1]
    if chunks > FEW_CHUNKS:
        return _doubled(added, poles, chunk)
    index = torch.arange(chunks, device=added[0].device)
    between = index[:, None] - index - 1
    power_re, power_im = poles.powers((chunk * between.clamp(min=0)).to(added[0].dtype))
    earlier = (between >= 0).to(added[0].dtype)[(..., *(None for _ in poles.decay.shape))]
    x_re, x_im = product((earlier * power_re, earlier * power_im), (added[0][:, None], added[1][:, None]))
    return x_re.sum(2), x_im.sum(2)


def _doubled(added: Pair, poles: Poles, chunk: int) -> Pair:
    """Add up 1, 2, 4, ... earlier chunks (Hillis & Steele, "Data parallel algorithms", 1986)."""
    chunks = added[0].shape[1]
    x_re, x_im = _later(added[0], 1), _later(added[1], 1)
    reach = 1
    while reach < chunks - 1:
        power = poles.powers(torch.full((), chunk * reach, dtype=x_re.dtype, device=x_re.device))
        more_re, more_im = product(power, (_later(x_re, reach), _later(x_im, reach)))
        x_re, x_im = x_re + more_re, x_im + more_im
        reach *= 2
    return x_re, x_im


def _later(x: Tensor, by: int) -> Tensor:
    """Move what stands at each chunk to a later one; zeros come in."""
    return torch.cat([torch.zeros_like(x[:, :by]), x[:, :-by]], 1)


def _block_toeplitz(impulse: Tensor) -> Tensor:
    """Arrange an impulse response ``[Q, P, H]`` (lag, out, in) as the matrix ``[Q * H, Q * P]`` that convolves a chunk.

    Rows run over (input time, input feature), columns over (output time, output feature).
    """
    chunk, outputs, width = impulse.shape
    silence = torch.zeros_like(impulse)
    rows = [torch.cat([silence[:delay], impulse[: chunk - delay]]) for delay in range(chunk)]
    return torch.stack(rows).permute(0, 3, 1, 2).reshape(chunk * width, chunk * outputs)


class _Span:
    """A buffer for the complex states of a span of time, ``[batch, steps, N]``; flat it is real, ``[.., 2N]``."""

    def __init__(self, inputs: Tensor, steps: int, states: int) -> None:
        self.flat = inputs.new_empty(len(inputs) * steps, 2 * states)
        self.states = torch.view_as_complex(self.flat.view(len(inputs), steps, states, 2))


class _Recurrence(torch.autograd.Function):
    """The recurrence with its adjoint; of the states only those between spans are kept for the backward pass."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]  # torch has not typed it
    def forward(ctx: Any, inputs: Tensor, decay: Tensor, phase: Tensor, *matrices: Tensor) -> Tensor:
        """Return the outputs ``[batch, time, P]``; the matrices are real and imaginary part of B, and of C."""
        (batch, time, _), states = inputs.shape, len(decay)
        poles = torch.polar(decay.exp(), phase)
        # Real and imaginary parts side by side, as complex numbers lie in memory: [H, 2N] and [2N, P].
        write = torch.stack([matrices[0].t(), matrices[1].t()], -1).flatten(1)
        read = torch.stack([matrices[2].t(), -matrices[3].t()], 1).flatten(0, 1)
        steps = span_length(time, 2 * inputs.element_size() * batch * states)
        starts = poles.new_zeros(-(-time // steps) + 1, batch, states)
        outputs = inputs.new_empty(batch, time, read.shape[1])
        span = _Span(inputs, steps, states)
        for number, first in enumerate(range(0, time, steps)):
            torch.mm(_part(inputs, first, steps), write, out=span.flat)
            _run(span.states, poles, starts[number], backwards=False)
            starts[number + 1] = span.states[:, -1]
            found = torch.mm(span.flat, read).view(batch, steps, -1)
            outputs[:, first : first + steps] = found[:, : time - first]
        ctx.save_for_backward(inputs, poles, write, read, starts)
        ctx.steps = steps
        return outputs

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]  # torch has not typed it
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Run the adjoint backwards in time, with the states of each span computed once more."""
        inputs, poles, write, read, starts = ctx.saved_tensors
        (batch, time, width), steps = inputs.shape, ctx.steps
        forward, backward = _Span(inputs, steps, len(poles)), _Span(inputs, steps, len(poles))
        on_inputs, on_write, on_read = torch.empty_like(inputs), torch.zeros_like(write), torch.zeros_like(read)
        on_poles, after, adjoint = torch.zeros_like(poles), torch.zeros_like(starts[0]), poles.conj().resolve_conj()
        for number, first in reversed(list(enumerate(range(0, time, steps)))):
            some, slope = _part(inputs, first, steps), _part(gradient, first, steps)
            torch.mm(some, write, out=forward.flat)
            _run(forward.states, poles, starts[number], backwards=False)
            torch.mm(slope, read.t(), out=backward.flat)
            _run(backward.states, adjoint, after, backwards=True)
            after = backward.states[:, 0].clone()
            on_write.addmm_(some.t(), backward.flat)
            on_read.addmm_(forward.flat.t(), slope)
            found = torch.mm(backward.flat, write.t()).view(batch, steps, width)
            on_inputs[:, first : first + steps] = found[:, : time - first]
            on_poles += (backward.states[:, 0] * starts[number].conj()).sum(0)
            on_poles += (backward.states[:, 1:] * forward.states[:, :-1].conj()).sum((0, 1))
        on_exponent = on_poles * adjoint
        on_B = torch.unflatten(on_write, 1, (-1, 2)).unbind(2)
        on_C = torch.unflatten(on_read, 0, (-1, 2)).unbind(1)
        matrices = on_B[0].t(), on_B[1].t(), on_C[0].t(), -on_C[1].t()
        return on_inputs, on_exponent.real, on_exponent.imag, *matrices


def _part(values: Tensor, first: int, steps: int) -> Tensor:
    """Return a span of ``[batch, time, features]`` as ``[batch * steps, features]``, with zeros beyond the end."""
    part = values[:, first : first + steps]
    missing = steps - part.shape[1]
    return (functional.pad(part, (0, 0, 0, missing)) if missing else part).reshape(-1, values.shape[2])


def _run(states: Tensor, poles: Tensor, before: Tensor, backwards: bool) -> None:
    """Turn what each step adds to the states ``[batch, steps, N]`` into the states after it, in place.

    Parameters
    ----------
    before
        The states before the first step; before the last one, when the run is backwards in time.
    """
    states[:, -1 if backwards else 0].addcmul_(poles, before)
    levels = (WORTH_A_STEP // max(1, before.numel())).bit_length() - 1
    _run_levels(states, poles, levels, backwards)


def _run_levels(states: Tensor, poles: Tensor, levels: int, backwards: bool) -> None:
    """Join pairs of steps as often as ``levels`` says, all pairs at once, and go step by step through what is left."""
    count = states.shape[1]
    if levels < 1 or count < SHORT:
        steps = states.unbind(1)
        before, *rest = steps[::-1] if backwards else steps
        for step in rest:
            before = step.addcmul_(poles, before)
        return
    shift = -1 if backwards else 1
    # Every second step on the way, the first one not among them; and those between, beginning with the third.
    second = slice(count % 2, count - 1, 2) if backwards else slice(1, count, 2)
    third = slice((count - 1) % 2, count - 2, 2) if backwards else slice(2, count, 2)
    states[:, second].addcmul_(poles, states[:, _moved(second, -shift)])
    _run_levels(states[:, second], poles * poles, levels - 1, backwards)
    states[:, third].addcmul_(poles, states[:, _moved(third, -shift)])


def _moved(places: slice, by: int) -> slice:
    return slice(places.start + by, places.stop + by, places.step)
