"""Systems that are not diagonal: Lyapunov equations, and balanced truncation against independent solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_balance_cases import cases, complex_matrix

from edgelean.errors import InputError
from edgelean.shrink.balance import (
    LinearSystem,
    diagonalised,
    hankel_singular_values,
    largest_gain,
    lyapunov_factor,
    reduce_general,
    truncate,
)

__all__ = ["cases"]

REAL_CASES = ("slicot_ab09ad_tustin0.1", "matlab_hsvd_2state_tustin0.05", "fir_ramp8")


def drawn(seed, n, width, complex_, radius):
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_ else 0)

    A = matrix(n, n)
    A *= radius / max(abs(np.linalg.eigvals(A)).max(), 1e-9)
    return LinearSystem(*(torch.from_numpy(np.asarray(x)) for x in (A, matrix(n, width), matrix(width, n))))


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 10),
    width=st.integers(1, 3),
    complex_=st.booleans(),
    radius=st.sampled_from([0.0, 0.5, 0.99, 1 - 1e-6]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_factors_solve_the_lyapunov_equation(seed, n, width, complex_, radius):
    system = drawn(seed, n, width, complex_, radius)
    L = lyapunov_factor(system.A, system.B)
    P = L @ L.mH
    residual = P - system.A @ P @ system.A.mH - system.B @ system.B.mH
    assert float(residual.abs().max()) < 1e-9 * (1 + float(P.abs().max()))
    if radius <= 0.99:
        expected = scipy.linalg.solve_discrete_lyapunov(system.A.numpy(), (system.B @ system.B.mH).numpy())
        np.testing.assert_allclose(P.numpy(), expected, rtol=1e-7, atol=1e-9 * abs(expected).max())


def gain(a, b, points=400):
    found = 0.0
    for phase in np.linspace(0, 2 * math.pi, points):
        z = torch.tensor(np.exp(1j * phase))
        sides = [
            x.C.to(z.dtype) @ torch.linalg.solve(z * torch.eye(x.order) - x.A.to(z.dtype), x.B.to(z.dtype))
            for x in (a, b)
        ]
        found = max(found, float(torch.linalg.matrix_norm(sides[0] - sides[1], ord=2)))
    return found


@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), width=st.integers(1, 2), complex_=st.booleans())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_reduced_systems_are_balanced_stable_and_within_the_bound(seed, n, width, complex_):
    system = drawn(seed, n, width, complex_, 0.9)
    reduction = reduce_general(system, n // 2)
    reduced = reduction.system
    assert reduced.A.is_complex() == complex_
    assert gain(system, reduced, 60) <= reduction.bound * (1 + 1e-6) + 1e-9
    whole = reduce_general(system, n).system
    P = lyapunov_factor(whole.A, whole.B)
    Q = lyapunov_factor(whole.A.mH, whole.C.mH)
    expected = torch.diag(reduction.hankel[: whole.order]).to(P.dtype)
    for gramian in (P @ P.mH, Q @ Q.mH):
        torch.testing.assert_close(gramian, expected, rtol=1e-6, atol=1e-7 * float(reduction.hankel[0]))


def response_at(system, z):
    z = torch.tensor(complex(*z), dtype=torch.complex128)
    eye = torch.eye(system.order, dtype=z.dtype)
    return system.C.to(z.dtype) @ torch.linalg.solve(z * eye - system.A.to(z.dtype), system.B.to(z.dtype))


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_CASES)
def test_real_cases_agree_with_independent_solvers(cases, name):
    case = cases[name]
    system = LinearSystem(*(torch.tensor(case[part], dtype=torch.float64) for part in "ABC"))
    reduction = reduce_general(system, case["r"])
    expected = torch.tensor(case["hsv"], dtype=torch.float64)
    torch.testing.assert_close(reduction.hankel, expected, rtol=1e-8, atol=1e-12)
    assert reduction.bound == pytest.approx(case["bound_2sum"], rel=1e-8)
    for z, tf in zip(case["reduced"]["tf_points"], case["reduced"]["tf"], strict=True):
        assert float((response_at(reduction.system, z) - complex_matrix(tf)).abs().max()) < 1e-8


@pytest.mark.data
@pytest.mark.parametrize("name", ["lru_n8_h2", "lru_n16_h1", "lru_n64_h8", "lru_dead_states"])
def test_complex_maps_agree_with_independent_solvers(cases, name):
    case = cases[name]
    system = LinearSystem(
        torch.diag(complex_matrix(case["lambdas"])), complex_matrix(case["B"]), complex_matrix(case["C"])
    )
    reduction = reduce_general(system, case["r"])
    expected = torch.tensor(case["hsv"], dtype=torch.float64)
    resolved = expected > 1e-6 * expected[0]
    torch.testing.assert_close(reduction.hankel[resolved], expected[resolved], rtol=1e-8, atol=0)
    for z, tf in zip(case["reduced"]["tf_points"], case["reduced"]["tf"], strict=True):
        assert float((response_at(reduction.system, z) - complex_matrix(tf)).abs().max()) < 1e-7
    for tolerance, rank in case["rank_sum_tol"].items():
        shares = reduction.hankel.cumsum(0) / reduction.hankel.sum()
        assert 1 + int((shares < 1 - float(tolerance)).sum()) == rank


def test_a_real_system_becomes_modes_with_the_same_map():
    system = drawn(3, 7, 2, False, 0.9)
    modes = diagonalised(system)
    assert modes.states < 7
    assert largest_gain(modes) == pytest.approx(
        gain(system, LinearSystem(0 * system.A, system.B, 0 * system.C)), rel=0.02
    )
    values = hankel_singular_values(modes)
    torch.testing.assert_close(values[:7], reduce_general(system, 7).hankel, rtol=1e-6, atol=1e-9)
    assert truncate(modes, 2).bound >= 0


def test_a_shift_register_is_reduced_but_not_diagonalised():
    A = torch.diag(torch.ones(7, dtype=torch.float64), -1)
    B = torch.zeros(8, 1, dtype=torch.float64)
    B[0] = 1
    system = LinearSystem(A, B, torch.arange(1.0, 9.0, dtype=torch.float64)[None])
    with pytest.raises(InputError, match="too close"):
        diagonalised(system)
    reduction = reduce_general(system, 4)
    assert diagonalised(reduction.system).states <= 4
    assert gain(system, reduction.system) <= reduction.bound


def test_bad_systems_are_refused():
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="modulus 1"):
        LinearSystem(one, one, one)
    with pytest.raises(InputError, match="NaN"):
        LinearSystem(0 * one, one, math.nan * one)
    with pytest.raises(InputError, match=r"found A \[1, 1\]"):
        LinearSystem(0 * one, torch.ones(2, 1), one)
    with pytest.raises(InputError, match=r"1 \.\.\. 1"):
        reduce_general(LinearSystem(0 * one, one, one), 2)
    with pytest.raises(InputError, match="complex"):
        diagonalised(LinearSystem(0j * one, one, one))
