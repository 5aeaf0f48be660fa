"""The layer of Smith et al., "Simplified State Space Layers for Sequence Modeling" (ICLR 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgelean.errors import InputError
from edgelean.nn.continuous import Discretization, check_steps, continuous, discrete, log_steps
from edgelean.nn.diagonal import DiagonalLayer, equalised, parts
from edgelean.nn.scan import Map
from edgelean.nn.system import DiagonalSystem

CInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]

CLIPPED = -1e-4
"""The largest real part of an eigenvalue with ``clip_eigs``."""


class S5(DiagonalLayer):
    """A diagonal multi-input, multi-output system in continuous time, discretised with a step of its own per state.

    Arguments and initialisation are those of the authors' code. Without ``clip_eigs`` training may make an eigenvalue
    unstable; `system` and `edgelean.nn.check_poles` then name it.

    Parameters
    ----------
    d_model
        Features per time step, in and out.
    d_state
        Order of the real system: with ``conj_sym`` half as many complex states, one per conjugate pair.
    blocks
        The eigenvalues start as those of the normal part of HiPPO-LegS, of order ``d_state / blocks``, repeated.
    C_init
        How C is drawn.
    discretization
        Zero-order hold or the bilinear transform.
    dt_min, dt_max
        The steps are drawn between these, uniformly over their logarithm.
    conj_sym
        Keep one state per conjugate pair, ``y = 2 Re(C x)``, instead of both.
    clip_eigs
        Keep the real part of every eigenvalue at or below -1e-4.
    """

    A_re: nn.Parameter
    log_step: nn.Parameter

    state_dimensions: ClassVar[Mapping[str, int]] = {
        "A_re": 0,
        "A_im": 0,
        "log_step": 0,
        "B_re": 0,
        "B_im": 0,
        "C_re": 1,
        "C_im": 1,
    }

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        blocks: int = 1,
        C_init: CInit = "trunc_standard_normal",
        discretization: Discretization = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        conj_sym: bool = True,
        clip_eigs: bool = False,
    ) -> None:
        super().__init__()
        check_steps("an S5", discretization, dt_min, dt_max)
        pairs = 2 if conj_sym else 1
        if d_model < 1 or blocks < 1 or d_state < 1 or d_state % (blocks * pairs):
            raise InputError(
                f"an S5 needs d_model >= 1 and d_state a multiple of {pairs} (conjugate pairs) times the blocks, "
                f"found d_model={d_model}, d_state={d_state}, blocks={blocks}"
            )
        self.discretization, self.conj_sym, self.clip_eigs = discretization, conj_sym, clip_eigs
        eigenvalues, vectors = hippo_normal(d_state // blocks)
        kept = d_state // blocks // pairs
        lam, V = eigenvalues[:kept].repeat(blocks), _repeated(vectors[:, :kept], blocks)
        B = V.mH @ _lecun((d_state, d_model), d_state).to(V.dtype)
        values = {"A_re": lam.real, "A_im": lam.imag, "log_step": log_steps(len(lam), dt_min, dt_max)}
        values |= parts("B", B) | parts("C", _read(C_init, d_model, V))
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value.to(torch.get_default_dtype()).contiguous()))
        self.D = nn.Parameter(torch.randn(d_model))

    @property
    def states(self) -> int:
        """Number of complex states."""
        return len(self.A_re)

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"width={self.width}, states={self.states}, discretization={self.discretization}"

    def load_system(self, system: DiagonalSystem) -> None:
        """Replace eigenvalues, B and C by those of ``system``; D stays. The parameters remain the same Python objects.

        Each new state takes the step of the old state whose pole is next to its own, with ``clip_eigs`` a shorter one
        where the eigenvalue would be clipped. The scale of a mode is chosen as in `LRU.load_system`.

        Raises
        ------
        InputError
            When the system does not have this layer's width at its input and output.
        """
        self._accept(system)
        before = self.system().lam
        log_step = self.log_step.detach().double()[(system.lam[:, None] - before).abs().argmin(1)]
        A, gain = continuous(system.lam, log_step.exp(), self.discretization)
        if self.clip_eigs:
            # A slow pole takes a shorter step: its eigenvalue would otherwise be clipped, and the pole be another one.
            log_step = log_step + (A.real / CLIPPED).clamp(max=1).log()
            A, gain = continuous(system.lam, log_step.exp(), self.discretization)
        B, C = equalised(system.B / gain[:, None], system.C / (2 if self.conj_sym else 1))
        self._become(parts("A", A) | {"log_step": log_step} | parts("B", B) | parts("C", C))

    def _map(self, values: Mapping[str, Tensor]) -> Map:
        A_re = values["A_re"].clamp(max=CLIPPED) if self.clip_eigs else values["A_re"]
        poles, (gain_re, gain_im) = discrete(A_re, values["A_im"], values["log_step"].exp(), self.discretization)
        B_re = gain_re[:, None] * values["B_re"] - gain_im[:, None] * values["B_im"]
        B_im = gain_re[:, None] * values["B_im"] + gain_im[:, None] * values["B_re"]
        twice = 2 if self.conj_sym else 1
        return Map(poles, (B_re, B_im), (twice * values["C_re"], twice * values["C_im"]))


def hippo_normal(order: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``[order]`` and eigenvectors of the normal part of HiPPO-LegS, in complex128.

    HiPPO-LegS is a normal matrix minus a matrix of rank 1 (Gu et al., "Efficiently Modeling Long Sequences with
    Structured State Spaces", 2022). The normal part is -1/2 plus a skew-symmetric matrix; its eigenvalues come
    in the order of their imaginary part, so that the first half has one of each conjugate pair.
    """
    place = torch.arange(order, dtype=torch.float64)
    root = torch.sqrt(2 * place + 1)
    skew = -0.5 * torch.outer(root, root).tril(-1)
    imaginary, vectors = torch.linalg.eigh(-1j * (skew - skew.t()))
    return torch.complex(torch.full_like(imaginary, -0.5), imaginary), vectors


def _repeated(block: Tensor, count: int) -> Tensor:
    diagonal: Tensor = torch.block_diag(*[block] * count)  # type: ignore[no-untyped-call]  # torch has not typed it
    return diagonal


def _read(C_init: CInit, outputs: int, V: Tensor) -> Tensor:
    order, states = V.shape
    if C_init == "complex_normal":
        return torch.complex(*torch.randn(2, outputs, states, dtype=torch.float64) * math.sqrt(0.5))
    fans = {"trunc_standard_normal": order, "lecun_normal": order * outputs}
    if C_init not in fans:
        raise InputError(f"an S5 draws C as {', '.join(fans)} or complex_normal, not {C_init!r}")
    drawn = _lecun((2, outputs, order), fans[C_init]).double()
    return torch.complex(drawn[0], drawn[1]) @ V


def _lecun(shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw from the normal distribution of variance ``1 / fan_in``, cut off at two standard deviations."""
    # Cutting off at two standard deviations leaves 0.8796 of the standard deviation.
    deviation = 1 / math.sqrt(fan_in) / 0.87962566
    return nn.init.trunc_normal_(torch.empty(shape), std=deviation, a=-2 * deviation, b=2 * deviation)
