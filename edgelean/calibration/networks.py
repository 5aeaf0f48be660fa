"""Small networks on which a calibration is tried: none of their kernels was fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelean.calibration.graph import Sketch
from edgelean.target.candidate import Feeds

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Network:
    """A network of a kind that people put on boards; its name is what it is."""

    name: str
    build: Callable[[Sketch, int], str]
    batch: int

    def graph(self) -> tuple[onnx.ModelProto, Feeds]:
        """Return the graph, and numbers for its input."""
        sketch = Sketch()
        return sketch.finished(self.build(sketch, self.batch))


def networks(batch: int = 1) -> tuple[Network, ...]:
    """Return the networks for a batch."""
    builders = {
        "plain convolutional network": _plain,
        "residual network": _residual,
        "inverted residual network": _inverted,
        "separable keyword spotter": _keywords,
        "one-dimensional audio network": _audio,
        "segmentation network": _segmentation,
        "multilayer perceptron": _perceptron,
        "transformer": _transformer,
    }
    return tuple(Network(name, build, batch) for name, build in builders.items())


def _block(s: Sketch, x: str, channels: int, stride: int = 1) -> str:
    return s.same("Relu", s.batch_norm(s.conv(x, channels, 3, stride)))


def _plain(s: Sketch, batch: int) -> str:
    x = s.input(batch, 3, 32, 32)
    for channels in (32, 32, 64, 128):
        x = s.pool(_block(s, x, channels))
    return s.dense(s.global_pool(x), 10)


def _residual(s: Sketch, batch: int) -> str:
    x = _block(s, s.input(batch, 3, 32, 32), 24)
    for channels, stride in ((24, 1), (24, 1), (48, 2), (48, 1), (96, 2), (96, 1)):
        inner = s.batch_norm(s.conv(_block(s, x, channels, stride), channels, 3))
        shortcut = x if stride == 1 else s.batch_norm(s.conv(x, channels, 1, stride))
        x = s.same("Relu", s.same("Add", inner, shortcut))
    return s.dense(s.global_pool(x), 10)


def _inverted(s: Sketch, batch: int) -> str:
    x = _block(s, s.input(batch, 3, 64, 64), 16, 2)
    for channels, stride in ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (80, 2)):
        wide = 4 * s.shapes[x][1]
        inner = s.same("Relu", s.batch_norm(s.conv(x, wide, 1)))
        inner = s.same("Relu", s.batch_norm(s.conv(inner, wide, 3, stride, wide)))
        inner = s.batch_norm(s.conv(inner, channels, 1))
        x = s.same("Add", inner, x) if s.shapes[inner] == s.shapes[x] else inner
    return s.dense(s.global_pool(x), 100)


def _keywords(s: Sketch, batch: int) -> str:
    x = _block(s, s.input(batch, 1, 48, 10), 64, 2)
    for _ in range(4):
        x = s.same("Relu", s.batch_norm(s.conv(x, 64, 3, 1, 64)))
        x = s.same("Relu", s.batch_norm(s.conv(x, 64, 1)))
    return s.dense(s.global_pool(x), 12)


def _audio(s: Sketch, batch: int) -> str:
    x = s.input(batch, 1, 2048)
    for channels in (16, 32, 64, 64):
        x = s.pool(s.same("Relu", s.batch_norm(s.conv(x, channels, 9))), kernel=4, stride=4)
    return s.dense(s.global_pool(x), 12)


def _segmentation(s: Sketch, batch: int) -> str:
    fine = _block(s, _block(s, s.input(batch, 3, 32, 32), 16), 16)
    coarse = _block(s, _block(s, s.pool(fine), 32), 32)
    x = _block(s, s.concat(1, s.enlarge(coarse), fine), 16)
    return s.conv(x, 2, 1)


def _perceptron(s: Sketch, batch: int) -> str:
    x = s.input(batch, 256)
    for width in (512, 384, 128):
        x = s.same("Relu", s.dense(x, width))
    return s.dense(x, 10)


def _transformer(s: Sketch, batch: int) -> str:
    x = s.dense(s.input(batch, 96, 16), 96)
    for _ in range(2):
        x = s.same("Add", x, s.attention(s.norm(x), 4))
        x = s.same("Add", x, s.dense(s.gelu(s.dense(s.norm(x), 256)), 96))
    return s.dense(s.mean(s.norm(x), 1), 10)
