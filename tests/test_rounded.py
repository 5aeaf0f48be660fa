"""Models in PyTorch that compute as they will in a lower precision, and the choice between precisions."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgelean
from edgelean.choosing import Option, chosen
from edgelean.delivery import _settled
from edgelean.errors import InputError
from edgelean.exporter import export_onnx, load_target
from edgelean.exporter.int8 import quantised
from edgelean.lowering import Tail, first_samples
from edgelean.profile import Profile
from edgelean.reading import Figure, Provenance, Reading
from edgelean.training.rounded import Rounded, computing_in, rounded


def by_hand(x, channels=None):
    """255 levels, symmetric around zero, in numpy and float64."""
    axes = None if channels is None else tuple(axis for axis in range(x.ndim) if axis != channels)
    scale = np.abs(x).max(axis=axes, keepdims=channels is not None) / 127
    return np.round(x / scale) * scale


def test_a_linear_layer_in_int8_computes_with_rounded_numbers():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    with computing_in("int8"):
        found = layer(x)
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    wanted = by_hand(x.numpy()) @ by_hand(weight, 0).T + bias
    assert np.allclose(found.detach().numpy(), wanted, atol=1e-12)
    assert not torch.allclose(layer(x), found)


def test_in_half_precision_what_is_too_large_is_infinite():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 300.0)
    with torch.no_grad(), computing_in("fp16"):
        assert math.isinf(layer(torch.tensor([[300.0]])))
        assert float(layer(torch.tensor([[1.0001]]))) == 300.0
    with torch.no_grad(), computing_in("fp32"):
        assert float(layer(torch.tensor([[300.0]]))) == 90_000.0


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_rounding_is_off_by_half_a_level_at_most_and_gradients_pass(values):
    x = torch.tensor(values, requires_grad=True)
    y = rounded(x)
    level = float(x.detach().abs().max()) / 127
    assert float((y - x).detach().abs().max()) <= 0.5001 * level + 1e-30
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_whole_numbers_and_products_of_activations_are_left_alone():
    a, b = torch.randn(3, 4), torch.randn(4, 2)
    seen = []
    with Rounded(lambda x, channels: seen.append(channels) or x):
        assert torch.equal(a @ b, torch.matmul(a, b))
        nn.Embedding(5, 2)(torch.tensor([1, 2]))
    assert seen == []
    with Rounded(lambda x, channels: seen.append(channels) or x):
        _ = a @ nn.Parameter(b)
        nn.ConvTranspose1d(4, 2, 3)(torch.randn(1, 4, 9))
    assert seen == [None, 1, None, 1]


def test_the_model_rounded_in_torch_is_as_far_off_as_its_int8_file(tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 4),
    ).eval()  # fmt: skip
    x = torch.randn(256, 2, 8, 8)
    path = export_onnx(model, (x[:2],), tmp_path / "m.onnx", metadata={})
    made = quantised(path, tmp_path / "int8.onnx", load_target("tensorrt-int8"), [(x[:128].numpy(),)])
    with torch.no_grad():
        wanted = model(x).numpy()
        with computing_in("int8"):
            simulated = model(x).numpy()
    written = onnxruntime.InferenceSession(made.path).run(None, {"input": x.numpy()})[0]
    errors = [np.linalg.norm(found - wanted) for found in (simulated, written)]
    assert 0.6 < errors[0] / errors[1] < 1.7


# -- the choice --------------------------------------------------------------------------------------------------------


def option(precision, cut, rounding=0.0, drop=0.0, reachable=True):
    figure = Figure(1.0, 1.0, 1.0, "ms", Provenance.MODELLED, "by a formula")
    return Option(precision, Reading(figure, None, batch=1, percentile=50), cut, rounding, drop, reachable)


def test_the_precision_that_loses_least_in_all_is_chosen():
    assert chosen([option("fp32", 0.3), option("fp16", 0.1), option("int8", 0.0, 0.2)], 0.03).precision == "fp16"
    assert chosen([option("fp32", 0.3), option("fp16", 0.1), option("int8", 0.0, 0.05)], 0.03).precision == "int8"


def test_of_equal_precisions_the_highest_is_chosen_also_if_rounding_happens_to_help():
    assert chosen([option("fp32", 0.0), option("fp16", 0.0, -0.1), option("int8", 0.0, -0.2)], 0.03).precision == "fp32"


def test_a_precision_that_does_not_reach_the_budgets_is_the_last_resort():
    options = [option("fp32", 0.0, reachable=False), option("fp16", 9.0), option("int8", 1.0, drop=0.5)]
    assert chosen(options, 0.03).precision == "fp16"
    assert chosen(options[:1], 0.03).precision == "fp32"
    assert chosen([option("fp32", 1.0), option("int8", 0.0, math.nan)], 0.03).precision == "fp32"


PLAIN = {"name": "p", "board": "jetson-agx-orin-64gb", "batch": 8, "targets": ["onnx-fp32"]}


def test_auto_leaves_all_precisions_open_and_starts_in_the_highest():
    profile = Profile.model_validate({**PLAIN, "precision": "auto", "budgets": {"latency": "60%"}})
    assert (profile.precision, profile.precisions) == ("fp32", ("fp32", "fp16", "int8"))
    assert Profile.model_validate(profile.model_dump(mode="json")) == profile
    some = {**PLAIN, "precision": "auto", "precisions": ["fp16", "int8"], "budgets": {"latency": "60%"}}
    assert Profile.model_validate(some).precision == "fp16"


def test_a_loop_of_ones_own_is_told_to_give_a_precision():
    profile = Profile.model_validate({**PLAIN, "precision": "auto", "budgets": {"latency": "60%"}})
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    with pytest.raises(InputError, match=r"which precision loses least.*give one precision"):
        edgelean.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), torch.randn(8, 4), profile, steps=10, target="modelled"
        )


@pytest.mark.parametrize("asked", [[], ["onnx-int8"]])
def test_a_chosen_precision_whose_file_failed_is_given_up_for_the_next_higher_one(asked):
    checked = [
        (Path(file), SimpleNamespace(file=file, passed=passed))
        for file, passed in (("model.onnx", True), ("model.fp16.onnx", True), ("model.int8.onnx", False))
    ]
    switched = []
    profile = SimpleNamespace(precision="int8", targets=["onnx-fp32", *asked])
    loop = SimpleNamespace(
        bench=SimpleNamespace(profile=profile),
        around=SimpleNamespace(board=SimpleNamespace(kind="cpu")),
        progress=SimpleNamespace(precision="int8"),
        compute_in=switched.append,
    )
    kept, notes = _settled(loop, checked)
    assert switched == ["fp16"]
    assert [file.name for file, _ in kept] == ["model.onnx", "model.fp16.onnx", *(["model.int8.onnx"] if asked else [])]
    assert "model.int8.onnx failed its check, so the verdicts are on fp16" in notes[0]
    loop.progress.precision = None
    assert _settled(loop, checked) == (checked, ())


# -- the tail of a training --------------------------------------------------------------------------------------------


def test_samples_are_taken_from_the_beginning_and_no_more_than_asked():
    pairs = [(torch.full((5, 2), float(index)), torch.arange(5)) for index in range(4)]
    taken = first_samples(pairs, 12)
    assert [len(x) for x, _ in taken] == [5, 5, 2]
    assert [len(y) for _, y in taken] == [5, 5, 2]
    assert len(first_samples([(torch.zeros(4, 1 << 23), torch.zeros(4))], 100)[0][0]) == 1


def loss(drop):
    from edgelean.exporter.search import Loss

    return Loss(drop, drop, 0.1, 0.01)


@pytest.fixture
def tail(monkeypatch):
    """Return a maker of tails of a training of 10 epochs of 10 steps, whose INT8 file loses so much."""
    profile = Profile.model_validate(
        {**PLAIN, "precision": "fp32", "targets": ["onnx-fp32", "onnx-int8"], "budgets": {"latency": "60%"}}
    )

    def make(drop, profile=profile, events=()):
        session, board = SimpleNamespace(steps=100, steps_per_epoch=10), SimpleNamespace(kind="gpu")
        monkeypatch.setattr(Tail, "worst", lambda self: (load_target("onnx-int8"), loss(drop)))
        return Tail.of(session, SimpleNamespace(profile=profile), board, events)

    make.profile = profile
    return make


def looked(tail):
    events = []
    for step in range(10, 101, 10):
        tail.look(step, lambda event, step, **fields: events.append({"event": event, "step": step, **fields}))
    return events


@pytest.mark.parametrize(("drop", "on"), [(0.04, True), (0.001, False)])
def test_the_tail_rounds_only_where_rounding_afterwards_would_lose_too_much(tail, drop, on):
    made = tail(drop)
    events = looked(made)
    assert [(event["event"], event["step"], event["on"]) for event in events] == [("rounding", 80, on)]
    with made.computing() as mode:
        assert (mode is not None) == on
    again = tail(0.5, events=events)
    assert again.on is on, "a resumed run does what the first one decided"
    assert looked(again) == []


def test_the_tail_is_nothing_without_int8_or_where_the_profile_says_never(tail):
    without = tail.profile.model_copy(update={"targets": ("onnx-fp32",)})
    accuracy = tail.profile.accuracy.model_copy(update={"int8_tail": 0.0})
    never = tail.profile.model_copy(update={"accuracy": accuracy})
    assert looked(tail(0.5, without)) == looked(tail(0.5, never)) == []
