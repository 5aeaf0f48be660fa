"""Linear systems, and what they do, computed in ways that the package does not use."""

from __future__ import annotations

import math

import torch

from edgelean.nn import DiagonalSystem


def random_system(seed, n, inputs, outputs, r_min=0.3, r_max=0.99, max_phase=2 * math.pi):
    rng = torch.Generator().manual_seed(seed)
    modulus = (r_min**2 + (r_max**2 - r_min**2) * torch.rand(n, generator=rng, dtype=torch.float64)).sqrt()
    lam = torch.polar(modulus, max_phase * torch.rand(n, generator=rng, dtype=torch.float64))
    B = torch.randn(n, inputs, generator=rng, dtype=torch.complex128) * (1 - modulus[:, None] ** 2).sqrt()
    return DiagonalSystem(lam, B, torch.randn(outputs, n, generator=rng, dtype=torch.complex128) / n**0.5)


def embedded(system):
    """A, B, C of the real system whose state is [Re x; Im x]."""
    lam = torch.diag(system.lam)
    A = torch.cat([torch.cat([lam.real, -lam.imag], 1), torch.cat([lam.imag, lam.real], 1)])
    return A, torch.cat([system.B.real, system.B.imag]), torch.cat([system.C.real, -system.C.imag], 1)


def response(system, points=1025):
    """The transfer function of the real map on the upper half of the unit circle, [points, P, H]."""
    z = torch.polar(torch.ones(points, dtype=torch.float64), torch.linspace(0, math.pi, points, dtype=torch.float64))
    half = [
        (C[None] / (1 - lam / z[:, None])[:, None]) @ B
        for lam, B, C in (
            (system.lam, system.B, system.C),
            (system.lam.conj(), system.B.conj(), system.C.conj()),
        )
    ]
    return (half[0] + half[1]) / 2


def largest_gain(a, b):
    return float(torch.linalg.matrix_norm(response(a) - response(b), ord=2).max())


def simulated(system, inputs):
    state = torch.zeros(inputs.shape[0], system.states, dtype=torch.complex128)
    outputs = []
    for step in inputs.unbind(1):
        state = system.lam * state + step.to(torch.complex128) @ system.B.mT
        outputs.append((state @ system.C.mT).real)
    return torch.stack(outputs, 1)
