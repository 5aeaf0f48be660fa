"""The rank that a tolerance on the sum of Hankel singular values asks for."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgelean.errors import InputError
from edgelean.shrink.ranks import rank_for, states_for

VALUES = st.lists(st.integers(0, 2**20), min_size=1, max_size=40)


@given(VALUES, st.integers(0, 999))
def test_the_rank_is_the_smallest_that_keeps_enough_of_the_sum(values, thousandths):
    tolerance = Fraction(thousandths, 1000)
    ordered = sorted(values, reverse=True)
    enough = [r for r in range(1, len(values) + 1) if sum(ordered[:r]) >= (1 - tolerance) * sum(values)]
    # A tie is decided by the last bit of a product: one such rank more or less is the same rule.
    found = rank_for(torch.tensor(values, dtype=torch.float64), float(tolerance))
    tie = sum(ordered[found:]) == tolerance * sum(values) or sum(ordered[found - 1 :]) == tolerance * sum(values)
    assert found == enough[0] or tie


def test_what_may_go_is_a_share_of_the_sum_and_not_of_the_squares():
    assert rank_for(torch.tensor([8.0, 1.0, 0.6, 0.4]), 0.11) == 2


@given(VALUES)
def test_no_tolerance_keeps_all_that_is_not_zero(values):
    assert rank_for(torch.tensor(values).float(), 0.0) == max(1, sum(value > 0 for value in values))


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1e-12, 1e-9, 1e-8]))
def test_a_tiny_tolerance_in_single_precision_keeps_nearly_everything(seed, tolerance):
    sigma = torch.rand(256, generator=torch.Generator().manual_seed(seed)) + 0.1
    assert rank_for(sigma, tolerance) == 256


def test_values_over_many_orders_of_magnitude_are_all_counted():
    sigma = 10.0 ** -torch.arange(40, dtype=torch.float64)
    assert rank_for(sigma, 0.0) == 40
    assert rank_for(sigma, 0.5e-10) == 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_the_values_does_not_matter(dtype):
    sigma = torch.tensor([0.1, 5.0, 0.0, 2.0], dtype=dtype)
    assert rank_for(sigma, 0.05) == rank_for(sigma.flip(0), 0.05) == 2


def test_a_layer_that_does_nothing_keeps_one():
    assert rank_for(torch.zeros(7), 0.1) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-3])
def test_values_that_are_none_are_refused(bad):
    with pytest.raises(InputError, match="1 of 3"):
        rank_for(torch.tensor([1.0, bad, 0.5]), 0.1)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_out_of_its_range_is_refused(tolerance):
    with pytest.raises(InputError, match="tolerance"):
        rank_for(torch.ones(3), tolerance)


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_only_a_row_of_values_has_a_rank(shape):
    with pytest.raises(InputError, match="row"):
        rank_for(torch.ones(shape), 0.1)


def test_two_orders_of_the_real_map_fit_one_state():
    assert states_for(torch.tensor([4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 0.0) == 2


def test_a_layer_that_would_keep_nearly_all_states_is_left_alone():
    sigma = torch.cat([torch.ones(191), torch.full((9,), 1e-9)])
    assert states_for(sigma, 1e-6) == 100
    assert states_for(torch.cat([torch.ones(188), torch.full((12,), 1e-9)]), 1e-6) == 94
