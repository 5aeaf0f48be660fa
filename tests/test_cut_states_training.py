"""Layers of every kind lose states in the middle of a training, by their prices, and get them back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.errors import InputError
from edgelean.nn import LRU, S4D, S5, Bidirectional, Mamba, SequenceClassifier
from edgelean.profile import load_profile
from edgelean.shrink.cut import put_back, saved
from edgelean.shrink.plan import make_plan
from edgelean.shrink.scores import SCORES, open_score
from edgelean.shrink.scores.selective import energies
from edgelean.shrink.wrappers import Ranks
from edgelean.stopwatch import Stopwatch
from edgelean.surgery import Patient, Repair, operate
from edgelean.target import open_target

WIDTH = 6
LAYERS = {"blocks.0": (S4D, 6), "blocks.1.ahead": (S5, 5), "blocks.1.back": (LRU, 8)}
"""Where time-invariant layers are, and their states."""
SELECTED = "blocks.2.selected"


def network():
    torch.manual_seed(2)
    both = Bidirectional(S5(WIDTH, 10), LRU(WIDTH, 8))
    return SequenceClassifier(nn.Linear(2, WIDTH), [S4D(WIDTH, 12), both, Mamba(WIDTH, 7)], nn.Linear(WIDTH, 3))


class Training:
    """A network, its optimizer and its average, on a bench, observed by a score."""

    def __init__(self):
        self.network = network()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)
        self.average = AveragedModel(self.network)
        random = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(16, 20, 2, generator=random), torch.arange(16) % 3
        profile = load_profile("raspberry-pi-5")
        board = load_board(profile.board)
        target = open_target("modelled", profile, board)
        self.bench = Bench(self.network, (self.x[:4],), profile, target, Stopwatch())
        followers = (self.optimizer, self.average)
        self.patient = Patient(self.bench, self.network, followers, Ranks.of(self.network))
        self.score = open_score("energy", 0)
        self.score.watch(self.network, self.bench.anatomy.axes)

    def step(self, observed=False):
        self.score.active = observed
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.score.active = False
        return float(loss.detach())

    def running(self, name):
        return self.score.removal_prices(self.bench.anatomy.axes[name], self.network)

    def plan(self, keep):
        order = {name: self.running(name)[0] for name in keep}
        return make_plan(self.bench.anatomy, keep, order, 0.0)


@pytest.fixture(scope="module")
def trained():
    training = Training()
    for _ in range(3):
        training.step(observed=True)
    return training


@pytest.fixture
def training(trained):
    """The same training for every test: bench and hooks belong to its network, so it is put back."""
    followers = (trained.network, trained.optimizer, trained.average)
    before = [saved(follower) for follower in followers]
    seen = {name: tensor.clone() for name, tensor in trained.score.tensors().items()}
    yield trained
    for follower, contents in zip(followers, before, strict=True):
        put_back(follower, contents)
    trained.score.put_back(seen)
    trained.bench.look()


def states_of(model):
    return {path: model.get_submodule(path).states for path in (*LAYERS, "blocks.2")}


def test_every_kind_of_states_is_an_axis_and_has_prices_in_nats(training):
    for path, (_, states) in LAYERS.items():
        order, prices = training.running(f"{path}.states")
        assert order == ()
        assert len(prices) == states + 1
        assert prices[0] == 0 < prices[-1]
        assert list(prices) == sorted(prices)
        assert (
            len(training.score.spectrum(training.bench.anatomy.axes[f"{path}.states"], training.network)) == 2 * states
        )
    order, prices = training.running(SELECTED)
    assert sorted(order) == list(range(7))
    assert list(prices) == sorted(prices)


def test_states_and_features_go_together_and_training_goes_on(training):
    keep = {f"{path}.states": states // 2 for path, (_, states) in LAYERS.items()} | {SELECTED: 3, "encoder": 4}
    axes = training.bench.anatomy.axes
    plan = training.plan(keep)
    operation = operate(training.patient, plan, training.score, Repair(), {})
    assert operation.error < 1e-4
    assert states_of(training.network) == {"blocks.0": 3, "blocks.1.ahead": 2, "blocks.1.back": 4, "blocks.2": 3}
    assert [block.width for block in training.network.blocks] == [4, 4, 4]
    assert training.network.blocks[0].D in training.optimizer.state
    assert training.network.blocks[0].C_re not in training.optimizer.state
    training.score.forget(plan, axes)
    training.bench.look()
    inner, after = training.score, training.bench.anatomy.axes
    for path in LAYERS:
        assert inner.flows[path].inputs.shape[-1] == len(inner.flows[path].fisher) == 4
        assert len(training.running(f"{path}.states")[1]) == after[f"{path}.states"].size + 1
    assert inner.flows["blocks.2"].inputs.shape[-1] == 4
    first = training.step(observed=True)
    for _ in range(5):
        last = training.step()
    assert last < first
    shapes = [p.shape for p in training.network.parameters()]
    assert [p.shape for p in training.average.module.parameters()] == shapes


def test_a_cut_of_states_can_be_taken_back(training):
    followers = (training.network, training.optimizer, training.average)
    before = [saved(follower) for follower in followers]
    twin = copy.deepcopy(training.network).eval()
    keep = {f"{path}.states": 2 for path in LAYERS} | {SELECTED: 3}
    operate(training.patient, training.plan(keep), training.score, Repair(), {})
    training.step()
    for follower, contents in zip(followers, before, strict=True):
        put_back(follower, contents)
    assert states_of(training.network) == states_of(twin)
    with torch.no_grad():
        assert torch.equal(training.network.eval()(training.x), twin(training.x))
    training.network.train()
    assert all("exp_avg" in training.optimizer.state[p] for p in training.network.parameters())
    training.step()


@pytest.mark.parametrize("name", SCORES)
def test_every_score_orders_the_states_of_a_selective_layer(name, trained):
    score, network, axes = open_score(name, 0), copy.deepcopy(trained.network), trained.bench.anatomy.axes
    score.watch(network, axes)
    score.active = True
    for _ in range(2):
        network.zero_grad()
        nn.functional.cross_entropy(network(trained.x), trained.y).backward()
        score.observe_gradients(network, axes)
    score.release()
    order, prices = score.removal_prices(axes[SELECTED], network)
    assert sorted(order) == list(range(7))
    assert list(prices) == sorted(prices)


def test_an_unstable_layer_is_refused_by_name_before_the_training():
    model = network()
    with torch.no_grad():
        model.blocks[1].ahead.A_re[2] = 0.1
    profile = load_profile("raspberry-pi-5")
    target = open_target("modelled", profile, load_board(profile.board))
    with pytest.raises(InputError, match=r"^blocks.1.ahead: state 2 has a pole of modulus 1\.\d+"):
        Bench(model, (torch.randn(4, 20, 2),), profile, target, Stopwatch())


# -- what selective states are worth -----------------------------------------------------------------------------------


def read_by_projection(layer, x):
    """What the output projection of a selective layer reads."""
    seen = []
    handle = layer.out_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    layer(x)
    handle.remove()
    return seen[0].detach()


def test_the_energy_of_selective_states_is_that_of_what_changes_when_they_are_masked():
    torch.manual_seed(1)
    layer, x = Mamba(4, 5, expand=1).double(), torch.randn(3, 12, 4, dtype=torch.float64)
    factor = torch.randn(4, 4, dtype=torch.float64)
    summed, loose = factor @ factor.T, torch.rand(4, dtype=torch.float64)
    between, within = energies(layer, x, summed, loose)
    whole, gone = read_by_projection(layer, x), [0, 3]
    with torch.no_grad():
        layer.x_proj.weight[-5:][gone] = 0
    change = whole - read_by_projection(layer, x)
    mean = change.mean(1)
    torch.testing.assert_close(between[gone][:, gone].sum(), ((mean @ summed) * mean).sum() / 3)
    torch.testing.assert_close(within[gone][:, gone].sum(), ((change - mean[:, None]).square() @ loose).mean())
    alone = summed.diagonal()
    torch.testing.assert_close(energies(layer, x, alone, loose), energies(layer, x, torch.diag(alone), loose))


def test_a_selective_state_that_is_never_read_goes_first_and_costs_nothing(training):
    layer = training.network.blocks[2]
    with torch.no_grad():
        layer.x_proj.weight[-7 + 4] = 0
    training.step(observed=True)
    with torch.no_grad():
        layer.x_proj.weight[-7 + 4] = 0
    order, prices = training.running(SELECTED)
    assert order[0] == 4
    assert prices[1] < 1e-3 * prices[-1]
