"""The linear recurrent unit of Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem

State = tuple[Tensor, Tensor]
"""Real and imaginary part of the states, each of shape ``[batch, states]``."""


class LRU(nn.Module):
    """A diagonal complex recurrence between two dense maps, in real arithmetic.

    ``x_t = lam * x_{t-1} + gamma * (B u_t)`` and ``y_t = Re(C x_t) + D * u_t`` with
    ``lam = exp(-exp(nu_log) + i exp(theta_log))``, which is inside the unit circle whatever training does.

    The sequence is evaluated in chunks (Dao & Gu, "Transformers are SSMs", 2024): within a chunk by one matrix product
    with the impulse response, between chunks through the states at the chunk ends. Every tensor that has a state
    dimension keeps it as a dimension of its own, so the number of states is a free axis of the traced graph.

    Parameters
    ----------
    width
        Features per time step, in and out.
    states
        Number of complex states.
    r_min, r_max
        The modulus of the poles is drawn between these, uniformly over the area of the ring.
    max_phase
        The phase of the poles is drawn between 0 and this, in radians.
    """

    nu_log: nn.Parameter
    theta_log: nn.Parameter
    gamma_log: nn.Parameter
    B_re: nn.Parameter
    B_im: nn.Parameter
    C_re: nn.Parameter
    C_im: nn.Parameter

    def __init__(
        self, width: int, states: int, r_min: float = 0.9, r_max: float = 0.999, max_phase: float = 2 * math.pi
    ) -> None:
        super().__init__()
        if width < 1 or states < 1:
            raise InputError(f"an LRU needs width and states of at least 1, found width={width}, states={states}")
        if not (0 <= r_min < r_max < 1 and 0 < max_phase <= 2 * math.pi):
            raise InputError(
                "an LRU needs 0 <= r_min < r_max < 1 and 0 < max_phase <= 2 pi, "
                f"found r_min={r_min}, r_max={r_max}, max_phase={max_phase}"
            )
        self.width = width
        self.states = states
        modulus_squared = torch.empty(states).uniform_(max(r_min, 1e-3) ** 2, r_max**2)
        # 1 - rand() lies in (0, 1]: a phase of 0 has no logarithm.
        phase = max_phase * (1 - torch.rand(states))
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(modulus_squared)))
        self.theta_log = nn.Parameter(torch.log(phase))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-modulus_squared))
        self.B_re = nn.Parameter(torch.randn(states, width) / math.sqrt(2 * width))
        self.B_im = nn.Parameter(torch.randn(states, width) / math.sqrt(2 * width))
        self.C_re = nn.Parameter(torch.randn(width, states) / math.sqrt(states))
        self.C_im = nn.Parameter(torch.randn(width, states) / math.sqrt(states))
        self.D = nn.Parameter(torch.randn(width))

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"width={self.width}, states={self.states}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape, starting from zero states."""
        time = inputs.shape[1]
        chunk = _chunk_length(time)
        padding = -time % chunk
        if padding:
            return self._chunked(functional.pad(inputs, (0, 0, 0, padding)), chunk)[:, :time]
        return self._chunked(inputs, chunk)

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Advance by one time step: the recurrent form, for streams.

        Parameters
        ----------
        inputs
            One time step, shape ``[batch, width]``.
        state
            What the previous step returned; None at the start of a sequence.

        Returns
        -------
        Outputs ``[batch, width]`` and the new state.
        """
        lam_re, lam_im = self._powers(torch.ones((), dtype=inputs.dtype, device=inputs.device))
        B_re, B_im = self._input_matrix()
        x_re, x_im = functional.linear(inputs, B_re), functional.linear(inputs, B_im)
        if state is not None:
            x_re = x_re + lam_re * state[0] - lam_im * state[1]
            x_im = x_im + lam_re * state[1] + lam_im * state[0]
        outputs = functional.linear(x_re, self.C_re) - functional.linear(x_im, self.C_im) + self.D * inputs
        return outputs, (x_re, x_im)

    def system(self) -> DiagonalSystem:
        """Return the linear map ``u -> Re(C x)`` of this layer (without D), computed in float64 from the parameters."""
        double = {name: value.detach().double() for name, value in self.named_parameters()}
        lam = torch.exp(torch.complex(-double["nu_log"].exp(), double["theta_log"].exp()))
        gamma = double["gamma_log"].exp()[:, None]
        return DiagonalSystem(
            lam=lam,
            B=torch.complex(double["B_re"], double["B_im"]) * gamma,
            C=torch.complex(double["C_re"], double["C_im"]),
        )

    def load_system(self, system: DiagonalSystem) -> None:
        """Replace poles, B and C by those of ``system``; D stays. The parameters remain the same Python objects.

        ``gamma`` becomes ``sqrt(1 - |lam|^2)``, its initial form. The scale of a mode is free, and chosen so that its
        rows of B and columns of C (as parameters) have the same norm: an optimizer with one step size moves both alike.

        Raises
        ------
        InputError
            When the system does not have this layer's width at its input and output.
        """
        if system.B.shape[1] != self.width or system.C.shape[0] != self.width:
            found = f"{system.B.shape[1]} inputs and {system.C.shape[0]} outputs"
            raise InputError(f"an LRU of width {self.width} cannot load a system of {found}")
        # A pole at 0 has no logarithm; 1e-12 is far below what float32 outputs resolve.
        modulus = system.lam.abs().clamp(min=1e-12)
        # A positive real pole gets the phase 2 pi instead of 0, which has no logarithm either.
        phase = 2 * math.pi - torch.remainder(-system.lam.angle(), 2 * math.pi)
        gamma = torch.sqrt(-torch.expm1(2 * torch.log(modulus)))
        B = system.B / gamma[:, None]
        scale = torch.sqrt(system.C.norm(dim=0) / B.norm(dim=1))
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
        B, C = B * scale[:, None], system.C / scale
        values = {"nu_log": (-modulus.log()).log(), "theta_log": phase.log(), "gamma_log": gamma.log()}
        values |= {"B_re": B.real, "B_im": B.imag, "C_re": C.real, "C_im": C.imag}
        for name, value in values.items():
            _replace(getattr(self, name), value)
        self.states = system.states

    def _powers(self, exponents: Tensor) -> State:
        """Return real and imaginary part of ``lam ** exponents``; the states are the last dimension."""
        steps = exponents[..., None]
        modulus = torch.exp(-steps * self.nu_log.exp())
        phase = steps * self.theta_log.exp()
        return modulus * torch.cos(phase), modulus * torch.sin(phase)

    def _input_matrix(self) -> State:
        gamma = self.gamma_log.exp()[:, None]
        return gamma * self.B_re, gamma * self.B_im

    def _chunked(self, inputs: Tensor, chunk: int) -> Tensor:
        """Evaluate the layer for a time that is a multiple of ``chunk``.

        Tensors with a state dimension: the powers ``lam^q`` ``[chunk + 1, N]``; the maps from the inputs of a chunk to
        the states at its end, and from the states before a chunk to its outputs, both ``[chunk * H, N]``.
        """
        batch, time, width = inputs.shape
        B_re, B_im = self._input_matrix()
        power_re, power_im = self._powers(torch.arange(chunk + 1, dtype=inputs.dtype, device=inputs.device))
        # lam^q C, shape [chunk + 1, H, N].
        read_re = power_re[:, None] * self.C_re - power_im[:, None] * self.C_im
        read_im = power_re[:, None] * self.C_im + power_im[:, None] * self.C_re
        impulse = read_re[:chunk] @ B_re - read_im[:chunk] @ B_im
        impulse = torch.cat([impulse[:1] + torch.diag(self.D), impulse[1:]])

        blocks = inputs.reshape(batch, time // chunk, chunk * width)
        outputs = blocks @ _block_toeplitz(impulse)
        if time > chunk:
            # lam^(chunk - 1 - q) B, transposed: shape [chunk, H, N].
            last_re, last_im = power_re[:chunk].flip(0)[:, None], power_im[:chunk].flip(0)[:, None]
            write_re = (last_re * B_re.t() - last_im * B_im.t()).flatten(0, 1)
            write_im = (last_re * B_im.t() + last_im * B_re.t()).flatten(0, 1)
            x_re, x_im = self._carried(blocks @ write_re, blocks @ write_im, chunk)
            from_re = functional.linear(x_re, read_re[1:].flatten(0, 1))
            from_im = functional.linear(x_im, read_im[1:].flatten(0, 1))
            outputs = outputs + from_re - from_im
        return outputs.reshape(batch, time, width)

    def _carried(self, added_re: Tensor, added_im: Tensor, chunk: int) -> State:
        """Turn what each chunk adds to the states into the states before each chunk, both ``[batch, chunks, N]``.

        A sum over all earlier chunks, weighted by powers of the poles: more arithmetic than a scan, and far fewer
        operators.
        """
        index = torch.arange(added_re.shape[1], device=added_re.device)
        between = index[:, None] - index - 1
        power_re, power_im = self._powers((chunk * between.clamp(min=0)).to(added_re.dtype))
        earlier = (between >= 0).to(added_re.dtype)[..., None]
        power_re, power_im = earlier * power_re, earlier * power_im
        added_re, added_im = added_re[:, None], added_im[:, None]
        x_re = (power_re * added_re - power_im * added_im).sum(2)
        x_im = (power_re * added_im + power_im * added_re).sum(2)
        return x_re, x_im


class LRUBlock(nn.Module):
    """A residual block: normalise, LRU, GELU, gated linear unit, add to the input.

    Parameters
    ----------
    width, states, r_min, r_max, max_phase
        As for `LRU`.
    """

    def __init__(
        self, width: int, states: int, r_min: float = 0.9, r_max: float = 0.999, max_phase: float = 2 * math.pi
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.lru = LRU(width, states, r_min, r_max, max_phase)
        self.value = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape."""
        return inputs + self._mix(self.lru(self.norm(inputs)))

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Advance by one time step ``[batch, width]``; see `LRU.step`."""
        outputs, state = self.lru.step(self.norm(inputs), state)
        return inputs + self._mix(outputs), state

    def _mix(self, outputs: Tensor) -> Tensor:
        activated = functional.gelu(outputs)
        mixed: Tensor = self.value(activated) * torch.sigmoid(self.gate(activated))
        return mixed


def _chunk_length(time: int) -> int:
    """Return the power of two next to ``sqrt(time)``: work within and between chunks is then about the same."""
    return 1 << round(math.log2(max(time, 1)) / 2)


def _block_toeplitz(impulse: Tensor) -> Tensor:
    """Arrange an impulse response ``[Q, H, H]`` (lag, out, in) as the matrix ``[Q * H, Q * H]`` that convolves a chunk.

    Rows run over (input time, input feature), columns over (output time, output feature).
    """
    chunk, width, _ = impulse.shape
    silence = torch.zeros_like(impulse)
    rows = [torch.cat([silence[:delay], impulse[: chunk - delay]]) for delay in range(chunk)]
    return torch.stack(rows).permute(0, 3, 1, 2).reshape(chunk * width, chunk * width)


def _replace(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter new data of another shape while it stays the same object.

    While a graph of an earlier step is alive, the parameter's gradient accumulator remembers the old shape; passing
    through another dtype makes torch drop it.
    """
    dtype, device = parameter.dtype, parameter.device
    other = torch.float64 if dtype != torch.float64 else torch.float32
    parameter.grad = None
    parameter.data = torch.empty(0, dtype=other, device=device)
    parameter.data = value.detach().to(device=device, dtype=dtype).contiguous()
