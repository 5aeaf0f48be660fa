"""Balanced truncation against independent solvers, the error bound on frequency sweeps, and the definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from systems import embedded, largest_gain, random_system, simulated

from edgelean.errors import InputError
from edgelean.nn import DiagonalSystem
from edgelean.shrink.balance import (
    Gramians,
    gramians,
    hankel_singular_values,
    measured_gramians,
    measured_prices,
    output_error,
    prices,
    truncate,
)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), width=st.integers(1, 4), share=st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_error_stays_below_the_bound_for_any_stable_system(seed, n, width, share):
    system = random_system(seed, n, width, width)
    reduction = truncate(system, min(n - 1, max(1, round(share * n))))
    assert reduction.method == "balanced"
    assert largest_gain(system, reduction.system) <= reduction.bound * (1 + 1e-6) + 1e-9
    assert float(reduction.system.lam.abs().max()) < 1


@given(seed=st.integers(0, 2**31), n=st.integers(1, 10))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_gramians_solve_the_lyapunov_equations(seed, n):
    system = random_system(seed, n, 2, 3)
    A, B, C = embedded(system)
    pair = gramians(system)
    P, Q = pair.controllability, pair.observability
    assert float((P - A @ P @ A.mT - B @ B.mT).norm()) < 1e-12 * (1 + float(P.norm()))
    assert float((Q - A.mT @ Q @ A - C.mT @ C).norm()) < 1e-12 * (1 + float(Q.norm()))


def test_covariance_and_weight_enter_as_scaled_inputs_and_outputs():
    system = random_system(3, 6, 3, 2)
    root = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]], dtype=torch.float64)
    weight = torch.tensor([4.0, 0.25], dtype=torch.float64)
    shaped = DiagonalSystem(
        system.lam, system.B @ root.to(torch.complex128), weight.sqrt()[:, None].to(torch.complex128) * system.C
    )
    pair, expected = gramians(system, root @ root.mT, weight), gramians(shaped)
    torch.testing.assert_close(pair.controllability, expected.controllability)
    torch.testing.assert_close(pair.observability, expected.observability)


def test_a_conjugated_mode_is_the_same_to_the_real_map():
    system = random_system(4, 8, 2, 2)
    flip = torch.tensor([True, False] * 4)
    mirrored = DiagonalSystem(
        torch.where(flip, system.lam.conj(), system.lam),
        torch.where(flip[:, None], system.B.conj(), system.B),
        torch.where(flip, system.C.conj(), system.C),
    )
    torch.testing.assert_close(hankel_singular_values(mirrored), hankel_singular_values(system))
    reductions = [truncate(each, 4).system for each in (system, mirrored)]
    assert largest_gain(*reductions) < 1e-9


def test_real_poles_take_one_state_each_and_all_fit():
    lam = torch.tensor([0.95, 0.8, -0.7, 0.5, 0.99, 0.3], dtype=torch.float64)
    B, C = torch.rand(6, 2, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)
    reduction = truncate(DiagonalSystem(lam, B, C), 3)
    assert reduction.system.states == 3
    assert largest_gain(DiagonalSystem(lam, B, C), reduction.system) <= reduction.bound + 1e-9
    assert reduction.bound < 0.2 * float(reduction.hankel[0])


@pytest.mark.parametrize(
    ("r_min", "r_max", "max_phase"), [(0.999, 0.999999, 6.28), (1e-6, 1e-3, 6.28), (0.9, 0.999, 1e-3), (0.5, 0.9, 0.3)]
)
@pytest.mark.parametrize("states", [1, 5, 12, 23])
def test_extreme_systems_reduce_to_finite_stable_systems(r_min, r_max, max_phase, states):
    system = random_system(5, 24, 1, 1, r_min, r_max, max_phase)
    reduction = truncate(system, states)
    assert reduction.system.states == states
    assert bool(torch.isfinite(reduction.hankel).all())
    assert float(reduction.system.lam.abs().max()) < 1
    assert output_error(system, reduction.system) <= 1.01 * output_error(system, silent(system))


def silent(system):
    return DiagonalSystem(system.lam[:1], system.B[:1], 0 * system.C[:, :1])


def delay_line(taps, radius):
    """Nearly a finite impulse response: poles on a small circle, with huge modes that cancel."""
    n = len(taps)
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    lam = torch.polar(torch.full_like(angle, radius), angle)
    scaled = torch.tensor(taps, dtype=torch.complex128) / radius ** torch.arange(n)
    return DiagonalSystem(lam, torch.ones(n, 1), torch.fft.fft(scaled)[None] / n)


@pytest.mark.parametrize("states", [1, 3, 5, 7])
def test_nearly_finite_impulse_responses_get_no_modes_that_cancel_in_float32(states):
    system = delay_line([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 0.05)
    reduction = truncate(system, states)
    assert float(reduction.system.C.abs().max()) < 1e3
    assert largest_gain(system, reduction.system) <= reduction.bound * (1 + 1e-6) + 1e-9


def test_gramians_that_do_not_fit_the_system_still_give_a_stable_one():
    seen = set()
    for seed in range(40):
        system = random_system(seed, 8, 2, 2, 0.9, 0.999)
        reach, see = torch.randn(2, 16, 16, dtype=torch.float64)
        reduction = truncate(system, 5, Gramians(reach @ reach.mT, see @ see.mT))
        seen.add(reduction.method)
        assert float(reduction.system.lam.abs().max()) < 1
        assert reduction.system.states == 5
    assert seen == {"balanced", "subset"}


def test_the_free_scale_of_a_mode_does_not_matter():
    system = random_system(3, 12, 2, 2)
    scale = torch.logspace(-6, 6, 12, dtype=torch.float64)
    skewed = DiagonalSystem(system.lam, system.B * scale[:, None], system.C / scale)
    torch.testing.assert_close(hankel_singular_values(skewed), hankel_singular_values(system), rtol=1e-9, atol=0)


def test_more_states_never_lose_much_against_fewer():
    system = random_system(6, 24, 4, 4)
    errors = [output_error(system, truncate(system, kept).system) for kept in range(1, 25)]
    assert errors[-1] < 1e-12
    assert all(more <= 1.1 * fewer + 1e-12 for fewer, more in pairwise(errors))


def test_the_full_number_of_states_changes_nothing():
    system = random_system(7, 5, 2, 2)
    reduction = truncate(system, 5)
    assert (reduction.method, reduction.bound) == ("unchanged", 0.0)
    assert reduction.system is system


def test_float32_systems_are_reduced_in_double_precision():
    system = random_system(8, 16, 2, 2)
    single = DiagonalSystem(*(part.to(torch.complex64) for part in (system.lam, system.B, system.C)))
    assert single.lam.dtype == truncate(single, 4).system.lam.dtype == torch.complex128
    pair = gramians(single)
    A, B, _ = embedded(single)
    P = pair.controllability
    assert float((P - A @ P @ A.mT - B @ B.mT).norm()) < 1e-12 * float(P.norm())


def test_reduced_modes_have_inputs_and_outputs_of_equal_norm():
    reduced = truncate(random_system(9, 16, 3, 3), 6).system
    torch.testing.assert_close(reduced.B.norm(dim=1), reduced.C.norm(dim=0))


def test_unneeded_states_are_filled_with_modes_that_nothing_reads():
    full = random_system(10, 4, 2, 2)
    twice = DiagonalSystem(full.lam.repeat(2), full.B.repeat(2, 1), full.C.repeat(1, 2))
    reduced = truncate(twice, 6).system
    unread = reduced.C.norm(dim=0) == 0
    assert int(unread.sum()) == 2
    assert float(reduced.B[unread].norm(dim=1).min()) > 0
    assert largest_gain(twice, reduced) < 1e-9


def shared_poles(full, reduced):
    return (full.lam[:, None] == reduced.lam).any(1)


def test_a_system_that_cannot_be_balanced_falls_back_to_a_subset_of_its_modes():
    system = random_system(11, 6, 2, 2)
    mute = DiagonalSystem(system.lam, system.B, 0 * system.C)
    reduction = truncate(mute, 3)
    assert reduction.method == "subset"
    assert int(shared_poles(mute, reduction.system).sum()) == 3
    assert largest_gain(mute, reduction.system) == 0


def test_unbalanceable_gramians_keep_the_modes_with_most_energy_and_refit_the_outputs():
    """An observability that has nothing to do with the system makes every balanced truncation unstable or absent."""
    system = random_system(12, 8, 2, 2, max_phase=3.0)
    zero = Gramians(gramians(system).controllability, torch.zeros(16, 16, dtype=torch.float64))
    reduction = truncate(system, 5, zero)
    kept = shared_poles(system, reduction.system)
    plain = DiagonalSystem(system.lam[kept], system.B[kept], system.C[:, kept])
    assert reduction.method == "subset"
    assert output_error(system, reduction.system) < output_error(system, plain)


def test_output_error_is_the_energy_of_the_difference_of_the_impulse_responses():
    full, other = random_system(13, 6, 3, 2, r_max=0.9), random_system(14, 4, 3, 2, r_max=0.9)
    weight = torch.tensor([0.3, 2.0], dtype=torch.float64)
    root = torch.randn(3, 3, dtype=torch.float64)
    impulse = torch.zeros(3, 400, 3, dtype=torch.float64)
    impulse[:, 0] = root.mT
    difference = simulated(full, impulse) - simulated(other, impulse)
    expected = float((difference.square() * weight).sum())
    assert output_error(full, other, root @ root.mT, weight) == pytest.approx(expected, rel=1e-10)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 24), width=st.integers(1, 3))
@example(seed=252, n=13, width=1)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_prices_rise_from_nothing_to_the_whole_energy(seed, n, width):
    system = random_system(seed, n, width, width)
    weight = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)[:width]
    found = prices(system, weight)
    assert found.shape == (n + 1,)
    assert float(found[0]) == 0
    assert bool((found.diff() >= 0).all())
    whole = 0.5 * output_error(system, silent(system), weight=weight)
    assert float(found[-1]) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("covariance", [None, torch.diag(torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64))])
def test_prices_predict_the_error_of_the_truncated_system(covariance):
    system = random_system(16, 32, 3, 3, 0.8, 0.99)
    weight = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    found = prices(system, weight, covariance)
    pair = gramians(system, covariance)
    for kept, factor in (
        (4, 1.000001),
        (8, 1.000001),
        (16, 1.000001),
        (28, 1.000001),
        (3, 2),
        (6, 2),
        (12, 2),
        (20, 2),
    ):
        exact = 0.5 * output_error(system, truncate(system, kept, pair).system, covariance, weight)
        assert exact / factor < float(found[32 - kept]) < exact * factor


def test_prices_of_redundant_states_are_nothing():
    full = random_system(17, 8, 2, 2)
    twice = DiagonalSystem(full.lam.repeat(2), full.B.repeat(2, 1), full.C.repeat(1, 2))
    found = prices(twice, torch.ones(2, dtype=torch.float64))
    assert float(found[8]) < 1e-12 * float(found[-1])
    assert float(found[10]) > 1e-6 * float(found[-1])


def smooth_inputs(batch, time, width, seed):
    """Slow, correlated, not centred: as unlike white noise as real signals are."""
    rng = torch.Generator().manual_seed(seed)
    steps = torch.randn(batch, time, 1, generator=rng, dtype=torch.float64)
    mixing = torch.randn(1, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.3 * steps.cumsum(1) @ mixing + 1


def test_measured_gramians_average_the_states_that_the_inputs_cause():
    system = random_system(18, 4, 2, 2)
    inputs = smooth_inputs(3, 20, 2, seed=0).to(torch.float32)
    A, B, _ = embedded(system)
    total = torch.zeros(8, 8, dtype=torch.float64)
    for sequence in inputs.double():
        state = torch.zeros(8, dtype=torch.float64)
        for step in sequence:
            state = A @ state + B @ step
            total += state[:, None] * state
    pair = measured_gramians(system, inputs)
    torch.testing.assert_close(pair.controllability, total / 60)
    torch.testing.assert_close(pair.observability, gramians(system).observability)


def test_truncation_that_knows_the_inputs_loses_far_less_on_new_ones():
    system = random_system(19, 32, 4, 4, 0.9, 0.99)
    seen, new = smooth_inputs(8, 64, 4, seed=2), smooth_inputs(8, 64, 4, seed=3)
    blind = truncate(system, 8).system
    informed = truncate(system, 8, measured_gramians(system, seen)).system
    losses = [float((simulated(system, new) - simulated(each, new)).square().mean()) for each in (blind, informed)]
    assert losses[1] < 0.1 * losses[0]


def test_measured_prices_predict_the_error_on_the_recorded_inputs():
    system = random_system(20, 32, 4, 4, 0.9, 0.99)
    inputs = smooth_inputs(8, 64, 4, seed=4)
    weight = torch.tensor([1.0, 0.1, 2.0, 0.5], dtype=torch.float64)
    found = measured_prices(system, weight, inputs)
    pair = measured_gramians(system, inputs)
    assert float(found[0]) == 0
    assert bool((found.diff() >= 0).all())
    for kept in (2, 4, 8):
        difference = simulated(system, inputs) - simulated(truncate(system, kept, pair).system, inputs)
        exact = 0.5 * float((difference.square().mean((0, 1)) * weight).sum())
        assert exact / 4 < float(found[32 - kept]) < 4 * exact


@pytest.mark.parametrize("states", [0, -1, 6])
def test_an_impossible_number_of_states_is_refused(states):
    with pytest.raises(InputError, match=r"1 \.\.\. 5"):
        truncate(random_system(21, 5, 1, 1), states)


def test_an_unstable_pole_is_named():
    with pytest.raises(InputError, match=r"state 1 .* modulus 1\.5"):
        DiagonalSystem(torch.tensor([0.5, 1.5]), torch.ones(2, 1), torch.ones(1, 2))


def test_a_number_that_is_not_finite_is_named():
    with pytest.raises(InputError, match="B holds NaN"):
        DiagonalSystem(torch.tensor([0.5]), torch.tensor([[math.nan]]), torch.ones(1, 1))


def test_shapes_that_do_not_fit_are_shown():
    with pytest.raises(InputError, match=r"B \[3, 1\]"):
        DiagonalSystem(torch.tensor([0.5, 0.2]), torch.ones(3, 1), torch.ones(1, 2))
