"""S4D, S5 and Mamba against their definitions, step by step in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgelean.errors import InputError
from edgelean.nn import LRU, S4D, S5, DiagonalSystem, Mamba, StateSpace, check_poles, scan
from edgelean.nn.convolution import chunked_each
from edgelean.nn.s5 import hippo_normal
from edgelean.nn.scan import chunked, product
from edgelean.nn.selective import chunked_selection, select

LAYERS = {
    "lru": lambda width, order: LRU(width, order // 2),
    "s5": lambda width, order: S5(width, order),
    "s5-bilinear-blocks": lambda width, order: S5(width, 2 * order, blocks=2, discretization="bilinear"),
    "s5-all-states": lambda width, order: S5(width, order, C_init="complex_normal", conj_sym=False, clip_eigs=True),
    "s4d": lambda width, order: S4D(width, order),
    "s4d-inverse-bilinear": lambda width, order: S4D(width, order, init="inv", discretization="bilinear"),
    "s4d-real": lambda width, order: S4D(width, order, init="real"),
    "mamba": lambda width, order: Mamba(width, order),
}
INVARIANT = [name for name in LAYERS if name != "mamba"]


def weights(layer):
    return {name: value.double() for name, value in layer.named_parameters()}


def discretised(A, step, method):
    """The discrete poles and the factor of B, as the papers write them."""
    if method == "zoh":
        return torch.exp(A * step), (torch.exp(A * step) - 1) / A
    return (1 + A * step / 2) / (1 - A * step / 2), step / (1 - A * step / 2)


def s5_by_definition(layer, inputs):
    p = weights(layer)
    A = torch.complex(p["A_re"].clamp(max=-1e-4) if layer.clip_eigs else p["A_re"], p["A_im"])
    lam, gain = discretised(A, p["log_step"].exp(), layer.discretization)
    B, C = torch.complex(p["B_re"], p["B_im"]), torch.complex(p["C_re"], p["C_im"])
    state, outputs = 0, []
    for u in inputs.unbind(1):
        state = lam * state + gain * (u.to(B.dtype) @ B.mT)
        outputs.append((2 if layer.conj_sym else 1) * (state @ C.mT).real + p["D"] * u)
    return torch.stack(outputs, 1)


def s4d_by_definition(layer, inputs):
    p = weights(layer)
    lam, gain = discretised(
        torch.complex(-p["log_A_re"].exp(), p["A_im"]), p["log_step"].exp()[:, None], layer.discretization
    )
    state, outputs = 0, []
    for u in inputs.unbind(1):
        state = lam * state + gain * u[..., None]
        outputs.append(2 * (torch.complex(p["C_re"], p["C_im"]) * state).sum(-1).real + p["D"] * u)
    return torch.stack(outputs, 1)


def lru_by_definition(layer, inputs):
    p = weights(layer)
    lam = torch.exp(torch.complex(-p["nu_log"].exp(), p["theta_log"].exp()))
    B, C = torch.complex(p["B_re"], p["B_im"]), torch.complex(p["C_re"], p["C_im"])
    state, outputs = 0, []
    for u in inputs.unbind(1):
        state = lam * state + p["gamma_log"].exp() * (u.to(B.dtype) @ B.mT)
        outputs.append((state @ C.mT).real + p["D"] * u)
    return torch.stack(outputs, 1)


def mamba_by_definition(layer, inputs):
    p = weights(layer)
    order, taps = p["A_log"].shape[1], p["conv1d.weight"].shape[2]
    x, gate = (inputs @ p["in_proj.weight"].mT).chunk(2, -1)
    history, state, outputs = [torch.zeros_like(x[:, 0])] * (taps - 1), 0, []
    for now, z in zip(x.unbind(1), gate.unbind(1), strict=True):
        history.append(now)
        seen = sum(p["conv1d.weight"][:, 0, k] * history[k - taps] for k in range(taps))
        u = functional.silu(seen + p["conv1d.bias"])
        low, B, C = torch.split(u @ p["x_proj.weight"].mT, [p["dt_proj.weight"].shape[1], order, order], -1)
        dt = torch.log1p(torch.exp(low @ p["dt_proj.weight"].mT + p["dt_proj.bias"]))[..., None]
        state = torch.exp(-dt * p["A_log"].exp()) * state + dt * u[..., None] * B[:, None]
        y = (state * C[:, None]).sum(-1) + p["D"] * u
        outputs.append((y * functional.silu(z)) @ p["out_proj.weight"].mT)
    return torch.stack(outputs, 1)


DEFINITIONS = {LRU: lru_by_definition, S5: s5_by_definition, S4D: s4d_by_definition, Mamba: mamba_by_definition}


def by_definition(layer, inputs):
    return DEFINITIONS[type(layer)](layer, inputs.double())


def built(name, width=3, order=8, seed=0):
    torch.manual_seed(seed)
    return LAYERS[name](width, order)


def relative(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def other_form(layer, inputs):
    """The form that a traced graph and a GPU take."""
    if isinstance(layer, S4D):
        poles, gain, C = layer._bank(dict(layer.named_parameters()))
        return chunked_each(inputs, poles, product(gain, C)) + layer.D * inputs
    return chunked(inputs, layer._map(dict(layer.named_parameters()))) + layer.D * inputs


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=8, deadline=None)
@given(time=st.integers(1, 90), width=st.integers(1, 5), half=st.integers(1, 9), batch=st.integers(1, 3))
def test_every_form_computes_the_definition_for_any_sizes(name, time, width, half, batch):
    layer = built(name, width, 2 * half).double()
    inputs = torch.randn(batch, time, width, dtype=torch.float64)
    expected = by_definition(layer, inputs)
    assert relative(layer(inputs), expected) < 1e-12
    if name != "mamba":
        assert relative(other_form(layer, inputs), expected) < 1e-12
    state, outputs = None, []
    for u in inputs.unbind(1):
        y, state = layer.step(u, state)
        outputs.append(y)
    assert relative(torch.stack(outputs, 1), expected) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_single_precision_is_within_1e_5_of_the_definition(name):
    layer = built(name, 8, 32)
    inputs = torch.randn(2, 300, 8)
    assert relative(layer(inputs), by_definition(layer, inputs)) < 1e-5


@pytest.mark.parametrize("time", [1, 21])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_definition(name, time, monkeypatch):
    # A buffer this small holds a few steps only, so that the sequence is more than one span and the last is shorter.
    monkeypatch.setattr(scan, "SPAN_BYTES", 64)
    layer = built(name).double()
    inputs = torch.randn(2, time, 3, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, time, 3, dtype=torch.float64)
    sources = [inputs, *layer.parameters()]
    expected = torch.autograd.grad(by_definition(layer, inputs), sources, slope)
    found = torch.autograd.grad(layer(inputs), sources, slope)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", [select, chunked_selection])
@pytest.mark.parametrize("time", [1, 2, 7, 37])
def test_both_selective_forms_and_their_gradients_agree_with_a_loop(form, time, monkeypatch):
    monkeypatch.setattr(scan, "SPAN_BYTES", 64)
    torch.manual_seed(0)
    u, dt = torch.randn(2, time, 3, dtype=torch.float64), torch.rand(2, time, 3, dtype=torch.float64)
    A, B = -torch.rand(3, 4, dtype=torch.float64), torch.randn(2, time, 4, dtype=torch.float64)
    arguments = [x.requires_grad_() for x in (u, dt, A, B, torch.randn_like(B))]
    state, outputs = 0, []
    for now, step, b, c in zip(u.unbind(1), dt.unbind(1), B.unbind(1), arguments[4].unbind(1), strict=True):
        state = torch.exp(step[..., None] * A) * state + (step * now)[..., None] * b[:, None]
        outputs.append((state * c[:, None]).sum(-1))
    expected, found, slope = torch.stack(outputs, 1), form(*arguments), torch.randn_like(u)
    torch.testing.assert_close(found, expected)
    slopes = (torch.autograd.grad(y, arguments, slope) for y in (found, expected))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def kept_bytes(evaluate):
    """What a forward pass keeps for the backward pass, each storage once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate()
    return sum(kept.values())


@pytest.mark.parametrize("name", ["lru", "s5", "s4d"])
def test_only_few_states_are_kept_for_the_backward_pass(name):
    layer, inputs = built(name, 4, 64), torch.randn(64, 300, 4, requires_grad=True)
    all_states = 64 * 300 * layer.system().lam.numel() * 8
    assert 0 < kept_bytes(lambda: layer(inputs)) < 0.5 * all_states


def test_a_selective_layer_keeps_few_states_for_the_backward_pass():
    u, dt, A = torch.randn(64, 300, 8, requires_grad=True), torch.rand(64, 300, 8), -torch.rand(8, 64)
    B, C = torch.randn(2, 64, 300, 64)
    assert 0 < kept_bytes(lambda: select(u, dt, A, B, C)) < 0.5 * 64 * 300 * A.numel() * 4


def test_the_normal_part_of_hippo_has_the_published_matrix():
    lam, V = hippo_normal(6)
    n = torch.arange(6, dtype=torch.float64)
    P = (1 + 2 * n).sqrt()
    hippo = -(torch.outer(P, P).tril() - torch.diag(n))
    normal = hippo + torch.outer((n + 0.5).sqrt(), (n + 0.5).sqrt())
    torch.testing.assert_close((V * lam) @ V.mH, normal.to(lam.dtype))
    assert bool((lam.imag[:3] < 0).all())
    torch.testing.assert_close(lam.imag, -lam.imag.flip(0))


def test_s4d_starts_with_the_published_eigenvalues():
    A = {init: torch.complex(-S4D(1, 8, init=init).log_A_re.exp(), S4D(1, 8, init=init).A_im)[0] for init in INITS}
    n = torch.arange(4)
    torch.testing.assert_close(A["lin"], torch.complex(torch.full((4,), -0.5), math.pi * n))
    torch.testing.assert_close(A["inv"], torch.complex(torch.full((4,), -0.5), 8 / math.pi * (8 / (2 * n + 1) - 1)))
    torch.testing.assert_close(A["real"], torch.complex(-(n + 1.0), torch.zeros(4)))


INITS = ("lin", "inv", "real")


def test_the_blocks_of_s5_start_with_the_same_eigenvalues():
    layer = S5(2, 24, blocks=3)
    eigenvalues = torch.complex(layer.A_re, layer.A_im).reshape(3, 4)
    torch.testing.assert_close(eigenvalues, hippo_normal(8)[0][:4].expand(3, 4).to(eigenvalues.dtype))


def test_s5_starts_with_outputs_of_the_size_of_its_inputs():
    torch.manual_seed(0)
    system = S5(64, 64, dt_min=0.01, dt_max=0.1).system()
    gain = ((system.C / (1 - system.lam)) @ system.B).abs().square().mean()
    assert 1e-4 < float(gain) < 10


def test_mamba_starts_with_steps_between_those_that_were_asked_for():
    layer = Mamba(32, dt_min=0.002, dt_max=0.05)
    step = functional.softplus(layer.dt_proj.bias.detach())
    assert 0.002 * 0.999 < float(step.min()) < float(step.max()) < 0.05 * 1.001
    assert layer.dt_proj.weight.shape == (64, 2)
    torch.testing.assert_close(layer.A_log.exp()[5], torch.arange(1.0, 17.0))


@pytest.mark.parametrize("name", INVARIANT)
def test_the_system_is_the_layer_without_its_direct_path(name):
    layer = built(name).double()
    system, inputs = layer.system(), torch.zeros(1, 12, 3, dtype=torch.float64)
    inputs[0, 0, 1] = 1
    if system.lam.ndim == 2:
        powers = system.lam[1] ** torch.arange(12)[:, None]
        markov = torch.zeros(12, 3, dtype=torch.float64)
        markov[:, 1] = (system.C[1, 0] * powers * system.B[1, :, 0]).sum(1).real
    else:
        markov = torch.stack([(system.C @ (system.lam**k * system.B[:, 1])).real for k in range(12)])
    torch.testing.assert_close(layer(inputs)[0] - layer.D * inputs[0], markov, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", INVARIANT)
def test_a_layer_takes_its_own_system_back(name):
    layer = built(name).double()
    before, inputs = list(layer.parameters()), torch.randn(2, 30, 3, dtype=torch.float64)
    expected = layer(inputs).detach()
    layer.load_system(layer.system())
    torch.testing.assert_close(layer(inputs).detach(), expected, rtol=1e-9, atol=1e-11)
    assert all(old is new for old, new in zip(before, layer.parameters(), strict=True))


@pytest.mark.parametrize("name", INVARIANT)
def test_a_layer_becomes_a_smaller_system_with_a_graph_still_alive(name):
    layer = built(name)
    inputs = torch.randn(2, 30, 3)
    alive = layer(inputs).square().mean()
    alive.backward(retain_graph=True)
    poles = torch.tensor([0.9, -0.5, 0.3 + 0.6j])
    bank = (3,) if isinstance(layer, S4D) else ()
    sizes = ((3, 1), (1, 3)) if bank else ((3, 3), (3, 3))
    B, C = (torch.randn(*bank, *size, dtype=torch.complex128) for size in sizes)
    wanted = DiagonalSystem(poles.expand(*bank, 3), B, C)
    layer.load_system(wanted)
    assert isinstance(layer, StateSpace)
    assert layer.states == 3
    parameters = dict(layer.named_parameters())
    assert {parameters[key].shape[dim] for key, dim in layer.state_dimensions.items()} == {3}
    found = layer.system()
    torch.testing.assert_close(found.lam, wanted.lam, rtol=1e-5, atol=1e-6)
    moments = [(x.C * x.lam[..., None, :] ** k) @ x.B for x in (found, wanted) for k in (0, 1, 5)]
    torch.testing.assert_close(torch.stack(moments[:3]).real, torch.stack(moments[3:]).real, rtol=1e-4, atol=1e-4)
    layer(inputs).square().mean().backward()
    assert all(p.grad.shape == p.shape for p in layer.parameters())
    assert alive.grad_fn is not None


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("pole", [0.0, 0.999999, -0.9, 1e-7j, -0.5 - 0.5j])
def test_every_stable_pole_can_be_loaded(pole, method):
    layer = S5(1, 4, discretization=method).double()
    system = DiagonalSystem(torch.tensor([pole, 0.3j]), torch.tensor([[1.0], [2j]]), torch.tensor([[0.5 - 1j, 1.0]]))
    layer.load_system(system)
    torch.testing.assert_close(layer.system().lam, system.lam, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close((layer.system().C @ layer.system().B), system.C @ system.B, rtol=1e-6, atol=1e-9)


def test_the_mean_system_of_a_selective_layer_is_its_system_where_nothing_depends_on_the_input():
    torch.manual_seed(0)
    layer = Mamba(2, 4, d_conv=1, expand=1)
    with torch.no_grad():
        layer.dt_proj.weight.zero_()
    inputs = torch.randn(1, 1, 2).expand(3, 40, 2)
    system = layer.mean_system(inputs)
    u = layer._convolved(layer.in_proj(inputs).chunk(2, -1)[0])
    expected = select(u, *layer._selected(u))
    state, outputs = 0, []
    for now in u.double().unbind(1):
        state = system.lam * state + system.B[..., 0] * now[..., None]
        outputs.append((system.C[:, 0] * state).sum(-1).real)
    assert relative(torch.stack(outputs, 1), expected.double()) < 1e-5


def test_the_mean_system_averages_what_is_discretised():
    torch.manual_seed(0)
    layer, inputs = Mamba(3, 4), torch.randn(2, 5, 3)
    with torch.no_grad():
        u = layer._convolved(layer.in_proj(inputs).chunk(2, -1)[0])
        dt, A, B, C = (x.double() for x in layer._selected(u))
    system = layer.mean_system(inputs)
    torch.testing.assert_close(system.lam.real, torch.exp(dt[..., None] * A).mean((0, 1)))
    torch.testing.assert_close(system.B[..., 0].real, (dt[..., None] * B[:, :, None]).mean((0, 1)))
    torch.testing.assert_close(system.C[:, 0].real, C.mean((0, 1)).expand(6, 4))


def test_unstable_and_missing_eigenvalues_are_named():
    model = torch.nn.Sequential(LRU(2, 3), S5(2, 8), S4D(2, 8))
    check_poles(model)
    with torch.no_grad():
        model[1].A_re[2] = 0.1
    with pytest.raises(InputError, match=r"1: state 2 has a pole of modulus 1\.\d+; a stable system has all below 1"):
        check_poles(model)
    with torch.no_grad():
        model[1].A_re[2] = -0.1
        model[2].A_im[1, 3] = float("nan")
    with pytest.raises(InputError, match="2: state 3 of feature 1 has a pole that is not finite"):
        check_poles(model)


def test_clipped_eigenvalues_are_stable_whatever_training_does():
    layer = S5(2, 8, clip_eigs=True)
    with torch.no_grad():
        layer.A_re += 10
    check_poles(layer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: S5(2, 7), "d_state a multiple of 2"),
        (lambda: S5(2, 12, blocks=4), "d_state a multiple of 2"),
        (lambda: S5(2, 0), "d_state a multiple of 2"),
        (lambda: S5(2, 8, C_init="zeros"), "draws C as"),
        (lambda: S4D(2, 7), "an even d_state of at least 2"),
        (lambda: S4D(2, 0), "an even d_state of at least 2"),
        (lambda: S4D(2, 8, init="legs"), "starts with lin, inv, real"),
        (lambda: S4D(2, 8, discretization="euler"), "discretised by zoh or bilinear"),
        (lambda: S5(2, 8, dt_min=0.0), "0 < dt_min <= dt_max"),
        (lambda: Mamba(2, 0), "sizes of at least 1"),
        (lambda: Mamba(4, dt_rank=0), "sizes of at least 1"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_a_bank_of_another_size_is_refused():
    with pytest.raises(InputError, match="an S4D of width 3 can load as many systems"):
        S4D(3, 4).load_system(S4D(2, 4).system())
    with pytest.raises(InputError, match="an S5 of width 3 cannot load a system of 2 inputs"):
        S5(3, 4).load_system(S5(2, 4).system())
    with pytest.raises(InputError, match="needs lam"):
        DiagonalSystem(torch.zeros(2, 3), torch.zeros(2, 3, 1), torch.zeros(1, 3))
