"""Least squares with a ridge chosen on rows that took no part; readers as matrix products; recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgelean.shrink import recent
from edgelean.shrink.least_squares import RIDGES, Rows, correction
from edgelean.shrink.readers import readers
from edgelean.shrink.recent import Recent
from edgelean.shrink.trace import trace


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(count, matrix, shift, noise=0.0, seed=0):
    x = drawn(count, matrix.shape[1], seed=seed)
    return Rows(x, x @ matrix.T + shift + noise * drawn(count, len(matrix), seed=seed + 1))


@pytest.mark.parametrize("count", [100, 8], ids=["more rows than features", "fewer"])
def test_a_linear_relation_is_found(count):
    matrix, shift = drawn(3, 12), torch.tensor([1.0, -2.0, 0.5])
    fit, held_out = rows(count, matrix, shift), rows(50, matrix, shift, seed=2)
    found = correction(fit, held_out, centred=True)
    predicted = fit.features @ found.matrix.T + found.shift
    assert (predicted - fit.missing).norm() < 2e-3 * fit.missing.norm()
    if count > 12:
        assert torch.allclose(found.matrix, matrix, atol=0.01)
        assert torch.allclose(found.shift, shift, atol=0.01)


def test_noise_teaches_nothing():
    fit, held_out = (Rows(drawn(40, 30, seed=i), drawn(40, 2, seed=i + 5)) for i in (0, 1))
    assert correction(fit, held_out, centred=True).matrix.norm() < 0.1
    assert torch.allclose(correction(fit, held_out, centred=True, ridges=()).shift, fit.missing.mean(0))


def test_more_noise_wants_a_larger_ridge():
    matrix, none = drawn(2, 20), torch.zeros(2)
    for noise, smallest in ((0.0, True), (3.0, False)):
        fit, held_out = (rows(60, matrix, none, noise, seed) for seed in (0, 2))
        best = correction(fit, held_out, centred=False).matrix
        least = correction(fit, held_out, centred=False, ridges=RIDGES[:1]).matrix
        assert torch.equal(best, least) == smallest


def test_without_anything_behind_that_takes_the_mean_there_is_no_shift():
    fit = rows(50, drawn(3, 4), torch.ones(3))
    assert torch.equal(correction(fit, fit, centred=False).shift, torch.zeros(3))


class Called(nn.Module):
    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.parameters_ = nn.ParameterList([drawn(*shape, seed=i) for i, shape in enumerate(shapes)])

    def forward(self, x):
        return self.function(x, *self.parameters_)


def conv2d(**options):
    return lambda x, w, b: functional.conv2d(x, w, b, **options)


CALLS = {
    "linear": (Called(functional.linear, (5, 6), (5,)), (3, 4, 6)),
    "product": (Called(lambda x, w: x @ w, (6, 5)), (3, 4, 6)),
    "product with a view": (Called(lambda x, w: x @ w[2:].t(), (7, 6)), (3, 6)),
    "sum and product": (Called(lambda x, w, b: torch.addmm(b, x, w), (6, 5), (5,)), (3, 6)),
    "convolution": (Called(conv2d(), (5, 6, 3, 2), (5,)), (2, 6, 7, 5)),
    "padded, in steps": (Called(conv2d(stride=(2, 1), padding=(1, 2)), (5, 6, 3, 2), (5,)), (2, 6, 7, 5)),
    "dilated": (Called(conv2d(dilation=2, padding=1), (5, 6, 2, 2), (5,)), (2, 6, 7, 5)),
    "same size": (Called(conv2d(padding="same"), (5, 6, 5, 3), (5,)), (2, 6, 7, 5)),
    "valid": (Called(conv2d(padding="valid"), (5, 6, 4, 3), (5,)), (2, 6, 7, 5)),
    "in groups": (Called(conv2d(groups=2), (4, 3, 3, 3), (4,)), (2, 6, 7, 5)),
    "of a signal": (Called(lambda x, w: functional.conv1d(x, w, stride=2), (5, 6, 3)), (2, 6, 9)),
    "of a volume": (Called(lambda x, w: functional.conv3d(x, w, padding=1), (5, 6, 3, 1, 2)), (2, 6, 4, 3, 4)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_reader_is_a_matrix_product_of_its_rows(call):
    model, shape = CALLS[call]
    x = drawn(*shape, seed=7)
    found = trace(model, (x,))
    (reader,) = readers(found, dict(model.named_parameters())).values()
    with torch.no_grad():
        y = model(x)
        weight = reader.weight.of(model.parameters_[0])
        rows_ = torch.arange(reader.rows(y))
        product = reader.features(x, y, rows_) @ reader.matrices(weight).mT
        expected = reader.outputs(y, rows_)
        if reader.bias is not None:
            expected = expected - model.parameters_[1].reshape(len(expected), 1, -1)
    assert torch.allclose(product, expected, atol=1e-4)
    assert torch.equal(reader.weight_of(reader.matrices(weight), weight.shape), weight)


def test_a_view_goes_back_to_its_place_in_the_parameter():
    model, shape = CALLS["product with a view"]
    (reader,) = readers(trace(model, (drawn(*shape),)), dict(model.named_parameters())).values()
    placed = reader.weight.back(torch.ones(6, 5), (7, 6))
    assert torch.equal(placed, torch.cat([torch.zeros(2, 6), torch.ones(5, 6)]))


def test_slices_that_overlap_are_left_alone():
    model = Called(lambda x, w: x @ w[:4].t() + x @ w[3:].t(), (7, 6))
    both = readers(trace(model, (drawn(3, 6),)), dict(model.named_parameters())).values()
    assert [reader.weight for reader in both] == [None, None]


# -- recorded inputs ---------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def forward(self, x, scale=None):
        return x if scale is None else x * scale


def watched(example):
    model, seen = Two(), Recent()
    seen.watch(model, example)
    seen.active = True
    return model, seen


def test_the_last_samples_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(recent, "MOST_SAMPLES", 10)
    model, seen = watched((torch.zeros(1, 3),))
    batches = [drawn(4, 3, seed=i) for i in range(5)]
    for batch in batches:
        model(batch)
    assert torch.equal(seen.inputs()[0], torch.cat(batches[-2:]))


def test_large_samples_are_kept_in_smaller_numbers(monkeypatch):
    monkeypatch.setattr(recent, "MOST_ELEMENTS", 30)
    model, seen = watched((torch.zeros(1, 6),))
    model(drawn(40, 6))
    assert seen.inputs()[0].shape == (5, 6)


def test_samples_stay_what_they_were_when_their_memory_is_filled_again():
    model, seen = watched((torch.zeros(1, 3),))
    batch = torch.ones(4, 3)
    model(batch)
    batch.zero_()
    assert torch.equal(seen.inputs()[0], torch.ones(4, 3))


def test_inputs_may_be_named_and_samples_of_another_length_start_anew():
    model, seen = watched((torch.zeros(1, 3), torch.zeros(1, 3)))
    model(scale=torch.ones(4, 3), x=torch.zeros(4, 3))
    assert [float(each.sum()) for each in seen.inputs()] == [0, 12]
    model(torch.zeros(4, 5), torch.ones(4, 5))
    assert [each.shape for each in seen.inputs()] == [(4, 5), (4, 5)]


def test_nothing_is_kept_while_it_is_not_asked_for():
    model, seen = watched((torch.zeros(1, 3),))
    model.eval()(torch.ones(4, 3))
    model.train()
    model(torch.ones(4, 3), torch.ones(4, 3))  # two inputs where the network was traced with one
    seen.active = False
    model(torch.ones(4, 3))
    seen.active = True
    seen.release()
    model(torch.ones(4, 3))
    assert seen.inputs() == ()
