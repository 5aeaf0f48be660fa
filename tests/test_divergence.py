"""Which layer of the user's model a wrong file is wrong in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgelean.divergence import first_divergence, layers, nearest
from edgelean.exporter import export_onnx, to_fp16
from edgelean.recipes.digits import DigitsNet


def trained_norms(model):
    """Statistics as after a training: a fresh batch norm is nearly the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, 0.3, 0.3)  # layers are copies of one another, and norms ones, before a training
    return nn.Sequential(nn.Linear(3, 16), encoder, nn.Linear(16, 5))


NETWORKS = {
    "residual": (lambda: trained_norms(DigitsNet(8)), (6, 1, 8, 8)),
    "transformer": (transformer, (6, 7, 3)),
}
"""Networks with the weight that is spoiled, and the layer that has to be named."""

CASES = [
    ("residual", "blocks.1.conv1", "blocks.1.norm1"),
    ("residual", "blocks.2.conv2", "blocks.2.norm2"),
    ("residual", "head", "head"),
    ("transformer", "1.layers.1.linear1", "1.layers.1.linear1"),
    ("transformer", "1.layers.0.norm2", "1.layers.0.norm2"),
]


def exported(name, folder):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    return model, x, export_onnx(model, (x,), folder / "model.onnx", metadata={})


def spoil(path, model, layer, out, factor=1.5):
    """Scale the weight of a layer in a file; found by its values, since names are the exporter's business."""
    proto = onnx.load(path)
    weight = model.get_submodule(layer).weight.detach().numpy()
    tensors = list(proto.graph.initializer)
    likest = min((t for t in tensors if np.prod(t.dims) == weight.size), key=lambda t: distance(t, weight))
    likest.CopyFrom(numpy_helper.from_array(factor * numpy_helper.to_array(likest), likest.name))
    onnx.save(proto, out)
    return out


def distance(tensor, weight):
    """How far a tensor of the file is from a weight that a batch norm may have scaled, and that may lie transposed."""
    array = numpy_helper.to_array(tensor)
    ways = [array.reshape(-1)] + ([array.T.reshape(-1)] if array.ndim == 2 else [])
    flat = weight.reshape(-1)
    return min(1 - abs(float(way @ flat)) / float(np.linalg.norm(way) * np.linalg.norm(flat) + 1e-9) for way in ways)


@pytest.mark.parametrize(("name", "layer", "told"), CASES)
def test_the_layer_that_was_changed_is_named_by_its_path_in_the_model(name, layer, told, tmp_path):
    model, x, file = exported(name, tmp_path)
    wrong = spoil(file, model, layer, tmp_path / "wrong.onnx")
    sentence = first_divergence(wrong, model, (x,), 1e-4, file)
    kind = type(model.get_submodule(told)).__name__
    assert sentence.startswith(f"the first layer that is off is {told!r} ({kind}), by 0."), sentence


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_said_of_a_file_that_is_right(name, tmp_path):
    model, x, file = exported(name, tmp_path)
    assert first_divergence(file, model, (x,), 1e-4) == ""
    to_fp16(file, tmp_path / "half.onnx")
    assert first_divergence(tmp_path / "half.onnx", model, (x,), 2e-2, file) == ""


def test_without_a_file_that_is_right_what_follows_the_last_agreement_is_named(tmp_path):
    model, x, file = exported("residual", tmp_path)
    wrong = spoil(file, model, "head", tmp_path / "wrong.onnx")
    assert "'head' (Linear)" in first_divergence(wrong, model, (x,), 1e-4)


def test_an_overflow_is_found_where_it_happens(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[2].weight *= 3e5
        model[4].weight /= 3e5
    x = torch.randn(5, 4).abs()
    file = export_onnx(model, (x,), tmp_path / "model.onnx", metadata={})
    to_fp16(file, tmp_path / "half.onnx")
    assert "is off is '2' (Linear)" in first_divergence(tmp_path / "half.onnx", model, (x,), 5e-3, file)


def test_a_file_that_does_not_run_is_passed_over(tmp_path):
    model, x, file = exported("residual", tmp_path)
    file.write_bytes(file.read_bytes()[:50])
    assert first_divergence(file, model, (x,), 1e-4) == ""


def test_layers_come_in_the_order_of_execution_and_leave_the_model_as_it_was():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.ModuleDict({"second": second, "first": first})
    model.forward = lambda x: model["second"](model["first"](x))
    model.train()
    assert [layer.path for layer in layers(model, [torch.ones(2, 3)])] == ["first", "second"]
    assert model.training
    assert not first._forward_hooks


def test_nearest_does_not_know_the_layout():
    wanted = np.random.default_rng(0).normal(size=(4, 3, 2))
    assert nearest(wanted, [wanted.transpose(2, 0, 1)]) == 0
    assert nearest(wanted, [np.zeros((3, 8)), 1.1 * wanted]) == pytest.approx(0.1)
    assert nearest(wanted, []) == np.inf
