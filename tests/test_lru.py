"""The linear recurrent unit against its definition, step by step in complex double precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.errors import InputError
from edgelean.nn import LRU, DiagonalSystem, SequenceBlock
from edgelean.shrink.balance import truncate
from edgelean.shrink.cut import restore, tensors_of


def by_definition(layer, inputs):
    """x_t = lam * x_{t-1} + gamma * (B u_t), y_t = Re(C x_t) + D * u_t, in complex128."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    lam = torch.exp(torch.complex(-p["nu_log"].exp(), p["theta_log"].exp()))
    B, C = torch.complex(p["B_re"], p["B_im"]), torch.complex(p["C_re"], p["C_im"])
    state = torch.zeros(inputs.shape[0], layer.states, dtype=torch.complex128)
    outputs = []
    for u in inputs.double().unbind(1):
        state = lam * state + p["gamma_log"].exp() * (u.to(torch.complex128) @ B.mT)
        outputs.append((state @ C.mT).real + p["D"] * u)
    return torch.stack(outputs, 1)


def largest_difference(a, b):
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("time", [1, 2, 3, 4, 7, 16, 37, 64, 100])
def test_the_parallel_form_computes_the_definition_for_any_length(time):
    layer = LRU(3, 5).double()
    inputs = torch.randn(2, time, 3, dtype=torch.float64)
    assert largest_difference(layer(inputs), by_definition(layer, inputs)) < 1e-12


def test_the_parallel_form_is_precise_in_single_precision():
    layer = LRU(16, 64)
    inputs = torch.randn(4, 64, 16)
    expected = by_definition(layer, inputs)
    assert largest_difference(layer(inputs), expected) < 3e-6 * float(expected.abs().max())


def test_the_parallel_form_is_causal():
    layer = LRU(2, 4)
    inputs = torch.randn(1, 64, 2)
    changed = inputs.clone()
    changed[:, 40:] += 1
    before, after = layer(inputs), layer(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert largest_difference(before[:, 40:], after[:, 40:]) > 0.1


@pytest.mark.parametrize("module", [LRU(4, 7), SequenceBlock(LRU(4, 7))])
def test_step_by_step_is_the_parallel_form(module):
    module = module.double()
    inputs = torch.randn(3, 20, 4, dtype=torch.float64)
    state, outputs = None, []
    for u in inputs.unbind(1):
        y, state = module.step(u, state)
        outputs.append(y)
    assert largest_difference(torch.stack(outputs, 1), module(inputs)) < 1e-12


def test_gradients_agree_with_finite_differences():
    layer = LRU(2, 3, r_max=0.95).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    inputs = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)

    def evaluate(inputs, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs,))

    assert torch.autograd.gradcheck(evaluate, (inputs, *values))


def test_poles_start_in_the_ring_and_the_sector_that_were_asked_for():
    torch.manual_seed(1)
    lam = LRU(2, 400, r_min=0.5, r_max=0.8, max_phase=1.0).system().lam
    assert 0.5 <= float(lam.abs().min()) < 0.52
    assert 0.78 < float(lam.abs().max()) <= 0.8 + 1e-6
    assert 0 < float(lam.angle().min()) < float(lam.angle().max()) <= 1 + 1e-6


def test_the_inputs_of_each_mode_start_normalised():
    layer = LRU(2, 50)
    torch.testing.assert_close(layer.gamma_log.exp(), (1 - layer.system().lam.abs() ** 2).sqrt().float())


def test_the_system_is_the_layer_without_its_direct_path():
    layer = LRU(3, 6).double()
    system = layer.system()
    impulse = torch.zeros(1, 10, 3, dtype=torch.float64)
    impulse[0, 0, 1] = 1
    markov = torch.stack([(system.C @ (system.lam**k * system.B[:, 1])).real for k in range(10)])
    markov[0, 1] += layer.D[1].detach()
    assert largest_difference(layer(impulse)[0], markov) < 1e-12


def test_loading_its_own_system_changes_nothing():
    layer = LRU(4, 9).double()
    inputs = torch.randn(2, 30, 4, dtype=torch.float64)
    before = layer(inputs).detach()
    layer.load_system(layer.system())
    assert largest_difference(layer(inputs), before) < 1e-12
    read = layer.C_re.square().sum(0) + layer.C_im.square().sum(0)
    torch.testing.assert_close(layer.B_re.square().sum(1) + layer.B_im.square().sum(1), read)


@pytest.mark.parametrize("pole", [0.9, -0.9, 0.0, 0.99999 + 0j, 0.5 - 0.5j, 1e-7j])
def test_every_stable_pole_can_be_loaded(pole):
    layer = LRU(1, 2).double()
    system = DiagonalSystem(torch.tensor([pole, 0.3j]), torch.tensor([[1.0], [2j]]), torch.tensor([[0.5 - 1j, 0.0]]))
    layer.load_system(system)
    assert all(bool(torch.isfinite(value).all()) for value in layer.parameters())
    torch.testing.assert_close(layer.system().lam, system.lam, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(layer.system().C @ layer.system().B, system.C @ system.B)


def test_a_truncated_layer_computes_the_truncated_system():
    layer = LRU(3, 12).double()
    inputs = torch.randn(2, 64, 3, dtype=torch.float64)
    reduction = truncate(layer.system(), 5)
    layer.load_system(reduction.system)
    assert layer.states == 5
    system, state, expected = reduction.system, torch.zeros(2, 5, dtype=torch.complex128), []
    for u in inputs.unbind(1):
        state = system.lam * state + u.to(torch.complex128) @ system.B.mT
        expected.append((state @ system.C.mT).real + layer.D.detach() * u)
    assert largest_difference(layer(inputs), torch.stack(expected, 1)) < 1e-10


def test_training_goes_on_through_a_truncation_with_a_graph_still_alive():
    model = nn.Sequential(SequenceBlock(LRU(4, 16)), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(8, 16, 4)
    loss = model(inputs).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    before = list(model.parameters())
    layer = model[0].layer
    layer.load_system(truncate(layer.system(), 6).system)
    assert layer.B_re.grad is None
    for parameter in layer.parameters():
        optimizer.state.pop(parameter, None)
    optimizer.zero_grad()
    later = model(inputs).square().mean()
    later.backward()
    optimizer.step()
    assert all(old is new for old, new in zip(before, model.parameters(), strict=True))
    assert layer.B_re.grad.shape == (6, 4)
    assert layer.nu_log.dtype == torch.float32
    assert loss.grad_fn is not None


def test_a_restored_layer_takes_the_tensors_of_a_truncated_one():
    small = LRU(3, 12)
    small.load_system(truncate(small.system(), 5).system)
    resumed = LRU(3, 12)
    parameters = list(resumed.parameters())
    restore(resumed, tensors_of(small))
    inputs = torch.randn(1, 20, 3)
    assert torch.equal(resumed(inputs), small(inputs))
    assert resumed.states == 5
    assert all(old is new for old, new in zip(parameters, resumed.parameters(), strict=True))


def test_a_system_of_another_width_is_refused():
    with pytest.raises(InputError, match="width 3 cannot load a system of 2 inputs and 3 outputs"):
        LRU(3, 4).load_system(DiagonalSystem(torch.tensor([0.5]), torch.ones(1, 2), torch.ones(3, 1)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 0, "states": 1},
        {"width": 1, "states": 0},
        {"width": 1, "states": 1, "r_min": 0.9, "r_max": 0.8},
        {"width": 1, "states": 1, "r_max": 1.0},
        {"width": 1, "states": 1, "max_phase": 0.0},
    ],
)
def test_impossible_sizes_and_poles_are_refused(arguments):
    with pytest.raises(InputError, match="an LRU needs"):
        LRU(**arguments)


def traced(module, inputs):
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(module.eval(), (inputs,), dynamic_shapes=({0: batch},))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_traced_graph_is_real_takes_any_batch_and_keeps_the_states_apart():
    block, inputs = SequenceBlock(LRU(5, 23)), torch.randn(2, 64, 5)
    program = traced(block, inputs)
    more = torch.randn(3, 64, 5)
    torch.testing.assert_close(program.module()(more), block(more))
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            assert not value.dtype.is_complex
            sizes = [size for size in value.shape if isinstance(size, int)]
            assert all(size == 23 or size % 23 for size in sizes if size)
