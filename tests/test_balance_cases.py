"""Balanced truncation against systems whose Hankel singular values independent solvers have computed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from systems import largest_gain

from edgelean.nn import DiagonalSystem
from edgelean.shrink.balance import hankel_singular_values, truncate

COMPLEX_CASES = (
    "diag_scalar_complex",
    "lru_n8_h2",
    "lru_n16_h1",
    "lru_n64_h8",
    "lru_n64_h64",
    "lru_n64_h1_hard",
    "lru_conj_duplicated",
    "lru_dead_states",
)
REAL_CASES = ("slicot_ab09ad_tustin0.1", "matlab_hsvd_2state_tustin0.05")


@pytest.fixture(scope="module")
def cases():
    folder = os.environ.get("EDGELEAN_CASES") or str(Path(os.environ.get("EDGELEAN_DATA", "")).parent / "cases")
    file = Path(folder) / "balanced_truncation.json"
    if not file.is_file():
        pytest.skip("neither EDGELEAN_CASES nor a folder `cases` beside EDGELEAN_DATA has balanced_truncation.json")
    return {case["name"]: case for case in json.loads(file.read_text())["cases"]}


def complex_matrix(plain):
    return torch.complex(*(torch.tensor(plain[part], dtype=torch.float64) for part in ("re", "im")))


def system_of(case):
    return DiagonalSystem(complex_matrix(case["lambdas"]), complex_matrix(case["B"]), complex_matrix(case["C"]))


@pytest.mark.data
@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_hankel_singular_values_of_the_real_map_agree_with_independent_solvers(cases, name):
    expected = torch.tensor(cases[name]["hsv_real_2N"], dtype=torch.float64)
    found = hankel_singular_values(system_of(cases[name]))
    resolved = expected > 1e-6 * expected[0]
    torch.testing.assert_close(found[resolved], expected[resolved], rtol=1e-8, atol=0)
    assert float((found - expected).abs().max()) < 1e-8 * float(expected[0])


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_CASES)
def test_hankel_singular_values_of_real_systems_survive_diagonalisation(cases, name):
    A, B, C = (torch.tensor(cases[name][part], dtype=torch.float64) for part in "ABC")
    lam, vectors = torch.linalg.eig(A)
    modal = DiagonalSystem(lam, torch.linalg.solve(vectors, B.to(lam.dtype)), C.to(lam.dtype) @ vectors)
    expected = torch.tensor(cases[name]["hsv"], dtype=torch.float64)
    torch.testing.assert_close(hankel_singular_values(modal)[: len(expected)], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.data
@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_truncation_is_as_good_as_the_real_reduction_of_independent_solvers(cases, name):
    case = cases[name]
    system = system_of(case)
    reduction = truncate(system, case["r"])
    error = largest_gain(system, reduction.system)
    assert error <= reduction.bound * (1 + 1e-6) + 1e-9
    # Where nothing is lost, the tail of the independent solver is its noise.
    assert reduction.bound >= case["real_bt_bound_2sum"] * (1 - 1e-6) - 2e-8 * case["hsv"][0]
    # Real poles lower the order by one each, which costs some of the accuracy.
    assert error <= 1.25 * case["real_bt_hinf_error"] + 1e-9
    if case["real_bt_n_real_eigs"] == 0:
        assert reduction.order == case["real_bt_order"]
        assert error == pytest.approx(case["real_bt_hinf_error"], rel=1e-3, abs=1e-9)


@pytest.mark.data
@pytest.mark.parametrize(("name", "states"), [("lru_conj_duplicated", 16), ("lru_dead_states", 8)])
def test_redundant_states_go_without_a_trace(cases, name, states):
    system = system_of(cases[name])
    for kept in (states, system.states - 1):
        reduction = truncate(system, kept)
        assert reduction.system.states == kept
        assert largest_gain(system, reduction.system) < 1e-9
