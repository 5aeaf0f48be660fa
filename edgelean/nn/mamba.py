"""The selective layer of Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelean.errors import InputError
from edgelean.nn.selective import advance_selection, select
from edgelean.nn.system import DiagonalSystem

SMALLEST_STEP = 1e-4
"""Initial steps are not below this."""


class Mamba(nn.Module):
    """A gated layer around a recurrence whose step, input and output weights depend on the input.

    ``x_t = exp(dt_t A) x_{t-1} + dt_t u_t B_t`` and ``y_t = C_t x_t + D u_t`` with a real, diagonal, negative A for
    each of ``expand * d_model`` inner features; u comes through a causal depthwise convolution. Names, arguments and
    initialisation of the parameters are those of the authors' code. All sizes are read off the parameters, so inner
    features and states are free axes of the traced graph.

    Parameters
    ----------
    d_model
        Features per time step, in and out.
    d_state
        States of each inner feature.
    d_conv
        Steps that the convolution sees.
    expand
        Inner features per feature.
    dt_rank
        Rank of the map to the steps; ``"auto"`` for a sixteenth of ``d_model``.
    dt_min, dt_max
        The steps start between these, uniformly over their logarithm.
    conv_bias, bias
        Whether the convolution, and the maps at input and output, have a bias.
    """

    selected_by: ClassVar[tuple[str, int]] = ("A_log", 1)
    reads: ClassVar[tuple[str, int]] = ("in_proj.weight", 1)
    states_read_by: ClassVar[str] = "out_proj"

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        if min(d_model, d_state, d_conv, inner, rank) < 1 or not 0 < dt_min <= dt_max:
            raise InputError(
                "a Mamba needs sizes of at least 1 and 0 < dt_min <= dt_max, found "
                f"d_model={d_model}, d_state={d_state}, d_conv={d_conv}, expand={expand}, dt_rank={dt_rank}, "
                f"dt_min={dt_min}, dt_max={dt_max}"
            )
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            step = dt_min * (dt_max / dt_min) ** torch.rand(inner)
            step = step.clamp(min=SMALLEST_STEP)
            # The inverse of softplus.
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    @property
    def width(self) -> int:
        """Features per time step."""
        return self.in_proj.weight.shape[1]

    @property
    def states(self) -> int:
        """Number of (real) states of an inner feature."""
        return self.A_log.shape[1]

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"width={self.width}, inner={self.A_log.shape[0]}, states={self.states}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a sequence ``[batch, time, width]`` to one of the same shape, starting from zero states."""
        u, gate = self.in_proj(inputs).chunk(2, -1)
        u = self._convolved(u)
        outputs = select(u, *self._selected(u)) + self.D * u
        mixed: Tensor = self.out_proj(outputs * functional.silu(gate))
        return mixed

    def step(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advance by one time step ``[batch, width]``; see `LRU.step`.

        The state is the last ``d_conv - 1`` inputs of the convolution, ``[batch, inner, d_conv - 1]``, and the states
        ``[batch, inner, d_state]``.
        """
        u, gate = self.in_proj(inputs).chunk(2, -1)
        taps = self.conv1d.weight.shape[-1]
        seen = u[..., None].expand(*u.shape, taps - 1) * 0 if state is None else state[0]
        window = torch.cat([seen, u[..., None]], -1)
        u = (window * self.conv1d.weight[:, 0]).sum(-1)
        u = functional.silu(u if self.conv1d.bias is None else u + self.conv1d.bias)
        outputs, x = advance_selection(u, *self._selected(u), None if state is None else state[1])
        return self.out_proj((outputs + self.D * u) * functional.silu(gate)), (window[..., 1:], x)

    @torch.no_grad()
    def mean_system(self, inputs: Tensor) -> DiagonalSystem:
        """Return the time-invariant stand-in for the recurrence on these inputs, one system per inner feature.

        The discretised A, B and C are averaged over samples and time (Chahine et al., "The Curious Case of In-Training
        Compression of State Space Models", 2026). A map that depends on its input has no guarantee from it.

        Parameters
        ----------
        inputs
            What the layer reads, ``[batch, time, width]``.

        Raises
        ------
        InputError
            If a mean is not finite, or a pole not inside the unit circle.
        """
        u = self._convolved(self.in_proj(inputs).chunk(2, -1)[0])
        dt, A, B, C = (x.double() for x in self._selected(u))
        lam, written = torch.zeros_like(A), torch.zeros_like(A)
        for dt_sample, B_sample in zip(dt, B, strict=True):
            lam += torch.exp(dt_sample[..., None] * A).mean(0) / len(dt)
            written += dt_sample.t() @ B_sample / dt.shape[0] / dt.shape[1]
        return DiagonalSystem(lam, written[..., None], C.mean((0, 1)).expand_as(A)[:, None])

    @torch.no_grad()
    def through_states(self, inputs: Tensor) -> Iterator[Tensor]:
        """Return for each time step what every state adds to what the output projection reads.

        Parameters
        ----------
        inputs
            What the layer reads, ``[batch, time, width]``.

        Yields
        ------
        Tensor
            ``[batch, inner, states]``; with D times the inputs of the recurrence, gated, the sum over states is what
            the projection reads.
        """
        u, gate = self.in_proj(inputs).chunk(2, -1)
        u = self._convolved(u)
        dt, A, B, C = self._selected(u)
        state = None
        for u_now, gate_now, dt_now, B_now, C_now in zip(*(x.unbind(1) for x in (u, gate, dt, B, C)), strict=True):
            _, state = advance_selection(u_now, dt_now, A, B_now, C_now, state)
            yield functional.silu(gate_now)[..., None] * state * C_now[:, None]

    def _convolved(self, u: Tensor) -> Tensor:
        """Return the inputs of the recurrence for the first half of the inner projection."""
        return functional.silu(self.conv1d(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return steps, eigenvalues, input and output weights for inputs of the recurrence."""
        states = self.A_log.shape[1]
        dt, B, C = self.x_proj(u).split([self.dt_proj.weight.shape[1], states, states], -1)
        return functional.softplus(self.dt_proj(dt)), -torch.exp(self.A_log), B, C
