"""The designed kernels, which together show what every kind of operator costs at every size that matters.

Convolutions stand between a stem and a pooling, as they do in a network: runtimes change the layout of tensors at the
ends of such a chain, and that should not be mistaken for a cost of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable

from edgelean.calibration.graph import Sketch
from edgelean.calibration.kernels import Family, Kernel, spread

IMAGE, CHAIN = 4, 3
"""Channels that a stem reads, and how often a convolution is repeated."""


def designed(reach: float, share: float = 1.0) -> tuple[Kernel, ...]:
    """Return the kernels for a board.

    Parameters
    ----------
    reach
        Floating point operations that the largest kernel may have.
    share
        Of the kernels of each family.
    """
    chosen: list[Kernel] = []
    for family in FAMILIES:
        possible = [kernel for kernel in family.kernels() if kernel.effort <= reach]
        chosen.extend(spread(possible, max(2, round(share * family.count))))
    return tuple(chosen)


def _convolutions(s: Sketch, kernel: int, width: int, side: int, batch: int) -> str:
    x = s.conv(s.input(batch, IMAGE, side, side), width, 1)
    for _ in range(CHAIN):
        x = s.same("Relu", s.conv(x, width, kernel))
    return s.global_pool(x)


def _bottlenecks(s: Sketch, kernel: int, narrow: int, wide: int, side: int) -> str:
    x = s.conv(s.input(1, IMAGE, side, side), narrow, 1)
    for width in (wide, narrow, wide):
        x = s.same("Relu", s.batch_norm(s.conv(x, width, kernel)))
    return s.global_pool(x)


def _halving(s: Sketch, kernel: int, width: int, side: int) -> str:
    x = s.same("Relu", s.conv(s.input(1, IMAGE, side, side), width, kernel, 2))
    return s.global_pool(s.same("Relu", s.conv(x, width, kernel, 2)))


def _depthwise(s: Sketch, kernel: int, width: int, side: int, batch: int) -> str:
    x = s.conv(s.input(batch, IMAGE, side, side), width, 1)
    for _ in range(CHAIN):
        x = s.same("Relu", s.conv(x, width, kernel, 1, width))
    return s.global_pool(x)


def _grouped(s: Sketch, groups: int, width: int, side: int) -> str:
    x = s.conv(s.input(1, IMAGE, side, side), width, 1)
    for _ in range(CHAIN):
        x = s.same("Relu", s.conv(x, width, 3, 1, groups))
    return s.global_pool(x)


def _lines(s: Sketch, kernel: int, width: int, length: int) -> str:
    x = s.conv(s.input(1, IMAGE, length), width, 1)
    for _ in range(CHAIN):
        x = s.same("Relu", s.conv(x, width, kernel))
    return s.global_pool(x)


def _deep_lines(s: Sketch, kernel: int, width: int, length: int) -> str:
    x = s.conv(s.input(1, IMAGE, length), width, 1)
    return s.global_pool(s.conv(s.same("Relu", s.conv(x, width, kernel, 1, width)), width, kernel, 1, width))


def _dense(s: Sketch, rows: int, depth: int, columns: int) -> str:
    return s.dense(s.same("Relu", s.dense(s.input(rows, depth), columns)), depth)


def _tokens(s: Sketch, length: int, width: int, wide: int) -> str:
    x = s.input(1, length, width)
    for _ in range(2):
        x = s.same("Add", x, s.dense(s.gelu(s.dense(s.norm(x), wide)), width))
    return x


def _products(s: Sketch, heads: int, length: int, width: int) -> str:
    x, keys = s.input(1, heads, length, width), s.input(1, heads, width, length)
    return s.product(s.product(s.product(s.product(x, keys), x), keys), x)


def _heads(s: Sketch, heads: int, length: int, width: int) -> str:
    return s.attention(s.input(1, length, heads * width), heads)


def _chain(kind: str, **attributes: int) -> Callable[..., str]:
    def build(s: Sketch, length: int) -> str:
        x = s.input(1, length)
        for _ in range(6):
            x = s.same(kind, x, **attributes)
        return x

    return build


def _additions(s: Sketch, length: int) -> str:
    x, other = s.input(1, length), s.input(1, length)
    for kind in ("Add", "Mul", "Add", "Mul"):
        x = s.same(kind, x, other)
    return x


def _sigmoids(s: Sketch, length: int) -> str:
    return s.silu(s.silu(s.same("Sigmoid", s.same("Tanh", s.input(1, length)))))


def _gelus(s: Sketch, length: int) -> str:
    return s.gelu(s.gelu(s.gelu(s.input(1, length))))


def _norms(s: Sketch, length: int, width: int) -> str:
    return s.norm(s.norm(s.norm(s.input(1, length, width))))


def _softmaxes(s: Sketch, length: int, width: int) -> str:
    x = s.input(1, length, width)
    for _ in range(3):
        x = s.same("Softmax", x, axis=-1)
    return x


def _pools(s: Sketch, width: int, side: int) -> str:
    return s.global_pool(s.pool(s.pool(s.input(1, width, side, side), kernel=3, stride=1), "AveragePool"))


def _convolved_pools(s: Sketch, width: int, side: int) -> str:
    x = s.conv(s.input(1, IMAGE, side, side), width, 3)
    return s.global_pool(s.conv(s.pool(x), width, 1))


def _means(s: Sketch, width: int, side: int) -> str:
    return s.mean(s.input(1, width, side, side), 2, 3)


def _joins(s: Sketch, width: int, side: int) -> str:
    x = s.input(1, width, side, side)
    return s.concat(1, s.concat(1, x, x), s.pad(x))


def _cuts(s: Sketch, width: int, side: int) -> str:
    x = s.input(1, width, side, side)
    return s.first_half(s.concat(1, s.first_half(x), x))


def _enlarged(s: Sketch, width: int, side: int) -> str:
    return s.conv(s.enlarge(s.conv(s.input(1, IMAGE, side, side), width, 1)), 4, 1)


def _turned(s: Sketch, width: int, side: int) -> str:
    x = s.transpose(s.input(1, width, side, side), 0, 2, 3, 1)
    return s.transpose(s.dense(x, 16), 0, 3, 1, 2)


def _starts(s: Sketch, operators: int) -> str:
    x = s.input(1, 16)
    for _ in range(operators):
        x = s.same("Relu", s.dense(x, 16))
    return x


def _image_starts(s: Sketch, operators: int) -> str:
    x = s.input(1, IMAGE, 4, 4)
    for _ in range(operators):
        x = s.same("Relu", s.conv(x, 16, 1))
    return s.global_pool(x)


_WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SIDES = (4, 8, 14, 28, 56)
_LENGTHS = (64, 1 << 12, 1 << 15, 1 << 17, 1 << 19, 1 << 21)
_TABLE = {"length": (16, 64, 256, 1024), "width": (32, 64, 128, 256, 512)}
_STARTS = {"operators": (1, 2, 4, 8, 16)}
_IMAGES = {"width": (16, 32, 64, 128, 256), "side": (4, 8, 16, 32, 64)}


def _of_image(width: int, side: int) -> float:
    return 50.0 * width * side * side


def _of_table(length: int, width: int) -> float:
    return 50.0 * length * width


FAMILIES = (
    Family(
        "convolution",
        30,
        _convolutions,
        lambda kernel, width, side, batch: CHAIN * 2.0 * batch * (kernel * width * side) ** 2,
        {"kernel": (1, 3), "width": _WIDTHS, "side": _SIDES, "batch": (1, 8)},
    ),
    Family(
        "wide convolution",
        3,
        _convolutions,
        lambda kernel, width, side, batch: CHAIN * 2.0 * batch * (kernel * width * side) ** 2,
        {"kernel": (5, 7), "width": _WIDTHS[1:], "side": (14, 28, 56), "batch": (1,)},
    ),
    Family(
        "convolution between widths",
        12,
        _bottlenecks,
        lambda kernel, narrow, wide, side: 6.0 * narrow * wide * (kernel * side) ** 2,
        {"kernel": (1, 3), "narrow": (16, 20, 32, 64, 128), "wide": (50, 64, 72, 100, 256, 384), "side": _SIDES},
    ),
    Family(
        "halving convolution",
        5,
        _halving,
        lambda kernel, width, side: (kernel * side * width) ** 2 / 8.0,
        {"kernel": (3, 7), "width": (16, 32, 64, 128), "side": (8, 16, 32, 64, 128)},
    ),
    Family(
        "depthwise convolution",
        12,
        _depthwise,
        lambda kernel, width, side, batch: 20.0 * batch * width * (kernel * side) ** 2,
        {"kernel": (3, 5, 7), "width": _WIDTHS, "side": _SIDES, "batch": (1, 8)},
    ),
    Family(
        "grouped convolution",
        5,
        _grouped,
        lambda groups, width, side: 60.0 * (width * side) ** 2 / groups,
        {"groups": (2, 4, 8), "width": (64, 128, 256), "side": (7, 14, 28, 56)},
    ),
    Family(
        "convolution of a line",
        10,
        _lines,
        lambda kernel, width, length: 6.0 * width * width * kernel * length,
        {"kernel": (3, 9), "width": _WIDTHS[:9], "length": (16, 64, 256, 1024, 4096)},
    ),
    Family(
        "depthwise convolution of a line",
        3,
        _deep_lines,
        lambda kernel, width, length: 20.0 * width * kernel * length,
        {"kernel": (3, 9), "width": (16, 64, 256), "length": (32, 256, 2048)},
    ),
    Family(
        "dense",
        20,
        _dense,
        lambda rows, depth, columns: 4.0 * rows * depth * columns,
        {
            "rows": (1, 8, 64, 256),
            "depth": (16, 64, 100, 128, 256, 512, 1024, 2048),
            "columns": (10, 64, 100, 128, 256, 512, 1024, 4096),
        },
    ),
    Family(
        "weights beyond the cache",
        4,
        _dense,
        lambda rows, depth, columns: 4.0 * rows * depth * columns,
        {"rows": (1,), "depth": (1024, 2048), "columns": (1024, 2048, 4096)},
    ),
    Family(
        "dense over tokens",
        8,
        _tokens,
        lambda length, width, wide: 8.0 * length * width * wide,
        {"length": (16, 64, 196, 512), "width": (32, 64, 128, 192, 384), "wide": (64, 128, 256, 512, 768)},
    ),
    Family(
        "stacked products",
        8,
        _products,
        lambda heads, length, width: 8.0 * heads * length * length * width,
        {"heads": (1, 2, 4, 8), "length": (16, 32, 64, 128, 256), "width": (16, 32, 64)},
    ),
    Family(
        "attention",
        7,
        _heads,
        lambda heads, length, width: 8.0 * length * heads * width * (heads * width + length),
        {"heads": (2, 4, 8), "length": (16, 64, 128, 256), "width": (8, 16, 32, 64)},
    ),
    Family("clamps", 4, _chain("Relu"), lambda length: 30.0 * length, {"length": _LENGTHS}),
    Family("sums and products", 4, _additions, lambda length: 30.0 * length, {"length": _LENGTHS}),
    Family("sigmoids", 4, _sigmoids, lambda length: 50.0 * length, {"length": _LENGTHS}),
    Family("GELUs", 4, _gelus, lambda length: 50.0 * length, {"length": _LENGTHS}),
    Family("layer norms", 4, _norms, _of_table, _TABLE),
    Family("softmaxes", 4, _softmaxes, _of_table, _TABLE),
    Family("poolings", 5, _pools, _of_image, _IMAGES),
    Family("poolings of convolutions", 6, _convolved_pools, lambda width, side: 90.0 * width * side * side, _IMAGES),
    Family("means", 3, _means, _of_image, _IMAGES),
    Family("joins", 4, _joins, _of_image, _IMAGES),
    Family("cuts", 4, _cuts, _of_image, _IMAGES),
    Family("enlargements", 4, _enlarged, _of_image, _IMAGES),
    Family("transpositions", 5, _turned, _of_image, _IMAGES),
    Family("small products", 4, _starts, lambda operators: 512.0 * operators, _STARTS),
    Family(
        "small convolutions", 4, _image_starts, lambda operators: 8192.0 * operators, {"operators": (1, 2, 4, 8, 16)}
    ),
)
"""What a calibration measures; the counts add up to less than two minutes on one core."""
