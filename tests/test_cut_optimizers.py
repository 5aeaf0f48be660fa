"""Every optimizer goes on after a cut as if the removed units had been at zero from then on, or says what is lost."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_cases import PLAN, difference, loss_of, mask, network, removing, train, train_masked, twins
from torch import nn

from edgelean.shrink.cut import apply, kept_of
from edgelean.shrink.followers import load_state, saved_state, sliced
from edgelean.shrink.plan import Plan, Removal

optim = torch.optim
EXACT = {
    "Adadelta": [{}, {"foreach": True}],
    "Adagrad": [{"initial_accumulator_value": 0.1, "lr_decay": 0.01}, {"fused": True}],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True, "amsgrad": True}, {"fused": True, "amsgrad": True}],
    "AdamW": [{}, {"foreach": True, "amsgrad": True}, {"fused": True}],
    "Adamax": [{}, {"foreach": True}],
    "ASGD": [{"t0": 1}, {"foreach": True}],
    "NAdam": [{}, {"foreach": True, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"foreach": True}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}, {"foreach": True, "centered": True}],
    "Rprop": [{}, {"foreach": True}],
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "fused": True}],
}
"""Optimizers that treat every element on its own, with variants."""

ALL_DECAY = {"Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD"}
CAPTURABLE = ("Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
ON_A_GPU = [
    *((name, {"capturable": True}) for name in CAPTURABLE),
    *((name, {"fused": True}) for name in ("Adagrad", "Adam", "AdamW", "SGD")),
]
VARIANTS = [(name, options) for name, variants in EXACT.items() for options in variants]


def test_every_optimizer_of_torch_is_tested_here():
    kinds = {name for name, kind in vars(optim).items() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    assert kinds == {*EXACT, "Optimizer", "SparseAdam", "Muon", "Adafactor", "LBFGS"}


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_an_elementwise_optimizer_goes_on_as_if_the_removed_units_were_at_zero(name, options):
    check_that_it_goes_on(name, options, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize(("name", "options"), ON_A_GPU)
def test_an_elementwise_optimizer_goes_on_exactly_on_a_gpu(name, options):
    check_that_it_goes_on(name, options, "cuda")


def check_that_it_goes_on(name, options, device):
    model = network().to(device)
    decay = {"weight_decay": 0.02} if name in ALL_DECAY else {}
    optimizer = getattr(optim, name)(model.parameters(), lr=0.01, **decay, **options)
    train(model, [optimizer], range(4))
    twin, its_optimizer = twins(model, optimizer)
    apply(model, PLAN, optimizer)
    train(model, [optimizer], range(4, 10))
    train_masked(twin, [its_optimizer], PLAN, range(4, 10))
    assert difference(model, twin, PLAN) < 1e-12
    kept = kept_of(twin, PLAN)
    for (path, whole), parameter in zip(twin.named_parameters(), model.parameters(), strict=True):
        entry = optimizer.state.get(parameter, {})
        for key, value in its_optimizer.state.get(whole, {}).items():
            of_shape = isinstance(value, torch.Tensor) and value.shape == whole.shape
            left = sliced(value, kept.get(path, {})) if of_shape else value
            assert torch.allclose(torch.as_tensor(entry[key]), torch.as_tensor(left), rtol=1e-9, atol=1e-12), key


def test_sparse_adam_goes_on_as_if_the_removed_width_were_at_zero():
    def make():
        torch.manual_seed(5)
        return nn.Sequential(nn.Embedding(12, 8, sparse=True), nn.Flatten(), nn.Linear(24, 3)).double()

    def step(model, optimizers, number, plan=None):
        torch.manual_seed(number)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randint(0, 12, (4, 3))).square().mean().backward()
        if plan is not None:
            model[0].weight.grad._values().index_fill_(1, torch.tensor([2, 3]), 0)
            model[2].weight.grad.index_fill_(1, columns, 0)
        for optimizer in optimizers:
            optimizer.step()

    columns = torch.tensor([2, 3, 10, 11, 18, 19])
    plan = Plan((), (Removal("0.weight", 1, (2, 3)), Removal("2.weight", 1, tuple(columns.tolist()))), {}, 0.0)
    model = make()
    optimizers = [optim.SparseAdam([model[0].weight], lr=0.01), optim.Adam(model[2].parameters(), lr=0.01)]
    for number in range(3):
        step(model, optimizers, number)
    twin, *its_optimizers = twins(model, *optimizers)
    assert model[0].weight.grad.is_sparse
    apply(model, plan, *optimizers)
    assert model[0].weight.grad.is_sparse
    assert model[0].weight.grad.shape == model[0].weight.shape == (12, 6)
    for number in range(3, 6):
        step(model, optimizers, number)
        mask(twin, its_optimizers, plan, gradients=False)
        step(twin, its_optimizers, number, plan)
    mask(twin, its_optimizers, plan, gradients=False)
    assert difference(model, twin, plan) < 1e-12


def test_muon_keeps_its_momentum_and_goes_on_learning():
    model = network((6, 24, 48, 3))
    plan = removing({0: tuple(range(8)), 2: tuple(range(16))})
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    optimizers = [optim.Muon(matrices, lr=0.02), optim.AdamW(others, lr=0.01)]
    train(model, optimizers, [0] * 4)
    moments = optimizers[0].state[model[2].weight]["momentum_buffer"].clone()
    twin, *its_optimizers = twins(model, *optimizers)
    apply(model, plan, *optimizers)
    assert torch.equal(optimizers[0].state[model[2].weight]["momentum_buffer"], moments[16:, 8:])
    mask(twin, its_optimizers, plan, gradients=False)
    before = twin[2].weight.detach().clone(), model[2].weight.detach().clone()
    train_masked(twin, its_optimizers, plan, [0])
    start = loss_of(model, 0).item()
    train(model, optimizers, [0])
    # Both matrices are twice as tall as wide, so that the factor for the shape is the same.
    moved, its_moved = model[2].weight - before[1], (twin[2].weight - before[0])[16:, 8:]
    assert (moved - its_moved).norm() < 0.02 * moved.norm()
    train(model, optimizers, [0] * 10)
    assert loss_of(model, 0) < 0.8 * start


def second_moment(entry, row="row_var", column="col_var"):
    rows = entry[row] if row == "row_var" else entry[row][:, None]
    columns = entry[column] if row == "row_var" else entry[column][None]
    return rows @ columns / rows.mean(0, keepdim=True)


def test_adafactor_keeps_the_second_moment_of_every_element_that_is_left():
    model = network((6, 12, 12, 3))
    plan = removing({0: (1, 4, 7), 2: (0, 5)})
    optimizer = optim.Adafactor(model.parameters(), lr=0.05)
    train(model, [optimizer], [0] * 5)
    weight = model[2].weight
    before = second_moment(optimizer.state[weight])
    variance = optimizer.state[model[2].bias]["variance"].clone()
    apply(model, plan, optimizer)
    left = sliced(before, kept_of(network((6, 12, 12, 3)), plan)["2.weight"])
    assert optimizer.state[weight]["row_var"].shape == (10, 1)
    assert optimizer.state[weight]["col_var"].shape == (1, 9)
    assert torch.allclose(second_moment(optimizer.state[weight]), left, rtol=1e-12, atol=0)
    assert torch.equal(optimizer.state[model[2].bias]["variance"], variance[[1, 2, 3, 4, 6, 7, 8, 9, 10, 11]])
    start = loss_of(model, 0).item()
    train(model, [optimizer], [0] * 20)
    assert loss_of(model, 0) < 0.8 * start


def test_adafactor_of_a_convolution_is_cut_element_by_element():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 1)).double()
    optimizer = optim.Adafactor(model.parameters())
    model(torch.randn(2, 3, 6, 6).double()).square().mean().backward()
    optimizer.step()
    whole = copy.deepcopy(optimizer.state)
    rows, columns = (next(iter(whole.values()))[key] for key in ("row_var", "col_var"))
    apply(model, removing({0: (2, 5)}), optimizer)
    left = [0, 1, 3, 4, 6, 7]
    assert torch.equal(optimizer.state[model[0].weight]["row_var"], rows[left])
    assert torch.equal(optimizer.state[model[0].weight]["col_var"], columns[left])
    assert optimizer.state[model[2].weight]["row_var"].shape == (4, 6, 1, 1)


class Foreign(optim.SGD):
    """An optimizer of somebody else, with state under names and in shapes of its own."""

    def __init__(self, parameters, make):
        super().__init__(parameters, lr=0.01)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = make(parameter)


@pytest.mark.parametrize("square", [False, True])
def test_factors_without_the_reduced_dimension_are_known_by_their_names(square):
    widths = (6, 12, 12, 3) if square else (6, 12, 9, 3)
    model = network(widths)
    weight = model[2].weight
    rows, columns = torch.rand(widths[2]).double(), torch.rand(12).double()
    columns *= rows.mean() / columns.mean()
    factors = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns, "RMS": 0.3}
    optimizer = Foreign([weight], lambda _: dict(factors))
    before = second_moment(factors, "exp_avg_sq_row", "exp_avg_sq_col")
    plan = removing({0: (1, 4, 7), 2: (0, 5)})
    left = sliced(before, kept_of(model, plan)["2.weight"])
    apply(model, plan, optimizer)
    entry = optimizer.state[weight]
    assert torch.allclose(second_moment(entry, "exp_avg_sq_row", "exp_avg_sq_col"), left, rtol=1e-12, atol=0)
    assert entry["RMS"] == 0.3


def test_state_that_matches_no_dimension_is_dropped_with_a_word():
    model = network()
    optimizer = Foreign(model.parameters(), lambda p: {"mean": torch.zeros_like(p), "blocks": torch.zeros(5)})
    applied = apply(model, PLAN, optimizer)
    assert model[0].weight not in optimizer.state
    assert "the state of 0.weight in Foreign starts anew: blocks" in "\n".join(applied.notes)
    assert model[4].bias in optimizer.state  # not cut


def lbfgs(model, **options):
    return optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=6, **options)


def closure_of(model, optimizer, after_backward=lambda: None):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        after_backward()
        return loss

    return closure


def test_lbfgs_goes_on_with_its_history_as_if_the_removed_units_had_never_moved():
    model = network()
    optimizer = lbfgs(model)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
    twin = copy.deepcopy(model)
    its_optimizer = lbfgs(twin)
    load_state(its_optimizer, saved_state(optimizer))
    notes = apply(model, PLAN, optimizer).notes
    # The same by hand on the masked model: the history at zero there, and what is derived from it made anew.
    mask(twin, [], PLAN, gradients=False)
    flags = [torch.ones_like(parameter) for parameter in twin.parameters()]
    for removal in PLAN.removals:
        place = [name for name, _ in twin.named_parameters()].index(removal.tensor)
        flags[place].index_fill_(removal.dim, torch.tensor(removal.indices), 0)
    flat = torch.cat([flag.flatten() for flag in flags])
    state = next(iter(its_optimizer.state.values()))
    pairs = [(y * flat, s * flat) for y, s in zip(state["old_dirs"], state["old_stps"], strict=True)]
    pairs = [(y, s) for y, s in pairs if y.dot(s) > 1e-10]
    assert len(notes) == (len(pairs) < len(state["old_dirs"]))
    state["old_dirs"], state["old_stps"] = [y for y, _ in pairs], [s for _, s in pairs]
    state["ro"] = [1 / y.dot(s) for y, s in pairs]
    state["H_diag"] = pairs[-1][0].dot(pairs[-1][1]) / pairs[-1][0].square().sum()
    state["prev_flat_grad"] *= flat
    state["d"] *= 0
    start = loss_of(model, 0).item()

    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
        its_optimizer.step(closure_of(twin, its_optimizer, lambda: mask(twin, [], PLAN, gradients=True)))
    assert difference(model, twin, PLAN) < 1e-9
    assert loss_of(model, 0) < start


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe"}])
def test_lbfgs_without_a_usable_history_starts_anew_and_says_so(options):
    model = network()
    optimizer = lbfgs(model, **options)
    optimizer.step(closure_of(model, optimizer))
    state = next(iter(optimizer.state.values()))
    state["old_stps"] = [-step for step in state["old_stps"]]
    notes = apply(model, PLAN, optimizer).notes
    assert "LBFGS starts anew" in notes[0]
    start = loss_of(model, 0).item()
    for _ in range(5):
        optimizer.step(closure_of(model, optimizer))
    assert loss_of(model, 0) < 0.8 * start
