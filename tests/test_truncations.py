"""What is known of a truncation, against dense frequency sweeps and simulations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import largest_gain, random_system, response, simulated

from edgelean.nn import LRU, S4D, DiagonalSystem, Mamba
from edgelean.shrink.balance import largest_gain as found_gain
from edgelean.shrink.balance import measured_gramians, truncate
from edgelean.shrink.truncations import certified, systems_at


def reading(width, seed=0):
    return torch.randn(5, 50, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known_of(system, states, given=None, read=None):
    reduction = truncate(system, states, given)
    read = reading(system.B.shape[1]) if read is None else read
    (found,) = certified({"layer": system}, {"layer": reduction}, {"layer": read})
    return found, reduction


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), states=st.integers(1, 12), width=st.sampled_from([(1, 1), (3, 2), (2, 5)]),
)  # fmt: skip
def test_the_largest_gain_is_that_of_a_fine_sweep(seed, states, width):
    system = random_system(seed, states, *width, r_max=0.98)
    swept = float(torch.linalg.matrix_norm(response(system, 4097), ord=2).max())
    assert 0.98 * swept <= found_gain(system) <= swept * 1.02


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.integers(1, 9))
def test_a_truncation_for_white_noise_stays_below_its_certificate(seed, kept):
    found, reduction = known_of(random_system(seed, 10, 3, 2), kept)
    assert found.worst <= found.certificate * (1 + 1e-6) + 1e-9
    assert found.certificate == pytest.approx(reduction.bound, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kept", [2, 6])
def test_what_is_measured_is_what_a_sweep_and_a_simulation_find(kept):
    system, read = random_system(7, 10, 3, 2, r_max=0.95), reading(3)
    found, reduction = known_of(system, kept, measured_gramians(system, read), read)
    whole, error = simulated(system, read), simulated(system, read) - simulated(reduction.system, read)
    assert (found.before, found.after) == (10, kept)
    assert found.worst == pytest.approx(largest_gain(system, reduction.system), rel=0.03)
    assert found.energy == pytest.approx(float(error.square().sum() / whole.square().sum()), rel=1e-6)
    assert found.energy < 1


def test_what_never_arrives_is_cut_without_an_error_where_it_arrives():
    system = random_system(8, 8, 2, 2, r_max=0.9)
    read = reading(2) * torch.tensor([1.0, 0.0])
    half = DiagonalSystem(system.lam, system.B.clone(), system.C)
    half.B[:4, 0] = 0  # half of the modes hear only the input that is silent
    found, _ = known_of(half, 4, measured_gramians(half, read), read)
    assert found.energy < 1e-12
    assert found.worst > 1e-2


def test_a_bank_is_as_bad_as_its_worst_system():
    each = [random_system(seed, 6, 1, 1) for seed in (1, 2)]
    together = DiagonalSystem(*(torch.stack([getattr(one, name) for one in each]) for name in ("lam", "B", "C")))
    (found,) = certified({"s4d": together}, {"s4d": truncate(together, 3)}, {"s4d": reading(2)})
    alone = [known_of(system, 3)[0] for system in each]
    assert found.worst == pytest.approx(max(one.worst for one in alone), rel=1e-6)
    assert found.gain == pytest.approx(max(one.gain for one in alone), rel=1e-6)


def test_only_layers_with_a_system_are_certified():
    model = torch.nn.ModuleDict({"lru": LRU(2, 3), "s4d": S4D(2, 4), "mamba": Mamba(2)})
    assert set(systems_at(model, ["lru", "s4d", "mamba"])) == {"lru", "s4d"}
    assert certified({}, {"lru": truncate(random_system(0, 3, 2, 2), 2)}, {"lru": reading(2)}) == ()
