"""Axes are found, not declared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import WIDER, ZOO, Recurrent, make

from edgelean.errors import InputError
from edgelean.exporter.onnx import export_onnx
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply, tensors_of
from edgelean.shrink.plan import make_plan
from edgelean.shrink.prove import halved, prove
from edgelean.shrink.trace import trace
from edgelean.target.onnx_graph import operators_of


@pytest.mark.parametrize("name", ZOO)
def test_dissect_finds_exactly_the_axes_that_there_are(name):
    model, example = make(name)
    found = {axis.name: axis.size for axis in dissect(model, example).axes.values()}
    assert found == ZOO[name][2]


def test_dissect_leaves_the_model_as_it_is():
    model, example = make("plain_cnn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[3].eval()
    dissect(model, example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model[3].training


def test_states_of_a_recurrent_unit_are_an_axis_of_their_own():
    anatomy = dissect(Recurrent(), (torch.randn(2, 32, 1),))
    states = [axis for axis in anatomy.axes.values() if axis.kind == "states"]
    assert [(axis.size, axis.module()) for axis in states] == [(16, "block.layer")]


@pytest.mark.filterwarnings("ignore:The tensor attributes self.layers")  # torch.export on its own recurrent layers
@pytest.mark.parametrize("name", WIDER)
def test_proved_axes_are_exact_when_all_of_them_are_halved(name):
    model, example = make(name)
    anatomy = dissect(model, example)
    anatomy = prove(model, anatomy, example).applied(anatomy)
    assert {axis.name: axis.size for axis in anatomy.axes.values() if axis.kind != "blocks"} == WIDER[name][2]
    expected = law.Reference(model, trace(model, example), example).outputs(halved(anatomy))
    whole = law.outputs(model, tensors_of(model), example)
    apply(model, halved(anatomy))
    found = law.outputs(model, tensors_of(model), example)
    assert law.deviation(expected, found) < law.TOLERANCE
    assert law.deviation(whole, found) > 1e-3  # the cut did something


def test_what_is_left_alone_is_named():
    model, example = make("normalised")
    refused = {refusal.what: refusal.why for refusal in dissect(model, example).refused}
    assert "output" in refused["head.weight[0]"]
    assert "without units" in refused["embed.weight[1]"]


def test_a_view_that_fixes_a_width_is_refused_and_named():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 5)

        def forward(self, x):
            return self.second(self.first(x).view(-1, 16))

    model, example = Fixed(), (torch.randn(2, 6),)
    anatomy = dissect(model, example)
    proof = prove(model, anatomy, example)
    assert set(anatomy.axes) == set(proof.refused) == {"first"}
    assert "does not run" in proof.refused["first"]


def test_an_operator_without_a_rule_freezes_what_meets_it():
    class Bessel(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 5)

        def forward(self, x):
            return self.second(torch.special.bessel_j0(self.first(x)))

    anatomy = dissect(Bessel(), (torch.randn(2, 6),))
    assert not anatomy.axes
    assert any("special_bessel_j0 has no rule" in refusal.why for refusal in anatomy.refused)


def test_a_model_that_cannot_be_traced_gives_one_message():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"torch\.export cannot trace Branching"):
        dissect(Branching(), (torch.randn(2, 6),))


@pytest.mark.parametrize("name", ZOO)
def test_predicted_sizes_are_those_of_the_cut_model(name):
    model, example = make(name)
    anatomy = dissect(model, example)
    keep = {axis.name: max(1, axis.size - 3) for axis in anatomy.axes.values()}
    order = {axis.name: range(axis.size) for axis in anatomy.axes.values()}
    predicted = [x for o in anatomy.structure.operators(keep) for x in (o.flops, o.elements)]
    apply(model, make_plan(anatomy, keep, order, 0.0))
    found = [x for o in dissect(model, example).structure.operators({}) for x in (o.flops, o.elements)]
    assert found == pytest.approx(predicted)


def test_multiply_accumulates_of_a_linear_layer_are_inputs_times_outputs():
    anatomy = dissect(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)), (torch.randn(4, 12),))
    assert anatomy.structure.macs({}) == 12 * 24 + 24 * 5
    assert anatomy.structure.macs({"0": 10}) == 12 * 10 + 10 * 5


@pytest.mark.parametrize("name", ZOO)
def test_costs_of_the_traced_graph_are_those_of_the_exported_file(name, tmp_path):
    model, example = make(name)
    exported = operators_of(export_onnx(model, example, tmp_path / "model.onnx", metadata={}), batch=4)
    traced = dissect(model, example).structure.operators({})
    assert sum(o.flops for o in traced) == pytest.approx(sum(o.flops for o in exported))
    assert len(traced) == len(exported)
    assert sum(o.elements for o in traced) == pytest.approx(sum(o.elements for o in exported), rel=0.02)
