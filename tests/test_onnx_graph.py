import logging
import math
import warnings
from pathlib import Path

import onnx
import pytest
from calibrations import calibrated_board
from onnx import TensorProto, helper
from zoo import make

from edgelean.board.cost import predict
from edgelean.errors import InputError, MissingError
from edgelean.exporter.onnx import export_onnx
from edgelean.shrink.axes import dissect
from edgelean.target.onnx_graph import operators_of

FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A stem, one residual block and a head, exported with an open batch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.shortcut = nn.Conv2d(8, 16, 1, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))

    stem = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
    net = nn.Sequential(*stem, Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            path,
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    logging.disable(logging.NOTSET)
    return path


def graph(nodes, weights, inputs, outputs=("y",)) -> onnx.ModelProto:
    """A model of the given nodes; weights and inputs are shapes by name."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
            [
                helper.make_tensor(name, FLOAT, shape, bytes(4 * math.prod(shape)), raw=True)
                for name, shape in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )


def test_an_exported_network_has_the_arithmetic_that_one_counts_by_hand(exported):
    batch = 5
    by_hand = [
        8 * 8 * 8 * 1 * 9,  # stem: 8x8 positions, 1 -> 8 channels, 3x3
        4 * 4 * 16 * 8 * 9,
        4 * 4 * 16 * 16 * 9,
        4 * 4 * 16 * 8,
        16 * 10,
    ]
    found = [operator for operator in operators_of(exported, batch) if operator.kind == "contract"]
    assert sorted(operator.flops for operator in found) == sorted(2 * batch * macs for macs in by_hand)


def test_an_exported_network_is_launched_as_convolutions_a_pooling_and_a_head(exported):
    kinds = [operator.kind for operator in operators_of(exported, 5)]
    assert kinds == ["contract"] * 4 + ["reduce", "contract"]


def test_twice_the_batch_is_twice_the_arithmetic_but_not_twice_the_weights(exported):
    for one, two in zip(operators_of(exported, 8), operators_of(exported, 16), strict=True):
        assert two.flops == 2 * one.flops
        assert one.elements < two.elements <= 2 * one.elements


def test_convolution_norm_activation_and_residual_addition_are_one_operator():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    model = graph(nodes, {"w": (6, 6, 3, 3), "s": (6,)}, {"x": ("batch", 6, 4, 4)})
    (operator,) = operators_of(model, 2)
    assert operator.name == "conv"
    assert operator.flops == 2 * (2 * 16) * 6 * 6 * 9
    assert operator.elements == 2 * (2 * 6 * 16) + 6 * 6 * 9 + 6
    assert (operator.rows, operator.columns, operator.depth) == (32, 6, 6)


@pytest.mark.parametrize(
    ("node", "weights", "shape", "macs", "columns", "depth"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], group=8), {"w": (8, 1, 3, 3)}, (4, 8, 5, 5), 4 * 9 * 8 * 9, 8, 1),
        (
            helper.make_node("Conv", ["x", "w"], ["y"], strides=[2]),
            {"w": (6, 3, 2)},
            (4, 3, 8),
            4 * 4 * 6 * 3 * 2,
            6,
            3,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2),
            {"w": (4, 3, 2, 2)},
            (4, 4, 5, 5),
            4 * 25 * 4 * 3 * 4,
            6,
            2,
        ),
        (
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
            {"w": (10, 7), "b": (10,)},
            (4, 7),
            4 * 7 * 10,
            10,
            7,
        ),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": (7, 10)}, (4, 3, 7), 4 * 3 * 7 * 10, 10, 7),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": (7,)}, (4, 3, 7), 4 * 3 * 7, 1, 7),
    ],
)
def test_every_contraction_counts_its_multiplications(node, weights, shape, macs, columns, depth):
    (operator,) = operators_of(graph([node], weights, {"x": ("batch", *shape[1:])}), shape[0])
    assert operator.flops == 2 * macs
    assert (operator.columns, operator.depth) == (columns, depth)


def test_a_product_of_two_activations_counts_every_head():
    node = helper.make_node("MatMul", ["q", "k"], ["y"])
    model = graph([node], {}, {"q": ("batch", 4, 9, 16), "k": ("batch", 4, 16, 9)})
    (operator,) = operators_of(model, 3)
    assert operator.flops == 2 * 3 * 4 * 9 * 9 * 16
    assert operator.elements == 3 * 4 * (2 * 9 * 16 + 9 * 9)


def test_a_transposed_left_side_is_summed_over_its_first_dimension():
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    (operator,) = operators_of(graph([node], {"w": (7, 10)}, {"x": (7, 4)}), 7)
    assert operator.flops == 2 * 4 * 7 * 10


def test_a_move_reads_only_what_it_writes():
    starts = helper.make_node("Constant", [], ["from"], value_ints=[0])
    ends = helper.make_node("Constant", [], ["to"], value_ints=[2])
    axes = helper.make_node("Constant", [], ["axis"], value_ints=[1])
    cut = helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])
    (operator,) = operators_of(graph([starts, ends, axes, cut], {}, {"x": ("batch", 100)}), 4)
    assert (operator.kind, operator.elements) == ("move", 2 * 4 * 2)


def test_views_and_what_is_folded_before_the_run_cost_nothing():
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["ww"]),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "ww"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "axis"], ["u"]),
        helper.make_node("Relu", ["u"], ["y"]),
    ]
    model = graph(nodes, {"w": (12, 5)}, {"x": ("batch", 3, 4)})
    model.graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, (1,), [1]))
    (operator,) = operators_of(model, 2)
    assert operator.elements == 2 * 12 + 12 * 5 + 2 * 5


def test_arguments_of_an_operator_are_no_data():
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[1])
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    (operator,) = operators_of(graph([axes, mean], {}, {"x": ("batch", 100)}), 4)
    assert (operator.kind, operator.elements) == ("reduce", 4 * 100 + 4)


def test_arithmetic_on_shapes_is_done_before_the_run():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "one"], ["same"]),
        helper.make_node("Reshape", ["x", "same"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    model = graph(nodes, {}, {"x": ("batch", 3)})
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, (1,), [1]))
    (operator,) = operators_of(model, 4)
    assert operator.elements == 2 * 4 * 3


def test_a_function_of_the_model_is_counted_by_its_body():
    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    dense = helper.make_function("local", "Dense", ["a", "b"], ["c"], [product], [helper.make_opsetid("", 18)])
    model = graph([helper.make_node("Dense", ["x", "w"], ["y"], domain="local")], {"w": (7, 5)}, {"x": ("batch", 7)})
    model.functions.append(dense)
    model.opset_import.append(helper.make_opsetid("local", 1))
    (operator,) = operators_of(model, 3)
    assert operator.flops == 2 * 3 * 7 * 5


def test_an_unknown_operator_is_counted_by_its_traffic_and_keeps_its_name():
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="memory", hidden_size=4)
    (operator,) = operators_of(graph([lstm], {"w": (1, 16, 3), "r": (1, 16, 4)}, {"x": (6, "batch", 3)}), 2)
    assert (operator.name, operator.kind, operator.flops) == ("LSTM memory", "unknown", 0)
    assert operator.elements == 6 * 2 * 3 + 16 * 3 + 16 * 4 + 6 * 2 * 4


def test_a_loop_over_time_is_unknown_and_no_crash():
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, (3,)) for name in ("s", "e")],
        [helper.make_tensor_value_info(name, FLOAT, (3,)) for name in ("t", "o")],
    )
    scan = helper.make_node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    (operator,) = operators_of(graph([scan], {"s0": (3,)}, {"x": (6, 3)}), 6)
    assert operator.kind == "unknown"
    assert operator.elements == 3 + 6 * 3 + 3 + 6 * 3


def test_the_given_model_is_left_as_it_is():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ("batch", 3)})
    before = model.SerializeToString()
    operators_of(model, 2)
    assert model.SerializeToString() == before


def test_another_fixed_batch_is_refused():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": (1, 3)})
    assert operators_of(model, 1)[0].elements == 6
    with pytest.raises(InputError, match="exported for a batch of 1, and 64 is asked for"):
        operators_of(model, 64)


def test_a_second_open_dimension_is_refused_by_name():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ("batch", "time")})
    with pytest.raises(InputError, match="batch, time, and only the batch may be open"):
        operators_of(model, 2)


def test_a_product_of_unknown_shape_is_refused_by_name():
    custom = helper.make_node("Mystery", ["x"], ["m"], domain="of.ones.own")
    model = graph([custom, helper.make_node("MatMul", ["m", "w"], ["y"], name="head")], {"w": (3, 3)}, {"x": (2, 3)})
    model.opset_import.append(helper.make_opsetid("of.ones.own", 1))
    with pytest.raises(InputError, match="shape of m, y at the MatMul head cannot be inferred"):
        operators_of(model, 2)


def test_a_file_that_is_missing_or_no_model_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"gone\.onnx: this ONNX file does not exist"):
        operators_of(tmp_path / "gone.onnx", 1)
    (tmp_path / "bad.onnx").write_bytes(b"this is no protobuf")
    with pytest.raises(InputError, match=r"bad\.onnx: is not an ONNX model"):
        operators_of(tmp_path / "bad.onnx", 1)


@pytest.mark.parametrize(
    ("operator", "weight", "shape", "form", "stacks"),
    [
        (("Conv", {}), (6, 3, 3, 3), (2, 3, 8, 8), "conv", 1),
        (("Conv", {"group": 6}), (6, 1, 3, 3), (2, 6, 8, 8), "depthwise", 6),
        (("Conv", {"group": 2}), (6, 3, 3, 3), (2, 6, 8, 8), "grouped", 2),
        (("Conv", {"group": 6}), (6, 1, 3), (2, 6, 8), "grouped", 6),
        (("Conv", {}), (6, 3, 3), (2, 3, 8), "conv1d", 1),
        (("ConvTranspose", {}), (3, 6, 2, 2), (2, 3, 8, 8), "conv1d", 1),
        (("Gemm", {}), (7, 10), (2, 7), "product", 1),
        (("MatMul", {}), (7, 10), (2, 5, 7), "product", 1),
    ],
)
def test_a_contraction_tells_how_it_is_computed_and_what_it_reads_in_every_call(operator, weight, shape, form, stacks):
    kind, attributes = operator
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    (found,) = operators_of(graph([node], {"w": weight}, {"x": shape}), 2)
    assert (found.detail.form, found.detail.stacks) == (form, stacks)
    assert found.detail.weights == math.prod(weight)


def test_scaled_stacked_products_are_still_counted_one_by_one():
    nodes = [helper.make_node("MatMul", ["q", "k"], ["s"]), helper.make_node("Mul", ["s", "scale"], ["y"])]
    model = graph(nodes, {"scale": (1,)}, {"q": (3, 4, 9, 16), "k": (3, 4, 16, 9)})
    (operator,) = operators_of(model, 3)
    assert (operator.detail.stacks, operator.detail.passes) == (12, 0)


def test_a_bias_is_a_pass_of_its_own_behind_a_stack_of_products_only():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    stacked, flat = (
        operators_of(graph(nodes, {"w": (7, 10), "b": (10,)}, {"x": shape}), 2)[0].detail
        for shape in ((2, 5, 7), (2, 7))
    )
    assert (stacked.passes, stacked.light, flat.passes) == (1, 2 * 5 * 10, 0)


def test_a_gelu_in_five_nodes_is_one_pass_of_three_exponentials():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("Div", ["h", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["half", "a"], ["m"]),
        helper.make_node("Mul", ["h", "m"], ["y"]),
    ]
    constants = {"w": (7, 10), "root": (), "one": (), "half": ()}
    (operator,) = operators_of(graph(nodes, constants, {"x": ("batch", 7)}), 4)
    assert (operator.detail.passes, operator.detail.light, operator.detail.heavy) == (1, 0, 3 * 40)


def test_a_normalisation_computes_every_element_and_a_pooling_none():
    norm = helper.make_node("Softmax", ["x"], ["y"])
    pool = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    heavy = [operators_of(graph([node], {}, {"x": (2, 3, 4, 4)}), 2)[0].detail.heavy for node in (norm, pool)]
    assert heavy == [96, 0]


def test_a_gathered_table_is_read_where_it_is_looked_up():
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    model = graph([node], {"table": (1000, 8)}, {"x": (4,)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    (operator,) = operators_of(model, 4)
    assert operator.detail.weights <= operator.elements / 2 == 4 * 8


def told(operator):
    """What an operator says about how it is computed."""
    return operator.kind, *(getattr(operator.detail, key) for key in ("form", "stacks", "passes", "light", "heavy"))


@pytest.mark.parametrize("name", ["separable", "grouped", "normalised"])
def test_the_traced_model_costs_as_much_as_its_exported_file(name, tmp_path):
    model, example = make(name)
    exported = operators_of(export_onnx(model, example, tmp_path / "model.onnx", metadata={}), batch=4)
    traced = dissect(model, example).structure.operators({})
    forms = [[(one.detail.form, one.detail.stacks) for one in found if one.detail.form] for found in (traced, exported)]
    assert forms[0] == forms[1]
    # Exporters write some layers as several nodes, such as a group norm, and some nodes cost nothing once exported.
    costs = [predict(found, calibrated_board(), "fp32", 1).latency_ms for found in (traced, exported)]
    assert costs[0] == pytest.approx(costs[1], rel=0.1)


def test_a_traced_transposed_convolution_is_computed_like_its_exported_file(tmp_path):
    import torch
    from torch import nn

    model, example = nn.Sequential(nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU()), (torch.randn(4, 6, 5, 5),)
    exported = operators_of(export_onnx(model, example, tmp_path / "model.onnx", metadata={}), batch=4)
    traced = dissect(model, example).structure.operators({})
    assert [told(operator) for operator in traced] == [told(operator) for operator in exported]
    assert traced[0].detail.form == "conv1d"


def test_a_traced_perceptron_over_tokens_is_computed_like_its_exported_file(tmp_path):
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6), nn.SiLU(), nn.LayerNorm(6), nn.Softmax(-1))
    example = (torch.randn(4, 5, 6),)
    exported = operators_of(export_onnx(model, example, tmp_path / "model.onnx", metadata={}), batch=4)
    traced = dissect(model, example).structure.operators({})
    assert [told(operator) for operator in traced] == [told(operator) for operator in exported]
    assert traced[0].detail.light == 4 * 5 * 12


def test_shapes_that_cannot_be_inferred_are_those_that_the_exporter_wrote(tmp_path):
    import torch
    from torch import nn

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.layers(x)[0].mean(1))

    file = export_onnx(Last().eval(), (torch.randn(4, 5, 6),), tmp_path / "model.onnx", metadata={})
    head = operators_of(file, batch=7)[-1]
    assert (head.kind, head.rows, head.columns, head.depth) == ("contract", 7, 3, 16)
