"""ONNX files made by hand, whose outputs numpy computes independently."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = (6, 8, 4)


def weights(seed=0):
    """Weights and biases of a two-layer perceptron from 6 features to 4 classes."""
    random = np.random.default_rng(seed)
    inner, outer = (random.normal(size=shape).astype(np.float32) for shape in (SIZES[:2], SIZES[1:]))
    biases = [random.normal(size=size).astype(np.float32) for size in SIZES[1:]]
    return {"w1": inner, "b1": biases[0], "w2": outer, "b2": biases[1]}


def samples(count=23, seed=1):
    return np.random.default_rng(seed).normal(size=(count, SIZES[0])).astype(np.float32)


def expected(values, x):
    """What the perceptron gives for ``x [n, 6]``, in float64."""
    value = {name: array.astype(np.float64) for name, array in values.items()}
    return np.maximum(x @ value["w1"] + value["b1"], 0) @ value["w2"] + value["b2"]


def perceptron():
    return [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["inner"], name="first"),
        helper.make_node("Relu", ["inner"], ["active"], name="relu"),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["output"], name="second"),
    ]


def save(path, nodes, constants, sizes=(SIZES[0], SIZES[-1]), batch="batch", metadata=()):
    """Write a file with one input ``[batch, sizes[0]]`` and one output ``[batch, sizes[1]]``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, sizes[0]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, sizes[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return Path(path)


def save_perceptron(path, values=None, batch="batch"):
    return save(path, perceptron(), weights() if values is None else values, batch=batch)
