"""Banks of systems, factors of low rank, poles near the circle: the same as one dense system at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import embedded, largest_gain, random_system, simulated

from edgelean.errors import InputError
from edgelean.nn import LRU, S4D, DiagonalSystem
from edgelean.shrink.balance import (
    Factors,
    factors,
    gramians,
    hankel_singular_values,
    measured_gramians,
    measured_prices,
    output_error,
    prices,
    refitted,
    refitted_to,
    residualise,
    truncate,
)
from edgelean.shrink.balance import largest_gain as found_gain
from edgelean.shrink.balance.elimination import all_out, eliminated
from edgelean.shrink.balance.form import decomposed
from edgelean.shrink.balance.real import polar


def bank_of(systems, *front):
    parts = (torch.stack([getattr(each, name) for each in systems]) for name in ("lam", "B", "C"))
    return DiagonalSystem(*(part.reshape(*front, *part.shape[1:]) for part in parts))


def member(bank, *place):
    return DiagonalSystem(bank.lam[place], bank.B[place], bank.C[place])


def mixed_systems(n=9):
    """Ordinary ones, one with real poles, one with conjugates twice, one that is mute and one that is half dead."""
    a, b, c, d, e, f = (random_system(seed, n, 1, 1, 0.5, 0.98) for seed in range(6))
    b = DiagonalSystem(b.lam.abs(), b.B.real, b.C.real)
    half = c.lam[: n // 2]
    c = DiagonalSystem(torch.cat([half, half.conj(), c.lam[-1:]]), c.B, c.C)
    d = DiagonalSystem(d.lam, d.B, 0 * d.C)
    e = DiagonalSystem(e.lam, e.B * (torch.arange(n) % 2)[:, None], e.C)
    return [a, b, c, d, e, f]


@pytest.mark.parametrize("way", [truncate, residualise])
@pytest.mark.parametrize("states", [1, 4, 8])
def test_a_bank_is_reduced_like_each_of_its_systems(way, states):
    systems = mixed_systems()
    whole = way(bank_of(systems, 2, 3), states)
    assert whole.system.lam.shape == (2, 3, states)
    for place, system in zip(np.ndindex(2, 3), systems, strict=True):
        alone = way(system, states)
        torch.testing.assert_close(whole.hankel[place], alone.hankel, rtol=1e-9, atol=1e-9)
        assert int(whole.orders[place]) == alone.order
        assert largest_gain(member(whole.system, *place), alone.system) < 1e-6
        torch.testing.assert_close(whole.feedthrough[place], alone.feedthrough, rtol=1e-6, atol=1e-6)
    assert whole.bound == pytest.approx(float(whole.bounds.max()))


def test_recorded_inputs_feed_each_system_of_a_bank_with_its_own_feature():
    systems = [random_system(seed, 5, 1, 1, 0.5, 0.95) for seed in range(4)]
    inputs = torch.randn(3, 30, 4, dtype=torch.float64).cumsum(1)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    pair = measured_gramians(bank_of(systems, 4), inputs, weight)
    costs = measured_prices(bank_of(systems, 4), weight, inputs)
    for place, system in enumerate(systems):
        alone = measured_gramians(system, inputs[..., place : place + 1], weight[place : place + 1])
        torch.testing.assert_close(pair.controllability[place], alone.controllability)
        torch.testing.assert_close(pair.observability[place], alone.observability)
        expected = measured_prices(system, weight[place : place + 1], inputs[..., place : place + 1])
        torch.testing.assert_close(costs[place], expected)


def test_the_price_of_a_bank_is_that_of_each_system():
    systems = [random_system(seed, 8, 1, 1, 0.5, 0.95) for seed in range(3)]
    weight = torch.tensor([[1.0], [2.0], [0.5]])
    found = prices(bank_of(systems, 3), weight)
    assert found.shape == (3, 9)
    for place, system in enumerate(systems):
        torch.testing.assert_close(found[place], prices(system, weight[place]), rtol=1e-9, atol=1e-12)


def test_a_layer_of_one_system_for_each_feature_is_reduced_at_once():
    torch.manual_seed(0)
    layer = S4D(6, 32)
    system = layer.system()
    reduction = truncate(system, 6)
    layer.load_system(reduction.system)
    assert layer.states == 6
    errors = [largest_gain(member(system, k), member(reduction.system, k)) for k in range(6)]
    assert all(e <= float(b) * (1 + 1e-6) + 1e-9 for e, b in zip(errors, reduction.bounds, strict=True))


def odd_poles(seed, n):
    """Poles of all kinds: zero, real, repeated, conjugate to each other, close to the circle."""
    rng = np.random.default_rng(seed)
    pool = [0.0, 0.7, -0.9, 0.5 + 0.5j, 0.5 - 0.5j, 0.3j, 0.999999, -0.2 + 1e-9j, 0.9 + 1e-5j, 0.999 * np.exp(2j)]
    drawn = [*pool, *(rng.uniform(0.1, 0.99, n) * np.exp(2j * math.pi * rng.random(n)))]
    return torch.tensor(rng.choice(drawn, n), dtype=torch.complex128)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 14), width=st.integers(1, 3), real=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_elimination_gives_a_real_factor_of_the_gramian_for_poles_of_all_kinds(seed, n, width, real):
    lam = odd_poles(seed, n)
    B = torch.randn(n, width, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
    B = (B.real if real else B) * (torch.arange(n) % 4 != 3)[:, None]
    system = DiagonalSystem(lam, B, torch.ones(1, n))
    found = all_out(polar(system), system.B, torch.ones(n, dtype=torch.float64))
    P = gramians(system).controllability
    energy = P.diagonal().reshape(2, n).sum(0)
    scale = torch.where(energy > 0, energy, 1.0).sqrt().repeat(2)
    assert float(((found @ found.mT - P) / scale / scale[:, None]).abs().max()) < 1e-9


def lru_system(width, states, max_phase=math.pi / 10):
    torch.manual_seed(1)
    return LRU(width, states, max_phase=max_phase).system()


def test_gramians_of_low_rank_are_never_formed(monkeypatch):
    monkeypatch.setattr("edgelean.shrink.balance.energy.gramians", None)
    found = factors(lru_system(1, 1024))
    assert found.reach.shape[0] == 2048
    assert max(found.reach.shape[1], found.see.shape[1]) < 600


def test_elimination_and_dense_factors_give_the_same_singular_values():
    system = lru_system(1, 160)
    poles, worth = polar(system), torch.ones(160, dtype=torch.float64)
    found = Factors(
        eliminated(poles, system.B, worth, most=160), eliminated(poles.conj(), system.C.mH.resolve_conj(), worth, 160)
    )
    assert found.reach.shape[1] < 200
    dense, values = hankel_singular_values(system, gramians(system)), hankel_singular_values(system, found)
    resolved = dense > 1e-5 * dense[0]
    torch.testing.assert_close(values[resolved], dense[resolved], rtol=1e-8, atol=0)


def test_large_matrices_are_decomposed_in_two_parts_like_small_ones():
    rng = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(270, 260, generator=rng, dtype=torch.float64)).Q,
        torch.linalg.qr(torch.randn(300, 260, generator=rng, dtype=torch.float64)).Q,
    )
    sigma = torch.logspace(0, -9, 260, dtype=torch.float64)
    matrix = left * sigma @ right.mT
    u, s, v = decomposed(matrix)
    torch.testing.assert_close(s[:260], sigma, rtol=1e-6, atol=1e-15)
    assert float((u * s @ v - matrix).abs().max()) < 1e-14
    large = sigma > 1e-8
    for basis in (u[:, :260][:, large], v[:260].mT[:, large]):
        assert float((basis.mT @ basis - torch.eye(basis.shape[1])).abs().max()) < 1e-7


def test_elimination_gives_up_where_the_rank_is_not_low():
    system = random_system(3, 48, 8, 8, 0.9, 0.999)
    worth = torch.ones(48, dtype=torch.float64)
    assert eliminated(polar(system), system.B, worth, most=16) is None


def test_a_layer_knows_how_far_its_poles_are_from_the_circle():
    """1 - |lam| would be 10 % off if it were read from the poles."""
    layer = LRU(1, 2).double()
    with torch.no_grad():
        layer.nu_log.copy_(torch.tensor([1e-15, 3e-15], dtype=torch.float64).log())
        layer.theta_log.copy_(torch.tensor([1.0, 2.0]).log())
    system = layer.system()
    P = gramians(system).controllability
    energy = P[:2, :2].diagonal() + P[2:, 2:].diagonal()
    decay = torch.tensor([1e-15, 3e-15], dtype=torch.float64)
    expected = system.B.abs().square().sum(-1) / -torch.expm1(-2 * decay)
    torch.testing.assert_close(energy, expected, rtol=1e-9, atol=0)
    assert bool(torch.isfinite(truncate(system, 1).hankel).all())


def test_a_horizon_counts_so_many_steps():
    system = random_system(7, 5, 2, 2, 0.9, 0.999)
    A, B, C = embedded(system)
    P, Q, power = torch.zeros_like(A), torch.zeros_like(A), torch.eye(10, dtype=torch.float64)
    for _ in range(12):
        P = P + power @ B @ B.mT @ power.mT
        Q = Q + power.mT @ C.mT @ C @ power
        power = A @ power
    pair = gramians(system, horizon=12)
    torch.testing.assert_close(pair.controllability, P)
    torch.testing.assert_close(pair.observability, Q)


def constant_gain(system):
    return ((system.C / (1 - system.lam)) @ system.B).real


@given(seed=st.integers(0, 2**31), n=st.integers(2, 10), width=st.integers(1, 3), share=st.floats(0.1, 0.9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_residualising_keeps_the_response_to_constants_and_is_stable(seed, n, width, share):
    system = random_system(seed, n, width, width)
    reduction = residualise(system, min(n - 1, max(1, round(share * n))))
    assert reduction.method == "balanced"
    assert reduction.bound == math.inf
    assert float(reduction.system.lam.abs().max()) < 1
    gain = constant_gain(reduction.system) + reduction.feedthrough
    assert float((gain - constant_gain(system)).abs().max()) < 1e-6 * (1 + float(reduction.hankel[0]))
    assert found_gain(system, reduction.system, reduction.feedthrough) < 4 * truncate(system, 1).bound + 1e-6


@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), width=st.integers(1, 3), share=st.floats(0.1, 0.9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_error_lies_between_the_first_value_that_went_and_the_bound(seed, n, width, share):
    system = random_system(seed, n, width, width)
    reduction = truncate(system, min(n - 1, max(1, round(share * n))))
    error = found_gain(system, reduction.system)
    # A grid finds the peak from below.
    assert 0.99 * reduction.lower_bound - 1e-9 <= error <= reduction.bound * (1 + 1e-6) + 1e-9
    assert error >= largest_gain(system, reduction.system) * 0.98


def test_the_gain_of_a_bank_is_its_largest():
    systems = [random_system(seed, 4, 1, 1) for seed in range(3)]
    assert found_gain(bank_of(systems, 3)) == pytest.approx(max(found_gain(each) for each in systems), rel=1e-3)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 10), width=st.integers(1, 3), weighted=st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_refit_is_never_worse_and_leaves_the_poles(seed, n, width, weighted):
    system = random_system(seed, n, width, width, 0.5, 0.99)
    rng = torch.Generator().manual_seed(seed)
    weight = torch.rand(width, generator=rng, dtype=torch.float64) + 0.1 if weighted else None
    root = torch.randn(width, width, generator=rng, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(width, dtype=torch.float64) if weighted else None
    plain = truncate(system, max(1, n // 2)).system
    better = refitted(system, plain, covariance, weight)
    before = output_error(system, plain, covariance, weight)
    assert output_error(system, better, covariance, weight) <= before * (1 + 1e-9) + 1e-12
    torch.testing.assert_close(better.lam, plain.lam)


def test_no_other_outputs_or_inputs_are_better_than_the_refitted_ones():
    system = random_system(3, 16, 2, 2, 0.9, 0.99)
    best = refitted(system, truncate(system, 5).system)
    error = output_error(system, best)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        shift = 1e-3 * torch.randn(2, 5, generator=rng, dtype=torch.complex128)
        assert output_error(system, DiagonalSystem(best.lam, best.B, best.C + shift)) > error
    norms = best.B.norm(dim=1), best.C.norm(dim=0)
    torch.testing.assert_close(*norms)


def test_a_refit_to_recorded_inputs_holds_for_new_ones():
    systems = [random_system(seed, 24, 1, 1, 0.9, 0.99) for seed in range(3)]
    full = bank_of(systems, 3)
    inputs = torch.randn(24, 80, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    seen, new = inputs[:12], inputs[12:]
    plain = truncate(full, 4).system
    better = refitted_to(full, plain, seen)
    for k in range(3):
        u = new[..., k : k + 1]
        errors = [
            float((simulated(systems[k], u) - simulated(member(each, k), u)).square().mean())
            for each in (plain, better)
        ]
        assert errors[1] < 0.7 * errors[0]


def test_one_sequence_is_not_enough_for_a_refit():
    system = random_system(0, 4, 1, 1)
    with pytest.raises(InputError, match="at least 2"):
        refitted_to(system, system, torch.zeros(1, 10, 1))


def test_inputs_and_weights_that_do_not_fit_are_refused():
    bank = bank_of([random_system(seed, 4, 1, 1) for seed in range(3)], 3)
    with pytest.raises(InputError, match="1 for each of 3 systems"):
        measured_gramians(bank, torch.zeros(1, 10, 2))
    with pytest.raises(InputError, match="weights of outputs"):
        prices(random_system(0, 4, 2, 2), torch.ones(3))
    with pytest.raises(InputError, match="negative"):
        prices(random_system(0, 4, 2, 2), torch.tensor([1.0, -1.0]))
