"""States of every state space layer are truncated exactly: the layer becomes the reduced system, in every way."""

from __future__ import annotations

import pytest
import torch
from systems import simulated
from torch import nn
from torch.optim.swa_utils import AveragedModel

from edgelean.errors import InputError, LawError
from edgelean.nn import LRU, S4D, S5, Bidirectional, DiagonalSystem, Mamba
from edgelean.shrink import law
from edgelean.shrink.balance import measured_gramians, measured_prices, refitted_to, truncate
from edgelean.shrink.cut import apply, tensors_of
from edgelean.shrink.plan import Plan, Removal
from edgelean.shrink.states import left_to_read, state_prices, state_spectrum, system_of

WIDTH = 3

LAYERS = {
    "lru": lambda: LRU(WIDTH, 10),
    "s5": lambda: S5(WIDTH, 20, blocks=2),
    "s5 bilinear, clipped": lambda: S5(WIDTH, 20, discretization="bilinear", clip_eigs=True),
    "s5 with both of each pair": lambda: S5(WIDTH, 10, conj_sym=False),
    "s4d lin": lambda: S4D(WIDTH, 20),
    "s4d inv, bilinear": lambda: S4D(WIDTH, 20, "inv", "bilinear"),
    "s4d real": lambda: S4D(WIDTH, 20, "real"),
}


def built(name):
    torch.manual_seed(4)
    return LAYERS[name]().double()


def sequences(seed=1, time=40):
    """Inputs that are neither white nor centred, and of which the features are alike."""
    noise = torch.randn(6, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.cumsum(1) / 4 + noise[..., :1] + 0.3


def cut_to(layer, states, read=None):
    return apply(nn.Sequential(layer), Plan((), (), {"0": states}, 0.0), read={} if read is None else {"0": read})


def each(system):
    """The systems of a bank, or the one, each with the features that it reads."""
    if system.lam.ndim == 1:
        return [(system, slice(None))]
    singles = [DiagonalSystem(*parts) for parts in zip(system.lam, system.B, system.C, strict=True)]
    return [(single, slice(i, i + 1)) for i, single in enumerate(singles)]


def expected_of(system, states, read):
    """The system that balancing for these inputs keeps, its outputs fitted to them."""
    return refitted_to(system, truncate(system, states, measured_gramians(system, read)).system, read)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_cut_layer_computes_what_the_truncated_system_computes_step_by_step(name, measured):
    layer, read, inputs = built(name), sequences(), sequences(2)
    expected = layer.D.detach() * inputs
    for system, its in each(layer.system()):
        reduced = expected_of(system, 4, read[..., its]) if measured else truncate(system, 4).system
        expected[..., its] += simulated(reduced, inputs[..., its])
    cut_to(layer, 4, read if measured else None)
    assert layer.states == 4
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_a_cut_layer_in_single_precision_obeys_the_law(name):
    layer, read = built(name).float(), sequences().float()
    reduction = cut_to(layer, 4, read).reductions["0"]
    assert law.check_states(layer, reduction, read) < 1e-4
    with torch.no_grad():
        dict(layer.named_parameters())["C_re"].mul_(1.1)
    with pytest.raises(LawError, match="differs"):
        law.check_states(layer, reduction, read)


@pytest.mark.parametrize("name", LAYERS)
def test_states_that_nothing_reads_or_nothing_reaches_go_without_any_loss(name):
    layer, inputs = built(name), sequences()
    with torch.no_grad():
        for part in (layer.C_re, layer.C_im):
            part[:, [1, 4, 6]] = 0
        for part in (layer.B_re, layer.B_im) if hasattr(layer, "B_re") else (layer.C_re, layer.C_im):
            (part if hasattr(layer, "B_re") else part.mT)[[2, 7]] = 0
        before = layer(inputs)
    reduction = cut_to(layer, 5).reductions["0"]
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), before, rtol=1e-6, atol=1e-6)
    assert reduction.bound < 1e-4 * float(reduction.hankel.max())


def test_each_of_two_conjugate_poles_takes_a_state_until_one_stands_for_both():
    layer, inputs = S5(WIDTH, 8, conj_sym=False).double(), sequences()
    with torch.no_grad():
        for name in ("A_re", "A_im", "log_step", "B_re", "B_im"):
            part = getattr(layer, name)
            part[4:] = part[:4] * (-1 if name.endswith("im") else 1)
        layer.C_re[:, 4:], layer.C_im[:, 4:] = layer.C_re[:, :4], -layer.C_im[:, :4]
        before = layer(inputs)
        cut_to(layer, 4)
        torch.testing.assert_close(layer(inputs), before, rtol=1e-7, atol=1e-8)


def test_real_and_repeated_poles_stay_real_and_finite():
    layer, inputs = S5(WIDTH, 16).double(), sequences()
    with torch.no_grad():
        layer.A_im.zero_()
        layer.B_im.zero_()
        layer.A_re[:4] = layer.A_re[0]
        layer.log_step[:4] = layer.log_step[0]
        before = layer(inputs)
        # Four equal poles reach a space of three dimensions, as wide as the inputs.
        cut_to(layer, 7)
        torch.testing.assert_close(layer(inputs), before, rtol=1e-6, atol=1e-7)
    assert all(bool(torch.isfinite(p).all()) for p in layer.parameters())


def test_the_directions_of_a_pair_are_cut_each_on_its_own_for_what_each_reads():
    torch.manual_seed(3)
    both, x = Bidirectional(S5(WIDTH, 12), S4D(WIDTH, 12)).double(), sequences()
    ahead, back = both.ahead.system(), both.back.system()
    apply(both, Plan((), (), {"ahead": 4, "back": 2}, 0.0), read={"ahead": x, "back": x.flip(1)})
    assert (both.ahead.states, both.back.states) == (4, 2)
    expected = (both.ahead.D + both.back.D).detach() * x
    expected += simulated(expected_of(ahead, 4, x), x)
    for system, its in each(back):
        reduced = expected_of(system, 2, x.flip(1)[..., its])
        expected[..., its] += simulated(reduced, x.flip(1)[..., its]).flip(1)
    with torch.no_grad():
        torch.testing.assert_close(both(x), expected, rtol=1e-7, atol=1e-8)


def test_clipped_eigenvalues_hold_slow_poles():
    layer = S5(1, 8, clip_eigs=True).double()
    slow = DiagonalSystem(torch.tensor([1 - 1e-6, 0.5j]), torch.ones(2, 1), torch.ones(1, 2))
    layer.load_system(slow)
    torch.testing.assert_close(layer.system().lam, slow.lam, rtol=1e-12, atol=1e-12)


# -- what follows a cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lru", "s5", "s4d lin"])
def test_only_what_has_another_basis_begins_anew(name):
    layer, x = built(name), sequences()
    model = nn.Sequential(layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    average = AveragedModel(model)

    def train():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)

    train(), train()
    kept = {n: p for n, p in layer.named_parameters() if n not in layer.state_dimensions}
    assert "D" in kept
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in kept.items()}
    averages = {n: average.module[0].get_parameter(n).clone() for n in kept}
    notes = apply(model, Plan((), (), {"0": 4}, 0.0), optimizer, average).notes
    assert notes == ("copies of 0 begin anew: its states have another basis now",)
    twin = average.module[0]
    for n, parameter in layer.named_parameters():
        if n in kept:
            assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[n])
            assert torch.equal(twin.get_parameter(n), averages[n])
        else:
            assert parameter not in optimizer.state
            assert torch.equal(twin.get_parameter(n), parameter)
    train()
    assert all(a.shape == b.shape for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("states", [0, 11])
@pytest.mark.parametrize("name", ["s5", "s4d real"])
def test_more_states_than_there_are_or_none_are_refused_by_name_before_anything_changes(name, states):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), built(name))
    before = {n: t.clone() for n, t in tensors_of(model).items()}
    plan = Plan((), (Removal("0.weight", 1, (0,)),), {"1": states}, 0.0)
    with pytest.raises(
        InputError, match=rf"^1 has 10 states, one for each conjugate pair, and .* 1 to 10.*not {states}"
    ):
        apply(model, plan)
    assert all(torch.equal(before[n], t) for n, t in tensors_of(model).items())


def test_an_unstable_layer_is_refused_by_name():
    model = nn.Sequential(built("s5"), built("s4d lin"))
    with torch.no_grad():
        model[0].A_re[2] = 0.1
    with pytest.raises(InputError, match=r"^0: state 2 has a pole of modulus 1\.\d+"):
        apply(model, Plan((), (), {"0": 4}, 0.0))


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), Mamba(4, 4)])
def test_layers_without_a_system_have_none_to_truncate(layer):
    with pytest.raises(InputError, match=f"0 is a {type(layer).__name__}: only a state space layer"):
        system_of(nn.Sequential(layer), "0")


def test_features_that_went_in_the_same_plan_are_no_longer_read():
    model, x = nn.Sequential(built("s4d lin")), sequences()
    plan = Plan((), (Removal("0.D", 0, (1,)), Removal("0.C_re", 1, (0,))), {"0": 4}, 0.0)
    assert torch.equal(left_to_read(model, plan, "0", x), x[..., [0, 2]])


# -- prices ------------------------------------------------------------------------------------------------------------


def test_a_state_of_a_bank_costs_the_sum_over_the_features():
    system, x, weight = built("s4d lin").system(), sequences(), torch.tensor([0.5, 0.0, 2.0])
    singles = [(s, x[..., its], weight[its]) for s, its in each(system)]
    expected = torch.stack([measured_prices(s, its_weight, its) for s, its, its_weight in singles]).sum(0)
    prices = state_prices(system, weight, x)
    torch.testing.assert_close(prices, expected)
    assert len(prices) == 11
    whole = torch.cat([simulated(s, its) for s, its, _ in singles], -1)
    torch.testing.assert_close(prices[-1], 0.5 * (whole.square().mean((0, 1)) @ weight.double()), rtol=1e-6, atol=0)


def test_the_spectrum_of_a_bank_has_a_value_for_each_order():
    values = state_spectrum(built("s4d lin").system(), sequences())
    assert len(values) == 20
    assert bool((values.diff() <= 0).all())
