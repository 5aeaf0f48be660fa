"""Kernels: small graphs that are measured, in families that differ in their sizes alone.

Of a family, each kernel is taken as far as possible from those that were taken before (farthest-point sampling [1]_),
so that few of them cover the whole range.

References
----------
.. [1] T. Gonzalez: Clustering to minimize the maximum intercluster distance. Theoretical Computer Science 38, 1985.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from edgelean.calibration.graph import Sketch
from edgelean.target.candidate import Feeds

if TYPE_CHECKING:
    import onnx

LARGEST_RESULT = 4096
"""A result with more elements is reduced to its corner, so that handing it out is not part of the kernel."""

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Kernel:
    """A small graph that is measured.

    Attributes
    ----------
    family
        What it is for.
    sizes
        What tells it apart from others of its family, all above 0.
    effort
        About how many floating point operations it has; one element of a pointwise operator counts as some.
    build
        Adds its operators to a sketch and returns the name of the result.
    """

    family: str
    sizes: Sizes
    effort: float
    build: Callable[..., str]

    @property
    def name(self) -> str:
        """The family and the sizes."""
        return " ".join((self.family, *(f"{name} {size}" for name, size in self.sizes.items())))

    def graph(self) -> tuple[onnx.ModelProto, Feeds]:
        """Return the graph, whose result is small, and numbers for its inputs."""
        sketch = Sketch()
        result = self.build(sketch, **self.sizes)
        return sketch.finished(sketch.corner(result) if math.prod(sketch.shapes[result]) > LARGEST_RESULT else result)


@dataclass(frozen=True)
class Family:
    """Kernels of one kind: the sizes that are combined, what they cost, and how many are taken."""

    name: str
    count: int
    build: Callable[..., str]
    effort: Callable[..., float]
    grid: Mapping[str, tuple[int, ...]]

    def kernels(self) -> list[Kernel]:
        """Return a kernel for every combination of sizes."""
        combined = (dict(zip(self.grid, sizes, strict=True)) for sizes in product(*self.grid.values()))
        return [Kernel(self.name, sizes, self.effort(**sizes), self.build) for sizes in combined]


def spread(kernels: Sequence[Kernel], count: int) -> list[Kernel]:
    """Return up to ``count`` of the kernels, far from each other in the logarithms of their sizes.

    The first one is the one with the most effort; ties go to the first in line.
    """
    if not kernels:
        return []
    places = [[math.log2(size) for size in kernel.sizes.values()] for kernel in kernels]
    at = max(range(len(kernels)), key=lambda i: kernels[i].effort)
    gaps = [math.inf] * len(kernels)
    chosen: list[Kernel] = []
    while len(chosen) < min(count, len(kernels)):
        chosen.append(kernels[at])
        gaps = [min(gap, math.dist(place, places[at])) for gap, place in zip(gaps, places, strict=True)]
        at = max(range(len(kernels)), key=gaps.__getitem__)
    return chosen
