"""Scores: predicted loss in nats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zoo import Recurrent, make

from edgelean.control import rank_correlation
from edgelean.recipes._digits_data import digits_split
from edgelean.shrink.axes import dissect
from edgelean.shrink.scores.elimination import Reader, eliminate
from edgelean.shrink.scores.energy import Energy
from edgelean.shrink.scores.flow import Flow


def watching(model, example):
    anatomy = dissect(model, example)
    score = Energy()
    score.watch(model, anatomy.axes)
    return anatomy, score


def observe(score, model, x, y, loss=nn.functional.cross_entropy):
    """Take a step without an optimizer: the moments come from forward and backward alone."""
    score.active = True
    model.train()
    model.zero_grad()
    loss(model(x), y).backward()
    score.active = False


@pytest.fixture(scope="module")
def trained():
    """A small network on real digits, trained for a moment."""
    (x, y), _, _ = digits_split()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def hidden_gradients(model, x, y):
    """Return what the second layer reads, and the gradient of the loss of each sample there."""
    hidden = torch.relu(model[1](x.flatten(1))).detach().requires_grad_()
    losses = nn.functional.cross_entropy(model[3](hidden), y, reduction="none")
    return hidden.detach(), torch.autograd.grad(losses.sum(), hidden)[0]


# -- Fisher information ------------------------------------------------------------------------------------------------


def test_fisher_information_takes_the_labels_from_the_model():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)).requires_grad_()
    x, y = torch.randn(64, 64), torch.zeros(64, dtype=torch.long)
    with torch.no_grad():
        model[3].bias[0] = 4.0  # sure of itself, and right: the labels of the training say next to nothing
    _, score = watching(model, (x[:4],))
    observe(score, model, x, y)
    believed = torch.softmax(model(x), 1).detach()
    expected = sum((believed[:, k : k + 1] * hidden_gradients(model, x, y * 0 + k)[1].square()).mean(0) for k in (0, 1))
    labels = hidden_gradients(model, x, y)[1].square().mean(0)
    assert torch.allclose(score.flows["3"].fisher, expected, rtol=1e-3)
    assert float(labels.sum() / expected.sum()) < 0.2


@pytest.mark.parametrize("scale", [1 / 8, 1024.0])
def test_fisher_information_does_not_depend_on_how_the_loss_is_scaled(trained, scale):
    model, x, y = trained
    _, plain = watching(model, (x[:4],))
    observe(plain, model, x, y)
    plain.release()
    _, scaled = watching(model, (x[:4],))
    observe(scaled, model, x, y, lambda *both: scale * nn.functional.cross_entropy(*both))
    scaled.release()
    assert torch.allclose(plain.flows["3"].fisher, scaled.flows["3"].fisher, rtol=1e-3)


def test_fisher_information_of_another_loss_is_that_of_its_labels(trained):
    model, x, _ = trained
    _, score = watching(model, (x[:4],))
    targets = torch.randn(len(x), 10, generator=torch.Generator().manual_seed(0))
    observe(score, model, x, targets, nn.functional.l1_loss)
    score.release()
    hidden = torch.relu(model[1](x.flatten(1))).detach().requires_grad_()
    losses = (model[3](hidden) - targets).abs().mean(1)
    expected = torch.autograd.grad(losses.sum(), hidden)[0].square().mean(0)
    assert torch.allclose(score.flows["3"].fisher, expected, rtol=1e-3)


def test_gradient_that_overflowed_leaves_no_trace(trained):
    model, x, y = trained
    anatomy, score = watching(model, (x[:4],))
    observe(score, model, x, y)
    before = score.flows["3"].fisher.clone()
    observe(score, model, x, y, lambda *both: float("inf") * nn.functional.cross_entropy(*both))
    score.release()
    assert torch.equal(score.flows["3"].fisher, before)
    assert score.unit_prices(anatomy.axes["1"], model).isfinite().all()


# -- prices ------------------------------------------------------------------------------------------------------------


def random_reader(size, places, generator):
    """Return a covariance, a Fisher information, and a reader of units with these elements and one position each."""
    mix, owed = (torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2))
    covariance, fisher = mix @ mix.T / size + 0.1 * torch.eye(size), owed @ owed.T
    return covariance, fisher, Reader.of([(covariance, fisher)], 0.0, places)


@pytest.mark.parametrize("width", [1, 3])
def test_removing_units_costs_what_the_kept_ones_do_not_tell_of_them(width, monkeypatch):
    monkeypatch.setattr("edgelean.shrink.scores.elimination.RIDGE", 1e-12)
    places = torch.arange(12).reshape(-1, width)
    covariance, fisher, reader = random_reader(12, places, torch.Generator().manual_seed(2))
    order, running = eliminate([reader], torch.zeros(len(places)).double())
    for count in range(1, len(places)):
        gone, kept = places[list(order[:count])].flatten(), places[list(order[count:])].flatten()
        across = covariance[gone][:, kept]
        missed = covariance[gone][:, gone] - across @ torch.linalg.inv(covariance[kept][:, kept]) @ across.T
        # One removal at a time adds to what earlier ones owe: errors of different removals do not go together.
        whole = 0.5 * float((fisher[gone][:, gone] * missed).sum())
        assert running[count] == pytest.approx(whole, rel=1e-6)


def test_first_of_two_units_that_are_alike_costs_nothing_and_the_second_all(monkeypatch):
    monkeypatch.setattr("edgelean.shrink.scores.elimination.RIDGE", 1e-9)
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    covariance = torch.cov(torch.cat([x, x[:, :1]], 1).T)
    order, running = eliminate(
        [Reader.of([(covariance, torch.eye(4).double())], 0.0, torch.arange(4)[:, None])], torch.zeros(4)
    )
    assert order[0] in (0, 3)
    assert running[1] == pytest.approx(0, abs=1e-6)
    assert running[2] > 0.1


def test_few_positions_are_not_believed_to_predict_anything():
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    covariance, fisher = torch.cov(x.T), torch.eye(16).double()
    places = torch.arange(16)[:, None]
    believed = Reader.of([(covariance, fisher)], 0.0, places).prices().sum()
    doubted = Reader.of([(covariance, fisher)], 1 / 6, places).prices().sum()
    variance = 0.5 * covariance.trace()
    assert believed < 0.05 * variance
    assert doubted > 0.3 * variance


def test_price_orders_units_like_the_loss_that_their_removal_costs(trained):
    model, x, y = trained
    anatomy, score = watching(model, (x[:4],))
    observe(score, model, x, y)
    score.release()
    prices = score.unit_prices(anatomy.axes["1"], model).tolist()
    hidden, _ = hidden_gradients(model, x, y)
    weight, bias = model[3].weight.detach(), model[3].bias.detach()
    believed = torch.log_softmax(hidden @ weight.T + bias, 1)
    observed = []
    for unit in range(32):
        others = [i for i in range(32) if i != unit]
        inputs = torch.cat([hidden[:, others], torch.ones(len(x), 1)], 1)
        refitted = hidden.clone()
        refitted[:, unit] = inputs @ torch.linalg.lstsq(inputs, hidden[:, unit], driver="gelsd").solution
        # With the labels that the model believes in, so that nothing but the quadratic term is left.
        after = torch.log_softmax(refitted @ weight.T + bias, 1)
        observed.append(float(nn.functional.kl_div(after, believed, log_target=True, reduction="batchmean")))
    assert rank_correlation(prices, observed) > 0.75
    assert 0.1 < sum(prices) / sum(observed) < 10


class Pooled(nn.Module):
    """A unit behind a mean over positions; it is the same at all of them, or of another sign at each."""

    def __init__(self, constant):
        super().__init__()
        self.constant, self.embed, self.back = constant, nn.Linear(1, 8), nn.Linear(8, 2)

    def forward(self, x):
        sign = torch.ones(16) if self.constant else torch.tensor([1.0, -1.0]).repeat(8)
        return self.back(self.embed(x)[:, None] * sign[:, None]).mean(1)


def test_errors_that_cancel_over_a_sample_cost_less_than_those_that_add_up():
    x, y = torch.randn(64, 1, generator=torch.Generator().manual_seed(5)), torch.arange(64) % 2
    prices = []
    for constant in (True, False):
        torch.manual_seed(6)
        model = Pooled(constant)
        anatomy, score = watching(model, (x[:4],))
        observe(score, model, x, y)
        prices.append(float(score.flows["back"].energy().sum()))
        assert anatomy.axes["embed"].size == 8
    assert prices[1] < 0.05 * prices[0]


def test_states_are_priced_by_the_energy_that_truncation_discards():
    model = Recurrent()
    anatomy, score = watching(model, (torch.randn(2, 32, 1),))
    observe(score, model, torch.randn(8, 32, 1), torch.randint(0, 5, (8,)))
    _, running = score.removal_prices(anatomy.axes["block.layer.states"], model)
    assert len(running) == 17
    assert running[0] == 0
    assert list(running) == sorted(running)
    assert running[-1] > 0


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("transformer", (8, 7)), ("lstm", (8, 7, 6)), ("grouped", (8, 3, 8, 8)), ("up_and_down", (8, 3, 8, 8))],
)
def test_collecting_scores_changes_neither_outputs_nor_gradients(name, shape):
    model, _ = make(name)
    torch.manual_seed(0)
    x = torch.randn(shape)
    anatomy = dissect(model, (x,))

    def loss(outputs, _):
        return outputs.square().mean()

    observe(Energy(), model, x, None, loss)
    plain = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    score = Energy()
    score.watch(model, anatomy.axes)
    observe(score, model, x, None, loss)
    score.observe_gradients(model, anatomy.axes)
    score.release()
    for before, parameter in zip(plain, model.parameters(), strict=True):
        assert before is None or torch.equal(before, parameter.grad)
    for axis in anatomy.axes.values():
        prices = score.unit_prices(axis, model)
        assert prices is None or (prices.isfinite().all() and prices.shape == (axis.size,))


def test_layers_that_read_the_same_share_their_moments_and_keep_them_apart_afterwards():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.first(x) + self.second(x)

    model = Both()
    _, score = watching(model, (torch.randn(4, 6),))
    observe(score, model, torch.randn(32, 6), torch.randint(0, 3, (32,)))
    first, second = score.flows["first"], score.flows["second"]
    assert torch.equal(first.second, second.second)
    assert first.second.data_ptr() != second.second.data_ptr()


class Attending(nn.Module):
    """Attention over what an inner layer makes of a sequence, by the module for it."""

    def __init__(self, batch_first):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.attend, self.turn = nn.MultiheadAttention(8, 2, batch_first=batch_first), not batch_first

    def forward(self, x):
        x = self.embed(x)
        x = x.transpose(0, 1) if self.turn else x
        x = self.attend(x, x, x, need_weights=False)[0]
        return self.head((x.transpose(0, 1) if self.turn else x).mean(1))


class Projecting(nn.Module):
    """The same in single layers."""

    def __init__(self, other):
        super().__init__()
        self.embed, self.head = copy.deepcopy(other.embed), copy.deepcopy(other.head)
        self.packed, self.out = nn.Linear(8, 24), copy.deepcopy(other.attend.out_proj)
        self.packed.weight.data, self.packed.bias.data = (
            other.attend.in_proj_weight.data,
            other.attend.in_proj_bias.data,
        )

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in self.packed(self.embed(x)).chunk(3, -1))
        mixed = torch.softmax(q @ k.mT / 2, -1) @ v
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_what_attention_reads_is_priced_like_what_its_projections_would_read(batch_first):
    torch.manual_seed(0)
    model = Attending(batch_first)
    single = Projecting(model)
    x, y = torch.randn(64, 7, 6), torch.randint(0, 5, (64,))
    prices = []
    for each in (model, single):
        anatomy, score = watching(each, (x[:4],))
        observe(score, each, x, y)
        prices.append(score.unit_prices(anatomy.axes["embed"], each))
    assert torch.allclose(*prices, rtol=1e-3)


def test_attention_to_another_sequence_is_priced_by_the_slopes_of_its_weights():
    class Crossing(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
            self.attend = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

        def forward(self, x):
            return self.head(self.attend(self.embed(x), x, x, need_weights=False)[0].mean(1))

    model = Crossing()
    anatomy, score = watching(model, (torch.randn(4, 7, 6),))
    observe(score, model, torch.randn(16, 7, 6), torch.randint(0, 5, (16,)))
    score.observe_gradients(model, anatomy.axes)
    assert score.flows["attend"].fisher is None
    assert float(score.unit_prices(anatomy.axes["embed"], model).sum()) > 0


def test_inputs_by_name_count_as_samples():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.layers(x)[0].mean(1))

    model = Named()
    anatomy, score = watching(model, (torch.randn(4, 7, 6),))
    score.active = True
    model.train()
    model(x=torch.randn(16, 7, 6)).square().mean().backward()
    score.observe_gradients(model, anatomy.axes)
    assert all(float(slope.sum()) > 0 for slope in score.slopes.values())


def test_state_space_layer_forgets_removed_features_of_its_sequences():
    flow = Flow(fisher=torch.arange(4.0), inputs=torch.arange(24.0).reshape(2, 3, 4))
    flow.keep([0, 3])
    assert flow.fisher.tolist() == [0, 3]
    assert flow.inputs.shape == (2, 3, 2)
    flow.blend("fisher", torch.ones(3))  # another width than expected: the new observation is all there is
    assert flow.fisher.tolist() == [1, 1, 1]
