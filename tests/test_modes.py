"""Spectra of systems and of banks, and what single modes are worth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import random_system, simulated

from edgelean.nn import DiagonalSystem
from edgelean.shrink.balance import hankel_singular_values, measured_gramians
from edgelean.shrink.modes import MOST_SAMPLES, mode_prices, pooled, some, spectra_of


def bank_of(seeds, states=4):
    each = [random_system(seed, states, 1, 1) for seed in seeds]
    return each, DiagonalSystem(*(torch.stack([getattr(one, name) for one in each]) for name in ("lam", "B", "C")))


def inputs(width, steps=40, seed=0):
    return torch.randn(6, steps, width, generator=torch.Generator().manual_seed(seed))


def test_a_plain_system_is_a_bank_of_one():
    system, read = random_system(0, 5, 3, 2), inputs(3)
    assert torch.equal(spectra_of(system), hankel_singular_values(system)[None])
    assert torch.equal(spectra_of(system, read), hankel_singular_values(system, measured_gramians(system, read))[None])


def test_each_system_of_a_bank_has_the_spectrum_that_it_has_alone():
    each, bank = bank_of((1, 2, 3))
    read = inputs(3)
    for feature, system in enumerate(each):
        alone = spectra_of(system, read[..., feature : feature + 1])[0]
        torch.testing.assert_close(spectra_of(bank, read)[feature], alone)
    torch.testing.assert_close(pooled(spectra_of(bank)), sum(spectra_of(system)[0] for system in each))


def alone(system, mode):
    return DiagonalSystem(system.lam[[mode]], system.B[[mode]], system.C[:, [mode]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_mode_is_worth_half_the_weighted_energy_that_it_sends_to_the_outputs(seed):
    system, weight = random_system(seed, 4, 3, 2), torch.tensor([0.3, 2.0], dtype=torch.float64)
    read = inputs(3, seed=seed).double()
    found = mode_prices(system, weight, read)
    for mode in range(4):
        energy = simulated(alone(system, mode), read).square().mean((0, 1)) @ weight
        assert float(found[mode]) == pytest.approx(0.5 * float(energy))


def test_a_mode_that_nothing_reaches_or_nothing_reads_is_worth_nothing():
    system = random_system(3, 4, 3, 2)
    system.B[0], system.C[:, 1] = 0, 0
    found = mode_prices(system, torch.ones(2), inputs(3))
    assert (found[:2] == 0).all()
    assert (found[2:] > 0).all()


def test_the_modes_of_a_bank_are_priced_one_system_at_a_time():
    each, bank = bank_of((4, 5))
    read, weight = inputs(2), torch.tensor([1.0, 3.0])
    found = mode_prices(bank, weight, read)
    for feature, system in enumerate(each):
        one = mode_prices(system, weight[[feature]], read[..., feature : feature + 1])
        torch.testing.assert_close(found[feature], one)


def test_a_look_takes_no_more_than_it_needs():
    assert some(torch.zeros(32, 64, 1)).shape == (32, 64, 1)
    assert some(torch.zeros(32, 784, 1)).shape == (MOST_SAMPLES // 784, 784, 1)
    assert some(torch.zeros(32, 16000, 1)).shape == (4, 1024, 1)
