"""Balanced truncation, and balanced residualisation, of the real map of a system or of a whole bank at once.

References
----------
Moore, "Principal component analysis in linear systems", 1981.
Enns, "Model reduction with balanced realizations", 1984; Glover, "All optimal Hankel-norm approximations", 1984: the
bound on the error and the one below it.
Fernando & Nicholson, "Singular perturbational model reduction in the frequency domain", 1982; Liu & Anderson,
"Singular perturbation approximation of balanced systems", 1989: exact at frequency zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edgelean.errors import InputError
from edgelean.nn.system import DiagonalSystem
from edgelean.shrink.balance.energy import Factors, Gramians, factored, factors
from edgelean.shrink.balance.form import Balanced, balance, padded
from edgelean.shrink.balance.modes import Modes, filled, modes_of, subset
from edgelean.shrink.balance.real import like, one_bank, polar, real_inputs, real_outputs

LARGEST_MODULUS = 1 - 1e-6
"""Reduced poles stay below this modulus, or below the largest of the full system where that is closer to 1."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduced system or bank, with what is known about it.

    Attributes
    ----------
    system
        The reduced system; it has exactly the states that were asked for.
    hankel
        Hankel singular values of the full real map, ``[..., 2N]``, largest first.
    orders
        Order of the real system that was kept, of each system of a bank, ``[...]``; at most twice the states.
    bounds
        ``2 * (sum of the values that went)``, ``[...]``. For ``"balanced"`` with the Gramians of `gramians`, no input
        makes the difference of the outputs larger than this factor times itself, both in root mean square (the
        H-infinity norm of the difference, of the weighted map where weights were given). Measured Gramians and those
        of a horizon give no such certificate.
    method
        ``"balanced"``; ``"unchanged"`` when nothing had to go; ``"subset"`` when no balanced system (of one of a bank)
        was stable and well conditioned: the modes that carry most energy, with C refitted.
    feedthrough
        What the outputs need beside the states, ``[..., P, H]``: zero after a truncation.
    """

    system: DiagonalSystem
    hankel: Tensor
    orders: Tensor
    bounds: Tensor
    method: Literal["balanced", "unchanged", "subset"]
    feedthrough: Tensor

    @property
    def order(self) -> int:
        """The order that was kept; the largest of a bank."""
        return int(self.orders.max())

    @property
    def bound(self) -> float:
        """The bound; the largest of a bank, which holds for the bank as one system."""
        return float(self.bounds.max())

    @property
    def lower_bound(self) -> float:
        """The first value that went: no system of this order comes nearer, and the error is mostly close to it."""
        first = padded(self.hankel, self.hankel.shape[-1] + 1).gather(-1, self.orders[..., None])
        return float(first.max())


class Real(NamedTuple):
    """A bank of real systems, ``[K, ...]``."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


Leading = Callable[[Tensor, int], Real]
"""Gives of some systems of a bank those of a given order."""

Way = Callable[[DiagonalSystem, Balanced, int], Leading]
"""How a bank becomes one of at most a given order."""


def truncate(system: DiagonalSystem, states: int, given: Gramians | Factors | None = None) -> Reduction:
    """Reduce a system to ``states`` states by square-root balanced truncation of its real map.

    A conjugate pair of reduced poles takes one state, with C doubled; a real pole takes one as well, and the order is
    lowered until all fit. States that the map does not need at all are filled with modes of the full system that
    nothing reads yet (their C is 0). The result is always stable.

    Parameters
    ----------
    system
        The full system, or a bank: each system of it is reduced on its own, to the same number of states.
    states
        Complex states to keep, 1 to N.
    given
        Gramians to balance; None for white inputs and unweighted outputs.

    Raises
    ------
    InputError
        When ``states`` is not between 1 and N.
    """
    return _reduced(system, states, given, truncation)


def residualise(system: DiagonalSystem, states: int, given: Gramians | Factors | None = None) -> Reduction:
    """Reduce a system so that the coordinates that go are at rest instead of zero: its response to constants is exact.

    It is stable like that of `truncate`, better at low frequencies and worse at high ones. The price is a direct path
    from inputs to outputs, `Reduction.feedthrough`: one number for each system of a bank with one input and one
    output, but a full matrix otherwise, which no layer of `edgelean.nn` has. The bound of the literature is for
    outputs that read the state before the input has come in; here they read it after, so `Reduction.bounds` are
    infinite: see `largest_gain` for the error.

    Parameters
    ----------
    system, states, given
        As for `truncate`.

    Raises
    ------
    InputError
        When ``states`` is not between 1 and N.
    """
    found = _reduced(system, states, given, residualisation)
    return found if found.method == "unchanged" else replace(found, bounds=torch.full_like(found.bounds, torch.inf))


def _reduced(system: DiagonalSystem, states: int, given: Gramians | Factors | None, way: Way) -> Reduction:
    if not 1 <= states <= system.states:
        raise InputError(f"a system of {system.states} states can be truncated to 1 ... {system.states}, not {states}")
    pair = given or factors(system)
    pair = pair if isinstance(pair, Factors) else factored(pair)
    front, bank = system.lam.shape[:-1], one_bank(system)
    flat = Factors(*(each.reshape(-1, *each.shape[-2:]) for each in (pair.reach, pair.see)))
    balanced = balance(flat, 2 * states if way is truncation else None)
    hankel = balanced.whole().reshape(*front, -1)
    if states == system.states:
        nothing = hankel.new_zeros(front)
        D = hankel.new_zeros(*front, system.C.shape[-2], system.B.shape[-1])
        return Reduction(system, hankel, torch.full_like(nothing, 2 * states).long(), nothing, "unchanged", D)
    kept = keep(bank, balanced, states, way)
    reduced, all_found = filled(kept.modes, bank), bool(kept.found.all())
    if not all_found:
        reduced = _chosen(kept.found, reduced, subset(bank, states, flat))
    orders = torch.where(kept.found, kept.orders, 2 * states)
    return Reduction(
        system=like(reduced, system),
        hankel=hankel,
        orders=orders.reshape(front),
        bounds=balanced.tail(orders).reshape(front),
        method="balanced" if all_found else "subset",
        feedthrough=kept.feedthrough.reshape(*front, *kept.feedthrough.shape[1:]),
    )


class Kept(NamedTuple):
    """Of a bank ``[K]`` the largest balanced systems that fit, are stable and well conditioned, where there are any."""

    modes: Modes
    feedthrough: Tensor
    orders: Tensor
    found: Tensor


def keep(system: DiagonalSystem, balanced: Balanced, states: int, way: Way) -> Kept:
    """Lower the order of each system of a bank ``[K]`` until its modes fit into the states and are safe."""
    limit = polar(system).modulus.amax(-1).clamp(min=LARGEST_MODULUS)
    largest = balanced.rank().clamp(max=2 * states)
    orders, found = largest.clone(), torch.zeros_like(largest, dtype=torch.bool)
    bank, width, height = len(system.lam), system.B.shape[-1], system.C.shape[-2]
    empty = system.lam.new_zeros
    modes = Modes(empty(bank, states), empty(bank, states, width), empty(bank, height, states), orders, found)
    D = empty(bank, height, width).real.clone()
    leading = way(system, balanced, int(largest.max()))
    while bool((open_ := ~found & (orders >= torch.clamp(largest // 2, min=1))).any()):
        for order in torch.unique(orders[open_]).tolist():
            which = (open_ & (orders == order)).nonzero()[:, 0]
            real = leading(which, order)
            new = modes_of(*real[:3], limit[which], states)
            excess = torch.where(new.safe, new.used - states, 1)
            fits = excess <= 0
            done = which[fits]
            for all_, part in zip((*modes[:3], D), (*new[:3], real.D), strict=True):
                all_[done] = part[fits]
            modes = modes._replace(used=modes.used.index_put((done,), new.used[fits]))
            found = found.index_put((done,), fits[fits])
            orders = orders.index_put((which[~fits],), order - excess[~fits].clamp(min=1))
    return Kept(modes, D, orders, found)


def truncation(system: DiagonalSystem, balanced: Balanced, most: int) -> Leading:
    """Return what gives the real systems of the first balanced coordinates; the others are held at zero."""
    T, W = balanced.bases(most)
    A, B, C = W.mT @ _moved(system, T), W.mT @ real_inputs(system), real_outputs(system) @ T
    D = T.new_zeros(len(T), system.C.shape[-2], system.B.shape[-1])

    def leading(which: Tensor, order: int) -> Real:
        return Real(A[which, :order, :order], B[which, :order], C[which, :, :order], D[which])

    return leading


def residualisation(system: DiagonalSystem, balanced: Balanced, most: int) -> Leading:
    """Return what gives the real systems of the first balanced coordinates; the others are where they come to rest."""
    whole = truncation(system, balanced, balanced.sigma.shape[-1])

    def leading(which: Tensor, order: int) -> Real:
        A, B, C, D = whole(which, balanced.sigma.shape[-1])
        rest = torch.eye(A.shape[-1] - order, dtype=A.dtype, device=A.device) - A[:, order:, order:]
        held, failed = torch.linalg.solve_ex(rest, torch.cat([A[:, order:, :order], B[:, order:]], -1))
        held = torch.where((failed == 0)[:, None, None], held, 0.0)
        by_state, by_input = torch.split(held, [order, B.shape[-1]], dim=-1)
        return Real(
            A[:, :order, :order] + A[:, :order, order:] @ by_state,
            B[:, :order] + A[:, :order, order:] @ by_input,
            C[..., :order] + C[..., order:] @ by_state,
            D + C[..., order:] @ by_input,
        )

    return leading


def _moved(system: DiagonalSystem, states: Tensor) -> Tensor:
    """Return what one time step without inputs makes of states ``[Re x; Im x]``."""
    upper, lower = states.chunk(2, dim=-2)
    re, im = system.lam.real[..., None], system.lam.imag[..., None]
    return torch.cat([re * upper - im * lower, im * upper + re * lower], dim=-2)


def some(system: DiagonalSystem, which: Tensor) -> DiagonalSystem:
    """Return some systems of a bank of one dimension."""
    margin = None if system.margin is None else system.margin[which]
    return DiagonalSystem(system.lam[which], system.B[which], system.C[which], margin)


def _chosen(first: Tensor, a: DiagonalSystem, b: DiagonalSystem) -> DiagonalSystem:
    """Return the systems of one bank where ``first`` says so, else those of the other."""
    return DiagonalSystem(
        torch.where(first[:, None], a.lam, b.lam),
        torch.where(first[:, None, None], a.B, b.B),
        torch.where(first[:, None, None], a.C, b.C),
    )
