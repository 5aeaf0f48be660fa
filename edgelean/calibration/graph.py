"""Small ONNX graphs, written layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelean.target.candidate import Feeds

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 9


class Sketch:
    """A graph in the making; every method adds a layer and returns the name of its result.

    Weights are random and small enough that signals neither vanish nor overflow; what they are changes no timing.

    Parameters
    ----------
    seed
        Of the weights.

    Attributes
    ----------
    shapes
        The shape of every tensor so far, by its name.
    """

    def __init__(self, seed: int = 0) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
        self._inputs: list[str] = []
        self._random = np.random.default_rng(seed)

    def input(self, *shape: int) -> str:
        """Add an input of the graph."""
        name = f"x{len(self._inputs)}"
        self._inputs.append(name)
        self.shapes[name] = shape
        return name

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """Add a constant tensor of numbers around 0 with a variance of 1 / ``fan_in``."""
        return self._constant(self._numbers(shape) * np.float32(math.sqrt(12.0 / fan_in)))

    def node(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> str:
        """Add any operator whose only result has this shape."""
        from onnx import helper

        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        self.shapes[name] = tuple(shape)
        return name

    def conv(self, x: str, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> str:
        """Add a convolution with a bias over all dimensions behind the channels, padded to keep their size."""
        batch, entering, *space = self.shapes[x]
        per_group = entering // groups
        taps = [kernel] * len(space)
        weight = self.weight(channels, per_group, *taps, fan_in=per_group * math.prod(taps))
        bias = self.weight(channels)
        shape = (batch, channels, *((size - 1) // stride + 1 for size in space))
        pads = [(kernel - 1) // 2] * len(space) + [kernel // 2] * len(space)
        strides = [stride] * len(space)
        return self.node("Conv", [x, weight, bias], shape, group=groups, pads=pads, strides=strides)

    def dense(self, x: str, columns: int) -> str:
        """Add a linear layer with a bias over the last dimension: Gemm in two dimensions, else MatMul and Add."""
        *rows, depth = self.shapes[x]
        weight, bias = self.weight(depth, columns, fan_in=depth), self.weight(columns)
        shape = (*rows, columns)
        if len(rows) == 1:
            return self.node("Gemm", [x, weight, bias], shape)
        return self.node("Add", [self.node("MatMul", [x, weight], shape), bias], shape)

    def product(self, a: str, b: str) -> str:
        """Add the matrix product of two results."""
        return self.node("MatMul", [a, b], (*self.shapes[a][:-1], self.shapes[b][-1]))

    def same(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator whose result has the shape of its first input."""
        return self.node(kind, inputs, self.shapes[inputs[0]], **attributes)

    def silu(self, x: str) -> str:
        """Add ``x * sigmoid(x)``, written as exporters do."""
        return self.same("Mul", x, self.same("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """Add the exact GELU, written as exporters do for this opset."""
        root, one, half = (self._constant(np.array(v, np.float32)) for v in (math.sqrt(2.0), 1.0, 0.5))
        erf = self.same("Erf", self.same("Div", x, root))
        return self.same("Mul", x, self.same("Mul", self.same("Add", erf, one), half))

    def norm(self, x: str) -> str:
        """Add a layer norm over the last dimension."""
        width = self.shapes[x][-1]
        return self.same("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1)

    def batch_norm(self, x: str) -> str:
        """Add a batch norm with fixed statistics."""
        width = self.shapes[x][1]
        variance = self._constant(np.ones(width, np.float32))
        return self.same("BatchNormalization", x, *(self.weight(width) for _ in range(3)), variance)

    def pool(self, x: str, kind: str = "MaxPool", kernel: int = 2, stride: int = 2) -> str:
        """Add a pooling over all dimensions behind the channels."""
        batch, channels, *space = self.shapes[x]
        shape = (batch, channels, *((size - kernel) // stride + 1 for size in space))
        return self.node(kind, [x], shape, kernel_shape=[kernel] * len(space), strides=[stride] * len(space))

    def global_pool(self, x: str) -> str:
        """Add the mean over all dimensions behind the channels, as ``[batch, channels]``."""
        batch, channels, *space = self.shapes[x]
        mean = self.node("GlobalAveragePool", [x], (batch, channels, *([1] * len(space))))
        return self.node("Flatten", [mean], (batch, channels), axis=1)

    def transpose(self, x: str, *order: int) -> str:
        """Add a permutation of the dimensions."""
        return self.node("Transpose", [x], [self.shapes[x][i] for i in order], perm=list(order))

    def reshape(self, x: str, *shape: int) -> str:
        """Add another view of the same elements."""
        return self.node("Reshape", [x, self._constant(np.array(shape, np.int64))], shape)

    def concat(self, axis: int, *parts: str) -> str:
        """Add the parts side by side."""
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.node("Concat", parts, shape, axis=axis)

    def attention(self, x: str, heads: int) -> str:
        """Add self-attention over ``[batch, length, width]`` with its four projections."""
        batch, length, width = self.shapes[x]
        split = (batch, length, heads, width // heads)
        query, key, value = (self.reshape(self.dense(x, width), *split) for _ in range(3))
        scores = self.product(self.transpose(query, 0, 2, 1, 3), self.transpose(key, 0, 2, 3, 1))
        scale = self._constant(np.array((width // heads) ** -0.5, np.float32))
        weights = self.same("Softmax", self.same("Mul", scores, scale), axis=-1)
        mixed = self.product(weights, self.transpose(value, 0, 2, 1, 3))
        return self.dense(self.reshape(self.transpose(mixed, 0, 2, 1, 3), batch, length, width), width)

    def mean(self, x: str, *axes: int) -> str:
        """Add the mean over some dimensions, which go."""
        kept = [size for axis, size in enumerate(self.shapes[x]) if axis not in axes]
        return self.node("ReduceMean", [x, self._constant(np.array(axes, np.int64))], kept, keepdims=0)

    def pad(self, x: str) -> str:
        """Add a border of zeros of one element around an image, and cut it off again at the end of both dimensions."""
        batch, channels, *space = self.shapes[x]
        pads = self._constant(np.array([0, 0, 1, 1, 0, 0, -1, -1], np.int64))
        return self.node("Pad", [x, pads], (batch, channels, *space))

    def first_half(self, x: str) -> str:
        """Add the first half of the channels."""
        batch, channels, *space = self.shapes[x]
        begin, end, axis = (self._constant(np.array([value], np.int64)) for value in (0, channels // 2, 1))
        return self.node("Slice", [x, begin, end, axis], (batch, channels // 2, *space))

    def enlarge(self, x: str) -> str:
        """Add an image of twice the size, each pixel four times."""
        batch, channels, *space = self.shapes[x]
        scales = self._constant(np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", [x, "", scales], (batch, channels, *(2 * size for size in space)), **modes)

    def corner(self, x: str) -> str:
        """Add the first element along every dimension, so that nearly nothing leaves the runtime."""
        rank = len(self.shapes[x])
        begin, end = (self._constant(np.full(rank, value, np.int64)) for value in (0, 1))
        return self.node("Slice", [x, begin, end], [1] * rank)

    def finished(self, result: str) -> tuple[onnx.ModelProto, Feeds]:
        """Return the graph that ends in ``result``, and numbers for its inputs."""
        from onnx import TensorProto, helper, numpy_helper

        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in names]
            for names in (self._inputs, [result])
        )
        weights = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, "sketch", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return model, {name: self._numbers(self.shapes[name]) for name in self._inputs}

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
        return self._random.random(shape, np.float32) - np.float32(0.5)

    def _constant(self, values: np.ndarray[Any, np.dtype[Any]]) -> str:
        name = f"w{len(self._weights)}"
        self._weights[name] = values
        self.shapes[name] = values.shape
        return name
