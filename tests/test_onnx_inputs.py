"""The inputs of any ONNX file: their shapes, what is fed, and which files cannot be run at all."""

import numpy as np
import onnx
import pytest
import small_onnx
from onnx import TensorProto, helper, numpy_helper

from edgelean.errors import InputError, MissingError
from edgelean.exporter import to_fp16
from edgelean.target.onnx_inputs import feeds_from, fix_shapes, is_half, random_feeds, read_model


@pytest.fixture
def perceptron(tmp_path):
    return small_onnx.save_perceptron(tmp_path / "perceptron.onnx")


def save(path, inputs, nodes=None, constants=(), **more):
    """Write a graph with these inputs, each ``(name, type, shape)``, that only passes the first one on."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", [inputs[0][0]], ["out"])],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info("out", inputs[0][1], None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, **more)
    onnx.save(model, path)
    return path


# -- the inputs of any file --------------------------------------------------------------------------------------------


def shapes_of(path, batch=4, **shapes):
    model = read_model(path)
    fix_shapes(model, batch, shapes)
    return {name: feed.shape for name, feed in random_feeds(model).items()}


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("inputs", "given", "expected"),
    [
        ([("x", FLOAT, ["batch", 3])], {}, {"x": (4, 3)}),
        ([("x", FLOAT, ["batch", 3]), ("state", FLOAT, [2, "batch", 5])], {}, {"x": (4, 3), "state": (2, 4, 5)}),
        ([("x", FLOAT, ["batch", "c", "h"])], {"x": (3, 8)}, {"x": (4, 3, 8)}),
        ([("x", FLOAT, ["batch", "c", "h"])], {"x": (4, 3, 8)}, {"x": (4, 3, 8)}),
        ([("x", FLOAT, [4, 3])], {}, {"x": (4, 3)}),
        ([("x", FLOAT, [None, 3])], {}, {"x": (4, 3)}),
        ([("x", FLOAT, ["batch"]), ("rate", INT64, [])], {}, {"x": (4,), "rate": ()}),
    ],
)
def test_open_dimensions_get_the_batch_and_the_given_shape(tmp_path, inputs, given, expected):
    assert shapes_of(save(tmp_path / "model.onnx", inputs), **given) == expected


@pytest.mark.parametrize(
    ("inputs", "given", "complaint"),
    [
        ([("x", FLOAT, ["batch", "c", 8])], {}, r"open dimensions \(4xcx8\).*--shape x="),
        ([("x", FLOAT, ["batch", "c"])], {"y": (3,)}, "no such input, it has x"),
        ([("x", FLOAT, ["batch", "c"])], {"x": (4, 3, 8)}, "has 2 dimensions"),
        ([("x", FLOAT, ["batch", 3])], {"x": (5,)}, "dimension 1 is 3 .* 5 is given"),
        ([("x", FLOAT, [1, 3])], {}, "batch of 1, and 4 is asked for: use --batch 1"),
        ([("x", FLOAT, None)], {}, "no shape"),
    ],
)
def test_shapes_that_do_not_fit_the_file_are_refused(tmp_path, inputs, given, complaint):
    with pytest.raises(InputError, match=complaint):
        shapes_of(save(tmp_path / "model.onnx", inputs), **given)


def test_random_inputs_are_of_the_type_of_the_file_and_of_a_size_that_it_takes(tmp_path):
    table = numpy_helper.from_array(np.zeros((100, 3), np.float32), "table")
    inputs = [
        ("x", FLOAT, ["n", 50]),
        ("half", TensorProto.FLOAT16, ["n", 50]),
        ("flag", TensorProto.BOOL, ["n", 50]),
        ("token", INT64, ["n", 50]),
        ("number", TensorProto.INT32, ["n", 50]),
    ]
    nodes = [helper.make_node("Identity", ["x"], ["out"]), helper.make_node("Gather", ["table", "token"], ["rows"])]
    model = read_model(save(tmp_path / "model.onnx", inputs, nodes, [table]))
    fix_shapes(model, 4, {})
    feeds = random_feeds(model)
    kinds = {"x": "float32", "half": "float16", "flag": "bool", "token": "int64", "number": "int32"}
    assert {name: str(feed.dtype) for name, feed in feeds.items()} == kinds
    assert 0.5 < feeds["x"].std() < 1.5
    assert feeds["token"].min() >= 0
    assert 2 < feeds["token"].max() < 100, "rows of the table that it indexes"
    assert set(np.unique(feeds["number"])) == {0, 1}
    assert set(np.unique(feeds["flag"])) == {False, True}


def test_input_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x is of the type STRING"):
        shapes_of(save(tmp_path / "model.onnx", [("x", TensorProto.STRING, ["n"])]))


def test_real_inputs_are_repeated_or_shortened_to_the_batch(tmp_path, perceptron):
    x = small_onnx.samples(3)
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    feeds = feeds_from(tmp_path / "x.npy", read_model(perceptron), 5)
    assert feeds["input"].dtype == np.float32
    np.testing.assert_array_equal(feeds["input"], np.concatenate([x, x[:2]]))
    np.savez(tmp_path / "x.npz", input=x, other=x)
    assert feeds_from(tmp_path / "x.npz", read_model(perceptron), 2)["input"].tolist() == x[:2].tolist()


def test_real_inputs_that_are_no_batch_are_taken_as_they_are(tmp_path):
    file = save(tmp_path / "model.onnx", [("x", FLOAT, ["batch", 3]), ("state", FLOAT, [2, "batch", 5])])
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 3), np.float32), state=np.zeros((2, 4, 5), np.float32))
    feeds = feeds_from(tmp_path / "in.npz", read_model(file), 4)
    assert {name: feed.shape for name, feed in feeds.items()} == {"x": (4, 3), "state": (2, 4, 5)}


def save_arrays(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"not an array"), "is not a .npy or .npz file"),
        (lambda path: save_arrays(path, other=np.zeros(3)), "has other, and the model also wants input"),
        (lambda path: save_arrays(path, input=np.zeros((2, 7), np.float32)), "dimension 1 is 6 .* 7 is given"),
        (lambda path: save_arrays(path, input=np.array([["a"] * 6])), "holds <U1"),
    ],
)
def test_real_inputs_that_do_not_fit_are_refused(tmp_path, perceptron, write, complaint):
    write(tmp_path / "input")
    with pytest.raises((InputError, MissingError), match=complaint):
        feeds_from(tmp_path / "input", read_model(perceptron), 2)


# -- files that cannot be run ------------------------------------------------------------------------------------------


def write_without_weights(path):
    model = onnx.load(small_onnx.save_perceptron(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no protobuf at all"), "is not an ONNX model"),
        (lambda path: path.write_bytes(b""), "is not an ONNX model"),
        (
            lambda path: save(path, [("x", FLOAT, ["n"])], [helper.make_node("Warp", ["x"], ["out"], domain="mine")]),
            r"neither ONNX's nor onnxruntime's: mine\.Warp",
        ),
        (lambda path: save(path, [("x", FLOAT, ["n"])], [helper.make_node("Warp", ["x"], ["out"])]), "Warp"),
        (write_without_weights, r"its weights are in weights\.bin"),
    ],
)
def test_file_that_cannot_be_run_is_bad_input(tmp_path, write, complaint):
    write(tmp_path / "model.onnx")
    with pytest.raises((InputError, MissingError), match=complaint) as caught:
        read_model(tmp_path / "model.onnx")
    assert caught.value.exit_code == 2


def test_operators_inside_a_branch_are_looked_at_too(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Warp", ["x"], ["inner"], domain="mine")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)]
    file = save(tmp_path / "model.onnx", [("x", FLOAT, ["n"]), ("flag", TensorProto.BOOL, [])], nodes)
    with pytest.raises(InputError, match=r"mine\.Warp"):
        read_model(file)


def test_operators_of_onnxruntime_and_of_the_file_itself_are_fine(tmp_path):
    nodes = [
        helper.make_node("Gelu", ["x"], ["gelu"], domain="com.microsoft"),
        helper.make_node("Twice", ["gelu"], ["out"], domain="local"),
    ]
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    file = save(tmp_path / "model.onnx", [("x", FLOAT, ["n"])], nodes, functions=[twice])
    assert [node.op_type for node in read_model(file).graph.node] == ["Gelu", "Twice"]


def test_half_precision_of_a_file_is_recognised_by_its_weights(tmp_path, perceptron):
    to_fp16(perceptron, tmp_path / "half.onnx")
    assert is_half(read_model(tmp_path / "half.onnx"))
    assert not is_half(read_model(perceptron))
